"""Finishing blocks one by one: shortest augmenting paths, then the mask and the proof of what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from nmflow.kernels.augment import FAILED, FLOAT, MOST_PATHS, OUT, centre_compiled, paths_compiled, start_compiled
from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.grade import grade_block, proves
from nmflow.kernels.ties import mend_ties

__all__ = ["finish_kernel"]


@njit(nogil=True, error_model="numpy")
def _proven(values, u, v, arcs, state, exact, r, c, row_fill, col_fill, sums, col_count):  # type: ignore[no-untyped-def]
    """Whether duals prove a mask, and what it keeps."""
    if exact and row_fill == 2 and col_fill == 2:
        return proves(values, u, v, arcs, r, c, sums, col_count)
    flag, _, kept = grade_block(values, u, v, arcs, state, exact, r, c, row_fill, col_fill, col_count)
    return flag == 0, kept


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
        re, ce = row_fill == 2, col_fill == 2
        dist, nodes = np.empty(rows + cols + 1, np.float64), np.empty((4, rows + cols + 1), np.int64)
        low, high = np.empty((2, max(rows, cols)))
        arcs, state = np.empty((rows, cols), np.uint8), np.zeros((rows, cols), np.int8)
        sums, col_count = np.empty(cols), np.empty(cols, np.int64)
        adds, drops = np.empty(rows, np.int64), np.empty(cols, np.int64)
        try_u, try_v = np.empty(rows), np.empty(cols)
        total = 0.0
        for k in range(count if version else 0):
            score, row, col = values[k], u[k], v[k]
            for i in range(rows):
                for j in range(cols):
                    arcs[i, j] = OUT
            ended[k], flags[k] = FAILED, 1
            if not start_compiled(score, row, col, arcs, r, room, re, ce, nodes[0], nodes[1]):
                continue
            # a path of some length moves the duals onto scores; all that are no longer then go along ties
            most, found, going = 1 if re and ce else MOST_PATHS, True, True
            while going:
                found = paths_compiled(
                    score, row, col, arcs, re, ce, most, dist, nodes[0], nodes[1], nodes[2], nodes[3]
                )
                going = most == 1 and found
                if going:
                    going = not mend_ties(score, row, col, arcs, nodes[0], nodes[2], nodes[3], adds, drops)
            if not found:
                continue
            ended[k] = FLOAT
            top, left = blocks[k] // grid_cols * rows, blocks[k] % grid_cols * cols
            for i in range(rows):
                for j in range(cols):
                    mask[top + i, left + j] = arcs[i, j]
            # the duals of the paths lie on scores: where their sums rounded, those between the scores prove more
            for turn in range(4):
                near = turn % 2 == 0
                if near and not single:
                    continue
                if turn == 2 or (turn == 3 and not single):
                    centre_compiled(score, row, col, arcs, re, ce, nodes[1], low, high)
                for i in range(rows):
                    try_u[i] = np.float32(row[i]) if near else row[i]
                for j in range(cols):
                    try_v[j] = np.float32(col[j]) if near else col[j]
                done, kept = _proven(score, try_u, try_v, arcs, state, exact, r, c, row_fill, col_fill, sums, col_count)
                if done:
                    for i in range(rows):
                        row[i] = try_u[i]
                    for j in range(cols):
                        col[j] = try_v[j]
                    flags[k] = 0
                    total += kept
                    break
        return total

    i8, matrix = types.int64, types.float64[:, ::1]
    signature = types.float64(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :], types.int64[::1], i8, i8, i8, i8, i8,
        types.boolean, types.boolean, types.uint8[::1], types.uint8[::1],
    )  # fmt: skip
    return compiled(finish, signature)
