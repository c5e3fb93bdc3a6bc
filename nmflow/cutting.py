"""Where blocks and chunks lie: the grid of a matrix, and the places it is cut into.

Places never depend on the number of threads, so neither does a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmflow.pattern import Pattern
from nmflow.problem import Problem

__all__ = ["Grid", "Place", "block_numbers", "caller_grids", "grids", "iter_places", "region"]

CHUNK_ENTRIES = 1 << 22
"""Most entries of a chunk: each costs the interpreter some .1 ms, and with more a chunk leaves the cache."""
COPIED_ENTRIES = 1 << 20
"""The same where all that is in a chunk is copied: for an earlier mask, or another dtype or order to read."""
FIXED_ENTRIES = 3 << 17
"""The same where entries are fixed, whose blocks have copies of their own."""
FIRST_ENTRIES = 1 << 21
"""Most of the first: where the chunks of two threads end at a time, one waits for the other's interpreter."""
LEAST_ENTRIES = 1 << 19
"""Chunks are half of what is left of a matrix, so that threads end together, but not below this, or twice this in a
large one: to hand a smaller one to a thread takes longer than to solve it."""
WIDEST_STRIPE = 1 << 21
"""Entries above which one row of blocks is cut into several chunks."""
LANE_BLOCKS = 64
"""A stripe is cut at multiples of this many blocks, so that vector lanes stay full."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one matrix: rows x cols of them, numbered from `start` in C order."""

    rows: int
    cols: int
    start: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: a rectangle of blocks of one matrix."""

    matrix: int
    block_rows: slice
    block_cols: slice
    padded: bool


def grids(problem: Problem) -> tuple[Grid, ...]:
    """The block grid of each matrix that `problem.matrices` gives, with running numbers."""
    (rows, cols), (tall, wide) = problem.pattern.block_shape, problem.matrix_shape
    down, across = -(-tall // rows), -(-wide // cols)
    return tuple(Grid(down, across, k * down * across) for k in range(problem.count // problem.stack))


def caller_grids(problem: Problem) -> tuple[Grid, ...]:
    """The block grid of each matrix of the caller's array: where they are seen as one, it is cut again."""
    stack = problem.stack
    return tuple(
        Grid(grid.rows // stack, grid.cols, grid.start + k * (grid.rows // stack) * grid.cols)
        for grid in grids(problem)
        for k in range(stack)
    )


def iter_places(problem: Problem) -> Iterator[Place]:
    """Cut a problem into places, in a fixed order: of each matrix the interior, the right edge, the bottom edge."""
    rows, cols = problem.pattern.block_shape
    shape = problem.matrix_shape
    most = _most_entries(problem)
    for number, grid in enumerate(grids(problem)):
        full_rows, full_cols = shape[0] // rows, shape[1] // cols
        least = max(LEAST_ENTRIES, min(2 * LEAST_ENTRIES, shape[0] * shape[1] // 8))
        if full_rows and full_cols:
            stripe = rows * full_cols * cols
            wide = full_cols
            widest = min(WIDEST_STRIPE, most)
            if stripe > widest:
                wide = max(LANE_BLOCKS, widest // (rows * cols) // LANE_BLOCKS * LANE_BLOCKS)
            i = 0
            while i < full_rows:
                entries = min(most, CHUNK_ENTRIES if i else FIRST_ENTRIES, max(least, (full_rows - i) * stripe // 2))
                tall = min(max(1, entries // (rows * wide * cols)), full_rows - i)
                for j in range(0, full_cols, wide):
                    yield Place(number, slice(i, i + tall), slice(j, min(j + wide, full_cols)), False)
                i += tall
        step = max(1, most // (rows * cols))
        if full_cols < grid.cols:
            for i in range(0, full_rows, step):
                yield Place(number, slice(i, min(i + step, full_rows)), slice(full_cols, grid.cols), True)
        if full_rows < grid.rows:
            for j in range(0, grid.cols, step):
                yield Place(number, slice(full_rows, grid.rows), slice(j, min(j + step, grid.cols)), True)


def _most_entries(problem: Problem) -> int:
    """Most entries of a chunk: fewer the more is copied, as threads do that at the same time."""
    if problem.keep is not None or problem.drop is not None:
        return FIXED_ENTRIES
    scores = problem.scores
    apart = problem.layout == "conv" or scores.strides[-1] != scores.itemsize  # the entries of a row
    if apart or problem.previous is not None or scores.dtype.kind in "iu" or not scores.dtype.isnative:
        return COPIED_ENTRIES
    return CHUNK_ENTRIES


def region(place: Place, pattern: Pattern, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the real matrix that a place covers."""
    rows, cols = pattern.block_shape
    return (
        slice(place.block_rows.start * rows, min(place.block_rows.stop * rows, shape[0])),
        slice(place.block_cols.start * cols, min(place.block_cols.stop * cols, shape[1])),
    )


def block_numbers(place: Place, grid: Grid) -> npt.NDArray[np.int64]:
    """Running numbers of the blocks of a place, in the chunk's order."""
    i = np.arange(place.block_rows.start, place.block_rows.stop)[:, None]
    j = np.arange(place.block_cols.start, place.block_cols.stop)[None, :]
    return (grid.start + i * grid.cols + j).ravel()
