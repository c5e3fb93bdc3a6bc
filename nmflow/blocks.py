"""Matrix <-> blocks: chunks of whole blocks, viewed in place where the matrix allows it, and padded at its edges.

A chunk is what one call of a solver sees: `h` rows by `w` columns, both multiples of the block shape, C-contiguous
along rows, in a dtype that the kernels read. Where it lies `nmflow.cutting` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from nmflow.arrays import Array, Matrix
from nmflow.cutting import Place
from nmflow.earlier import duals_of
from nmflow.integers import integers_of
from nmflow.pattern import Pattern
from nmflow.problem import Problem
from nmflow.reading import Kind, readable, turned, with_bonus, work_dtype

__all__ = ["DROP", "FREE", "KEEP", "Chunk", "load", "pad", "store"]

FREE, KEEP, DROP = 0, 1, -1


@dataclass(eq=False)
class Chunk:
    """Some blocks of a problem, ready for a kernel; never changed, but a frozen one takes thrice as long to make.

    Attributes
    ----------
    scores : ndarray, shape (h, w), C-contiguous rows
        float32, float64, float16 or bfloat16 (the last two as uint16), as `kind` says.
    source : ndarray, shape (h, w)
        The same entries in the caller's dtype.
    kind : str
        Name of the dtype that the kernels read.
    absolute : bool
        Whether the score is the absolute value of the entry.
    exact : bool
        False where 64-bit integers were rounded to float64.
    pattern : Pattern
    state : ndarray of int8, shape (h, w), or None
        KEEP, DROP or FREE for each entry.
    mask : ndarray of bool, shape (h, w)
        Output.
    place : Place
    start : ndarray of bool, shape (h, w), or None
        A mask to improve.
    warm : ndarray, shape (block rows, w), or None
        Column duals to start from, in the dtype that scores are compared in.
    duals : pair of ndarray, shapes (h, block columns) and (block rows, w), or None
        Output, C-contiguous, in that dtype: room for the duals of all blocks, where they are asked for.
    threads : int
        How many may work on it at a time.
    grid : tuple of int
        Rows and columns of blocks.
    n_blocks : int
    """

    scores: Array
    source: Array
    kind: Kind
    absolute: bool
    exact: bool
    pattern: Pattern
    state: Array | None
    mask: Array
    place: Place
    start: Array | None = None
    warm: Array | None = None
    duals: tuple[Array, Array] | None = None
    threads: int = 1
    grid: tuple[int, int] = field(init=False)
    n_blocks: int = field(init=False)
    _fixed: Array | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        (rows, cols), (high, across) = self.pattern.block_shape, self.mask.shape
        self.grid = tall, wide = high // rows, across // cols
        self.n_blocks = tall * wide

    def fresh_duals(self) -> tuple[Array, Array]:
        """Fresh arrays for the duals of all blocks."""
        (row, col), dtype = self.dual_shapes, work_dtype(self.kind)
        return np.empty(row, dtype), np.empty(col, dtype)

    @property
    def dual_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the duals of all blocks, of rows and of columns."""
        (tall, wide), (high, across) = self.grid, self.mask.shape
        return (high, wide), (tall, across)

    @property
    def shares(self) -> tuple[int, int]:
        """How many shares threads can take one after another, and rows of blocks of each."""
        tall = self.grid[0]
        rows = min(self.place.share_rows, tall) or tall
        return -(-tall // rows), rows

    def where(self, block: int) -> tuple[int, int, int]:
        """Matrix, block row and block column of block number `block` (C order within the chunk)."""
        cols = self.place.block_cols
        i, j = divmod(block, cols.stop - cols.start)  # a padded chunk lies in one stripe, in this order too
        return self.place.matrix, self.place.block_rows.start + i, cols.start + j

    def corner(self, block: int) -> tuple[slice, slice]:
        """Rows and columns of block number `block` (C order within the chunk)."""
        rows, cols = self.pattern.block_shape
        i, j = divmod(block, self.grid[1])
        return slice(i * rows, (i + 1) * rows), slice(j * cols, (j + 1) * cols)

    def view(self, array: Array) -> Array:
        """An array of this chunk's shape as (block rows, R, block columns, C), without a copy."""
        rows, cols = self.pattern.block_shape
        tall, wide = self.grid
        return array.reshape(tall, rows, wide, cols)

    def gather(self, array: Array, blocks: Array) -> Array:
        """Copy some blocks of an array of this chunk's shape: (k, R, C)."""
        i, j = np.divmod(blocks, self.grid[1])
        return np.ascontiguousarray(self.view(array)[i, :, j])

    def put(self, blocks: Array, parts: Array) -> None:
        """Write the masks of some blocks, shape (k, R, C)."""
        i, j = np.divmod(blocks, self.grid[1])
        self.view(self.mask)[i, :, j] = parts

    def gather_state(self, blocks: Array) -> Array:
        """KEEP, DROP or FREE for each entry of some blocks, shape (k, R, C)."""
        if self.state is None:
            return np.zeros((len(blocks), *self.pattern.block_shape), np.int8)
        return self.gather(self.state, blocks)

    @property
    def fixed_blocks(self) -> Array:
        """Numbers of the blocks with an entry that is kept or dropped by order."""
        # no `cached_property`: until Python 3.12 it has a lock, which a child forked meanwhile waits for for ever
        if self._fixed is None:
            self._fixed = self._blocks_of_state()
        return self._fixed

    def _blocks_of_state(self) -> Array:
        if self.state is None:
            return np.empty(0, np.int64)
        rows, cols = self.pattern.block_shape
        stripes = np.bitwise_or.reduce(self.state.reshape(-1, rows, self.state.shape[1]), axis=1)
        blocks = stripes[:, ::cols].copy()
        for j in range(1, cols):
            blocks |= stripes[:, j::cols]
        return np.flatnonzero(blocks)

    def block_integers(self, block: int) -> tuple[Array, int]:
        """Scores of one block exactly: Python integers (dtype object) and an exponent e, score = integer * 2**e."""
        numbers, exponent = integers_of(self.source[self.corner(block)])
        return (abs(numbers) if self.absolute else numbers), exponent

    def block_state(self, block: int) -> Array | None:
        """KEEP, DROP or FREE for each entry of one block; None if all are free."""
        return None if self.state is None else self.state[self.corner(block)]


def pad(part: Array, pattern: Pattern) -> Array:
    """Pad an edge with zeros to whole blocks and lay its blocks side by side in one stripe."""
    rows, cols = pattern.block_shape
    tall, wide = math.ceil(part.shape[0] / rows), math.ceil(part.shape[1] / cols)
    padded = np.zeros((tall * rows, wide * cols), part.dtype)
    padded[: part.shape[0], : part.shape[1]] = part
    blocks = padded.reshape(tall, rows, wide, cols).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(blocks.reshape(rows, tall * wide * cols))


def load(
    problem: Problem,
    matrices: tuple[Matrix, ...],
    masks: tuple[Array, ...],
    place: Place,
    duals: tuple[list[Array], list[Array]] | None = None,
    threads: int = 1,
) -> Chunk:
    """Bring one place into the form that kernels read."""
    pattern, number, padded, absolute = problem.pattern, place.matrix, place.padded, problem.absolute
    source = _part(matrices[number], place, pattern)
    previous = _marked(problem, problem.previous, place)
    if previous is not None and problem.bonus:  # the score is then this sum, rounded once to float64
        source, absolute = with_bonus(source, absolute, previous, problem.bonus), False
    scores, kind, exact = readable(source)
    mask = np.zeros(source.shape, np.bool_) if padded else masks[number][place.area]
    state, start = _state(problem, place, source.shape), _marked(problem, problem.start, place)
    warm = None if problem.warm is None else duals_of(place, problem, problem.warm, work_dtype(kind))
    chunk = Chunk(scores, source, kind, absolute, exact, pattern, state, mask, place, start, warm, threads=threads)
    if duals is None:
        return chunk
    u, v = duals[0][number], duals[1][number]
    if padded or chunk.grid[1] != u.shape[1] or u.dtype != work_dtype(kind):
        return replace(chunk, duals=chunk.fresh_duals())
    rows = slice(place.block_rows.start * pattern.block_shape[0], place.block_rows.stop * pattern.block_shape[0])
    return replace(chunk, duals=(u[rows], v[place.block_rows]))


def _part(array: Matrix, place: Place, pattern: Pattern) -> Array:
    """The entries of a place."""
    part = turned(array.part(*place.area))
    return pad(part, pattern) if place.padded else part


def _marked(problem: Problem, array: Array | None, place: Place) -> Array | None:
    """The entries of a place in an array of the problem's shape, if there is one."""
    return None if array is None else _part(problem.matrix(array, place.matrix), place, problem.pattern)


def _state(problem: Problem, place: Place, shape: tuple[int, ...]) -> Array | None:
    """KEEP, DROP or FREE for each entry of a place; None where no entry of the problem is fixed."""
    if problem.keep is None and problem.drop is None:
        return None
    state = np.zeros(shape, np.int8)
    for array, value in ((problem.keep, KEEP), (problem.drop, DROP)):
        fixed = _marked(problem, array, place)
        if fixed is not None:
            state[fixed] = value
    return state


def store(chunk: Chunk, masks: tuple[Array, ...]) -> None:
    """Write the mask of a padded chunk back to the real matrix; others were written in place."""
    if not chunk.place.padded:
        return
    rows, cols = chunk.pattern.block_shape
    place = chunk.place
    tall = place.block_rows.stop - place.block_rows.start
    wide = place.block_cols.stop - place.block_cols.start
    blocks = chunk.mask.reshape(rows, tall, wide, cols).transpose(1, 0, 2, 3)
    target = masks[place.matrix]
    whole = blocks.reshape(tall * rows, wide * cols)
    out = target[place.area]
    out[...] = whole[: out.shape[0], : out.shape[1]]
