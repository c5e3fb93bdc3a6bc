"""Grading blocks one by one: float64 duals, any constraints, and the gap.

The sign of S - u - v is exact, as in `nmflow.kernels.proof`; the gap is the sum of what violates optimality, so that
nothing cancels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once, part

__all__ = ["grade_block", "grade_kernel"]


@part
def _reduced(score, u, v):  # type: ignore[no-untyped-def]
    """S - u - v with the sign of the exact value, and its magnitude but for the last bits."""
    high = u + v
    part = high - u
    low = (u - (high - part)) + (v - part)
    return (score - high) - low if score != high else -low


@part
def grade_block(values, u, v, mask, state, exact, r, c, row_fill, col_fill, col_count):  # type: ignore[no-untyped-def]
    """Flag, gap and kept score of one block; see `grade_kernel`. col_count : (C,) int64, workspace."""
    rows, cols = values.shape
    flag, gap, total = 0, 0.0, 0.0
    col_count[:] = 0
    for i in range(rows):
        row_count = 0
        for j in range(cols):
            kept = mask[i, j] != 0
            row_count += kept
            col_count[j] += kept
            total += values[i, j] if kept else 0.0
            if state[i, j] != 0:
                if kept != (state[i, j] > 0):
                    flag = 2
                continue
            reduced = _reduced(values[i, j], u[i], v[j])
            bad = reduced < 0 if kept else reduced > 0
            # a score that was rounded lies anywhere near the rounded sum that it is equal to
            if bad or reduced != reduced or (not exact and values[i, j] == u[i] + v[j]):
                flag = max(flag, 1)
                gap += abs(reduced)
        if row_count > r or (row_fill == 2 and row_count != r):
            flag = 2
        elif row_fill < 2:
            if u[i] < 0:
                flag, gap = max(flag, 1), np.inf
            elif u[i] > 0 and row_count < r:
                flag, gap = max(flag, 1), gap + u[i] * (r - row_count)
    for j in range(cols):
        if col_count[j] > c or (col_fill == 2 and col_count[j] != c):
            flag = 2
        elif col_fill < 2:
            if v[j] < 0 or (col_fill == 0 and v[j] != 0):
                flag, gap = max(flag, 1), np.inf
            elif v[j] > 0 and col_count[j] < c:
                flag, gap = max(flag, 1), gap + v[j] * (c - col_count[j])
    return flag, np.nan if flag == 2 else gap, total


@once
def grade_kernel() -> Any:
    """Compile the grading of blocks.

    Returns
    -------
    function (values, u, v, mask, state, exact, r, c, row_fill, col_fill, flags, gaps) -> float
        values : (k, R, C) float64, scores. u : (k, R), v : (k, C) float64. mask : (k, R, C) uint8. state : (k, R, C)
        int8, kept where positive, dropped where negative. exact : whether scores are not rounded. Fills: 2 exact, 1
        at most, 0 free. Writes a flag (0 proven, 1 not proven, 2 infeasible) and for each block the bound
        that u, v give less the kept score, as a sum of terms that are not negative. Returns the kept score.
    """

    def grade(values, u, v, mask, state, exact, r, c, row_fill, col_fill, flags, gaps):  # type: ignore[no-untyped-def]
        col_count = np.empty(values.shape[2], np.int64)
        total = 0.0
        for k in range(len(values)):
            flags[k], gaps[k], kept = grade_block(
                values[k], u[k], v[k], mask[k], state[k], exact, r, c, row_fill, col_fill, col_count
            )
            total += kept
        return total

    i8, matrix = types.int64, types.float64[:, ::1]
    return compiled(
        grade,
        types.float64(
            types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :, ::1], types.int8[:, :, ::1], types.boolean,
            i8, i8, i8, i8, types.uint8[::1], types.float64[::1],
        ),
    )  # fmt: skip
