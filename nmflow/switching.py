"""Switching: what keeping entries of an earlier mask is worth, and what a new mask changed against it."""

from __future__ import annotations

import math
import numbers
from dataclasses import replace

import numpy as np

from nmflow.arithmetic import in_plain_arithmetic
from nmflow.arrays import Array, Matrix
from nmflow.crew import map_on_threads
from nmflow.errors import InputValueError
from nmflow.given import as_mask
from nmflow.problem import Problem
from nmflow.reading import in_rows, readable, turned
from nmflow.solution import Switch
from nmflow.sums import added, in_range, total

__all__ = ["switch_of", "with_previous"]

BAND_ENTRIES = 1 << 18
"""Entries that are looked at at a time: copies of them stay in a cache."""
Band = tuple[int, slice]


@in_plain_arithmetic
def with_previous(problem: Problem, previous: object | None, switch_cost: float | None, threads: int) -> Problem:
    """The problem with an earlier mask, each entry of which is worth switch_cost times the mean magnitude of a score.

    The mean is taken over all entries in float64, in a fixed order.

    Raises
    ------
    InputTypeError, InputValueError
        If `previous` is no mask of the problem's shape, or `switch_cost` is negative, no finite number, or so large
        that a score with the bonus overflows; or if one is given without the other.
    NonFiniteError
        If a score is NaN or infinite.
    """
    if previous is None or switch_cost is None:
        raise InputValueError("previous and switch_cost must be given together; for example switch_cost=0.5")
    earlier = as_mask(previous, problem.shape, "previous")
    if problem.out is not None and np.may_share_memory(problem.out, earlier):
        raise InputValueError("out must not share memory with previous, which it is compared with; pass one of its own")
    try:  # a number of NumPy is compared in its own dtype, which may be a narrow one
        cost = float(switch_cost) if isinstance(switch_cost, numbers.Real) else math.nan
    except OverflowError:
        cost = math.inf
    if not 0.0 <= cost < math.inf:
        raise InputValueError(f"switch_cost must be a finite number of at least 0, not {switch_cost!r}")
    mean, largest = _magnitude(problem, threads)
    if not (math.isfinite(mean) and math.isfinite(largest)):
        raise problem.non_finite_error()
    bonus = cost * mean
    if not math.isfinite(largest + bonus):
        raise InputValueError(
            f"switch_cost must leave scores finite, not make them overflow as {switch_cost!r} does; scale them down"
        )
    return replace(problem, previous=earlier, bonus=bonus)


def switch_of(problem: Problem, masks: tuple[Array, ...], previous: Array, threads: int) -> Switch:
    """Compare the masks of a problem's matrices with an earlier mask, of the problem's shape; sums in a fixed order."""
    from nmflow.kernels.switch import compare_kernel

    matrices, earlier = problem.matrices(problem.scores), problem.matrices(previous)

    def compare(band: Band) -> tuple[int, int, float, float]:
        number, rows = band
        (part, kind, _), now, then = readable(_part(matrices[number], rows)), masks[number][rows], earlier[number]
        before = in_rows(_part(then, rows))
        counts, sums = np.zeros(2, np.int64), np.zeros(32)
        compare_kernel(kind, problem.absolute)(
            part.ctypes.data, part.strides[0], now.ctypes.data, now.strides[0], before.ctypes.data, before.strides[0],
            *part.shape, counts.ctypes.data, sums.ctypes.data,
        )  # fmt: skip
        kept = in_range(added(sums), lambda: (np.abs(part) if problem.absolute else part)[now])
        return int(counts[0]), int(counts[1]), *kept

    flips, again, kept, beyond = zip(*map_on_threads(compare, _bands(matrices), threads), strict=True)
    return Switch(sum(flips), sum(again), problem.bonus, total(kept, filter(None, beyond)))


def _magnitude(problem: Problem, threads: int) -> tuple[float, float]:
    """Mean and largest magnitude of the scores; one of them is not finite if a score is not."""
    from nmflow.kernels.switch import measure_kernel

    matrices = problem.matrices(problem.scores)

    def measure(band: Band) -> tuple[float, float, float]:
        part, kind, _ = readable(_part(matrices[band[0]], band[1]))
        sums, tops = np.zeros((2, 32))
        measure_kernel(kind)(part.ctypes.data, part.strides[0], *part.shape, sums.ctypes.data, tops.ctypes.data)
        whole, top = added(sums), float(tops.max())
        if math.isnan(whole) or math.isinf(top):
            return 0.0, 0.0, math.inf
        return *in_range(whole, lambda: np.abs(part)), top

    wholes, beyond, tops = zip(*map_on_threads(measure, _bands(matrices), threads), strict=True)
    largest = max(tops)
    return min(total(wholes, filter(None, beyond), problem.scores.size), largest), largest


def _bands(matrices: tuple[Matrix, ...]) -> list[Band]:
    """All rows of all matrices, some at a time."""
    out: list[Band] = []
    for number, matrix in enumerate(matrices):
        rows, cols = matrix.shape
        step = max(1, BAND_ENTRIES // cols)
        out.extend((number, slice(first, min(first + step, rows))) for first in range(0, rows, step))
    return out


def _part(matrix: Matrix, rows: slice) -> Array:
    return turned(matrix.part(rows, slice(0, matrix.shape[1])))
