"""Certificate: grades any mask against any duals, block by block; knows no solver.

With duals u per row, v per column and budgets r, c, no feasible mask of a block keeps more than

    bound = sum r u + sum c v + sum_free max(0, S - u - v) + sum_keep (S - u - v),

with u, v >= 0 under at-most fill (and v = 0 where columns are free). A mask reaches the bound exactly when
what it keeps freely has S - u - v >= 0, what it drops freely has S - u - v <= 0, and under at-most fill a line with a
positive dual is full. A block is proven when those signs hold as real numbers: see `nmflow.kernels.proof` for how a
rounded comparison decides that. The gap is summed from what violates them, so it does not cancel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import FREE, KEEP, Chunk
from nmflow.crew import call_on_threads
from nmflow.duals import BlockDuals, Duals, ldexp
from nmflow.integers import integers_of
from nmflow.pattern import Pattern
from nmflow.sums import added

__all__ = ["ChunkGrade", "Proven", "block_scores", "fills", "grade", "grade_exactly"]

BATCH_ENTRIES = 1 << 16
"""Entries of the blocks that are graded one by one together: half a MiB of float64."""
NO_GAPS = np.zeros(0)


class ChunkGrade(NamedTuple):
    """Grade of a chunk: its kept score, the number of a Status for each block, the blocks not proven and their gaps.

    status may be None where all are proven.
    """

    objective: float
    status: npt.NDArray[np.uint8] | None
    unproven: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.float64]


def fills(pattern: Pattern) -> tuple[int, int]:
    """How rows and columns are filled, as the kernels number it: 2 exact, 1 at most, 0 free."""
    return (2 if pattern.row_exact else 1), (2 if pattern.col_exact else 1) if pattern.col else 0


class Proven(NamedTuple):
    """Blocks that were graded as proven when their masks were made, by the code that grades any mask.

    Attributes
    ----------
    objective : float
        Their kept score.
    others : ndarray of int64, shape (k,), ascending
        The blocks of the chunk that are not among them.
    """

    objective: float
    others: npt.NDArray[np.int64]


def block_scores(chunk: Chunk, blocks: Array) -> Array:
    """Scores of some blocks as float64, shape (k, R, C); rounded where ``chunk.exact`` is False."""
    from nmflow.kernels.gather import gather_scores_kernel

    shape = chunk.pattern.block_shape
    blocks = np.ascontiguousarray(blocks, np.int64)
    values = np.empty((len(blocks), *shape))
    gather_scores_kernel(chunk.kind, chunk.absolute)(
        chunk.scores.ctypes.data, chunk.scores.strides[0], chunk.grid[1], blocks, values
    )  # fmt: skip
    return values


def grade(chunk: Chunk, duals: Duals, proven: Proven | None = None) -> ChunkGrade:
    """Grade ``chunk.mask`` against `duals`.

    Parameters
    ----------
    chunk : Chunk
        Finite scores, and the mask; both only read.
    duals : Duals
        From any source; where they are poor the gap is large, and where they are missing they count as 0.
    proven : Proven, optional
        Blocks that need not be graded again.

    Returns
    -------
    ChunkGrade

    Notes
    -----
    Time is linear in the entries: about two additions and three comparisons for each where the duals are in
    the work dtype, and some ten for blocks whose duals are float64; blocks of `special` are graded in
    Python integers.
    """
    if proven is not None and not len(proven.others) and chunk.state is None:
        return ChunkGrade(proven.objective, None, proven.others, NO_GAPS)
    from nmflow.kernels.proof import proof_kernel
    from nmflow.kernels.share import SUMS

    pattern, mask, scores = chunk.pattern, chunk.mask, chunk.scores
    rows, cols = pattern.block_shape
    tall, wide = chunk.grid
    flags = np.zeros(chunk.n_blocks, np.uint8)
    shares, share_rows = chunk.shares
    sums = np.zeros(SUMS * shares)
    if proven is None:
        row, col = duals.row, duals.col
        if row is None or col is None:
            row, col = (np.zeros_like(side) for side in chunk.fresh_duals())
        operation = proof_kernel(
            chunk.kind, rows, cols, pattern.row_budget, pattern.col_budget, *fills(pattern), chunk.absolute
        )  # fmt: skip
        job = (
            scores.ctypes.data, scores.strides[0], mask.ctypes.data, mask.strides[0], row.ctypes.data, col.ctypes.data,
            flags.ctypes.data, sums.ctypes.data, int(chunk.exact), tall, wide, share_rows,
        )  # fmt: skip
        call_on_threads(operation, job, 1, min(chunk.threads, shares))
        blocks = np.flatnonzero(flags)
    else:
        blocks = proven.others
    # one by one: blocks with duals of their own, blocks whose gap is asked for, and blocks with fixed entries
    if chunk.state is not None:
        blocks = np.union1d(blocks, chunk.fixed_blocks)
    found, gaps = np.empty(len(blocks), np.uint8), np.zeros(len(blocks))
    size = max(64, BATCH_ENTRIES // (rows * cols))
    for first in range(0, len(blocks), size):
        batch = slice(first, first + size)
        kept = _grade_one_by_one(chunk, duals, blocks[batch], found[batch], gaps[batch])
        if proven is not None:
            sums[0] += kept
    flags[blocks] = found
    blocks, gaps = blocks[found != 0], gaps[found != 0]
    objective = added(sums) + (proven.objective if proven else 0.0)
    return ChunkGrade(objective, flags, blocks, gaps)


def _grade_one_by_one(chunk: Chunk, duals: Duals, blocks: Array, found: Array, gaps: Array) -> float:
    """Grade some blocks against duals of any precision: fills `found` and `gaps`, returns their kept score."""
    from nmflow.kernels.grade import grade_kernel

    pattern = chunk.pattern
    u, v = duals.gather(chunk, blocks)
    kept: float = grade_kernel()(
        block_scores(chunk, blocks), u, v, chunk.gather(chunk.mask, blocks).view(np.uint8), chunk.gather_state(blocks),
        chunk.exact, pattern.row_budget, pattern.col_budget, *fills(pattern), found, gaps,
    )  # fmt: skip
    one_by_one = dict(duals.special or {})
    # feasible, and sums overflowed; or scores were rounded, so that sums of them are no bound
    for k in np.flatnonzero((found == 1) & (~np.isfinite(gaps) | (not chunk.exact))).tolist():
        if np.isfinite(u[k]).all() and np.isfinite(v[k]).all():
            one_by_one.setdefault(int(blocks[k]), BlockDuals(u[k], v[k]))
        else:
            gaps[k] = math.inf
    for k in np.flatnonzero(found).tolist() if one_by_one else ():
        block = int(blocks[k])
        if block in one_by_one:
            found[k], gaps[k] = grade_exactly(
                *chunk.block_integers(block), chunk.mask[chunk.corner(block)], one_by_one[block], pattern,
                chunk.block_state(block),
            )  # fmt: skip
    return kept


def grade_exactly(
    numbers: Array, exponent: int, mask: Array, duals: BlockDuals, pattern: Pattern, state: Array | None
) -> tuple[int, float]:
    """Grade one block in Python integers.

    Parameters
    ----------
    numbers : ndarray of object, shape (R, C)
        score = numbers * 2**exponent.
    exponent : int
    mask : ndarray of bool, shape (R, C)
    duals : BlockDuals
    pattern : Pattern
    state : ndarray of int8, shape (R, C), or None

    Returns
    -------
    flag : int
        0 proven, 1 feasible and not proven, 2 infeasible.
    gap : float
        Correctly rounded; NaN where infeasible.
    """
    both = np.concatenate([duals.row, duals.col])
    whole, dual_exponent = (both, 0) if both.dtype == object else integers_of(both)
    dual_exponent += duals.exponent
    low = min(exponent, dual_exponent)
    scale, dual_scale = 1 << (exponent - low), 1 << (dual_exponent - low)
    rows, cols = mask.shape
    u, v = [int(x) * dual_scale for x in whole[:rows]], [int(x) * dual_scale for x in whole[rows:]]
    row_fill, col_fill = fills(pattern)
    gap, wrong_sign = 0, False
    for i in range(rows):
        for j in range(cols):
            fixed = FREE if state is None else int(state[i, j])
            if fixed != FREE:
                if bool(mask[i, j]) != (fixed == KEEP):
                    return 2, math.nan
                continue
            reduced = int(numbers[i, j]) * scale - u[i] - v[j]
            gap += max(0, -reduced) if mask[i, j] else max(0, reduced)
    lines: Any = (
        (u, mask.sum(axis=1), pattern.row_budget, row_fill),
        (v, mask.sum(axis=0), pattern.col_budget, col_fill),
    )
    for values, counts, budget, fill in lines:
        for value, count in zip(values, counts.tolist(), strict=True):
            if count > budget or (fill == 2 and count != budget):
                return 2, math.nan
            if fill < 2:
                wrong_sign |= value < 0 or (fill == 0 and value != 0)
                gap += value * (budget - count)
    if wrong_sign:
        return 1, math.inf
    return (1, ldexp(gap, low)) if gap else (0, 0.0)
