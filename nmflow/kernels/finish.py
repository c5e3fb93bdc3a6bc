"""Finishing blocks one by one: shortest augmenting paths, then the mask and the proof of what they give.

What that leaves without a proof `nmflow.kernels.between` takes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.block_proof import copy_numbers, prove_block
from nmflow.kernels.carry import SOON, ask_block, block_at
from nmflow.kernels.compile import compiled, once, part
from nmflow.kernels.repair import fill_lines, find_ties, send_along_ties, send_shortest
from nmflow.kernels.words import WIDTH, read_bits, write_bits

__all__ = ["finish_kernel", "finish_scratch"]


@part
def _some_left(need):  # type: ignore[no-untyped-def]
    """Whether some node has something to send."""
    left = 0
    for node in range(len(need)):
        left += need[node] > 0
    return left > 0


@part
def _copy_finite(source, target):  # type: ignore[no-untyped-def]
    """Copy numbers, and 0 where one is beyond the work dtype: paths start from finite ones."""
    for k in range(len(source)):
        target[k] = source[k] if abs(source[k]) < np.inf else 0.0


@once
def finish_kernel() -> Any:
    """Compile the finishing of blocks, in float64.

    Returns
    -------
    function (values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, near, begun, *scratch, flags)
    -> float
        values : (k, R, C) float64, scores. u : (k, R), v : (k, C) float64: duals to start from, 0 where one is not
        finite; optimal ones on return.
        mask : (h, w) uint8, each row contiguous, in which the masks of the blocks are written. blocks : (k,) int64,
        their numbers. r, c : budgets; room : of a column for the paths. Fills: 2 exact, 1 at most, 0 free. exact :
        whether scores are not rounded. near : whether duals are rounded to float32.
        begun : whether the mask says already which ties to keep, if that can be.
        scratch : what `finish_scratch` gives. flags : (k,) uint8, output: 0 where the mask is proven. Returns the kept
        score of those that are.
    """

    def finish(  # type: ignore[no-untyped-def]
        values, u, v, mask, blocks, r, c, room, row_fill, col_fill, exact, near, begun, line, turned, duals, floats,
        words, flags,
    ):  # fmt: skip
        count, rows, cols = values.shape
        grid_cols, mask_step = mask.shape[1] // cols, mask.strides[0]
        re, ce = row_fill == 2, col_fill == 2
        row, col, try_row, try_col = duals[0], duals[1], duals[2], duals[3]
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
            _copy_finite(u[k], row)
            _copy_finite(v[k], col)
            flags[k] = 1
            if k + SOON < count:
                ask_block(at_mask, mask_step, grid_cols, blocks[k + SOON], rows, cols)
            place = block_at(at_mask, mask_step, grid_cols, blocks[k], rows, cols)
            for i in range(rows):
                given[i] = read_bits(place + i * mask_step, cols) if begun else 0
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
                write_bits(row_words[i], place + i * mask_step, cols)
            copy_numbers(row, try_row, near)
            copy_numbers(col, try_col, near)
            done, kept = prove_block(
                at_line, try_row, try_col, at_try, row_words, col_words, exact, r, c, row_fill, col_fill, rows, cols,
                sums, at_sums,
            )  # fmt: skip
            if done:
                copy_numbers(try_row, row, False)
                copy_numbers(try_col, col, False)
                flags[k] = 0
                total += kept
            copy_numbers(row, u[k], False)
            copy_numbers(col, v[k], False)
        return total

    i8, matrix = types.int64, types.float64[:, ::1]
    signature = types.float64(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :], types.int64[::1], i8, i8, i8, i8, i8,
        types.boolean, types.boolean, types.boolean, matrix, matrix, matrix, matrix, types.int64[:, ::1],
        types.uint8[::1],
    )  # fmt: skip
    return compiled(finish, signature)


def finish_scratch(rows: int, cols: int) -> tuple[Any, ...]:
    """Workspace of the kernel: a block's lines, padded, and transposed; duals; numbers and words of nodes."""
    first, wide = (-(-side // WIDTH) * WIDTH for side in (rows, cols))
    nodes = first + wide + WIDTH
    shapes = (rows, wide), (cols, first), (4, max(first, wide)), (3, nodes)
    return *(np.zeros(shape) for shape in shapes), np.zeros((9, nodes), np.int64)
