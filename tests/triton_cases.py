"""What the Triton kernels must do, run under their interpreter by test_torch_triton.py: TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
import torch
from test_torch_device import as_tensor

from nmflow.pattern import Pattern
from nmflow.torch import solve_on_device
from nmflow.torch.device import launch, plain
from nmflow.torch.device.grid import BlockGrid

CASES = [
    *((n, 4, family) for n in (1, 2, 3) for family in ("gaussian", "few_values", "heavy_tailed", "huge_among_tiny")),
    *((4, 8, family) for family in ("gaussian_bfloat16", "subnormal_float16", "near_ties")),
    (8, 16, "gaussian_bfloat16"),
    (16, 32, "gaussian"),
]


@pytest.mark.parametrize(("n", "m", "family"), CASES)
def test_both_engines_do_the_same(n: int, m: int, family: str) -> None:
    """Bit for bit: masks, duals, and which blocks were open when; from nothing, and from other duals.

    (What the engines leave open is undefined.)
    """
    grid = BlockGrid.of(as_tensor(families.FAMILIES[family]((2 * m, 3 * m), 1)), Pattern(n, m), None, 1)
    other = BlockGrid.of(torch.from_numpy(families.gaussian((2 * m, 3 * m), 2)), Pattern(n, m), None, 1)
    earlier = plain.settle(other, absolute=True, keep=True, start=None)
    for start in (None, (earlier.u, earlier.v)) if m < 16 else (None,):
        a = launch.settle(grid, absolute=True, keep=True, start=start)
        b = plain.settle(grid, absolute=True, keep=True, start=start)
        assert a.counts.tolist() == b.counts.tolist()
        left = int(a.counts[2])
        still = a.open_list[:left].long().sort().values
        assert (still == b.open_list.sort().values).all()
        for outcome in (a, b):
            grid.put(outcome.mask, still, torch.zeros((), dtype=torch.bool))
        assert (a.mask == b.mask).all()
        if not left:
            assert (a.u == b.u).all()
            assert (a.v == b.v).all()


@pytest.mark.parametrize("duals", [False, True])
def test_strides_signs_and_what_is_left(duals: bool) -> None:
    scores = torch.from_numpy(families.signed((40, 27), 0)).T
    scores[:4, :4] = torch.tensor([1e30, 1e-30, -1e-30, -1e-40])[torch.randint(4, (4, 4))]
    found = solve_on_device(torch.zeros(27, 40), 2, 4, scores=scores, engine="triton", duals=duals)
    best = solve_on_device(torch.zeros(27, 40), 2, 4, scores=scores, engine="torch")
    assert found.stats["engine"] == "launch"
    assert found.certificate.proven
    assert found.objective == best.objective
    assert (found.row_duals is not None) is duals


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")  # of the interpreter; a card saturates
@pytest.mark.parametrize("m", [4, 8])
def test_scores_that_are_not_finite(m: int) -> None:
    weights = torch.ones(2 * m, 2 * m, dtype=torch.float16)
    weights[m, 1] = np.inf
    with pytest.raises(ValueError, match="at 1 of"):
        solve_on_device(weights, m // 2, m, engine="triton")


def test_kept_score() -> None:
    weights = torch.from_numpy(families.gaussian((1100, 9), 0)).T
    mask = torch.rand(9, 1100) < 0.5
    for absolute in (False, True):
        score: Any = launch.kept_score(weights, mask, absolute=absolute)
        exact = float(((weights.double().abs() if absolute else weights.double()) * mask).sum())
        assert score.item() == pytest.approx(exact, rel=1e-13)
