"""Switching: what a mask changed against the one before it."""

from __future__ import annotations

import numpy as np

from nmflow.problem import Array, Matrix, Problem
from nmflow.reading import readable, turned
from nmflow.solution import Switch

__all__ = ["switch_of"]

BAND_ENTRIES = 1 << 18
"""Entries that are compared at a time: copies of them stay in a cache."""


def switch_of(problem: Problem, masks: tuple[Array, ...], previous: Array) -> Switch:
    """Compare the masks of a problem's matrices with an earlier mask, of the problem's shape; sums in a fixed order."""
    from nmflow.kernels.switch import compare_kernel

    counts, sums = np.zeros(2, np.int64), np.zeros(32)
    for scores, mask, before in zip(problem.matrices(problem.scores), masks, problem.matrices(previous), strict=True):
        rows, cols = mask.shape
        step = max(1, BAND_ENTRIES // cols)
        for first in range(0, rows, step):
            band = slice(first, min(first + step, rows))
            part, kind, _ = readable(_band(scores, band))
            now, then = mask[band], _band(before, band)
            if then.strides[1] != 1:
                then = np.ascontiguousarray(then)
            compare_kernel(kind, problem.absolute)(
                part.ctypes.data, part.strides[0], now.ctypes.data, now.strides[0], then.ctypes.data, then.strides[0],
                *part.shape, counts.ctypes.data, sums.ctypes.data,
            )  # fmt: skip
    with np.errstate(over="ignore"):  # float64 scores can add up to more than it holds
        return Switch(int(counts[0]), int(counts[1]), problem.bonus, float(sums.sum()))


def _band(matrix: Matrix, rows: slice) -> Array:
    return turned(matrix.part(rows, slice(0, matrix.shape[1])))
