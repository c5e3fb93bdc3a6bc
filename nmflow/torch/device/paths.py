"""Shortest augmenting paths over batches of blocks, in plain torch operations on integers.

What dual ascent leaves open are ties and near ties. The mask [t > u + v] of such a block has lines that keep too little
or too much. Rows that lack a unit and columns with one too many are sources, columns that lack and rows with too many
are targets; an entry that is not kept leads from its row to its column at cost u + v - t, one that is kept leads back
at cost t - u - v. No cost is negative. Each pass finds the shortest distances from all sources (Bellman-Ford: a sweep
relaxes every entry of a block at once, which suits a device better than Dijkstra's one line at a time), moves the duals
by them, and sends one unit to the nearest target. Integers make ties exact: a cost of 0 stays 0.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, sections 5.4 (label correcting) and 9.7 (successive paths).
"""

from __future__ import annotations

import torch

from nmflow.torch.device.ascent import threshold
from nmflow.torch.device.numbers import WIDE

__all__ = ["FAR", "LARGEST_DUAL", "augment", "paths_for", "proven"]

FAR = 1 << 61
"""More than any distance, and twice it still fits 64 bits. Costs stay below 2**57, and paths are short; a block where
one is longer is given up: its duals leave their range."""
LARGEST_DUAL = 1 << (WIDE + 1)
"""A block whose duals leave this range is given up, so that no sum leaves 64 bits."""


def paths_for(rows: int, cols: int) -> int:
    """Most paths for a block; more are rare, and left to the CPU."""
    return rows + cols


def augment(
    numbers: torch.Tensor, u: torch.Tensor, v: torch.Tensor, budgets: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find optimal masks of the integers, from duals that are there.

    Parameters
    ----------
    numbers : Tensor of int64, shape (k, R, C)
        Of `to_numbers`, WIDE.
    u, v : Tensor of int64, shapes (k, R) and (k, C)
        Any duals; not modified.
    budgets : (int, int)
        Entries kept in a row, in a column, exactly.

    Returns
    -------
    mask : Tensor of bool, shape (k, R, C)
    u, v : Tensor of int64
    settled : Tensor of bool, shape (k,)
        Whether mask and duals prove each other for the scores as real numbers.

    Notes
    -----
    O(R C) for each sweep; few sweeps a path, few paths a block.
    """
    u, v = (side.clamp(-LARGEST_DUAL, LARGEST_DUAL) for side in (u, v))
    mask = _filled(numbers, u, v, budgets)
    settled = torch.zeros(len(numbers), dtype=torch.bool, device=numbers.device)
    out_u, out_v = u.clone(), v.clone()
    out_mask = mask.clone()
    alive = torch.arange(len(numbers), device=numbers.device)
    for left in range(paths_for(*numbers.shape[1:]), -1, -1):
        lacks = (budgets[0] - mask.sum(dim=2), budgets[1] - mask.sum(dim=1))
        done = (lacks[0] == 0).all(dim=1) & (lacks[1] == 0).all(dim=1)
        lost = (u.abs().amax(dim=1) > LARGEST_DUAL) | (v.abs().amax(dim=1) > LARGEST_DUAL)
        ended = done | lost
        at = alive[ended]
        out_mask[at], out_u[at], out_v[at] = mask[ended], u[ended], v[ended]
        settled[at] = done[ended] & proven(numbers[ended], mask[ended], u[ended], v[ended])
        alive, numbers, mask, u, v = (part[~ended] for part in (alive, numbers, mask, u, v))
        if not len(alive) or not left:
            break
        mask, u, v = _one_path(numbers, mask, u, v, lacks[0][~ended], lacks[1][~ended])
    return out_mask, out_u, out_v, settled


def _filled(numbers: torch.Tensor, u: torch.Tensor, v: torch.Tensor, budgets: tuple[int, int]) -> torch.Tensor:
    """What is above u + v, and of the entries that equal it, in order, those that fit: they cost nothing."""
    mask, _ = threshold(numbers, u, v, budgets)
    ties = numbers == u[:, :, None] + v[:, None, :]
    room = budgets[1] - mask.sum(dim=1)
    lacks = budgets[0] - mask.sum(dim=2)
    for i in range(numbers.shape[1]):
        fits = ties[:, i] & (room > 0)
        fits &= fits.cumsum(dim=1) <= lacks[:, i, None]
        mask[:, i] |= fits
        room = room - fits.int()
    return mask


def proven(numbers: torch.Tensor, mask: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Whether duals prove masks (whose lines keep what they should), for the scores as real numbers.

    Returns
    -------
    Tensor of bool, shape (k,)
    """
    reduced = numbers - u[:, :, None] - v[:, None, :]
    clear = torch.where(mask, reduced > 0, reduced < 0) | ((reduced == 0) & (numbers & 1 == 0))
    return clear.flatten(1).all(dim=1)


def _one_path(
    numbers: torch.Tensor,
    mask: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    row_lacks: torch.Tensor,
    col_lacks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Send one unit in each block, all of which have one to send; new mask and duals."""
    count, rows, cols = numbers.shape
    reduced = numbers - u[:, :, None] - v[:, None, :]
    forth = torch.where(mask, FAR, -reduced)  # from a row over an entry that is not kept
    back = torch.where(mask, reduced, FAR)  # from a column over one that is
    to_row = torch.where(row_lacks > 0, 0, FAR)
    to_col = torch.where(col_lacks < 0, 0, FAR)
    row_from = torch.full_like(to_row, -1, dtype=torch.int64)
    col_from = torch.full_like(to_col, -1, dtype=torch.int64)

    def nearest() -> torch.Tensor:
        rows_left = torch.where(row_lacks < 0, to_row, FAR).amin(dim=1)
        return torch.minimum(rows_left, torch.where(col_lacks > 0, to_col, FAR).amin(dim=1))

    while True:
        # what is no nearer than the nearest target leads nowhere
        limit = nearest()[:, None]
        best, via = (to_row[:, :, None] + forth).min(dim=1)
        closer = (best < to_col) & (best < limit)
        to_col, col_from = torch.where(closer, best, to_col), torch.where(closer, via, col_from)
        best, via = (to_col[:, None, :] + back).min(dim=2)
        nearer = (best < to_row) & (best < limit)
        to_row, row_from = torch.where(nearer, best, to_row), torch.where(nearer, via, row_from)
        if not (closer.any() or nearer.any()):
            break
    final = nearest()
    u = u + (to_row - final[:, None]).clamp(max=0)
    v = v - (to_col - final[:, None]).clamp(max=0)
    ends = torch.cat([torch.where(row_lacks < 0, to_row, FAR), torch.where(col_lacks > 0, to_col, FAR)], dim=1)
    end = ends.argmin(dim=1)
    at_row, line = end < rows, torch.where(end < rows, end, end - rows)
    every = torch.arange(count, device=numbers.device)
    mask = mask.clone()
    while True:
        before = torch.where(
            at_row, row_from[every, line.clamp(max=rows - 1)], col_from[every, line.clamp(max=cols - 1)]
        )
        moving = before >= 0
        if not moving.any():
            return mask, u, v
        i, j = torch.where(at_row, line, before), torch.where(at_row, before, line)
        mask[every[moving], i[moving], j[moving]] = ~at_row[moving]
        at_row, line = torch.where(moving, ~at_row, at_row), torch.where(moving, before, line)
