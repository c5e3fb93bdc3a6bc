"""Trying a chunk: a few of its blocks are settled, and what stays open says whether all are to be untied.

To untie blocks (`nmflow.solvers.untied`) takes about three times as long as to settle others, whatever their scores; a
block that stays open takes paths, which take far longer. How many do can hardly be told from how often scores repeat:
whole numbers have sums that tie too, zeros tie with each other alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.certificate import block_scores
from nmflow.pattern import Fill
from nmflow.reading import work_dtype
from nmflow.solvers.judge import by_side, likely_digits
from nmflow.solvers.levels import Lattice, lattice_of
from nmflow.solvers.open_blocks import OpenBlocks
from nmflow.solvers.settled import FEW_DIGITS, settle

__all__ = ["plan"]

REPEATED = 0.25
"""Share of some scores of a row that must repeat before blocks are tried."""
OPEN: dict[Fill, dict[int, float]] = {
    "exact": {4: 0.035, 8: 0.1, 16: 0.28, 64: 0.72},
    "at-most": {4: 0.09, 8: 0.25, 16: 0.58, 64: 0.9},
}
"""Share of blocks that must stay open before all are untied, by the longer side of a block."""
OPEN_OF_FEW_DIGITS: dict[Fill, dict[int, float]] = {
    "exact": {4: 0.011, 8: 0.04, 16: 0.05, 64: 0.28},
    "at-most": {4: 0.05, 8: 0.1, 16: 0.08, 64: 0.3},
}
"""The same where scores have few digits, which are magnified more often before they take paths."""
TRIED = 1 << 14
"""Most entries that are tried, if groups of neighbouring blocks are no larger."""
TOGETHER = 32
"""Blocks of such a group."""
SAMPLE, LEAST_SAMPLE = 1 << 11, 8
"""Entries that tell the lattice, the largest of which is not much smaller than that of all; and least blocks."""


def plan(chunk: Chunk) -> tuple[bool, Lattice | None]:
    """Whether blocks are to be untied, and the lattice on which their scores lie: judged by a few."""
    if not _movable(chunk):
        return False, None
    few = chunk.scores[0, :32].tolist()  # most matrices are told by a part of one line
    if len(set(few)) == len(few):
        return False, None
    some = chunk.scores[0, :128].tolist()
    if 1.0 - len(set(some)) / len(some) < REPEATED or not _stays_open(chunk):
        return False, None
    sample = block_scores(chunk, np.arange(0, chunk.n_blocks, -(-chunk.n_blocks // _sampled(chunk))))
    if not np.isfinite(sample).all():
        return False, None
    dtype = work_dtype(chunk.kind)
    lattice, from_zero = lattice_of(sample, dtype), lattice_of(np.append(sample, 0.0), dtype)
    # under at-most fill 0 is a number of its own; else some other block may hold one
    if chunk.pattern.fill == "at-most" or (lattice and from_zero and from_zero.spread <= 2 * lattice.spread):
        lattice = from_zero
    return True, lattice


def _sampled(chunk: Chunk) -> int:
    """How many blocks tell the lattice."""
    return max(LEAST_SAMPLE, SAMPLE // math.prod(chunk.pattern.block_shape))


def _movable(chunk: Chunk) -> bool:
    """Whether scores can be moved a little and the mask repaired after."""
    return chunk.pattern.col is not None and chunk.state is None and chunk.exact


def _stays_open(chunk: Chunk) -> bool:
    """Whether many of some blocks stay open where they are settled."""
    (rows, cols), (tall, wide) = chunk.pattern.block_shape, chunk.grid
    across = min(wide, TOGETHER)
    groups = min(max(1, TRIED // (rows * cols * across)), tall)
    tops = np.arange(groups) * tall // groups
    lefts = np.arange(groups) * 7 * across % (wide - across + 1)

    def taken(array: Array) -> Array:
        parts = [
            array[top * rows : (top + 1) * rows, left * cols : (left + across) * cols]
            for top, left in zip(tops, lefts, strict=True)
        ]
        return np.concatenate(parts)

    scores = taken(chunk.scores)
    place = replace(chunk.place, block_rows=slice(0, groups), block_cols=slice(0, across), share_rows=0)
    some = replace(
        chunk, scores=scores, source=taken(chunk.source), mask=np.zeros(scores.shape, np.bool_), place=place,
        start=None, warm=None, duals=None, threads=1,
    )  # fmt: skip
    still = settle(some, OpenBlocks(some), paths=False)
    return still < 0 or still > _most_open(chunk) * some.n_blocks


def _most_open(chunk: Chunk) -> float:
    """Share of blocks that may stay open."""
    shares = OPEN_OF_FEW_DIGITS if likely_digits(chunk) <= FEW_DIGITS else OPEN
    return by_side(shares[chunk.pattern.fill], chunk.pattern)
