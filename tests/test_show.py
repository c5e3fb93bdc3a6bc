"""What commands print of plans, reports and differences, given these."""

from __future__ import annotations

import pytest

from nmflow.checkpoint.diff import Difference, TensorDifference
from nmflow.checkpoint.export_report import ExportedTensor, ExportReport
from nmflow.checkpoint.inspection import Held, Inspection
from nmflow.checkpoint.packed import PackedCheck, PackedVerification
from nmflow.checkpoint.report import Report, TensorReport
from nmflow.checkpoint.verify import Checked, Verification, Violation
from nmflow.cli import show, show_diff, show_packed

Captured = pytest.CaptureFixture[str]


def tensor(name: str, n_proven: int) -> TensorReport:
    return TensorReport(name, "x", "F32", (8, 8), None, 10.0, 7.0, 8.0, 0.5, 4, n_proven, 0.25)


def cells(text: str, name: str) -> list[str]:
    """The row of a table that begins with a name."""
    rows = ([cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines())
    return next(row for row in rows if row and row[0] == name)


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
    assert cells(text, "w") == ["w", "8x8", "70.000", "12.500", "0.5", "all of 4", "0.250"]
    assert cells(text, "2 weights")[1:] == ["128 entries", "70.000", "12.500", "1", "7 of 8", "1.000"]
    assert lines[-1] == "7 of 8 blocks proven; wrote out"


def test_a_report_says_what_was_copied_and_what_was_not_certified(capsys: Captured) -> None:
    quick = TensorReport("w", "x", "F32", (8, 8), None, 10.0, 7.0, 8.0, None, 4, 0, 0.25)
    show.report(Report("in", "out", "2:4", "greedy", (quick,), (), ("a.json", "b.json"), ("c.bin",), 1.0))
    text = capsys.readouterr().out
    assert cells(text, "w")[4:6] == ["-", "-"]
    assert text.splitlines()[-3:] == [
        "copied files: 2",
        "not pruned: c.bin may hold weights too, and is copied as it is",
        "not certified: greedy is not exact; wrote out",
    ]


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
    assert cells(text, "greedy") == ["greedy", "2", "12.5", "81", "3.75", "-", "1,234 of 5,678", ""]
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
    assert cells(text, "w") == ["w", "F32", "4x8", "9", "4", "12.500"]
    assert cells(text, "steps") == ["steps", "I64", "100", "5", "-", "-"]
    assert "only in old: here" in lines
    assert "only in new: there" in lines
    assert "u: F32 (4) in old, F16 (4) in new" in lines
    assert not any(" same " in line for line in lines)
    assert lines[-1] == "2 of 3 tensors in both differ; of their 32 entries 4 are zero in one only (12.500 %)"


def test_a_verification_counts_entries_and_groups(capsys: Captured) -> None:
    first = Violation("x", "v", "row", 1, 2, nonzero=3, allowed=2, length=4, start=8)
    tensors = (Checked("w", (4, 8), 32, 16, 0, None), Checked("v", (40, 50), 2000, 1500, 1234, first))
    show.verification(Verification("in", "2:4", tensors, (), ("other.bin",)))
    assert capsys.readouterr().out.splitlines() == [
        "x: tensor 'v': row 1, group 2 (entries 8 to 11) has 3 nonzero, at most 2 may be; 1,234 groups of this tensor "
        "are over",
        "in: 1 of 2 weights not at 2:4; 1,516 of 2,032 entries are nonzero",
        "not checked: other.bin may hold weights too",
    ]


def exported(name: str, dtype: str, pattern: str | None, blocks: tuple[int, int, int], stored: int) -> ExportedTensor:
    n_blocks, completed, unfilled = blocks
    return ExportedTensor(
        name, "x", dtype, (60, 100), (64, 128), pattern, 1500, n_blocks, completed, unfilled, 12000, stored, 0.5
    )


def test_an_export_counts_what_it_stored(capsys: Captured) -> None:
    tensors = (
        exported("w", "float16", "2:4", (512, 3, 1), 9000),
        exported("v", "float16", None, (0, 0, 0), 12000),
    )
    left = (("b", "1-D"), ("c", "1-D"), ("d", "no mask"))
    show_packed.report(ExportReport("in", "out", "nibble", None, tensors, left))
    text = capsys.readouterr().out
    row = ["w", "float16", "60x100 in 64x128", "2:4", "25.00", "9,000", "75.0", "3 of 512"]
    assert cells(text, "w") == row
    assert cells(text, "v")[3:] == ["any", "25.00", "12,000", "100.0", "-"]
    assert text.splitlines()[-3:] == ["left as it is: 2 x 1-D", "left as it is: 1 x no mask", "wrote out"]
    show_packed.report(ExportReport("in", "out", "nibble", "masks", tensors, ()))
    assert cells(capsys.readouterr().out, "w") == [*row[:-1], "-"]  # given masks leave no choice


def test_an_inspection_counts_bytes(capsys: Captured) -> None:
    tensors = (
        Held("w", "x", "float16", (64, 128), "2:4", ("w.values", "w.meta"), 9000),
        Held("b", "x", "F32", (5,), None, (), 20),
    )
    show_packed.inspection(Inspection("out", "nibble", 1, "nmflow 0", tensors))
    text = capsys.readouterr().out
    assert cells(text, "w") == ["w", "x", "float16", "64x128", "2:4: values, meta", "9,000"]
    assert cells(text, "b") == ["b", "x", "F32", "5", "", "20"]
    assert text.startswith("out: nibble version 1, by nmflow 0\n")
    assert text.endswith("2 tensors, 1 of them stored by format; 9,020 bytes of data\n")


@pytest.mark.parametrize(
    ("fault", "faults", "verdict"),
    [
        ("", (), "2 weights sound, both sides agree; 48 of 96 entries are kept; 1 tensor left dense"),
        ("broken", (), "1 of 2 weights at fault; 16 of 32 entries of the others are kept; 1 tensor left dense"),
        ("", ("a", "b"), "2 weights sound, both sides agree; 2 other faults; 48 of 96 entries are kept; 1 tensor left"),
        ("broken", ("a",), "1 of 2 weights at fault; 1 other fault; 16 of 32 entries of the others are kept; 1 tens"),
    ],
)
def test_the_verification_of_an_export_counts_faults(
    capsys: Captured, fault: str, faults: tuple[str, ...], verdict: str
) -> None:
    tensors = (PackedCheck("w", (4, 8), 32, 16, ""), PackedCheck("v", (8, 8), 64, 32, fault))
    found = PackedVerification("out", "nibble", tensors, faults, left_dense=1, complete=True)
    show_packed.verification(found)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [*(f"tensor 'v': {fault}" for _ in fault[:1]), *faults]
    assert last.startswith(f"out: nibble, {verdict}")
    assert found.ok is not bool(fault or faults)
