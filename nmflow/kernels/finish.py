"""Finishing blocks one by one: shortest augmenting paths, then the mask and the proof of what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.augment import OUT, augment_floats
from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.grade import grade_block

__all__ = ["finish_kernel"]


@once
def finish_kernel() -> Any:
    """Compile the finishing of blocks, in float64.

    Returns
    -------
    function (values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, single, ended, flags) -> float
        values : (k, R, C) float64, scores. u : (k, R), v : (k, C) float64: duals to start from; optimal ones on return.
        mask : (h, w) uint8, in which the masks of the blocks are written. blocks : (k,) int64, their numbers. r, c :
        budgets; room : of a column for the paths. Fills: 2 exact, 1 at most, 0 free. exact : whether scores are not
        rounded. single : whether duals are to be numbers of float32, where those prove as much. ended, flags : (k,)
        uint8, output: FAILED or FLOAT, and 0 where the mask is proven. Returns the kept score of those that are proven.
    """
    version = fingerprint()

    def finish(values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, single, ended, flags):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        grid_cols = mask.shape[1] // cols
        dist, nodes = np.empty(rows + cols + 1, np.float64), np.empty((4, rows + cols + 1), np.int64)
        low, high = np.empty((2, max(rows, cols)))
        arcs, state = np.empty((rows, cols), np.uint8), np.zeros((rows, cols), np.int8)
        col_count = np.empty(cols, np.int64)
        near_u, near_v = np.empty(rows), np.empty(cols)
        total = 0.0
        for k in range(count if version else 0):
            arcs[:] = OUT
            ended[k] = augment_floats(
                values[k], u[k], v[k], arcs, r, room, row_fill == 2, col_fill == 2, dist, nodes, low, high
            )
            top, left = blocks[k] // grid_cols * rows, blocks[k] % grid_cols * cols
            for i in range(rows):
                for j in range(cols):
                    arcs[i, j] &= 1
                    mask[top + i, left + j] = arcs[i, j]
            flag = 1
            if single:
                for i in range(rows):
                    near_u[i] = np.float32(u[k, i])
                for j in range(cols):
                    near_v[j] = np.float32(v[k, j])
                flag, _, kept = grade_block(
                    values[k], near_u, near_v, arcs, state, exact, r, c, row_fill, col_fill, col_count
                )
            if flag == 0:
                u[k], v[k] = near_u, near_v
            else:
                flag, _, kept = grade_block(
                    values[k], u[k], v[k], arcs, state, exact, r, c, row_fill, col_fill, col_count
                )
            flags[k] = flag
            total += kept if flag == 0 else 0.0
        return total

    i8, matrix = types.int64, types.float64[:, ::1]
    signature = types.float64(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :], types.int64[::1], i8, i8, i8, i8, i8,
        types.boolean, types.boolean, types.uint8[::1], types.uint8[::1],
    )  # fmt: skip
    return compiled(finish, signature)
