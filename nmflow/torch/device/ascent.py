"""Dual ascent over batches of blocks, in plain torch operations on integers: any device, any block shape.

With v fixed, row i is optimal for any u_i between the n-th and the (n+1)-th largest of t[i, :] - v; we step to the
midpoint, and between the first and the last step past it, as `nmflow.kernels.ascent` does. Duals are kept even, so that
[t > u + v] compares the scores as real numbers (see `nmflow.torch.device.numbers`): a block whose lines all keep what
they should by that is proven.
"""

from __future__ import annotations

import torch

__all__ = ["ROUNDS", "ascend", "line_step", "rounds_for", "threshold"]

ROUNDS = {4: (4, 4, 1), 8: (5, 5, 2), 16: (6, 6, 2), 32: (8, 9, 3), 64: (12, 14, 5)}
"""Rounds for all blocks, for those then open, and for all blocks from earlier duals, by the longer side of a block:
those that were measured for the CPU. On a GPU they are yet to be measured."""
EARLY = 3
"""Rounds after the first whose steps are shorter than those of later ones."""


def rounds_for(side: int) -> tuple[int, int, int]:
    """Rounds for a block whose longer side is `side`."""
    return next(rounds for size, rounds in ROUNDS.items() if side <= size)


def ascend(
    numbers: torch.Tensor, u: torch.Tensor, v: torch.Tensor, budgets: tuple[int, int], rounds: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve duals for `rounds` rounds, rows first and rows last.

    Parameters
    ----------
    numbers : Tensor of int32, shape (k, R, C)
    u, v : Tensor of int32, shapes (k, R) and (k, C), even
        Where to start; not modified.
    budgets : (int, int)
        Entries kept in a row, in a column.
    rounds : int

    Returns
    -------
    u, v : Tensor of int32, even
    """
    for k in range(rounds + 1):
        past = (2 if k > EARLY else 3) if 0 < k < rounds else 0
        u = line_step(numbers - v[:, None, :], u, budgets[0], past=past)
        if k < rounds:
            v = line_step((numbers - u[:, :, None]).mT, v, budgets[1], past=past)
    return u, v


def line_step(lines: torch.Tensor, old: torch.Tensor, budget: int, *, past: int) -> torch.Tensor:
    """New duals of lines, given their scores less the duals across, shape (k, lines, entries).

    past : 0 for the midpoint; else how many bits the last part of the step past it is shorter than one to it, where a
    line has more than 16 entries.
    """
    count = lines.shape[2]
    if budget == count:
        return (lines.amin(dim=2) - 1) & ~1
    top = lines.topk(budget + 1, dim=2).values
    target = (top[..., budget - 1] + top[..., budget]) >> 1
    if past:
        step = target - old
        target = target + (step >> 2)
        if count > 8:
            target = target + (step >> (past if count > 16 else 3))
    return target & ~1


def threshold(
    numbers: torch.Tensor, u: torch.Tensor, v: torch.Tensor, budgets: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep what is above u + v, all of them even; and say which blocks are settled, so proven, by that.

    Returns
    -------
    mask : Tensor of bool, shape (k, R, C)
    settled : Tensor of bool, shape (k,)
    """
    mask = numbers > u[:, :, None] + v[:, None, :]
    settled = (mask.sum(dim=2) == budgets[0]).all(dim=1) & (mask.sum(dim=1) == budgets[1]).all(dim=1)
    return mask, settled
