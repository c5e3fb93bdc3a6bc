"""The engine in plain torch operations: any device, any block shape; a slice of blocks at a time."""

from __future__ import annotations

import torch

from nmflow.torch.device.ascent import ascend, rounds_for, threshold
from nmflow.torch.device.grid import BlockGrid
from nmflow.torch.device.numbers import NARROW, WIDE, power_of_two, to_numbers
from nmflow.torch.device.outcome import Outcome, Pair
from nmflow.torch.device.paths import LARGEST_DUAL, augment

__all__ = ["SLICE", "kept_score", "magnitude", "settle"]

SLICE = 1 << 22
"""Entries that are worked on together: some 200 MB of workspace, and enough to fill a device."""


def settle(grid: BlockGrid, mask: torch.Tensor, duals: Pair | None, *, absolute: bool, start: Pair | None) -> Outcome:
    """Settle all blocks of a matrix.

    Parameters
    ----------
    grid : BlockGrid
    mask : Tensor of bool, shape (tall * R, wide * C), contiguous
        Written; undefined in blocks that are left open, or where scores are not finite.
    duals : pair of Tensor of float64, shapes (tall * R, wide) and (tall, wide * C), contiguous, or None
        Written, in units of the scores; undefined in blocks that are left open.
    absolute : bool
        Whether the score is the absolute value of the entry.
    start : pair of Tensor of float64, or None
        Duals to start from, shaped like `duals`; not modified.
    """
    rows, cols = grid.pattern.block_shape
    tall, wide = grid.size
    device = grid.scores.device
    counts = torch.zeros(4, dtype=torch.int32, device=device)
    rest = []
    step = max(1, SLICE // (rows * cols))
    for first in range(0, tall * wide, step):
        numbers = torch.arange(first, min(first + step, tall * wide), device=device)
        values = grid.blocks(numbers)
        i, j = numbers // wide, numbers % wide
        given = None
        if start is not None:
            given = start[0].reshape(tall, rows, wide)[i, :, j], start[1].reshape(tall, wide, cols)[i, j]
        found, row, col, still, left = _settle_some(values, grid, absolute, given)
        grid.put(mask, numbers, found)
        if duals is not None:
            duals[0].view(tall, rows, wide)[i, :, j] = row
            duals[1].view(tall, wide, cols)[i, j] = col
        rest.append(numbers[still])
        counts += torch.stack([*left, still.sum(), ~torch.isfinite(values).all()]).int()
    return Outcome(torch.cat(rest), counts)


def kept_score(scores: torch.Tensor, mask: torch.Tensor, *, absolute: bool) -> torch.Tensor:
    """Sum of what a mask keeps, float64, on the device."""
    step = max(1, SLICE // scores.shape[1])
    sums = []
    for first in range(0, len(scores), step):
        part = scores[first : first + step].double()
        part = part.abs() if absolute else part
        sums.append((part * mask[first : first + step]).sum())
    return torch.stack(sums).sum()


def magnitude(scores: torch.Tensor) -> torch.Tensor:
    """Sum of all magnitudes, float64, on the device; scores of any shape, a slice of which is converted at a time."""
    step = max(1, SLICE // scores[0].numel())
    parts = [scores[first : first + step].double().abs().sum() for first in range(0, len(scores), step)]
    return torch.stack(parts).sum()


def _settle_some(
    values: torch.Tensor, grid: BlockGrid, absolute: bool, start: Pair | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Masks, duals, which blocks are still open, and how many were after each ascent."""
    pattern = grid.pattern
    budgets = (pattern.row_budget, pattern.col_budget)
    numbers, shift = to_numbers(values, absolute=absolute)
    half = power_of_two(shift + 1)[:, None]
    first, more, again = rounds_for(max(pattern.block_shape))
    if start is None:
        u = torch.zeros_like(numbers[:, :, 0])
        v = torch.zeros_like(numbers[:, 0])
    else:
        u, v = (_even(side * half) for side in start)
    u, v = ascend(numbers, u, v, budgets, first if start is None else again)
    mask, settled = threshold(numbers, u, v, budgets)
    row, col = u / half, v / half
    left = [(~settled).sum()]
    at = (~settled).nonzero()[:, 0]
    if len(at):
        fresh = ascend(numbers[at], _even(u[at]), _even(v[at]), budgets, more)  # cut off, as Triton reads them again
        better, done = threshold(numbers[at], *fresh, budgets)
        mask[at] = better
        row[at], col[at] = (side / half[at] for side in fresh)
        at = at[~done]
    left.append(torch.tensor(len(at), device=values.device))
    still = torch.zeros_like(settled)
    if len(at):
        wide, shift = to_numbers(values[at], absolute=absolute, bits=WIDE)
        half = power_of_two(shift + 1)[:, None]
        u, v = ((side[at] * half).clamp(-LARGEST_DUAL, LARGEST_DUAL).long() for side in (row, col))
        mask[at], u, v, done = augment(wide, u, v, budgets)
        row[at], col[at] = u / half, v / half
        still[at] = ~done
    return mask, row, col, still, (left[0], left[1])


def _even(duals: torch.Tensor) -> torch.Tensor:
    """Duals in half units as even numbers, cut off where they are far from the scores."""
    largest = 1 << (NARROW + 1)
    return duals.nan_to_num().clamp(-largest, largest).int() & ~1
