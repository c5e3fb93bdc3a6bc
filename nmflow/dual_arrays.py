"""The duals of a whole problem, filled in chunk by chunk; and those of an earlier solution."""

from __future__ import annotations

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.crew import map_on_threads
from nmflow.cutting import Place, caller_grids, grids
from nmflow.duals import Duals
from nmflow.errors import InputTypeError, InputValueError
from nmflow.problem import Problem
from nmflow.reading import kind_of, work_dtype
from nmflow.solution import Solution

__all__ = ["DualArrays", "earlier_duals"]

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
        self.row = [np.empty((grid.rows * rows, grid.cols), dtype) for grid in all_grids]
        self.col = [np.empty((grid.rows, grid.cols * cols), dtype) for grid in all_grids]
        self._stack = problem.stack
        self._apart: list[tuple[Place, Array, Array, Array]] = []

    def store(self, chunk: Chunk, duals: Duals) -> None:
        """Store the duals of a chunk; those that may need float64 wait until all are known."""
        rows, cols = chunk.pattern.block_shape
        tall, wide = chunk.grid
        if duals.row is None or duals.col is None:
            others = np.arange(chunk.n_blocks)
        else:
            others = duals.apart()
            if chunk.duals is None or not np.shares_memory(chunk.duals[0], self.row[chunk.place.matrix]):
                u = duals.row.reshape(tall, rows, wide).transpose(0, 2, 1)
                v = duals.col.reshape(tall, wide, cols)
                self._put(chunk.place, np.arange(chunk.n_blocks), u.reshape(-1, rows), v.reshape(-1, cols))
        self._apart.append((chunk.place, others, *duals.gather(chunk, others)))

    def _put(self, place: Place, blocks: Array, u: Array, v: Array) -> None:
        """Write the duals of some blocks of a place, by their numbers there."""
        wide = place.block_cols.stop - place.block_cols.start
        i, j = np.divmod(blocks, wide)
        i, j = i + place.block_rows.start, j + place.block_cols.start
        all_u, all_v = self.row[place.matrix], self.col[place.matrix]
        all_u.reshape(-1, u.shape[1], all_u.shape[1])[i, :, j] = u
        all_v.reshape(len(all_v), -1, v.shape[1])[i, j] = v

    def complete(self) -> tuple[Sides, Sides]:
        """Put in the duals that wait; all are float64 then if one of them needs it.

        Returns those of rows and of columns, of each matrix of the caller's array; alone if there is one.
        """
        # where all blocks of a chunk stand apart nothing was written, and what lies there can be any bits
        with np.errstate(over="ignore", invalid="ignore"):
            wide = any((side.astype(np.float32) != side).any() for _, _, *sides in self._apart for side in sides)
            if wide and self.row[0].dtype != np.float64:
                self.row, self.col = ([side.astype(np.float64) for side in sides] for sides in (self.row, self.col))
        for waiting in self._apart:
            self._put(*waiting)
        return self._of_caller(self.row), self._of_caller(self.col)

    def _of_caller(self, sides: list[Array]) -> Sides:
        parts = sides if self._stack == 1 else list(sides[0].reshape(self._stack, -1, sides[0].shape[1]))
        return parts[0] if len(parts) == 1 else tuple(parts)


def earlier_duals(problem: Problem, earlier: Solution, threads: int) -> tuple[Array, ...]:
    """The column duals of an earlier solution, checked to be those of a problem like this one.

    Those of rows are not read: they follow from them.
    """
    if not isinstance(earlier, Solution):
        raise InputTypeError(f"warm_start must be a Solution, not {type(earlier).__name__}; pass what solve returned")
    if earlier.row_duals is None or earlier.col_duals is None:
        raise InputValueError("warm_start must hold duals, not None; call solve with duals=True for it")
    if earlier.pattern != problem.pattern:
        raise InputValueError(f"warm_start must have pattern {problem.pattern}, not {earlier.pattern}; solve anew")
    sides = tuple(side if isinstance(side, tuple) else (side,) for side in (earlier.row_duals, earlier.col_duals))
    rows, cols = problem.pattern.block_shape
    shapes = [((g.rows * rows, g.cols), (g.rows, g.cols * cols)) for g in caller_grids(problem)]
    if [(u.shape, v.shape) for u, v in zip(*sides, strict=True)] != shapes:
        raise InputValueError(f"warm_start must be of a problem of shape {problem.shape}, not of another; solve anew")
    if not all(map_on_threads(_finite, sides[1], threads)):
        raise InputValueError("warm_start must hold finite duals, not NaN or infinite ones; solve anew")
    return sides[1]


def _finite(values: Array) -> bool:
    """Whether all numbers are finite: told by their sum, unless that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())
