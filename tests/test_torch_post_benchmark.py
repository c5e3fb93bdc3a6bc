"""The benchmark of pruning after training runs, and its page says what its numbers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from benchmarks.page import fill
from benchmarks.post_training import layers, report, run, sentences


def test_sentences_differ_and_keep_topics_apart() -> None:
    found = sentences.generate(400, 100)
    parts = [found.calibration, found.more, found.near, found.far]
    assert [len(part) for part in parts] == [400, 400, 100, 100]
    assert len({sentence for part in parts for sentence in part}) == 1000
    assert not any(mark in sentence for part in parts for sentence in part for mark in "[]|")
    assert all(sentence[0].isupper() and sentence[-1] in ".?" for part in parts for sentence in part)
    assert sentences.generate(400, 100) == found != sentences.generate(400, 100, seed=1)
    assert sentences.generate(1000, 10).near != found.near
    with pytest.raises(ValueError, match="count must not be above what space, farming can say"):
        sentences.generate(10, 1000)


def test_the_grammar_says_as_many_as_the_page_does() -> None:
    total = sum(sentences.variety(template) for lines in sentences.TOPICS.values() for template in lines)
    assert len(sentences.TOPICS) == 14
    assert f"some {round(total, -2):,} different ones" in report.PAGE.read_text(encoding="utf-8")


class FewDigits(run.Digit):
    def __init__(self, seed: int, epochs: int) -> None:
        super().__init__(seed, epochs)
        del self.batches[3:]


def test_a_small_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATTERNS", ("2:4",))
    monkeypatch.setattr(run, "Digit", FewDigits)
    out = tmp_path / "rows.json"
    options = ["--only", "CNN", "--seeds", "1", "--epochs", "1", "--out", str(out)]
    assert run.main(options) == 0
    found = json.loads(out.read_text())
    rows = {tuple(row["key"]): row for row in found["rows"]}
    # every method at three kinds of masks, and the parts of the reconstruction at 8:16
    assert len(rows) == 3 * len(run.METHODS) + len(run.METHODS) + sum("twice" not in name for name in run.LAYERWISE)
    for row in rows.values():
        assert row["layers"] == 3
        assert row["density"] == pytest.approx(0.5)
        assert row["proven"] or "greedy" in row["key"][2]
    fitted = rows["CNN 0", "2:4", "transposable", "adaprune"]
    assert fitted["error"] < fitted["masked_error"]
    del found["rows"][3]
    out.write_text(json.dumps(found))
    seen: list[Any] = []
    monkeypatch.setattr(run, "METHODS", {name: _counted(name, method, seen) for name, method in run.METHODS.items()})
    assert run.main(options) == 0
    assert len(seen) == 1
    kept = json.loads(out.read_text())
    assert len(kept["rows"]) == len(rows)
    monkeypatch.setattr(run, "todo", lambda seeds: iter(()))
    monkeypatch.setattr(run, "origin", lambda *folders: kept["options"] | {"source": "of another version"})
    assert run.main(options) == 0  # nothing of other code is gone on from, and nothing is lost
    assert (out.exists(), json.loads((tmp_path / "rows.previous.json").read_text())) == (False, kept)


def _counted(name: str, method: Any, seen: list[Any]) -> Any:
    def called(*args: Any, **options: Any) -> Any:
        seen.append(name)
        return method(*args, **options)

    return called


def test_the_page_comes_from_its_results() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.page_with(page, json.loads(run.RESULTS.read_text(encoding="utf-8"))) == page


@pytest.mark.parametrize(("cosine", "met"), [(0.97, "met"), (0.969, "**not met**")])
def test_verdicts(cosine: float, met: str) -> None:
    def row(near: float) -> dict[str, Any]:
        return {"near": {"cosine": near, "rank_correlation": 0.98}, "far": {"cosine": 0.9, "rank_correlation": 0.9}}

    rows = {("MiniLM", "8:16", kind, method): row(0.8) for kind in run.KINDS for method in run.METHODS}
    rows["MiniLM", "8:16", "transposable", "adaprune"] = row(cosine)
    rows["MiniLM", "8:16", "transposable", "wanda"] = row(0.81)
    lines = report.verdicts(rows)
    assert lines[0].endswith(f"at least 0.97 both: {met}.")
    assert "- adaprune is closer to the dense embeddings than magnitude in 1 of 3 cases: not at" in lines[4]
    assert "in 2 of 5 cases; not for 8:16 magnitude, 8:16 sparsegpt, 8:16 alps." in lines[6]


def test_report_without_results(tmp_path: Path) -> None:
    assert report.main(["--results", str(tmp_path / "none.json")]) == 2


def test_layers_are_measured_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PATTERNS", ("2:4",))
    monkeypatch.setattr(layers, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(layers, "TEXT", 100)
    seen: list[layers.Key] = []

    def here(key: layers.Key, tokens: int) -> dict[str, Any]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(key)
        return layers.measure(key, tokens)

    monkeypatch.setattr(layers, "apart", here)
    out = tmp_path / "layers.json"
    options = ["--shapes", "64x128", "--tokens", "250", "--out", str(out)]
    assert layers.main(options) == 130
    assert "- Not complete" in layers.table(json.loads(out.read_text()))
    seen.clear()
    assert layers.main(options) == 0
    assert [key[4] for key in seen] == ["adaprune", "alps"]  # the others are there
    found = json.loads(out.read_text())
    error = {row["of"][4]: row["error"] for row in found["rows"]}
    assert list(error) == list(layers.METHODS)
    assert 0 < error["alps"] < error["adaprune"] < error["sparsegpt"] < error["magnitude"] < 1
    assert all(row["peak_mb"] >= 0 and row["seconds"] > (row["solve_seconds"] or 0) for row in found["rows"])
    text = layers.table(found)
    assert "| 64 x 128, bfloat16, 2:4 | " in text
    assert "too few" not in text
    assert found["machine"]["cpu"] in text
    assert "For 512 inputs these are too few tokens" in layers.table(
        found | {"rows": [found["rows"][0] | {"of": (64, 512, "bfloat16", "2:4", "magnitude")}]}
    )


def test_a_layer_in_a_process_of_its_own() -> None:
    found = layers.apart((64, 64, "float32", "2:4", "magnitude"), 64)
    assert set(found) == {"seconds", "solve_seconds", "peak_mb", "error", "threads"}


def test_the_table_of_layers_comes_from_its_results() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    table = layers.table(json.loads(layers.RESULTS.read_text(encoding="utf-8")))
    assert fill(page, {"layers": table}) == page


def test_layers_of_odd_shapes_or_unreadable_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        layers.main(["--shapes", "64x50"])
    assert "must be multiples of 16, not '64x50'" in capsys.readouterr().err
    (tmp_path / "layers.json").write_text("{}")
    assert layers.main(["--out", str(tmp_path / "layers.json")]) == 2
