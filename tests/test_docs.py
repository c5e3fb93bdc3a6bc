"""What the pages say is so: examples run and print what is shown, tables agree with the code, links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nmflow
from nmflow import solvers
from nmflow.checkpoint import journal

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL)
SETUP = re.compile(r"^<!-- python\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
"""A comment that a reader does not see, with what an example needs: a model, a file."""
LINK = re.compile(r"\]\(([^)\s]+)\)")

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def examples(text: str) -> list[tuple[int, str, str | None]]:
    """Python blocks of a page: line, code, and what it must print, if an untagged block follows at once."""
    fences = list(FENCE.finditer(text))
    found: list[tuple[int, str, str | None]] = [
        (text.count("\n", 0, setup.start()) + 2, setup[1], None) for setup in SETUP.finditer(text)
    ]
    for k, fence in enumerate(fences):
        if fence[1].strip() != "python":
            continue
        after = fences[k + 1] if k + 1 < len(fences) else None
        shown = after[2] if after and not after[1] and not text[fence.end() : after.start()].strip() else None
        found.append((text.count("\n", 0, fence.start()) + 2, fence[2], shown))
    return sorted(found, key=lambda example: example[0])


@every_page
def test_examples_run_and_print_what_is_shown(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what an example writes goes there
    names: dict[str, Any] = {"__name__": "example"}
    for line, code, shown in examples(path.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)
        if shown is not None:
            assert printed.getvalue() == shown, f"{path}:{line}"


def test_examples_are_found() -> None:
    text = "```python\nx = 1\nprint(x)\n```\n\n```\n1\n```\n\n```\nno\n```\n```python\ny\n```\ntext\n```\n2\n```\n"
    assert examples(text) == [(2, "x = 1\nprint(x)\n", "1\n"), (14, "y\n", None)]
    assert examples("```python\nx\n```\n<!-- python\ny = 1\n-->\n") == [(2, "x\n", None), (5, "y = 1\n", None)]
    assert len(examples((ROOT / "README.md").read_text(encoding="utf-8"))) >= 2


@every_page
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if not target.startswith(("https://", "http://", "#", "mailto:")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Strict: a link or an anchor that leads nowhere, a page that is in no menu, a name that the API lacks."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -r requirements-docs.txt")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ROOT.glob("docs/**/*.md"):
        assert (tmp_path / "site" / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
        shown = (tmp_path / "site" / page.relative_to(ROOT / "docs")).with_suffix(".html").read_text(encoding="utf-8")
        assert not re.search(r"^\|.*\|$", shown, re.MULTILINE), f"a table of {page} is shown as it is written"
    shown = (tmp_path / "site" / "checkpoints.html").read_text(encoding="utf-8")
    assert '<span class="option">--resume</span>' in shown
    shown = (tmp_path / "site" / "api" / "torch.html").read_text(encoding="utf-8")
    for name in importlib.import_module("nmflow.torch").__all__:  # some are called as the module that holds them
        assert re.search(rf'<h\d id="nmflow\.torch\.(\w+\.)?{name}"', shown), name
    assert ".. [1]" not in shown
    rows = re.findall(r'<tr class="doc-section-item">\s*<td>\s*<code>(\w+)</code>(.*?)</tr>', shown, re.DOTALL)
    defaults: dict[str, set[str]] = {}
    for name, row in rows:
        defaults.setdefault(name, set()).update(re.findall(r"<code>([^<]*)</code>\s*</td>\s*$", row))
    assert defaults["fill"] == {"&#39;exact&#39;", "&#39;at-most&#39;"}  # its own: docstrings name it after others
    assert defaults["strict"] == {"False"}


def test_the_api_pages_name_what_is_public() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md"))
    for name in set(nmflow.__all__) - {"__version__", "NmflowError"}:  # that one is shown with its module
        assert re.search(rf"^::: nmflow\.{name}$", pages, re.MULTILINE), name
    for module in ("checkpoint", "formats"):  # whose members are listed, since their order matters
        page = (ROOT / "docs" / "api" / f"{module}.md").read_text(encoding="utf-8")
        listed = re.findall(r"^        - (\w+)$", page, re.MULTILINE)
        assert sorted(listed) == sorted(importlib.import_module(f"nmflow.{module}").__all__)


def test_the_readme_lists_every_solver() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| `solver=` |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| ([^|]+) \|$", table, re.MULTILINE))
    assert tuple(rows) == solvers.names()
    for name, promise in rows.items():
        assert ("optimal" in promise and "tolerance" not in promise) == solvers.get(name).exact, name
        assert ("½" in promise) == (solvers.get(name).kept_ratio == 0.5), name


def test_the_picture_is_right() -> None:
    """The block in the README, its mask by rows and its mask both ways."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.partition("best by rows: 59             best both ways: 55\n")[2].splitlines()[:4]
    cells = np.array([line.replace("−", "-").replace("·", "0").split() for line in lines], float)
    weights, by_rows, both = cells[:, :4], cells[:, 4:8], cells[:, 8:]
    for shown, transposable, best in ((by_rows, False, 59.0), (both, True, 55.0)):
        solution = nmflow.solve(weights, 2, 4, transposable=transposable)
        assert solution.objective == np.abs(shown).sum() == best
        assert np.array_equal(shown, np.where(shown != 0, weights, 0))
        mask = shown != 0
        assert nmflow.certify(weights, mask, 2, 4, transposable=transposable, absolute=True).proven
    assert (by_rows != 0).sum(axis=0).tolist() == [3, 2, 1, 2]
    assert (both != 0).sum(axis=0).tolist() == [2, 2, 2, 2]


def test_the_table_of_at_most_fill_comes_from_its_results() -> None:
    at_most, pages = importlib.import_module("benchmarks.at_most"), importlib.import_module("benchmarks.page")
    page = at_most.PAGE.read_text(encoding="utf-8")
    assert pages.fill(page, {"gain": at_most.table(json.loads(at_most.RESULTS.read_text()))}) == page


@pytest.mark.parametrize(
    ("name", "page", "tables"),
    [
        ("formats", "formats.md", lambda made, found: {"speed": made.table(found)}),
        ("approximate", "solvers.md", lambda made, found: made.tables(found)),
        ("diversity", "diversity.md", lambda made, found: made.tables(found)),
        ("stages", "performance.md", lambda made, found: {"stages": made.table(found)}),
        ("rounds", "performance.md", lambda made, found: {"rounds": made.table(found)}),
    ],
)
def test_tables_come_from_their_results(name: str, page: str, tables: Any) -> None:
    made, pages = importlib.import_module(f"benchmarks.{name}"), importlib.import_module("benchmarks.page")
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert pages.fill(text, tables(made, found)) == text
    if "machine" in found:  # no time without what it was measured on
        assert any(found["machine"]["cpu"] in section for section in tables(made, found).values())


def test_the_table_of_machines_comes_from_its_results() -> None:
    machines, pages = importlib.import_module("benchmarks.machines"), importlib.import_module("benchmarks.page")
    found, text = machines.found(), machines.PAGE.read_text(encoding="utf-8")
    table = machines.tables(found)
    assert pages.fill(text, table) == text
    assert len(found) > 1
    assert all(each["complete"] for each in found)


def test_machines_are_written_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machines = importlib.import_module("benchmarks.machines")
    text = machines.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(text.replace("| met |  |", "| was |  |"), encoding="utf-8")
    assert machines.main(["--page", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == text
    page.write_text("no markers", encoding="utf-8")
    assert machines.main(["--page", str(page)]) == 2
    assert "must have the markers <!-- begin: machines -->" in capsys.readouterr().err.replace("\n", " ")
    assert page.read_text(encoding="utf-8") == "no markers"


def test_a_table_of_machines_shows_what_one_of_them_misses() -> None:
    machines = importlib.import_module("benchmarks.machines")

    def results(cpu: str, **measured: float) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [
            {"target": name, "group": "stream" if name == "s" else "forms", "sign": "<=", "bound": 2, "measured": value,
             "met": value <= 2}
            for name, value in measured.items()
        ]  # fmt: skip
        machine, versions = {"cpu": cpu, "usable_cores": 2}, {"numba": "1"}
        return {
            "machine": machine, "versions": versions, "complete": cpu == "A", "started": "May", "finished": None,
            "rows": [*rows, {"target": None}],
        }  # fmt: skip

    table = machines.tables([results("A", s=1, a=1, b=2.5), results("B", s=3, a=1.5)])["machines"]
    assert table.splitlines() == [
        "| target | bound | A | B |", "| --- | --- | --- | --- |", "| met |  | 2 of 3 | 1 of 2 |",
        "| s | ≤ 2 | 1 | **3** |", "| b | ≤ 2 | **2.5** |  |", "",
        "- A: 2 cores, numba 1, measured May.", "- B: 2 cores, numba 1, measured May, not complete.",
    ]  # fmt: skip


def test_times_of_approximate_solvers_say_what_they_were_measured_on() -> None:
    approximate = importlib.import_module("benchmarks.approximate")
    found = json.loads(approximate.RESULTS.read_text(encoding="utf-8"))
    about = {"machine": {"cpu": "A CPU"}, "versions": {"nmflow": "9"}, "measured": "today", "repeats": 3}
    assert approximate.tables(found | about)["times"].startswith("A CPU, nmflow 9, measured today; the median of 3.")


def test_the_table_of_a_streamed_checkpoint_comes_from_its_results() -> None:
    stream, pages = importlib.import_module("benchmarks.stream_checkpoint"), importlib.import_module("benchmarks.page")
    found = json.loads(stream.RESULTS.read_text(encoding="utf-8"))
    page = stream.PAGE.read_text(encoding="utf-8")
    assert pages.fill(page, {"stream": stream.table(found)}) == page
    assert found["times_copy"] <= stream.LIMITS["times_copy"]
    assert all((row["peak_mb"] or 0) <= stream.LIMITS["peak_mb"] for row in found["steps"])
    assert sum(2 * math.prod(shape) for shard in stream.shapes(4) for shape in shard.values()) > 4e9


def test_the_tables_of_scale_come_from_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    scale, pages = importlib.import_module("benchmarks.scale"), importlib.import_module("benchmarks.page")
    page = scale.PAGE.read_text(encoding="utf-8")
    assert pages.fill(page, scale.tables(json.loads(scale.RESULTS.read_text()))) == page
    # Two slots: the first takes 4 and 1, the second 2 and 3; what is copied takes no time.
    tensors = [scale.Tensor(count, count < 9) for count in (4, 2, 9, 3, 1)]
    assert scale.spread(tensors, 2, 1.0) == 5.0
    model = list(scale.llama_405b())
    assert round(sum(tensor.entries for tensor in model) / 1e9) == 406
    assert scale.spread(model, 1, 1.0) == sum(tensor.entries for tensor in model if tensor.pruned)


def test_versions_agree() -> None:
    version = nmflow.__version__
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert journal.version() == version  # where nmflow is not installed, too


def test_least_versions_agree() -> None:
    """Those that are checked, that are installed, and that the page names."""
    versions = runpy.run_path(str(ROOT / "nmflow" / "torch" / "versions.py"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = (ROOT / "requirements-dev.txt").read_text().split()
    assert extras["torch"] == [f"torch>={versions['TORCH']}"]
    assert f"transformers>={versions['TRANSFORMERS']}" in {*extras["transformers"]} & {*needed}
    (pinned,) = [need.removeprefix("triton==").rstrip(";") for need in needed if need.startswith("triton==")]
    assert not versions["is_older"](pinned, versions["TRITON"])
    assert f"torch {versions['TORCH']} or newer" in (ROOT / "docs" / "torch.md").read_text(encoding="utf-8")


def test_the_architecture_page_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "nmflow"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    named = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|[^|]*\|", text, re.MULTILINE))))
    assert rooms - {"__init__"} == named


@pytest.mark.filterwarnings("ignore")  # those of transformers
def test_the_recipe_for_half_precision_keeps_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoModel leaves out the output head, and the result then loads with a random one."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from safetensors.numpy import load_file

    monkeypatch.chdir(tmp_path)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained("SRC")
    Path("SRC/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]))
    Path("SRC/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    fences = FENCE.findall((ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8"))
    (recipe,) = [code for kind, code in fences if kind == "py" and "HALF" in code]
    exec(recipe, {"transformers": transformers})
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("SRC", "HALF"))
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert {value.dtype.name for value in after.values()} == {"float16"}
