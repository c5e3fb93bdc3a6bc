"""The training benchmark runs, and its report says what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from benchmarks.training import overhead, report, run  # they import scikit-learn
from benchmarks.training.models import MODELS


@pytest.mark.parametrize("constraint", ["dense", "unstructured 50%", "4:8 transposable"])
def test_one_run(constraint: str) -> None:
    row = run.train("MLP", constraint, seed=0, epochs=4)
    assert row["steps"] == 84
    assert row["accuracy"] == row["curve"][-1] > 15
    if constraint != "dense":
        assert row["density"] == 0.5
        assert [record["step"] for record in row["history"]] == [40]


def test_a_run_goes_on_from_rows_of_the_same_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def train(name: str, constraint: str, seed: int, epochs: int) -> dict[str, Any]:
        made.append(name)
        return {"model": name, "constraint": constraint, "seed": seed}

    monkeypatch.setattr(run, "train", train)
    arguments, count = ["--seeds", "1", "--out", str(tmp_path / "rows.json")], len(MODELS) * len(run.CONSTRAINTS)
    for code, runs, moved in (("a", count, 0), ("a", 0, 0), ("b", count, 1)):
        monkeypatch.setattr(run, "origin", lambda *folders, code=code: {"code": code})
        made.clear()
        assert run.main(arguments) == 0
        assert (len(made), len(list(tmp_path.glob("*previous*")))) == (runs, moved)


def test_the_page_comes_from_its_results() -> None:
    found, cost = (json.loads(path.read_text(encoding="utf-8")) for path in (run.RESULTS, overhead.RESULTS))
    assert (report.DOCS / "training.md").read_text(encoding="utf-8") == report.page(found, cost)


def results(drop: float) -> dict[str, Any]:
    rows = []
    for name in MODELS:
        for constraint in run.CONSTRAINTS:
            for seed in range(2):
                row: dict[str, Any] = {
                    "model": name,
                    "constraint": constraint,
                    "seed": seed,
                    "steps": 80,
                    "seconds": 30,
                }
                row["accuracy"] = 98.0 + seed - (drop if constraint in report.HELD else 0.0)
                if constraint != "dense":
                    row["history"] = [{"step": 40, "flip_rate": 0.1}, {"step": 80, "flip_rate": 0.05}]
                rows.append(row)
    options = {"epochs": 4, "batch": 64, "every": 40, "decay": 2e-4, "stop": 0.75, "versions": {"torch": "2"}}
    return {"options": options, "rows": rows}


@pytest.mark.parametrize(("drop", "met"), [(0.4, "met"), (0.6, "**not met**")])
def test_report(tmp_path: Path, drop: float, met: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "training.json").write_text(json.dumps(results(drop)))
    row = {"model": "MLP", "pattern": "2:4", "weights": 5e6, "batch": 8, "step_ms": 20, "dense_step_ms": 19}
    row |= {"search_ms": 9, "share_percent": 1.1 * drop / 0.4, "flip_rate": 0.01}
    options = {"every": 40, "threads": 2, "cycles": 3, "target_percent": 1.5}
    (tmp_path / "cost.json").write_text(json.dumps({"options": options, "rows": [row]}))
    where = ["--results", str(tmp_path / "training.json"), "--overhead", str(tmp_path / "cost.json")]
    assert report.main([*where, "--docs", str(tmp_path)]) == 0
    text = (tmp_path / "training.md").read_text(encoding="utf-8")
    assert (
        f"- 8:16 transposable: {-drop:+.2f} points from dense, averaged over models and seeds; within 0.5: {met}."
        in text
    )
    assert f"Target, at most 1.5% on each: {met}" in text
    assert "Measured on" not in text
    where = {"machine": {"cpu": "A CPU"}, "versions": {"nmflow": "9"}, "complete": False}
    told = report.page(results(drop), {"options": options, "rows": [row], **where})
    assert "Measured on A CPU, nmflow 9.\nThe run is not complete." in told
    assert (tmp_path / "training.png").stat().st_size > 1000


def test_report_without_results(tmp_path: Path) -> None:
    assert report.main(["--results", str(tmp_path / "none.json")]) == 2


def test_overhead_models_are_large_enough() -> None:
    for make in (overhead.multilayer, overhead.convolutional):
        model, inputs = make()
        assert sum(p.numel() for p in model.parameters() if p.ndim > 1) >= 5_000_000
        assert inputs.shape[1] == next(model.parameters()).shape[1]
