"""Judging a chunk by a few of its scores: how it is best solved. A wrong guess costs time, and nothing else."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.kernels import rounds
from nmflow.pattern import Pattern

__all__ = ["by_side", "fillable", "likely_digits", "likely_distinct", "likely_full"]

Entry = TypeVar("Entry")

DIGITS, MOST_DIGITS = {"float16": 11, "bfloat16": 8}, 53
"""Bits of a score, counting the highest; and of any."""
DISTINCT_SHARE = 0.9
"""Share of some scores that must be different from all others."""
POSITIVE, MOST_POSITIVE = 1.5, 0.95
"""Under at-most fill, blocks are settled as if lines had to be full where this many times as many scores are above 0 as
lines keep; and a share of all scores that is always enough."""
NOT_NEGATIVE, NOT_NEGATIVE_TIED = 0.65, 0.8
"""Shares of scores that must not be below 0 for that; the second where blocks are untied."""
LONG_SIDE = 8
"""Longest side of tied blocks that must have many scores above 0, too, unless most of these are alike: in others, full
lines with zeros in them are mended sooner than lines are found that are not full."""


def fillable(pattern: Pattern) -> bool:
    """Whether fill is at most, and full lines can use up the budgets of both sides."""
    rows, cols = pattern.block_shape
    both = pattern.fill == "at-most" and pattern.col is not None
    return both and rows * pattern.row_budget == cols * pattern.col_budget


def likely_full(chunk: Chunk, *, tied: bool = False) -> bool:
    """Whether blocks are settled, or untied if `tied`, sooner as if lines had to be full, under at-most fill."""
    some = _some(chunk).astype(np.float64)
    if chunk.absolute:
        np.abs(some, out=some)
    above = some[some > 0]
    if np.count_nonzero(some >= 0) <= (NOT_NEGATIVE_TIED if tied else NOT_NEGATIVE) * some.size:
        return False
    kept = chunk.pattern.row_budget / chunk.pattern.block_shape[1]
    if len(above) > min(POSITIVE * kept, MOST_POSITIVE) * some.size:
        return True
    return tied and (max(chunk.pattern.block_shape) > LONG_SIDE or 2 * _most_alike(above) > len(above))


def likely_distinct(chunk: Chunk) -> bool:
    """Whether hardly a score repeats: what is hard to tell apart then is no tie."""
    some = _some(chunk)
    return len(np.unique(some)) > DISTINCT_SHARE * some.size


def likely_digits(chunk: Chunk) -> int:
    """How many bits a score has from its highest to its lowest: a float32 that was a bfloat16 has 8."""
    if not chunk.exact:
        return MOST_DIGITS
    if chunk.kind in DIGITS:
        return DIGITS[chunk.kind]
    some = chunk.scores[0, :128]
    if any(some.tobytes()[:: some.itemsize]):  # the lowest bits, nearly always
        return MOST_DIGITS
    mantissa = np.finfo(some.dtype).nmant
    bits = int(np.bitwise_or.reduce(some.view(f"u{some.itemsize}"))) & ((1 << mantissa) - 1)
    return 1 + mantissa - ((bits & -bits).bit_length() - 1 if bits else 0)


def by_side(table: dict[int, Entry], pattern: Pattern) -> Entry:
    """The entry of a table for the longer side of a block."""
    return rounds.by_side(table, max(pattern.block_shape))


def _some(chunk: Chunk) -> Array:
    """A few entries of lines all over a chunk."""
    return chunk.source[:: max(1, len(chunk.source) // 8), :128]


def _most_alike(some: Array) -> int:
    """How often the most frequent of some scores is there."""
    return int(np.unique(some, return_counts=True)[1].max(initial=0))
