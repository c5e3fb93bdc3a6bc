"""What reports on a model print and pack, given these layers."""

from __future__ import annotations

from nmflow.torch.post_report import PostLayer, PostReport
from nmflow.torch.report import LayerReport, PruneReport

WIDE = LayerReport("0.weight", (), (8, 8), "float32", None, 10.0, 7.5, 0.25, 0.5, 4, 3, 0.5)
TALL = LayerReport("1.weight", ("2.weight",), (16, 16), "float32", None, 30.0, 15.0, 0.5, 0.25, 16, 16, 0.5)
EMPTY = LayerReport("3.weight", (), (4, 4), "float32", None, 0.0, 0.0, 0.0, 0.5, 1, 1, 0.5)


def test_figures_of_a_report() -> None:
    report = PruneReport("2:4", "dual", (WIDE, TALL), (("4.weight", "too small"),), 1.0)
    assert str(report).splitlines() == [
        "2:4 by dual          shape  kept score  density   gap  proven blocks",
        "--------------------------------------------------------------------",
        "0.weight             8x8        75.00%   50.00%  0.25            3/4",
        "1.weight = 2.weight  16x16      50.00%   25.00%   0.5          16/16",
        "--------------------------------------------------------------------",
        "total                320        56.25%   30.00%  0.75          19/20",
        "",
        "skipped   why",
        "-------------------",
        "4.weight  too small",
    ]
    assert (report.proven, WIDE.proven, TALL.proven) == (False, False, True)
    assert PruneReport("2:4", "dual", (TALL,), (), 1.0).proven


def test_of_nothing_all_is_kept() -> None:
    assert EMPTY.kept_percent == 100
    assert PruneReport("2:4", "dual", (EMPTY,), (), 1.0).kept_percent == 100


def post_layer(name: str, shape: tuple[int, int], density: float, rows: int) -> PostLayer:
    return PostLayer(
        name=name, also=(), shape=shape, dtype="float32", layout=None, dense=10.0, kept=7.5, gap=0.0, density=density,
        n_blocks=4, n_proven=3, seconds=0.5, pattern="2:4", rows=rows, inputs=shape[1], damping=0.01,
        masked_error=0.25, error=0.125,
    )  # fmt: skip


def test_figures_of_a_report_after_training() -> None:
    layers = post_layer("0.weight", (8, 8), 0.5, 8), post_layer("1.weight", (16, 16), 0.25, 15)
    unseen = post_layer("2.weight", (8, 8), 0.5, 0)
    report = PostReport(
        pattern="2:4", solver="dual", layers=(*layers, unseen), skipped=(("4.weight", "too small"),), seconds=1.0,
        method="alps",
    )  # fmt: skip
    few = "only 15 rows for 16 inputs: damped by 0.01, give more samples"
    none = "no token came to this expert: pruned by magnitude, give more samples"
    lines = str(report).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["0.weight", "2:4", "8x8", "50.00%", "25.000%", "12.500%", "8", "3/4"],
        ["1.weight", "2:4", "16x16", "25.00%", "25.000%", "12.500%", "15", "3/4"],
        ["2.weight", "2:4", "8x8", "50.00%", "25.000%", "12.500%", "0", "3/4"],
    ]
    assert lines[6].split() == ["total", "384", "33.33%", "9/12"]
    assert lines[8].split() == ["note", "why"]
    assert lines[10:12] == [f"1.weight  {few}", f"2.weight  {none}"]
    assert lines[13].split() == ["skipped", "why"]
    packed = report.to_dict()
    assert packed["notes"] == [{"name": "1.weight", "note": few}, {"name": "2.weight", "note": none}]
    assert packed["skipped"] == [{"name": "4.weight", "reason": "too small"}]
