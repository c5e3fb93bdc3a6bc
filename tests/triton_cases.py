"""What the Triton kernels must do, run under their interpreter by test_torch_triton.py: TRITON_INTERPRET=1."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
import torch
from test_torch_device import as_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nmflow.pattern import Pattern
from nmflow.torch import solve_on_device
from nmflow.torch.device import engine, launch, plain
from nmflow.torch.device.duals import space_for_duals
from nmflow.torch.device.grid import BlockGrid

CASES = [
    *((2, 4, family) for family in ("gaussian", "few_values", "heavy_tailed", "huge_among_tiny")),
    *((n, 4, family) for n in (1, 3) for family in ("gaussian", "few_values")),
    *((4, 8, family) for family in ("gaussian_bfloat16", "subnormal_float16", "near_ties")),
    (8, 16, "gaussian_bfloat16"),
    (16, 32, "gaussian"),
]


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of the interpreter; a card saturates
@pytest.mark.parametrize(("n", "m", "family"), CASES)
def test_both_engines_do_the_same(n: int, m: int, family: str) -> None:
    """Bit for bit: masks, duals, and which blocks were open when; from nothing, and from other duals.

    (What the engines leave open is undefined.)
    """
    grid = BlockGrid.of(as_tensor(families.FAMILIES[family]((2 * m, 3 * m), 1)), Pattern(n, m), None, 1)
    other = BlockGrid.of(torch.from_numpy(families.gaussian((2 * m, 3 * m), 2)), Pattern(n, m), None, 1)
    _, earlier, _ = settled(plain, other, None)
    far = earlier[0] + 1e30, earlier[1] - 1e30
    for start in (None, earlier, far)[: 3 if m == 4 else 2 if m < 16 else 1]:
        (mask, duals, a), (other_mask, other_duals, b) = (settled(engine, grid, start) for engine in (launch, plain))
        assert a.counts.tolist() == b.counts.tolist()
        left = int(a.counts[2])
        still = a.open_list[:left].long().sort().values
        assert (still == b.open_list.sort().values).all()
        for found in (mask, other_mask):
            grid.put(found, still, torch.zeros((), dtype=torch.bool))
        assert (mask == other_mask).all()
        if not left:
            assert all((mine == theirs).all() for mine, theirs in zip(duals, other_duals, strict=True))


def settled(engine: Any, grid: BlockGrid, start: Any) -> tuple[Any, Any, Any]:
    """Mask, duals and outcome; the duals to start from must come out as they were."""
    mask = torch.zeros(grid.scores.shape, dtype=torch.bool)
    duals = space_for_duals(grid)
    before = start and [side.clone() for side in start]
    outcome = engine.settle(grid, mask, duals, absolute=True, start=start)
    assert not start or all((side == old).all() for side, old in zip(start, before, strict=True))
    return mask, duals, outcome


@pytest.mark.parametrize("duals", [False, True])
def test_strides_signs_and_what_is_left(duals: bool) -> None:
    scores = torch.from_numpy(families.signed((40, 27), 0)).T
    scores[:4, :4] = torch.tensor([1e30, 1e-30, -1e-30, -1e-40])[torch.randint(4, (4, 4))]
    found = solve_on_device(torch.zeros(27, 40), 2, 4, scores=scores, engine="triton", duals=duals)
    best = solve_on_device(torch.zeros(27, 40), 2, 4, scores=scores, engine="torch")
    assert found.stats["engine"] == "triton"
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


class Waits(TorchDispatchMode):
    """Operations for which the host would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            part is not None and part.dtype == torch.bool for part in args[1] if isinstance(args[1], (list, tuple))
        )
        if masked or name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_engine_waits_for_nothing() -> None:
    grid = BlockGrid.of(torch.from_numpy(families.few_values((8, 12), 0)), Pattern(2, 4), None, 1)
    mask = torch.zeros(grid.scores.shape, dtype=torch.bool)
    for which, waits in ((launch, False), (plain, True)):
        with Waits() as seen:
            which.settle(grid, mask, None, absolute=True, start=None)
            which.kept_score(grid.scores, mask, absolute=True)
        assert bool(seen.found) is waits, seen.found


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (4, 64), (5, 70)], ids=str)
def test_one_block_wide_or_tall(shape: tuple[int, int]) -> None:
    array = families.gaussian(shape, 0)
    for weight in (torch.from_numpy(array), torch.from_numpy(array).T, torch.from_numpy(array).T[:, ::2]):
        a, b = (solve_on_device(weight, 2, 4, engine=engine, duals=True) for engine in ("triton", "torch"))
        assert (a.mask == b.mask).all()
        assert (a.row_duals == b.row_duals).all()


@pytest.mark.parametrize("m", [4, 8])
def test_rows_too_far_apart_for_32_bits(m: int) -> None:
    """The last row of a block is 2**31 entries from the first; memory that nothing touches takes none."""
    stride = (1 << 31) // (m - 1) + 16
    values = torch.from_numpy(families.few_values((m, 3 * m), 0)).bfloat16()
    far = torch.empty((m - 1) * stride + 3 * m, dtype=torch.bfloat16).as_strided((m, 3 * m), (stride, 1))
    far.copy_(values)
    for weight, near in ((far, values), (far.T, values.T)):
        a = solve_on_device(weight, m // 2, m, engine="triton")
        b = solve_on_device(near, m // 2, m, engine="torch")
        assert (a.mask == b.mask).all()
        assert a.objective == b.objective


@pytest.mark.parametrize("m", [4, 8])
def test_subnormal_bfloat16(m: int) -> None:
    """Read by their bits: a mask was said to be proven, of scores that the interpreter had converted wrongly."""
    weights = torch.from_numpy(families.gaussian((2 * m, 3 * m), 0)).double().mul(1e-39).bfloat16()
    a, b = (solve_on_device(weights, m // 2, m, engine=engine) for engine in ("triton", "torch"))
    assert (a.mask == b.mask).all()
    assert a.objective == b.objective


def test_kept_score() -> None:
    weights = torch.from_numpy(families.gaussian((1100, 9), 0)).T
    mask = torch.rand(9, 1100) < 0.5
    for absolute in (False, True):
        score: Any = launch.kept_score(weights, mask, absolute=absolute)
        exact = float(((weights.double().abs() if absolute else weights.double()) * mask).sum())
        assert score.item() == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize(("pattern", "dtype", "duals"), [("2:4", torch.bfloat16, False), ("4:8", torch.float32, True)])
def test_these_kernels_are_trusted(pattern: str, dtype: torch.dtype, duals: bool) -> None:
    for absolute in (True, False):
        assert engine.untrusted_triton(torch.device("cpu"), Pattern.parse(pattern), dtype, absolute, duals) == ""
