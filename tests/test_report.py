"""The report of a pruned checkpoint: read back, drawn, written; and a page that a browser shows without complaint."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from safetensors_files import read, tensors, write

import nmflow
from nmflow import Pattern
from nmflow.checkpoint import Report, TensorReport, export_checkpoint, prune_checkpoint
from nmflow.checkpoint import report_plots as plots
from nmflow.checkpoint.report_card import model_card
from nmflow.checkpoint.report_counts import mask_digits
from nmflow.checkpoint.report_file import pattern_of, read_report
from nmflow.checkpoint.report_html import html_page, parse_block, write_reports
from nmflow.checkpoint.report_mask import picture_mask
from nmflow.errors import CheckpointError, InputValueError, MissingLibraryError, SourceNotFoundError

HOSTILE = "<script>alert('x')</script>|`*_$\\frac{$\x1b[31m\u202e\n# é"
"""A name that means something to HTML, Markdown, TeX, a terminal and a log, unless it is escaped."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "src"
    folder.mkdir()
    values = tensors()
    values[f"{HOSTILE}.weight"] = values.pop("encoder.f32.weight")
    write(folder / "model.safetensors", values)
    (folder / f"{HOSTILE.replace('/', '')}.bin").write_text("x")
    return folder


@pytest.fixture(scope="module")
def pruned(source: Path) -> Path:
    dst = source.parent / "dst"
    prune_checkpoint(source, dst, "2:4", include=["lm_head.weight"])
    write_reports(dst)
    return dst


@pytest.fixture
def copied(pruned: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pruned, tmp_path / "dst")


@pytest.mark.parametrize(("asked", "said"), [(True, "Weights before pruning"), (False, "Weights after pruning (")])
def test_a_source_that_was_named_from_another_folder_is_found(copied: Path, asked: bool, said: str) -> None:
    report = json.loads((copied / "nmflow-report.json").read_text())
    report["source"] = "src"
    if not asked:  # as an early nmflow wrote it
        del report["asked"]
    (copied / "nmflow-report.json").write_text(json.dumps(report))
    page, _ = write_reports(copied)
    assert said in page.read_text()


def some(**changes: Any) -> TensorReport:
    values: dict[str, Any] = {"name": "w", "shard": "s", "dtype": "F32", "shape": (8, 8), "layout": None, "dense": 10.0}
    values |= {"kept": 7.0, "rows_only": 8.0, "gap": 0.0, "n_blocks": 4, "n_proven": 4, "seconds": 0.5}
    return TensorReport(**(values | changes))


def report_of(*rows: TensorReport, **changes: Any) -> Report:
    values: dict[str, Any] = {"source": "a/b", "destination": "c/d", "pattern": "2:4", "solver": "dual"}
    values |= {"skipped": (), "copied_files": (), "unpruned_files": (), "seconds": 1.0}
    return Report(tensors=rows, **(values | changes))


def test_a_report_is_read_as_it_was_written(source: Path, tmp_path: Path) -> None:
    for pattern, solver in ((Pattern(2, 4, fill="at-most"), "dual"), (Pattern(row="2:4", col="4:8"), "greedy")):
        dst = tmp_path / solver
        made = prune_checkpoint(source, dst, pattern, solver=solver)
        assert read_report(dst) == made
        assert pattern_of(made) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern(2, 4),
        Pattern(1, 3, fill="at-most"),
        Pattern(4, 8, transposable=False),
        Pattern(4, 8, transposable=False, fill="at-most"),
        Pattern(row="1:2", col="3:4", fill="at-most"),
    ],
    ids=str,
)
def test_a_pattern_is_read_from_its_text(pattern: Pattern) -> None:
    assert pattern_of(report_of(pattern=str(pattern))) == pattern


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tensors": 3}, "tensors must be"),
        ({"tensors": [3]}, "tensors must be"),
        ({"seconds": True}, "seconds must be"),
        ({"seconds": -1}, "seconds must be"),
        ({"source": None}, "source must be"),
        ({"skipped": [{"name": "x"}]}, "reason must be"),
        ({"copied_files": [1]}, "copied_files must be"),
        ({"pattern": "2-4"}, "pattern of a report"),
        ({"pattern": "5:4"}, "n must be"),
    ],
    ids=str,
)
def test_a_broken_report_is_an_error(copied: Path, change: dict[str, Any], what: str) -> None:
    path = copied / "nmflow-report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((CheckpointError, ValueError), match=what):
        write_reports(copied)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("shape", shape) for shape in ([2, -1], [], [5], [2, 0], [1 << 62, 4], [2, 2, 2], 5)),
        ("n_proven", 1 << 60),
        ("seconds", 1.7e308),
        ("dense", "1"),
        ("kept", 1e999),
        ("layout", "x"),
        ("n_blocks", 1.5),
    ],
)
def test_a_broken_row_is_an_error(copied: Path, field: str, value: Any) -> None:
    path = copied / "nmflow-report.json"
    found = json.loads(path.read_text())
    found["tensors"][1][field] = value
    path.write_text(json.dumps(found).replace("Infinity", "1e999"))
    with pytest.raises(CheckpointError, match=f"{field} must be"):
        read_report(copied)


def test_a_row_has_as_few_axes_as_a_tensor(copied: Path) -> None:
    """The product of millions of lengths would take for ever."""
    path = copied / "nmflow-report.json"
    found = json.loads(path.read_text())
    for axes in (64, 65):
        found["tensors"][1] |= {"layout": "conv", "shape": [1] * axes}
        path.write_text(json.dumps(found))
        with pytest.raises(CheckpointError, match="shape must be") if axes > 64 else contextlib.nullcontext():
            read_report(copied)


def test_what_is_not_there_is_said(copied: Path, pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="must exist"):
        read_report(tmp_path / "nothing")
    (copied / "nmflow-report.json").write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        read_report(copied)
    with pytest.raises(InputValueError, match="tensor must be a pruned weight"):
        write_reports(pruned, tensor="encoder.f32.bias")
    for block in ((0, 99), (-1, 0), (0, 0, 0), (0,)):
        with pytest.raises(InputValueError, match="block must"):
            write_reports(pruned, tensor="encoder.f64.weight", block=block)
    with pytest.raises(InputValueError, match="one of 3 matrices"):
        write_reports(pruned, tensor="encoder.experts.up_proj", block=(3, 0, 0))
    for text in ("", "1", "1,2,3,4", "-1,2", "1,x", "٣,1"):
        with pytest.raises(InputValueError, match="block must be a block row"):
            parse_block(text)


def test_a_report_without_a_pruned_weight(copied: Path) -> None:
    path = copied / "nmflow-report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tensors": []}))
    with pytest.raises(InputValueError, match="must have a pruned weight"):
        write_reports(copied)


def test_no_plots_without_matplotlib(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match=r"nmflow\[plot\]"):
        write_reports(pruned)


def test_the_picture_of_a_mask(source: Path, pruned: Path) -> None:
    """The block as it lies in the files; grid cells by the plainest sums."""
    before, after = read(source / "model.safetensors"), read(pruned / "model.safetensors")
    rows = {row.name: row for row in read_report(pruned).tensors}
    for name, block in (
        ("encoder.ragged.weight", (2, 1)),
        ("encoder.bf16.weight", (1, 2)),
        ("encoder.experts.up_proj", (2, 1, 0)),
        ("encoder.conv2d.weight", (0, 1)),
    ):
        picture = picture_mask(pruned, rows[name], (4, 4), source=source, block=block)
        dense, kept = before[name].astype(float), after[name].astype(float)
        if len(block) == 3:
            dense, kept = dense[block[0]], kept[block[0]]
            assert picture.matrix == 2
        if dense.ndim > 2:
            dense, kept = (np.moveaxis(each, 1, -1).reshape(len(each), -1) for each in (dense, kept))
        i, j = block[-2] * 4, block[-1] * 4
        assert picture.corner == (i, j)
        assert picture.from_source
        assert np.array_equal(picture.magnitude, np.abs(dense[i : i + 4, j : j + 4]))
        assert np.array_equal(picture.kept, kept[i : i + 4, j : j + 4] != 0)
        assert picture.cell == (4, 4)
        for (a, b), share in np.ndenumerate(picture.grid):
            part = np.s_[4 * a : 4 * a + 4, 4 * b : 4 * b + 4]
            assert share == pytest.approx(np.abs(kept[part]).sum() / np.abs(dense[part]).sum())


def test_cells_of_a_large_layer_hold_whole_blocks(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((1030, 523)).astype("f4")
    weights[:8, :8] = -0.0  # half of them are kept, with their sign; what is dropped is +0
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "model.safetensors", {"weight": weights})
    made = prune_checkpoint(tmp_path / "src", tmp_path / "dst", "4:8")
    picture = picture_mask(tmp_path / "dst", made.tensors[0], (8, 8), source=tmp_path / "src")
    assert np.count_nonzero(picture.kept) == 32
    assert picture.cell == (24, 16)
    assert picture.grid.shape == (math.ceil(1030 / 24), math.ceil(523 / 16))
    kept = np.abs(read(tmp_path / "dst" / "model.safetensors")["weight"])
    last = picture.grid[-1, -1]
    assert last == pytest.approx(kept[1008:, 512:].sum() / np.abs(weights[1008:, 512:]).sum())


def test_the_source_is_used_only_if_it_is_the_one(source: Path, copied: Path, tmp_path: Path) -> None:
    row = next(row for row in read_report(copied).tensors if row.name == "encoder.f64.weight")
    assert picture_mask(copied, row, (4, 4), source=source).from_source
    other = shutil.copytree(source, tmp_path / "other")
    write(other / "model.safetensors", tensors(seed=1))
    for changed in (other, tmp_path / "nowhere", None):
        picture = picture_mask(copied, row, (4, 4), source=changed)
        assert not picture.from_source
        assert np.count_nonzero(picture.magnitude) == np.count_nonzero(picture.kept) == 8
        assert picture.grid.max() == 1.0
    text = html_page(report_of(row), picture)
    assert "those before are not there" in text


def test_a_report_of_another_checkpoint_is_an_error(copied: Path) -> None:
    write(copied / "model.safetensors", {"weight": np.ones((8, 8), "f4")})
    with pytest.raises(CheckpointError, match="as its report says; prune again"):
        write_reports(copied)


def test_a_report_of_packed_weights_is_that_of_the_folder_they_were_made_from(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "model.safetensors", {"weight": weight})
    prune_checkpoint(tmp_path / "src", tmp_path / "pruned", "2:4")
    export_checkpoint(tmp_path / "pruned", tmp_path / "packed", "cutlass-24")
    with pytest.raises(CheckpointError, match="as its report says; take the folder that was exported"):
        write_reports(tmp_path / "packed")


def test_masks_are_counted() -> None:
    square = some(shape=(8, 16))
    stack, conv = some(shape=(3, 8, 16), layout="batch"), some(shape=(8, 4, 2, 2), layout="conv")
    ragged = some(shape=(11, 19))
    counted = mask_digits(Pattern(2, 4), [square, stack, conv, ragged])
    assert counted is not None
    assert counted == pytest.approx([math.log10(90) * blocks for blocks in (8, 24, 8, 8)])
    rows_only = mask_digits(Pattern(2, 4, transposable=False), [ragged])
    assert rows_only == pytest.approx([math.log10(6) * 11 * 4])
    large = mask_digits(Pattern(8, 16), [some(shape=(16, 16))])
    assert large == pytest.approx([math.log10(nmflow.count_masks("8:16"))], rel=1e-4)
    assert mask_digits(Pattern(2, 4, fill="at-most"), [square]) is None


class Text(HTMLParser):
    """Tags of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        for name, value in attrs:
            assert name not in ("src", "href") or (value or "").startswith("data:"), value

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_shown_and_mean_nothing(pruned: Path) -> None:
    shown = "<script>alert('x')</script>|`*_$\\frac{$\\x1b[31m\\u202e\\n# é"
    page = Text((pruned / "nmflow-report.html").read_text())
    assert "script" not in page.tags
    assert f"{shown}.weight" in page.text
    assert shown.replace("/", "") in page.text  # the file beside the weights
    card = (pruned / "nmflow-report.md").read_text()
    row = next(line for line in card.splitlines() if "alert" in line)
    assert row.count("|") == 6
    assert not re.search(r"<(?!/?code>)|[`*_]", row)


def test_the_page_needs_nothing_but_itself(pruned: Path) -> None:
    text = (pruned / "nmflow-report.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", text)


def test_a_name_with_a_lone_surrogate_is_written(tmp_path: Path, pruned: Path) -> None:
    row = next(row for row in read_report(pruned).tensors if row.name == "encoder.f64.weight")
    picture = picture_mask(pruned, row, (4, 4))
    text = html_page(report_of(some(name="a\ud800b")), picture)
    text.encode()
    model_card(report_of(some(name="a\ud800b"))).encode()


@pytest.mark.parametrize(
    "rows",
    [
        [some()],
        [some(dense=0.0, kept=0.0, rows_only=0.0)],
        [some(dense=math.inf, kept=math.inf, rows_only=math.inf, gap=None)],
        [some(dense=1.7e308, kept=1.6e308, rows_only=1.7e308)],
        [some(gap=None, n_proven=0), some(gap=1.0, n_proven=1)],
        [some(n_blocks=0, n_proven=0, seconds=0.0)],
        [some(seconds=k / 7) for k in range(2500)],
    ],
    ids=["one", "zeros", "infinite", "enormous", "not certified", "no blocks", "many"],
)
def test_plots_of_anything(rows: list[TensorReport]) -> None:
    digits = mask_digits(Pattern(2, 4), rows)
    assert digits is not None
    for svg in (
        plots.plot_kept(rows),
        plots.plot_proof(rows),
        plots.plot_seconds(rows),
        plots.plot_counts(digits, digits),
    ):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert len(svg) < 200_000
    assert plots.plot_kept(rows) == plots.plot_kept(rows)


def test_plots_of_one_weight_can_be_read() -> None:
    """Its number is whole, no legend is as thick as its bar, and marks at 0 lie within the axes."""
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []
    draw = plots._draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_draw", lambda whole, height: draw(lambda *on: (whole(*on), drawn.append(on)), height))
        plots.plot_proof([some()])
        plots.plot_seconds([some(seconds=1.0)])
    (proof, left), (time, _) = drawn
    assert [tick for tick in left.get_xticks() if 0.4 <= tick <= 1.6] == [1]
    right = next(axes for axes in proof.axes if axes is not left)
    assert right.get_ylim()[0] < 0 < right.get_ylim()[1]
    assert proof.legends
    assert not time.legends


def test_the_card_makes_no_links() -> None:
    """Readers of Markdown make them of text."""
    card = model_card(report_of(some(name="https://a.example b"), skipped=(("c", "dtype www.a.example"),)))
    assert "https&#58;//a&#46;example b" in card
    assert "dtype www&#46;a&#46;example" in card


def test_the_card_says_what_is_proven() -> None:
    assert "each of 4 blocks is proven" in model_card(report_of(some()))
    assert "at most 10% more" in model_card(report_of(some(gap=0.7, n_proven=3)))
    assert "not asked for; greedy is not exact" in model_card(
        report_of(some(gap=None, n_proven=0), solver="greedy", skipped=(("a", "1-D"), ("b", "1-D")))
    )
    card = model_card(report_of(some(), pattern="row 2:4 col 4:8", skipped=(("a", "1-D"), ("b", "1-D"))))
    assert "2 of 4 consecutive entries along each row, 4 of 8 along each column" in card
    assert "2 × 1-D" in card
    assert "along each row" in model_card(report_of(some(), pattern="2:4 rows only at-most"))


@pytest.mark.parametrize(
    ("pattern", "shape", "layout", "ragged"),
    [
        ("2:4", (8, 12), None, False),
        ("2:4", (8, 10), None, True),
        ("2:4", (10, 8), None, True),
        ("2:4 rows only", (10, 8), None, False),
        ("2:4 at-most", (10, 10), None, False),
        ("2:4", (8, 3, 4), "conv", False),
        ("2:4", (3, 8, 12), "batch", False),
        ("2:4", (4, 8, 10), "batch", True),
        ("row 2:4 col 4:8", (12, 4), None, True),
    ],
)
def test_the_card_says_where_groups_are_not_whole(
    pattern: str, shape: tuple[int, ...], layout: str | None, ragged: bool
) -> None:
    card = model_card(report_of(some(), some(shape=shape, layout=layout), pattern=pattern))
    assert ("fewer at edges that are no whole group" in card) == ragged


def test_long_tables_are_cut(pruned: Path) -> None:
    """What loses most is kept, and it is said."""
    many = report_of(*(some(name=f"w{k}", kept=7.0 + k * 1e-5) for k in range(6000)))
    card = model_card(many)
    assert "The 1,000 weights that lose most" in card
    assert "`w999`" in card
    assert "`w1000`" not in card
    row = next(row for row in read_report(pruned).tensors if row.name == "encoder.f64.weight")
    page = html_page(many, picture_mask(pruned, row, (4, 4)))
    assert "The 5,000 that lose most, of 6,000" in page
    assert "<code>w4999</code>" in page
    assert "<code>w5000</code>" not in page
    assert len(page) < 3_000_000


def test_a_source_that_is_named_must_be_what_was_pruned(copied: Path, source: Path, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    values = read(other / "model.safetensors")
    write(other / "model.safetensors", {name: np.roll(value, 1) for name, value in values.items()})
    page = (copied / "nmflow-report.html").read_bytes()
    for given, words in (
        (tmp_path / "nope", "nope must exist"),
        (copied, "and it is pruned there already"),
        (other, "and its weights differ"),
    ):
        done = run("report", copied, "--source", given)
        assert done.exit_code == 2
        assert words in done.stderr
    assert (copied / "nmflow-report.html").read_bytes() == page  # as it was


def test_the_command(copied: Path, source: Path) -> None:
    for name in ("nmflow-report.html", "nmflow-report.md"):
        (copied / name).unlink()
    done = run("report", copied, "--source", source, "--tensor", "encoder.experts.up_proj", "--block", "1,0,2")
    assert done.exit_code == 0, done.stderr
    assert [line.rpartition("/")[2] for line in done.stdout.split()[1::2]] == ["nmflow-report.html", "nmflow-report.md"]
    assert "up_proj, matrix 1: block 0,2" in (copied / "nmflow-report.html").read_text()
    found = json.loads(run("report", copied, "--json").stdout)
    assert found["page"] == str(copied / "nmflow-report.html")
    assert run("report", copied / "none").exit_code == 2
    assert "block must be" in run("report", copied, "--block", "x").stderr
    assert sorted(path.name for path in copied.iterdir() if path.name.startswith(".")) == []


def test_a_report_does_not_go_into_another_checkpoint(pruned: Path, tmp_path: Path) -> None:
    prune_checkpoint(pruned, tmp_path / "again", "1:4")
    assert [path.name for path in (tmp_path / "again").glob("nmflow-report.*")] == ["nmflow-report.json"]


def test_prune_with_a_report(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = source / "model.safetensors"
    done = run("prune", one, tmp_path / "one.safetensors", "--pattern", "4:8", "--report")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "one.nmflow-report.html").is_file()
    assert "4:8 transposable" in (tmp_path / "one.nmflow-report.md").read_text()
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    done = run("prune", one, tmp_path / "two.safetensors", "--pattern", "4:8", "--report")
    assert done.exit_code == 2
    assert not (tmp_path / "two.safetensors").exists()


def test_nothing_is_pictured_where_nothing_was_pruned(tmp_path: Path) -> None:
    src = write(tmp_path / "src.safetensors", {"a.weight": np.full((8, 8), np.nan, "f4")})
    asked = ("prune", src, tmp_path / "out.safetensors", "--pattern", "2:4", "--on-nonfinite", "skip", "--report")
    done = run(*asked)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith(f"nothing was pruned; wrote {tmp_path / 'out.safetensors'}\n")
    assert not list(tmp_path.glob("*.html"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_a_browser_shows_the_page(browser: Any, pruned: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
    page.on("dialog", lambda dialog: (complaints.append("a name ran as a script"), dialog.dismiss()))
    page.goto((pruned / "nmflow-report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().right])"
    )
    assert len(images) == 6
    assert all(complete and natural > 100 and right <= width for complete, natural, right in images)
    assert "alert('x')" in page.inner_text("body")
    assert page.locator("tbody tr").count() == 11
    widths = page.evaluate("[...document.querySelectorAll('td code')].map(name => name.getBoundingClientRect().width)")
    assert 200 < max(widths) <= min(448, 0.6 * width)  # a long name is folded: numbers are not far to its right
    assert complaints == []
    # The listeners hear: this is what a complaint would look like.
    page.evaluate("console.error('heard')")
    page.wait_for_timeout(50)
    assert complaints == ["heard"]
    page.close()


@pytest.mark.parametrize(
    ("name", "block"),
    [("encoder.f64.weight", (2, 0)), ("encoder.f64.weight", (0, 2)), ("encoder.experts.up_proj", (-1, 0, 0)),
     ("encoder.experts.up_proj", (3, 0, 0))],
)  # fmt: skip
def test_a_block_just_beyond_the_last_is_an_error(pruned: Path, name: str, block: tuple[int, ...]) -> None:
    row = next(row for row in read_report(pruned).tensors if row.name == name)
    with pytest.raises(InputValueError, match="block must "):
        picture_mask(pruned, row, (4, 4), block=block)


@pytest.mark.parametrize("other", [np.ones((4, 16)), np.ones((8, 8), "f4"), np.ones((8, 16))])
def test_a_tensor_of_another_kind_is_not_pictured(pruned: Path, tmp_path: Path, other: np.ndarray) -> None:
    row = next(row for row in read_report(pruned).tensors if row.name == "encoder.f64.weight")
    path = write(tmp_path / "x.safetensors", {row.name: other})
    with pytest.raises(CheckpointError, match=r"must hold the tensor 'encoder.f64.weight', F64 of shape"):
        picture_mask(path, row, (4, 4))


def test_a_picture_is_the_same_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a cell without any score keeps all of it."""
    weights = np.random.default_rng(0).standard_normal((16, 8))
    weights[4:8, 4:] = 0.0
    weights[12:] = np.where(nmflow.solve(weights[12:], 2, 4).mask, weights[12:], 0.0)  # pruning changes nothing here
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "model.safetensors", {"a.weight": weights})
    (row,) = prune_checkpoint(tmp_path / "src", tmp_path / "dst", "2:4").tensors
    options = {"source": tmp_path / "src", "strict": True}
    whole = picture_mask(tmp_path / "dst", row, (4, 4), **options)
    assert whole.grid[1, 1] == whole.grid[3, 0] == 1.0 > whole.grid[0, 0]
    monkeypatch.setattr("nmflow.checkpoint.report_mask.PART_ENTRIES", 8)
    assert np.allclose(picture_mask(tmp_path / "dst", row, (4, 4), **options).grid, whole.grid)
