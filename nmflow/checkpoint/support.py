"""From a pruned weight back to the mask that pruned it: its support, completed where zeros leave a choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nmflow.arrays import Array
from nmflow.checkpoint.groups import group_counts
from nmflow.errors import CheckpointError
from nmflow.formats.given import bits_of, first_violation
from nmflow.pattern import Budget, Pattern
from nmflow.pipeline import solve

__all__ = ["Support", "find_support"]


@dataclass(frozen=True, slots=True)
class Support:
    """A mask read off a weight.

    Attributes
    ----------
    mask : ndarray of bool, shape (R, C)
    n_blocks : int
        Blocks of m x m.
    completed : int
        Blocks with fewer than n nonzero in some line, whose zeros were chosen by solving.
    unfilled : int
        Blocks that no choice of zeros fills exactly; their support is the mask.
    """

    mask: Array
    n_blocks: int
    completed: int
    unfilled: int


def find_support(weight: Array, pattern: str, threads: int | None = None) -> Support:
    """Find a two-way mask that keeps every nonzero entry of a pruned matrix, or of a part of one in whole blocks.

    Parameters
    ----------
    weight : ndarray of float, shape (R, C)
        Any values; -0.0 is a zero, and is kept where the pattern has room for it.
    pattern : str
        "n:m".
    threads : int, optional

    Raises
    ------
    CheckpointError
        If the nonzero entries break the pattern; it names the first group.

    Notes
    -----
    A block whose lines are not all full of nonzero entries leaves a choice. It is solved under exact fill with score 1
    for entries of the support and 0 for others: since every one of them fits, an optimal mask holds them all unless
    no exact mask does. (With |w| as scores the same masks are optimal, at needless numeric range, and NaN has none.)
    """
    budget = Budget.parse(pattern)
    n, m = budget.n, budget.m
    bits = bits_of(weight)
    magnitude = bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    rows, cols = weight.shape
    padded = np.zeros((-(-rows // m) * m, -(-cols // m) * m), bits.dtype)
    padded[:rows, :cols] = bits
    kept = padded != 0
    counts, fits = _blocks(kept, budget)
    if not fits.all():  # -0.0 is kept only in blocks that have room for it
        nonzero = (padded & magnitude) != 0
        if not _blocks(nonzero, budget)[1].all():
            raise CheckpointError(first_violation(nonzero, pattern).replace("mask must keep", "weights must have", 1))
        blocks = _as_blocks(kept, m)
        blocks[~fits] = _as_blocks(nonzero, m)[~fits]
        counts = _blocks(kept, budget)[0]
    short = counts < n * m
    completed = unfilled = 0
    if short.any():
        blocks = _as_blocks(kept, m)
        chosen = blocks[short]
        filled = _complete(chosen, budget, threads)
        good = np.logical_and.reduce(filled | ~chosen, axis=(1, 2))
        blocks[short] = np.where(good[:, None, None], filled, chosen)
        completed, unfilled = int(good.sum()), int((~good).sum())
    return Support(np.ascontiguousarray(kept[:rows, :cols]), short.size, completed, unfilled)


def _as_blocks(entries: Array, m: int) -> Array:
    """A view of shape (block rows, block columns, m, m)."""
    return entries.reshape(entries.shape[0] // m, m, -1, m).transpose(0, 2, 1, 3)


def _blocks(kept: Array, budget: Budget) -> tuple[Array, Array]:
    """How many entries each block keeps, and whether none of its lines keeps more than n."""
    along, down = group_counts(kept, budget.m), group_counts(kept.T, budget.m).T
    per_row = along.reshape(-1, budget.m, along.shape[1])
    most = np.maximum(per_row.max(axis=1), down.reshape(down.shape[0], -1, budget.m).max(axis=2))
    fits: Array = most <= budget.n
    return per_row.sum(axis=1, dtype=np.uint16), fits


def _complete(blocks: Array, budget: Budget, threads: int | None) -> Array:
    """Exact masks with as much as possible of the given entries, block by block."""
    count, m, _ = blocks.shape
    scores = blocks.transpose(1, 0, 2).reshape(m, count * m).astype(np.uint8)
    mask = solve(scores, pattern=Pattern(budget.n, budget.m), threads=threads).mask
    return mask.reshape(m, count, m).transpose(1, 0, 2)
