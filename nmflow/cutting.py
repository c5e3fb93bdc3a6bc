"""Where blocks and chunks lie: the grid of a matrix, and the places it is cut into.

Places never depend on the number of threads, so neither does a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nmflow.problem import Problem

__all__ = ["SIZES", "Grid", "Place", "Places", "Sizes", "block_numbers", "grids", "places", "shapes"]

MOST_KNOWN = 64
"""Problems of which it is remembered how they are cut."""
MANY_SHARES = 8
"""Shares that keep a few threads busy."""


class Sizes(NamedTuple):
    """What is cut how large, in entries.

    Attributes
    ----------
    chunk, large : int
        Most of a chunk; and of one whose blocks are large: between two of them the interpreter is at work, whose code
        has left the caches by then.
    known : int
        Most bytes of what may be known of the blocks of a large one: two are worked on at a time. One that is all of a
        problem may have twice as many.
    held : int
        Most of a chunk where the duals of all its blocks are held, and more.
    copied : int
        The same where all that is in a chunk is copied: for an earlier mask, or another dtype or order to read.
    fixed : int
        The same where entries are fixed, whose blocks have copies of their own.
    first : int
        Most of the first: where the chunks of two threads end at a time, one waits for the other's interpreter.
    least : int
        Chunks are half of what is left of a matrix, so that threads end together, but not below this, or twice this in
        a large one: to hand a smaller one to a thread takes longer than to solve it.
    slow : int
        The same where threads share no chunk: solvers that do not let them take far longer for an entry.
    share, share_blocks, shares : int
        A chunk is cut into shares, which threads that are free take one after another: least entries and blocks of one,
        and how many a chunk has at most.
    stripe : int
        Where one row of blocks has more it is cut into several chunks.
    stripe_blocks : int
        That is at multiples of this many blocks, so that vector lanes stay full.
    """

    chunk: int = 1 << 22
    large: int = 1 << 24
    known: int = 26 << 20
    held: int = 1 << 21
    copied: int = 1 << 20
    fixed: int = 3 << 17
    first: int = 1 << 21
    least: int = 1 << 19
    slow: int = 1 << 16
    share: int = 1 << 17
    share_blocks: int = 128
    shares: int = 32
    stripe: int = 1 << 21
    stripe_blocks: int = 64


SIZES = Sizes()


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one matrix: rows x cols of them, numbered from `start` in C order."""

    rows: int
    cols: int
    start: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: a rectangle of blocks of one matrix, and rows and columns of the real matrix that it covers.

    share_rows : rows of blocks of a share of it, 0 for all.
    """

    matrix: int
    block_rows: slice
    block_cols: slice
    area: tuple[slice, slice]
    padded: bool
    share_rows: int = 0

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        rows, cols = self.block_rows, self.block_cols
        return int((rows.stop - rows.start) * (cols.stop - cols.start))

    @property
    def shares(self) -> int:
        """How many shares of it threads can take one after another."""
        return -(-(self.block_rows.stop - self.block_rows.start) // self.share_rows) if self.share_rows else 1


class Places(NamedTuple):
    """How a problem is cut.

    all : the places. together : how many are worked on at a time by threads that share them; 0: one a thread. grids :
    as `grids` has them, shapes : as `shapes` does. n_blocks : in all.

    Threads share where most blocks lie in places of many shares, or in one place: it is small then, and others are its
    edges. Two at a time, since one thread or the other is in the interpreter between them; one where much is held.
    """

    all: tuple[Place, ...]
    together: int
    grids: tuple[Grid, ...]
    shapes: tuple[tuple[int, int], ...]
    n_blocks: int

    def threads(self, count: int) -> tuple[int, int]:
        """How many of so many threads take places at a time, and how many share each of these."""
        if not self.together:
            return count, max(1, count // len(self.all))
        at_once = 1 if count % self.together else self.together  # never more than asked for
        return at_once, count // at_once


def grids(problem: Problem) -> tuple[Grid, ...]:
    """The block grid of each matrix that `problem.matrices` gives, with running numbers."""
    return _grids(problem.count // problem.stack, problem.matrix_shape, problem.pattern.block_shape)


@lru_cache(MOST_KNOWN)
def _grids(count: int, shape: tuple[int, int], block_shape: tuple[int, int]) -> tuple[Grid, ...]:
    down, across = -(-shape[0] // block_shape[0]), -(-shape[1] // block_shape[1])
    return tuple(Grid(down, across, k * down * across) for k in range(count))


def shapes(problem: Problem) -> tuple[tuple[int, int], ...]:
    """Rows and columns of blocks of each matrix of the caller's array: where they are seen as one, it is cut again."""
    return _shapes(grids(problem), problem.stack)


def _shapes(all_grids: tuple[Grid, ...], stack: int) -> tuple[tuple[int, int], ...]:
    return tuple((grid.rows // stack, grid.cols) for grid in all_grids for _ in range(stack))


def places(problem: Problem, *, shared: bool = False, graded: bool = False) -> Places:
    """Cut a problem into places, in a fixed order: of each matrix the interior, the right edge, the bottom edge.

    shared : whether threads can share a chunk. graded : whether each gets a mask and duals beside those of the problem.
    """
    pattern = problem.pattern
    held = graded or (pattern.fill == "at-most" and pattern.col is not None)  # these need duals to be proven
    return _places(
        problem.count, problem.stack, problem.matrix_shape, pattern.block_shape, _most_entries(problem),
        shared, held, SIZES,
    )  # fmt: skip


@lru_cache(MOST_KNOWN)
def _places(
    count: int, stack: int, shape: tuple[int, int], block_shape: tuple[int, int], most: int | None, shared: bool,
    held: bool, sizes: Sizes,
) -> Places:  # fmt: skip
    count //= stack
    all_grids = _grids(count, shape, block_shape)
    rows, cols = block_shape
    size, copied = shape[0] * shape[1], most is not None
    if most is None:
        known = 8 + 12 * (rows + cols)  # bytes of a block: its number, and duals of float64 and float32
        most, alone = (
            max(sizes.chunk, min(sizes.large, limit // known * rows * cols)) for limit in (sizes.known, 2 * sizes.known)
        )
        if held:
            most = sizes.held
        elif shared and count * size <= alone:
            most = alone
    least = max(sizes.least, min(2 * sizes.least, size // 8)) if shared else sizes.slow
    first = min(sizes.first, most)
    if shared and not copied and (held or count * size <= most):
        least = first = most
    share = max(sizes.share, -(-min(size, most) // sizes.shares), sizes.share_blocks * rows * cols)
    sizes = sizes._replace(chunk=most, first=first, least=least, share=share)
    cut = tuple(place for number in range(count) for place in _cut(number, shape, block_shape, sizes))
    blocks = [place.n_blocks for place in cut]
    in_shares = sum(n for place, n in zip(cut, blocks, strict=True) if place.shares >= MANY_SHARES)
    together = 0
    if shared and 8 * max(blocks) > 7 * sum(blocks):
        together = 1
    elif shared and not copied and 8 * in_shares > 7 * sum(blocks):
        together = 1 if held else 2
    return Places(cut, together, all_grids, _shapes(all_grids, stack), sum(blocks))


def _cut(number: int, shape: tuple[int, int], block_shape: tuple[int, int], sizes: Sizes) -> Iterator[Place]:
    """Cut one matrix."""
    rows, cols = block_shape
    full_rows, full_cols = shape[0] // rows, shape[1] // cols

    def place(down: slice, across: slice, padded: bool, share_rows: int = 0) -> Place:
        area = tuple(
            slice(part.start * side, min(part.stop * side, length))
            for part, side, length in zip((down, across), block_shape, shape, strict=True)
        )
        return Place(number, down, across, (area[0], area[1]), padded, share_rows)

    if full_rows and full_cols:
        stripe = rows * full_cols * cols
        wide, widest = full_cols, min(sizes.stripe, sizes.chunk)
        if stripe > widest:
            wide = max(sizes.stripe_blocks, widest // (rows * cols) // sizes.stripe_blocks * sizes.stripe_blocks)
        share_rows = -(-sizes.share // (rows * wide * cols))
        i = 0
        while i < full_rows:
            entries = min(sizes.chunk if i else sizes.first, max(sizes.least, (full_rows - i) * stripe // 2))
            tall = min(max(1, entries // (rows * wide * cols)), full_rows - i)
            for j in range(0, full_cols, wide):
                yield place(slice(i, i + tall), slice(j, min(j + wide, full_cols)), False, share_rows)
            i += tall
    step = max(1, sizes.chunk // (rows * cols))
    if full_cols * cols < shape[1]:
        for i in range(0, full_rows, step):
            yield place(slice(i, min(i + step, full_rows)), slice(full_cols, full_cols + 1), True)
    if full_rows * rows < shape[0]:
        across = -(-shape[1] // cols)
        for j in range(0, across, step):
            yield place(slice(full_rows, full_rows + 1), slice(j, min(j + step, across)), True)


def _most_entries(problem: Problem) -> int | None:
    """Most entries of a chunk where it is copied, since threads do that at the same time; None where it is not."""
    if problem.keep is not None or problem.drop is not None:
        return SIZES.fixed
    scores = problem.scores
    apart = problem.layout == "conv" or scores.strides[-1] != scores.itemsize  # the entries of a row
    if apart or problem.previous is not None or scores.dtype.kind in "iu" or not scores.dtype.isnative:
        return SIZES.copied
    return None


def block_numbers(place: Place, grid: Grid) -> npt.NDArray[np.int64]:
    """Running numbers of the blocks of a place, in the chunk's order."""
    i = np.arange(place.block_rows.start, place.block_rows.stop)[:, None]
    j = np.arange(place.block_cols.start, place.block_cols.stop)[None, :]
    return (grid.start + i * grid.cols + j).ravel()
