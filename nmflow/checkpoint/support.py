"""From a pruned weight back to the mask that pruned it: its support, completed where zeros leave a choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nmflow.errors import CheckpointError
from nmflow.formats.given import bits_of, first_violation
from nmflow.pattern import Budget, Pattern
from nmflow.pipeline import solve
from nmflow.problem import Array

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
    blocks = padded.reshape(len(padded) // m, m, -1, m).transpose(0, 2, 1, 3)
    nonzero = (blocks & magnitude) != 0
    if not _fits(nonzero, n).all():
        text = first_violation((padded & magnitude) != 0, pattern)
        raise CheckpointError(text.replace("mask must keep", "weights must have", 1))
    any_bit = blocks != 0
    kept = np.where(_fits(any_bit, n)[..., None, None], any_bit, nonzero)
    short = kept.sum(axis=(2, 3)) < n * m
    completed = unfilled = 0
    if short.any():
        chosen = kept[short]
        filled = _complete(chosen, budget, threads)
        good = (filled | ~chosen).all(axis=(1, 2))
        kept[short] = np.where(good[:, None, None], filled, chosen)
        completed, unfilled = int(good.sum()), int((~good).sum())
    mask = np.ascontiguousarray(kept.transpose(0, 2, 1, 3).reshape(padded.shape)[:rows, :cols])
    return Support(mask, short.size, completed, unfilled)


def _fits(blocks: Array, n: int) -> Array:
    """Whether each block keeps at most n in every line."""
    along = blocks.sum(axis=3).max(axis=2) <= n
    down = blocks.sum(axis=2).max(axis=2) <= n
    fits: Array = along & down
    return fits


def _complete(blocks: Array, budget: Budget, threads: int | None) -> Array:
    """Exact masks with as much as possible of the given entries, block by block."""
    count, m, _ = blocks.shape
    scores = blocks.transpose(1, 0, 2).reshape(m, count * m).astype(np.uint8)
    mask = solve(scores, pattern=Pattern(budget.n, budget.m), threads=threads).mask
    return mask.reshape(m, count, m).transpose(1, 0, 2)
