"""What commands print of plans, reports and differences, given these."""

from __future__ import annotations

import pytest

from nmflow.checkpoint.diff import Difference, TensorDifference
from nmflow.checkpoint.report import Report, TensorReport
from nmflow.cli import show, show_diff

Captured = pytest.CaptureFixture[str]


def tensor(name: str, n_proven: int) -> TensorReport:
    return TensorReport(name, "x", "F32", (8, 8), None, 10.0, 7.0, 8.0, 0.5, 4, n_proven, 0.25)


def test_a_report_counts_proven_blocks_and_the_commonest_reason_comes_first(capsys: Captured) -> None:
    skipped = (("a", "rare"), ("b", "often"), ("c", "often"), ("d", "also rare"))
    show.report(Report("in", "out", "2:4", "greedy", (tensor("w", 4), tensor("v", 3)), skipped, (), (), 1.0))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("copied as it is")] == [
        "copied as it is: 2 x often",
        "copied as it is: 1 x also rare",
        "copied as it is: 1 x rare",
    ]
    row = {name: next(line for line in lines if f" {name} " in line) for name in ("w", "v")}
    assert "all of 4" in row["w"]
    assert "3 of 4" in row["v"]
    assert "70.000" in row["w"]  # of the dense score
    assert "12.500" in row["w"]  # against rows alone
    assert "2 weights" in text
    assert lines[-1] == "7 of 8 blocks proven; wrote out"


def test_one_weight_is_one(capsys: Captured) -> None:
    show.report(Report("in", "out", "2:4", "dual", (tensor("w", 4),), (), (), (), 1.0))
    text = capsys.readouterr().out
    assert "1 weight " in text
    assert "1 weights" not in text
    assert text.endswith("every block proven optimal; wrote out\n")


def test_measurements_show_a_loss_in_percent(capsys: Captured) -> None:
    row = {
        "family": "w", "rows": 8, "cols": 8, "dtype": "float32", "pattern": "2:4", "solver": "greedy", "status": "ok",
        "threads": 2, "ns_per_entry": 12.5, "times_stream": 81.0, "loss": 0.0375, "gap": None, "proven": 1234,
        "blocks_measured": 5678, "note": "",
    }  # fmt: skip
    show.bench([row, row | {"solver": "lp", "status": "not possible", "note": "it cannot"}])
    text = capsys.readouterr().out
    cells = [cell.strip() for cell in next(line for line in text.splitlines() if "greedy" in line).split("│")[1:-1]]
    assert cells == ["greedy", "2", "12.5", "81", "3.75", "-", "1,234 of 5,678", ""]
    assert "not possible: it cannot" in text


def test_a_difference_names_the_side_and_counts_entries_of_masks_alone(capsys: Captured) -> None:
    tensors = (
        TensorDifference("w", "F32", (4, 8), 9, 4, False),
        TensorDifference("steps", "I64", (100,), 5, None, False),  # no mask
        TensorDifference("same", "F32", (4, 8), 0, 0, True),
    )
    show_diff.difference(Difference("old", "new", tensors, ("here",), ("there",), (("u", "F32 (4)", "F16 (4)"),)))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert "only in old: here" in lines
    assert "only in new: there" in lines
    assert "u: F32 (4) in old, F16 (4) in new" in lines
    assert not any(" same " in line for line in lines)
    assert lines[-1] == "2 of 3 tensors in both differ; of their 32 entries 4 are zero in one only (12.500 %)"
