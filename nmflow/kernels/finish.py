"""Finishing blocks one by one: shortest augmenting paths, then the mask and the proof of what they give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from nmflow.kernels.compile import compiled, once
from nmflow.kernels.repair import fill_lines, find_ties, send_along_ties, send_shortest, separate
from nmflow.kernels.simd import count_ones
from nmflow.kernels.transport import IN, OUT, centre_compiled
from nmflow.kernels.words import WIDTH, prove_line, read_bits, write_bits

__all__ = ["finish_kernel", "finish_scratch"]


@njit(nogil=True, error_model="numpy")
def _proven(  # type: ignore[no-untyped-def]
    lines, u, v, at_v, row_words, col_words, ties, r, c, row_fill, col_fill, rows, cols, sums, at_sums
):
    """Whether duals prove the mask that words hold, and what it keeps."""
    across = -(-cols // WIDTH)
    in_row = -1 if cols == 64 else (1 << cols) - 1
    sums[:] = 0.0
    wrong = 0
    for i in range(rows):
        row = lines + i * (8 * WIDTH) * across
        wrong |= prove_line(row, u[i], at_v, across, row_words[i], ties, at_sums) & in_row
        wrong |= _line_wrong(count_ones(row_words[i]), r, u[i], row_fill)
    for j in range(cols):
        wrong |= _line_wrong(count_ones(col_words[j]), c, v[j], col_fill)
    total = 0.0
    for j in range(cols):
        total += sums[j]
    return wrong == 0, total


@njit(nogil=True, error_model="numpy")
def _line_wrong(count, budget, dual, fill):  # type: ignore[no-untyped-def]
    """Whether a line breaks its budget, or its dual is none: at least 0, and 0 where it is free or has room."""
    if fill == 2:
        return np.int64(count != budget)
    least = 0.0 if fill == 0 or count < budget else np.inf
    return np.int64(count > budget or not 0.0 <= dual <= least)


@njit(nogil=True, error_model="numpy")
def _copy(source, target, near):  # type: ignore[no-untyped-def]
    """Copy numbers, to those of float32 where `near`."""
    for k in range(min(len(source), len(target))):
        target[k] = np.float32(source[k]) if near else source[k]


@njit(nogil=True, error_model="numpy")
def _centre(score, row, col, row_words, loose, first, row_exact, col_exact):  # type: ignore[no-untyped-def]
    """Move duals to the middle of what the mask leaves open for them."""
    rows, cols = score.shape
    arcs, slack = np.empty((rows, cols), np.uint8), np.empty(rows + cols, np.int64)
    for i in range(rows):
        slack[i] = loose[i]
        for j in range(cols):
            arcs[i, j] = IN if (row_words[i] >> j) & 1 else OUT
    for j in range(cols):
        slack[rows + j] = loose[first + j]
    bounds = np.empty((2, max(rows, cols)))
    centre_compiled(score, row, col, arcs, row_exact, col_exact, slack, bounds[0], bounds[1])


@njit(nogil=True, error_model="numpy")
def _some_left(need):  # type: ignore[no-untyped-def]
    """Whether some node has something to send."""
    left = 0
    for node in range(len(need)):
        left += need[node] > 0
    return left > 0


@once
def finish_kernel() -> Any:
    """Compile the finishing of blocks, in float64.

    Returns
    -------
    function (values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, single, begun, *scratch, flags)
    -> float
        values : (k, R, C) float64, scores. u : (k, R), v : (k, C) float64: duals to start from; optimal ones on return.
        mask : (h, w) uint8, each row contiguous, in which the masks of the blocks are written. blocks : (k,) int64,
        their numbers. r, c : budgets; room : of a column for the paths. Fills: 2 exact, 1 at most, 0 free. exact :
        whether scores are not rounded. single : 1 if duals are to be numbers of float32 where those prove as much; 2 if
        they need not be, but the same blocks are to be proven; 0 if scores have more bits.
        begun : whether the mask says already which ties to keep, if that can be.
        scratch : what `finish_scratch` gives. flags : (k,) uint8, output: 0 where the mask is proven. Returns the kept
        score of those that are.
    """

    def finish(  # type: ignore[no-untyped-def]
        values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, single, begun, line, turned, duals, floats,
        words, flags,
    ):  # fmt: skip
        count, rows, cols = values.shape
        grid_cols, first = mask.shape[1] // cols, turned.shape[1]
        re, ce = row_fill == 2, col_fill == 2
        row, col, try_row, try_col = duals[0], duals[1], duals[2], duals[3]
        mid_row, mid_col = duals[4], duals[5]
        keys, dist, sums = floats[0], floats[1], floats[2]
        need, loose, previous, queue = words[0], words[1], words[2], words[3]
        row_words, col_words, row_ties, col_ties, given = words[4], words[5], words[6], words[7], words[8]
        at_line, at_turned, at_u, at_v = line.ctypes.data, turned.ctypes.data, row.ctypes.data, col.ctypes.data
        at_keys, at_dist, at_previous = keys.ctypes.data, dist.ctypes.data, previous.ctypes.data
        at_sums, at_try, at_mask = sums.ctypes.data, try_col.ctypes.data, mask.ctypes.data
        total = 0.0
        for k in range(count):
            score = values[k]
            for i in range(rows):
                for j in range(cols):
                    line[i, j] = score[i, j]
            for i in range(rows):
                for j in range(cols):
                    turned[j, i] = score[i, j]
            _copy(u[k], row, False)
            _copy(v[k], col, False)
            flags[k] = 1
            top, left = blocks[k] // grid_cols * rows, blocks[k] % grid_cols * cols
            for i in range(rows):
                given[i] = read_bits(at_mask + (top + i) * mask.strides[0] + left, cols) if begun else 0
            fill_lines(
                at_line, at_turned, row, col, at_u, at_v, row_words, col_words, row_ties, col_ties, given, need, loose,
                r, room, rows, cols, re, ce,
            )  # fmt: skip
            while _some_left(need):
                # a path of some length moves the duals onto scores; all that are no longer then go along ties
                if re and ce and send_along_ties(
                    row_words, col_words, row_ties, col_ties, need, previous, queue, rows, cols
                ):  # fmt: skip
                    break
                if not send_shortest(
                    at_line, at_turned, row, col, at_u, at_v, row_words, col_words, need, loose, keys, dist, previous,
                    at_keys, at_dist, at_previous, rows, cols, re, ce,
                ):  # fmt: skip
                    break
                if re and ce:
                    find_ties(at_line, at_turned, row, col, at_u, at_v, row_ties, col_ties, rows, cols)
            for i in range(rows):
                write_bits(row_words[i], at_mask + (top + i) * mask.strides[0] + left, cols)
            # the duals of the paths lie on scores: where their sums rounded, those between the scores prove more
            _copy(row, mid_row, False)
            _copy(col, mid_col, False)
            # those of the paths, in the middle, and separated: of float32 in turns 0 to 2, of float64 in 3 to 5
            for turn in range(0 if single else 3, 6):
                if single == 2 and turn < 4:  # the nearest at hand first, then the same as ever
                    turn = (turn + 3) % 4
                way = turn % 3
                if way == 2 and not (re and ce):
                    continue
                if turn == 1 or (turn == 4 and single == 0):
                    _centre(score, mid_row, mid_col, row_words, loose, first, re, ce)
                _copy(mid_row if way else row, try_row, turn < 2)
                _copy(mid_col if way else col, try_col, turn < 2)
                if way == 2:
                    separate(score, try_row, try_col, row_words, turn == 2)
                done, kept = _proven(
                    at_line, try_row, try_col, at_try, row_words, col_words, exact, r, c, row_fill, col_fill, rows,
                    cols, sums, at_sums,
                )  # fmt: skip
                if done:
                    _copy(try_row, row, False)
                    _copy(try_col, col, False)
                    flags[k] = 0
                    total += kept
                    break
            _copy(row, u[k], False)
            _copy(col, v[k], False)
        return total

    i8, matrix = types.int64, types.float64[:, ::1]
    signature = types.float64(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :], types.int64[::1], i8, i8, i8, i8, i8,
        types.boolean, i8, types.boolean, matrix, matrix, matrix, matrix, types.int64[:, ::1],
        types.uint8[::1],
    )  # fmt: skip
    return compiled(finish, signature)


def finish_scratch(rows: int, cols: int) -> tuple[Any, ...]:
    """Workspace of the kernel: a block's lines, padded, and transposed; duals; numbers and words of nodes."""
    first, wide = (-(-side // WIDTH) * WIDTH for side in (rows, cols))
    nodes = first + wide + WIDTH
    shapes = (rows, wide), (cols, first), (6, max(first, wide)), (3, nodes)
    return *(np.zeros(shape) for shape in shapes), np.zeros((9, nodes), np.int64)
