"""The duals of a whole problem, filled in chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.cutting import Place, grids
from nmflow.duals import Duals
from nmflow.problem import Problem
from nmflow.reading import kind_of, work_dtype

__all__ = ["DualArrays"]

Sides = Array | tuple[Array, ...]


class DualArrays:
    """Duals of all blocks of a problem.

    Attributes
    ----------
    row, col : list of ndarray of the work dtype, shapes (h, block columns) and (block rows, w)
        Of each matrix that `Problem.matrices` gives.
    """

    def __init__(self, problem: Problem) -> None:
        rows, cols = problem.pattern.block_shape
        dtype, all_grids = work_dtype(kind_of(problem)), grids(problem)
        shapes = [(grid.rows * rows, grid.cols) for grid in all_grids]
        shapes += [(grid.rows, grid.cols * cols) for grid in all_grids]
        sides = _side_by_side(shapes, dtype)
        self.row, self.col = sides[: len(all_grids)], sides[len(all_grids) :]
        self._stack = problem.stack
        self._apart: list[tuple[Place, Array, Array, Array]] = []

    def store(self, chunk: Chunk, duals: Duals) -> None:
        """Store the duals of a chunk; where some need float64 they wait until all are known."""
        rows, cols = chunk.pattern.block_shape
        tall, wide = chunk.grid
        if duals.row is None or duals.col is None:
            others = np.arange(chunk.n_blocks)
        else:
            others = duals.apart()
            if not np.shares_memory(duals.row, self.row[chunk.place.matrix]):  # else they were written where they go
                u = duals.row.reshape(tall, rows, wide).transpose(0, 2, 1)
                v = duals.col.reshape(tall, wide, cols)
                self._put(chunk.place, np.arange(chunk.n_blocks), u.reshape(-1, rows), v.reshape(-1, cols))
        u, v = duals.of(chunk, others)
        if self.row[0].dtype == u.dtype or not (_loses(u) or _loses(v)):
            self._put(chunk.place, others, u, v)
        else:
            self._apart.append((chunk.place, others, u, v))

    def _put(self, place: Place, blocks: Array, u: Array, v: Array) -> None:
        """Write the duals of some blocks of a place, by their numbers there."""
        down, across = place.block_rows, place.block_cols
        tall, wide = down.stop - down.start, across.stop - across.start
        all_u, all_v = self.row[place.matrix], self.col[place.matrix]
        all_u, all_v = all_u.reshape(-1, u.shape[1], all_u.shape[1]), all_v.reshape(len(all_v), -1, v.shape[1])
        if len(blocks) == tall * wide:
            all_u[down, :, across] = u.reshape(tall, wide, -1).transpose(0, 2, 1)
            all_v[down, across] = v.reshape(tall, wide, -1)
        else:
            i, j = np.divmod(blocks, wide)
            i, j = i + down.start, j + across.start
            all_u[i, :, j], all_v[i, j] = u, v

    def complete(self) -> tuple[Sides, Sides]:
        """Put in the duals that wait; all are float64 then.

        Returns those of rows and of columns, of each matrix of the caller's array; alone if there is one.
        """
        if self._apart:
            with np.errstate(invalid="ignore"):  # what lies where nothing was written yet can be any bits
                self.row, self.col = ([side.astype(np.float64) for side in sides] for sides in (self.row, self.col))
        for waiting in self._apart:
            self._put(*waiting)
        return self._of_caller(self.row), self._of_caller(self.col)

    def _of_caller(self, sides: list[Array]) -> Sides:
        parts = sides if self._stack == 1 else list(sides[0].reshape(self._stack, -1, sides[0].shape[1]))
        return parts[0] if len(parts) == 1 else tuple(parts)


def _loses(side: Array) -> bool:
    """Whether float32 does not hold all of these numbers; a few often tell."""
    with np.errstate(over="ignore", invalid="ignore"):
        return any(bool((some.astype(np.float32) != some).any()) for some in (side[:64], side[64:]))


def _side_by_side(shapes: Sequence[tuple[int, int]], dtype: npt.DTypeLike) -> list[Array]:
    """Fresh arrays in one piece of memory.

    The C library hands back to the system what is freed beyond twice the largest piece (32 MiB at most) and asks for it
    again at the next call: two pieces of one size are beyond that, and fresh pages took as long as an ascent at m = 8.
    """
    sizes = [math.prod(shape) for shape in shapes]
    ends = [0, *accumulate(sizes)]
    room = np.empty(ends[-1], dtype)
    return [room[start:end].reshape(shape) for start, end, shape in zip(ends, ends[1:], shapes, strict=False)]
