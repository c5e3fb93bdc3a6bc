"""Local search: from a mask that keeps to the pattern to one that no single swap improves.

A swap exchanges the columns of two kept entries (i, j) and (a, b): then (i, b) and (a, j) are kept, and all lines keep
as many as before. For one pair of rows the best swap is found from the differences d = S[i] - S[a] alone, and repeating
it leaves that pair optimal. Where lines need not be full, an entry may also move along its row or column to where
there is room, be added, or be dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once, part

__all__ = ["swaps_kernel"]

LEAST_GAIN = 2.0**-46
"""A swap must gain this share of the block's largest score: 64 times the rounding of a gain, so that each one truly
improves the mask and the search ends."""


@part
def _pair(values, fixed, mask, i, a, least):  # type: ignore[no-untyped-def]
    """Make the best swaps between two rows until none gains; how many there were."""
    cols, swaps = values.shape[1], 0
    while True:
        give, take, low, high = -1, -1, np.inf, -np.inf
        for j in range(cols):
            if mask[i, j] == mask[a, j] or fixed[i, j] or fixed[a, j]:
                continue
            d = values[i, j] - values[a, j]
            if mask[i, j]:
                if d < low:
                    give, low = j, d
            elif d > high:
                take, high = j, d
        if give < 0 or take < 0 or not high - low > least:
            return swaps
        mask[i, give] = mask[a, take] = 0
        mask[i, take] = mask[a, give] = 1
        swaps += 1


@part
def _singles(  # type: ignore[no-untyped-def]
    values, fixed, mask, row_count, col_count, r, c, row_free, col_free, least
):
    """Drop, add, and move entries along lines of `row_free` rows and `col_free` columns; how many changes."""
    rows, cols = values.shape
    changes = 0
    for i in range(rows):
        for j in range(cols):
            if fixed[i, j]:
                continue
            if mask[i, j]:
                if row_free and col_free and values[i, j] < 0.0:
                    mask[i, j] = 0
                    row_count[i] -= 1
                    col_count[j] -= 1
                    changes += 1
                continue
            if col_count[j] < c and row_count[i] < r and row_free and col_free and values[i, j] > 0.0:
                mask[i, j] = 1
                row_count[i] += 1
                col_count[j] += 1
                changes += 1
                continue
            if col_free and col_count[j] < c:
                worst = -1
                for b in range(cols):
                    if mask[i, b] and not fixed[i, b] and (worst < 0 or values[i, b] < values[i, worst]):
                        worst = b
                if worst >= 0 and values[i, j] - values[i, worst] > least:
                    mask[i, worst], mask[i, j] = 0, 1
                    col_count[worst] -= 1
                    col_count[j] += 1
                    changes += 1
                    continue
            if row_free and row_count[i] < r:
                worst = -1
                for a in range(rows):
                    if mask[a, j] and not fixed[a, j] and (worst < 0 or values[a, j] < values[worst, j]):
                        worst = a
                if worst >= 0 and values[i, j] - values[worst, j] > least:
                    mask[worst, j], mask[i, j] = 0, 1
                    row_count[worst] -= 1
                    row_count[i] += 1
                    changes += 1
    return changes


@once
def swaps_kernel() -> Any:
    """Compile the kernel: it takes any pattern.

    Returns
    -------
    function (values, state, r, c, row_free, col_free, sweeps, mask, skip) -> int
        values : (k, R, C) float64, finite, below 2**1000. state : (k, R, C) int8, 0 free; or of size 0. r, c : budgets.
        row_free, col_free : whether a row, a column may keep less than it does. sweeps : most passes over a block.
        mask : (k, R, C) uint8, keeps to the pattern; improved. skip : (k,) uint8, 1 for blocks to leave as they are.
        Returns the number of swaps and moves.

    Notes
    -----
    O(R^2 C) a sweep and a block; two or three sweeps are usual.
    """

    def swaps(values, state, r, c, row_free, col_free, sweeps, mask, skip):  # type: ignore[no-untyped-def]
        _, rows, cols = values.shape
        fixed = np.zeros((rows, cols), np.uint8)
        row_count, col_count = np.empty(rows, np.int64), np.empty(cols, np.int64)
        total = 0
        for k in range(len(values)):
            if skip[k]:
                continue
            block, kept = values[k], mask[k]
            top = 0.0
            for value in block.flat:
                top = max(top, abs(value))
            least = top * LEAST_GAIN
            if state.size:
                for i in range(rows):
                    for j in range(cols):
                        fixed[i, j] = state[k, i, j] != 0
            for _ in range(sweeps):
                changes = 0
                for i in range(rows):
                    for a in range(i + 1, rows):
                        changes += _pair(block, fixed, kept, i, a, least)
                if row_free or col_free:
                    row_count[:] = 0
                    col_count[:] = 0
                    for i in range(rows):
                        for j in range(cols):
                            row_count[i] += kept[i, j]
                            col_count[j] += kept[i, j]
                    changes += _singles(block, fixed, kept, row_count, col_count, r, c, row_free, col_free, least)
                total += changes
                if not changes:
                    break
        return total

    flag, whole = types.boolean, types.int64
    return compiled(
        swaps,
        whole(
            types.float64[:, :, ::1], types.int8[:, :, ::1], whole, whole, flag, flag, whole, types.uint8[:, :, ::1],
            types.uint8[::1],
        ),
    )  # fmt: skip
