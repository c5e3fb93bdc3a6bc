"""Judging a chunk by a few of its scores: how it is best solved. A wrong guess costs time, and nothing else."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.certificate import block_scores
from nmflow.pattern import Pattern
from nmflow.reading import work_dtype
from nmflow.solvers.levels import Lattice, lattice_of

__all__ = ["by_side", "fillable", "likely_digits", "likely_distinct", "likely_full", "plan"]

Entry = TypeVar("Entry")

DIGITS, MOST_DIGITS = {"float16": 11, "bfloat16": 8}, 53
"""Bits of a score, counting the highest; and of any."""
TIED_SHARE = 0.5
"""Share of a block's scores that must repeat before all blocks are moved."""
DISTINCT_SHARE = 0.9
"""Share of some scores that must be different from all others."""
POSITIVE, TIED_POSITIVE, MOST_POSITIVE = 1.5, 0.5, 0.95
"""Under at-most fill, blocks are settled as if lines had to be full where this many times as many scores are above 0 as
lines keep; the same where most of those repeat; and a share of all scores that is always enough."""


def plan(chunk: Chunk) -> tuple[bool, Lattice | None]:
    """Whether most scores repeat, and the lattice on which they lie: judged by a few."""
    if not _movable(chunk):
        return False, None
    few = chunk.scores[0, :32].tolist()  # most matrices are told by a part of one line
    if len(set(few)) == len(few):
        return False, None
    some = chunk.scores[0, :128].tolist()
    if 1.0 - len(set(some)) / len(some) < TIED_SHARE / 2:
        return False, None
    places = np.arange(0, chunk.n_blocks, -(-chunk.n_blocks // 8))
    sample = block_scores(chunk, places)
    if not np.isfinite(sample).all() or _repeated_share(sample.reshape(len(sample), -1)[:, :256]) < TIED_SHARE:
        return False, None
    return True, lattice_of(sample, work_dtype(chunk.kind))


def _movable(chunk: Chunk) -> bool:
    """Whether scores can be moved a little and the mask repaired after."""
    exact = chunk.pattern.fill == "exact" and chunk.pattern.col is not None
    return exact and chunk.state is None and chunk.exact


def fillable(pattern: Pattern) -> bool:
    """Whether fill is at most, and full lines can use up the budgets of both sides."""
    rows, cols = pattern.block_shape
    both = pattern.fill == "at-most" and pattern.col is not None
    return both and rows * pattern.row_budget == cols * pattern.col_budget


def likely_full(chunk: Chunk, *, tied: bool) -> bool:
    """Whether lines of most best masks are full under at-most fill; `tied`: or of many, where most scores repeat."""
    some = _some(chunk).astype(np.float64)
    if chunk.absolute:
        np.abs(some, out=some)
    above = some[some > 0]
    share, kept = above.size / some.size, chunk.pattern.row_budget / chunk.pattern.block_shape[1]
    if share > min(POSITIVE * kept, MOST_POSITIVE):
        return True
    repeat = tied and share > min(TIED_POSITIVE * kept, MOST_POSITIVE)
    return repeat and len(np.unique(above)) < TIED_SHARE * above.size


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
    side = max(pattern.block_shape)
    return next(entry for most, entry in table.items() if side <= most)


def _some(chunk: Chunk) -> Array:
    """A few entries of lines all over a chunk."""
    return chunk.source[:: max(1, len(chunk.source) // 8), :128]


def _repeated_share(lines: Array) -> float:
    """Share of the numbers of a line that equal an earlier one of it: the median over lines."""
    ordered = np.sort(lines, axis=1)
    shares = np.count_nonzero(ordered[:, 1:] == ordered[:, :-1], axis=1)
    return float(np.sort(shares)[len(lines) // 2] / ordered.shape[1])
