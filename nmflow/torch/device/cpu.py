"""What no engine can do, solved on the CPU and brought back: a whole tensor, or the blocks that an engine leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from nmflow.arrays import Layout
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.solution import Solution
from nmflow.torch.convert import to_array, to_mask
from nmflow.torch.device.grid import BlockGrid
from nmflow.torch.device.outcome import Pair

__all__ = ["finish", "solve_on_cpu"]


def finish(
    grid: BlockGrid,
    mask: torch.Tensor,
    duals: Pair | None,
    blocks: torch.Tensor,
    absolute: bool,
    threads: int | None,
) -> None:
    """Solve the blocks that are left on the CPU, side by side in one matrix."""
    rows, cols = grid.pattern.block_shape
    blocks = blocks.sort().values  # lists come in any order, and chunks of the CPU depend on it
    values = grid.blocks(blocks)
    stripe = to_array(values.transpose(0, 1).reshape(rows, -1))
    solution = solve(
        stripe, pattern=grid.pattern, scores=None if absolute else stripe, threads=threads,
        duals=duals is not None,
    )  # fmt: skip
    assert solution.certificate is not None
    assert solution.certificate.proven  # as the contract of an exact solver says
    found = to_mask(solution.mask, mask.device).reshape(rows, len(blocks), cols).transpose(0, 1)
    grid.put(mask, blocks, found)
    if duals is not None:
        u, v = duals
        tall, wide = grid.size
        i, j = blocks // wide, blocks % wide
        u.view(tall, rows, wide)[i, :, j] = torch.from_numpy(solution.row_duals).to(u).T
        v.view(tall, wide, cols)[i, j] = torch.from_numpy(solution.col_duals).to(v).reshape(-1, cols)


def solve_on_cpu(
    values: torch.Tensor,
    pattern: Pattern,
    absolute: bool,
    layout: Layout | None,
    groups: int,
    threads: int | None,
    duals: bool,
    warm_start: Solution | None,
) -> Solution:
    """What no engine can do: solved on the CPU, and brought back."""
    array = to_array(values)
    solution = solve(
        array, pattern=pattern, scores=None if absolute else array, layout=layout, groups=groups, threads=threads,
        duals=duals, warm_start=None if warm_start is None else _with_duals(warm_start, _on_cpu),
    )  # fmt: skip
    back = _with_duals(solution, lambda side: torch.from_numpy(side).to(values.device, torch.float64))
    mask: Any = to_mask(solution.mask, values.device)
    blocks = solution.stats["blocks"]
    all_here = dict.fromkeys(("ascended", "augmented", "on_cpu"), blocks) | {"engine": "cpu", "bands": 1}
    return replace(back, mask=mask, stats={**solution.stats, **all_here})


def _on_cpu(side: Any) -> Any:
    """Duals where `solve` can view them."""
    return side.cpu() if isinstance(side, torch.Tensor) else side


def _with_duals(solution: Solution, move: Callable[[Any], Any]) -> Solution:
    """The same solution, with each array of its duals moved."""

    def moved(side: Any) -> Any:
        if isinstance(side, tuple):
            return tuple(map(move, side))
        return None if side is None else move(side)

    return replace(solution, row_duals=moved(solution.row_duals), col_duals=moved(solution.col_duals))
