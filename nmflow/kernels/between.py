"""Proving what paths solved by other duals than theirs, which lie on scores, so that a sum of two may round onto one.

A kernel of its own: few blocks need it, and it takes long to compile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.bits import read_bits
from nmflow.kernels.block_proof import copy_numbers, prove_block
from nmflow.kernels.compile import compiled, once, part
from nmflow.kernels.memory import count_ones
from nmflow.kernels.transport import IN, OUT, centre

__all__ = ["between_kernel"]

SWEEPS = 64
"""Most sweeps over the rows of a block in search of duals between its scores."""


@part
def _beside(number, towards):  # type: ignore[no-untyped-def]
    """The nearest number of float32 that does not lie on the other side."""
    single = np.float32(number)
    beyond = single > number if towards < 0.0 else single < number
    return np.float64(np.nextafter(single, np.float32(towards)) if beyond else single)


@part
def _separate(scores, u, v, row_words, loose, bounded, near):  # type: ignore[no-untyped-def]
    """Move duals between the scores: what is kept lies a little above u + v, what is not a little below.

    By Bellman-Ford, row by row, with a margin of some rounding errors: where a mask is the only best one, by more than
    the margins of a cycle, no sum of duals is left to round onto a score. bounded : whether duals must not be negative,
    and are 0 where a line has room (`loose`): then they grow from 0 to the least ones that will do. A sum with 0 does
    not round, and needs no margin. near : instead of a margin all duals are numbers of float32, those of rows rounded
    down and those of columns up.
    """
    rows, cols = scores.shape
    top = 0.0
    for i in range(rows):
        for j in range(cols):
            top = max(top, abs(scores[i, j]))
    margin = 0.0 if near else top * 2.0**-50
    for j in range(cols):
        if bounded:
            v[j] = 0.0
        elif near:
            v[j] = np.float32(v[j])
    for _ in range(SWEEPS):
        changed = False
        for i in range(rows):
            least = np.inf
            for j in range(cols):
                if (row_words[i] >> j) & 1:
                    plain = bounded and v[j] == 0.0
                    least = min(least, scores[i, j] if plain else scores[i, j] - v[j] - margin)
            if bounded and loose[i] > 0:
                u[i] = 0.0
            elif least < np.inf:
                u[i] = _beside(least, -np.inf) if near else least
            else:
                return
            for j in range(cols):
                if not (row_words[i] >> j) & 1:
                    if bounded and (u[i] == 0.0 or v[j] == 0.0) and scores[i, j] <= u[i] + v[j]:
                        continue
                    lowest = scores[i, j] if bounded and u[i] == 0.0 else scores[i, j] - u[i] + margin
                    if lowest > v[j]:
                        v[j] = _beside(lowest, np.inf) if near else lowest
                        changed = True
        if not changed:
            return


@part
def _centre(score, u, v, row_words, row_exact, col_exact, loose, arcs, low, high):  # type: ignore[no-untyped-def]
    """Move duals to the middle of what the mask leaves open for them; the last three are workspace."""
    rows, cols = score.shape
    for i in range(rows):
        for j in range(cols):
            arcs[i, j] = IN if (row_words[i] >> j) & 1 else OUT
    centre(score, u, v, arcs, row_exact, col_exact, loose, low, high)


@once
def between_kernel() -> Any:
    """Compile the proof of blocks by duals between their scores, in float64.

    Returns
    -------
    function (values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, near, single, *scratch, flags) -> float
        values : (k, R, C) float64, scores. u : (k, R), v : (k, C) float64: duals of the paths; on return, those that
        prove a mask. mask : (h, w) uint8, each row contiguous, with the masks of the blocks. blocks : (k,) int64, their
        numbers. Budgets, fills and exact : as `nmflow.kernels.finish` has them. near : whether that rounded its duals
        to float32, and proved nothing. single : whether duals are tried that are numbers of float32. scratch : what
        `finish_scratch` gives. flags : (k,) uint8, output: 0 where a mask is proven. Returns the kept score of those.
    """

    def prove(  # type: ignore[no-untyped-def]
        values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, near, single, line, turned, duals, floats,
        words, flags,
    ):  # fmt: skip
        count, rows, cols = values.shape
        grid_cols, tried = mask.shape[1] // cols, 0 if near else 3
        re, ce = row_fill == 2, col_fill == 2
        full, bounded = re and ce, row_fill == col_fill == 1
        mid_row, mid_col, try_row, try_col = duals[0], duals[1], duals[2], duals[3]
        sums, loose, row_words, col_words = floats[2], words[3], words[4], words[5]
        at_line, at_try, at_sums, at_mask = line.ctypes.data, try_col.ctypes.data, sums.ctypes.data, mask.ctypes.data
        arcs, total = np.empty((rows, cols), np.uint8), 0.0
        for k in range(count):
            score = values[k]
            top, left = blocks[k] // grid_cols * rows, blocks[k] % grid_cols * cols
            for j in range(cols):
                col_words[j] = 0
            for i in range(rows):
                row_words[i] = read_bits(at_mask + (top + i) * mask.strides[0] + left, cols)
                for j in range(cols):
                    line[i, j] = score[i, j]
                    col_words[j] |= ((row_words[i] >> j) & 1) << i
                loose[i] = r - count_ones(row_words[i])
            for j in range(cols):
                loose[rows + j] = room - count_ones(col_words[j])
            copy_numbers(u[k], mid_row, False)
            copy_numbers(v[k], mid_col, False)
            # those of the paths, in the middle, and separated: of float32 in turns 0 to 2, of float64 in 3 to 5
            for turn in range(0 if single else 4, 6):
                way = turn % 3
                if turn == tried or (way == 2 and not (full or bounded)):
                    continue
                if turn == 1 or (turn == 4 and not single):
                    _centre(score, mid_row, mid_col, row_words, re, ce, loose, arcs, floats[0], floats[1])
                copy_numbers(mid_row if way else u[k], try_row, turn < 2)
                copy_numbers(mid_col if way else v[k], try_col, turn < 2)
                if way == 2:
                    _separate(score, try_row, try_col, row_words, loose, bounded, turn == 2)
                done, kept = prove_block(
                    at_line, try_row, try_col, at_try, row_words, col_words, exact, r, c, row_fill, col_fill, rows,
                    cols, sums, at_sums,
                )  # fmt: skip
                if done:
                    copy_numbers(try_row, u[k], False)
                    copy_numbers(try_col, v[k], False)
                    flags[k] = 0
                    total += kept
                    break
        return total

    i8, yes, matrix = types.int64, types.boolean, types.float64[:, ::1]
    signature = types.float64(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :], types.int64[::1], i8, i8, i8, i8, i8,
        yes, yes, yes, matrix, matrix, matrix, matrix, types.int64[:, ::1], types.uint8[::1],
    )  # fmt: skip
    return compiled(prove, signature)
