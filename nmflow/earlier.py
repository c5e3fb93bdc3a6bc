"""The duals of an earlier solution, for a search that starts from them."""

from __future__ import annotations

from itertools import chain

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.cutting import Place, shapes
from nmflow.errors import InputTypeError, InputValueError
from nmflow.given import viewed
from nmflow.kernels.rounds import rounds_for
from nmflow.problem import Problem
from nmflow.solution import Solution

__all__ = ["duals_of", "earlier_duals"]


def earlier_duals(problem: Problem, earlier: Solution) -> tuple[Array, ...] | None:
    """The column duals of an earlier solution, checked to be of a problem like this one; None where they save nothing.

    Those of rows are not read: they follow from them. So those of rows alone are never read.
    """
    if not isinstance(earlier, Solution):
        raise InputTypeError(f"warm_start must be a Solution, not {type(earlier).__name__}; pass what solve returned")
    if earlier.row_duals is None or earlier.col_duals is None:
        raise InputValueError("warm_start must hold duals, not None; call solve with duals=True for it")
    if earlier.pattern != problem.pattern:
        raise InputValueError(f"warm_start must have pattern {problem.pattern}, not {earlier.pattern}; solve anew")
    sides = tuple(
        tuple(viewed(one, "duals of warm_start") for one in (side if isinstance(side, tuple) else (side,)))
        for side in (earlier.row_duals, earlier.col_duals)
    )
    if any(one.dtype.kind != "f" for one in chain(*sides)):
        raise InputTypeError("warm_start must hold duals as solve gives them, arrays of floats; solve anew")
    rows, cols = problem.pattern.block_shape
    grids = shapes(problem)
    fitting = [[(tall * rows, wide) for tall, wide in grids], [(tall, wide * cols) for tall, wide in grids]]
    if [[one.shape for one in side] for side in sides] != fitting:
        raise InputValueError(f"warm_start must be of a problem of shape {problem.shape}, not of another; solve anew")
    return sides[1] if problem.pattern.col is not None and rounds_for(max(rows, cols)).warm else None


def duals_of(place: Place, problem: Problem, sides: tuple[Array, ...], dtype: npt.DTypeLike) -> Array:
    """The column duals of a place, laid out as its chunk is; a view where they can be read as they are.

    Raises
    ------
    InputValueError
        If one is not finite. It is asked here, by all threads, while what is read is about to be used.
    """
    cols = problem.pattern.block_shape[1]
    wide = slice(place.block_cols.start * cols, place.block_cols.stop * cols)
    first, stop = place.block_rows.start, place.block_rows.stop
    if problem.stack == 1:
        across = sides[place.matrix][first:stop, wide]
    else:  # a few matrices of those that are seen as one: a copy of all would be large
        tall = len(sides[0])
        numbers = range(first // tall, -(-stop // tall))
        across = np.concatenate([sides[k][max(0, first - k * tall) : stop - k * tall, wide] for k in numbers])
    if not np.isfinite(across).all():
        raise InputValueError("warm_start must hold finite duals, not NaN or infinite ones; solve anew")
    if place.padded:  # its blocks lie side by side in one stripe
        across = across.reshape(1, -1)
    with np.errstate(over="ignore"):  # duals of other scores can be beyond float32: kernels cut them off
        return np.ascontiguousarray(across, dtype)
