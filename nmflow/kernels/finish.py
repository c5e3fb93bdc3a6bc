"""Finishing blocks one by one: shortest augmenting paths, then the mask and the proof of what they give.

What that leaves without a proof `nmflow.kernels.between` takes on.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from nmflow.kernels.bits import WIDTH, read_bits, write_bits
from nmflow.kernels.block_proof import copy_numbers, prove_block
from nmflow.kernels.carry import SOON, ask_block, block_at, fill
from nmflow.kernels.compile import call, lasting, once, operation, part
from nmflow.kernels.follow import follow_mask
from nmflow.kernels.gather import widen_block, widen_number
from nmflow.kernels.memory import (
    move_bytes,
    pointer,
    read_float,
    read_word,
    read_words,
    write_byte,
    write_float,
    write_word,
)
from nmflow.kernels.repair import fill_lines, find_ties, send_along_ties, send_shortest
from nmflow.kernels.scores import KINDS
from nmflow.kernels.turn import turn_floats

__all__ = ["BEST", "finish_list", "finish_plan", "finish_room", "finish_scratch"]

JOB = (
    "plan", "scores", "stride", "grid_cols", "apart", "mask", "mask_stride", "mask_cols", "blocks", "u", "v", "size",
    "count", "flags", "kept", "exact", "near", "begun", "scratch",
)  # fmt: skip
"""What a job says."""
PLAN = 10
"""Numbers of a plan."""
BEST = 2
"""What a job says of masks that may be best ones."""


@part
def _some_left(need):  # type: ignore[no-untyped-def]
    """Whether some node has something to send."""
    left = 0
    for node in range(len(need)):
        left += need[node] > 0
    return left > 0


@part
def _read_finite(source, target, count, size):  # type: ignore[no-untyped-def]
    """Read floats of `size` bytes, and 0 where one is beyond the work dtype: paths start from finite ones."""
    at = target.ctypes.data
    for k in range(count):
        if size == 8:
            widen_number(source + 8 * k, at + 8 * k, 8)
        else:
            widen_number(source + 4 * k, at + 8 * k, 4)
        if not abs(target[k]) < np.inf:
            target[k] = 0.0


@once
def finish_plan(
    kind_name: str, absolute: bool, rows: int, cols: int, r: int, c: int, room: int, row_fill: int, col_fill: int
) -> tuple[int, int]:
    """The operation that finishes blocks, and the address of its plan for one kind of scores and one pattern.

    room : budget of a column for the paths. Fills are 2 exact, 1 at most, 0 free.
    """
    read, item, finishing = widen_block(kind_name, absolute), KINDS[kind_name].itemsize, _finishing()
    plan = np.array([finishing, read, item, rows, cols, r, c, room, row_fill, col_fill], np.int64)
    return finishing, lasting(plan)


@once
def _finishing() -> int:
    """Compile the finishing of blocks, in float64.

    Returns
    -------
    operation (job, number) -> how many blocks are not proven
        job : address of int64, as `JOB` names them.
        plan : of `finish_plan`. scores, stride : address, and bytes between rows, of a matrix with `grid_cols` blocks
        across; or of the blocks alone, one below the other, if `apart`. mask, mask_stride, mask_cols : the same of the
        mask, which is written. blocks : `count` int64, the numbers of the blocks. u, v : their duals to start from,
        (count, rows) and (count, cols) floats of `size` bytes, 0 where one is not finite. flags : of uint8, output: 0
        where the mask is proven; then u and v, of 8 bytes, are optimal on return. Or 0: then blocks that are not
        proven are moved to the front of blocks, u and v. kept : of a float64 to which the kept score of those that are
        is added. exact : whether scores are not rounded. near : whether duals are rounded to float32. begun : not 0 if
        the mask says already which ties to keep, if that can be; `BEST` if it may be a best one, whose duals follow.
        scratch : what `finish_scratch` gives.
    """
    job_size, plan_size = len(JOB), PLAN

    def finish(job, number):  # type: ignore[no-untyped-def]
        (
            plan, scores, stride, grid_cols, apart, at_mask, mask_step, mask_cols, blocks, u, v, size, count, flags,
            at_kept, exact, near, begun, scratch,
        ) = read_words(job, job_size)  # fmt: skip
        _, widen, item, rows, cols, r, c, room, row_fill, col_fill = read_words(plan, plan_size)
        re, ce, both, rounded = row_fill == 2, col_fill == 2, col_fill != 0, near != 0
        first, wide = -(-rows // WIDTH) * WIDTH, -(-cols // WIDTH) * WIDTH
        nodes, longer = first + wide + WIDTH, max(first, wide)
        at_line = scratch
        at_turned = at_line + 8 * rows * wide
        at_duals = at_turned + 8 * cols * first
        at_floats = at_duals + 8 * 4 * longer
        duals = numba.carray(pointer(at_duals), (4, longer), np.float64)
        floats = numba.carray(pointer(at_floats), (3, nodes), np.float64)
        words = numba.carray(pointer(at_floats + 8 * 3 * nodes), (9, nodes), np.int64)
        row, col, try_row, try_col = duals[0], duals[1], duals[2], duals[3]
        keys, dist, sums = floats[0], floats[1], floats[2]
        need, loose, previous, queue = words[0], words[1], words[2], words[3]
        row_words, col_words, row_ties, col_ties, given = words[4], words[5], words[6], words[7], words[8]
        at_u, at_v = row.ctypes.data, col.ctypes.data
        at_keys, at_dist, at_previous = keys.ctypes.data, dist.ctypes.data, previous.ctypes.data
        at_sums, at_try = sums.ctypes.data, try_col.ctypes.data
        u_bytes, v_bytes = rows * size, cols * size
        left, total = 0, 0.0
        for k in range(count):
            block = read_word(blocks + 8 * k)
            source = block_at(scores, stride, grid_cols, k if apart else block, rows, cols * item)
            call(widen, (source, stride, rows, cols, at_line, 8 * wide))
            turn_floats(at_line, 8 * wide, at_turned, 8 * first, cols, rows)
            _read_finite(u + k * u_bytes, row, rows, size)
            _read_finite(v + k * v_bytes, col, cols, size)
            if k + SOON < count:
                soon = read_word(blocks + 8 * (k + SOON))
                ask_block(at_mask, mask_step, mask_cols, soon, rows, cols)
                if not apart:
                    ask_block(scores, stride, grid_cols, soon, rows, cols * item)
            place = block_at(at_mask, mask_step, mask_cols, block, rows, cols)
            for i in range(rows):
                given[i] = read_bits(place + i * mask_step, cols) if begun else 0
            followed = False
            if begun == BEST:
                copy_numbers(col, try_col, False)
                followed = follow_mask(
                    at_line, try_row, try_col, at_try, given, row_words, col_words, r, room, rows, cols, re, ce
                )  # fmt: skip
            if followed:
                copy_numbers(try_row, row, False)
                copy_numbers(try_col, col, False)
            else:
                fill_lines(
                    at_line, at_turned, row, col, at_u, at_v, row_words, col_words, row_ties, col_ties, given, need,
                    loose, r, room, rows, cols, re, ce,
                )  # fmt: skip
            while not followed and _some_left(need):
                # a path of some length moves the duals onto scores; all that are no longer then go along ties
                if both and send_along_ties(
                    row_words, col_words, row_ties, col_ties, need, previous, queue, rows, cols
                ) and not _some_left(need):  # fmt: skip
                    break  # the slack node has nothing to send either
                if not send_shortest(
                    at_line, at_turned, row, col, at_u, at_v, row_words, col_words, need, loose, keys, dist, previous,
                    at_keys, at_dist, at_previous, rows, cols, re, ce,
                ):  # fmt: skip
                    break
                if both:
                    find_ties(at_line, at_turned, row, col, at_u, at_v, row_ties, col_ties, rows, cols)
            for i in range(rows):
                write_bits(row_words[i], place + i * mask_step, cols)
            copy_numbers(row, try_row, rounded)
            copy_numbers(col, try_col, rounded)
            done, kept = prove_block(
                at_line, try_row, try_col, at_try, row_words, col_words, exact, r, c, row_fill, col_fill, rows, cols,
                sums, at_sums,
            )  # fmt: skip
            if done:
                copy_numbers(try_row, row, False)
                copy_numbers(try_col, col, False)
                total += kept
            elif not flags:
                write_word(blocks + 8 * left, block)
                move_bytes(u + k * u_bytes, u + left * u_bytes, u_bytes)
                move_bytes(v + k * v_bytes, v + left * v_bytes, v_bytes)
            left += not done
            if flags:
                write_byte(flags + k, not done)
                for i in range(rows):
                    write_float(u + k * u_bytes + 8 * i, row[i])
                for j in range(cols):
                    write_float(v + k * v_bytes + 8 * j, col[j])
        write_float(at_kept, read_float(at_kept) + total)
        return left

    return operation(finish, 2)


@part
def finish_list(  # type: ignore[no-untyped-def]
    plan, scores, stride, mask, mask_stride, grid_cols, blocks, u, v, size, count, kept, room
):
    """Finish the blocks of a list; how many are left of it. room : for a job, and zeros after it."""
    scratch, no, yes = room + 8 * len(JOB), np.int64(0), np.int64(1)
    job = (
        plan, scores, stride, grid_cols, no, mask, mask_stride, grid_cols, blocks, u, v, size, count, no, kept, yes, no,
        no, scratch,
    )  # fmt: skip
    for k, word in enumerate(job):
        write_word(room + 8 * k, word)
    fill(scratch, _scratch_bytes(read_word(plan + 24), read_word(plan + 32)), 0)
    return call(read_word(plan), (room, 0))


@part
def _scratch_bytes(rows, cols):  # type: ignore[no-untyped-def]
    """How much `finish_scratch` gives."""
    first, wide = -(-rows // WIDTH) * WIDTH, -(-cols // WIDTH) * WIDTH
    return 8 * (rows * wide + cols * first + 4 * max(first, wide) + 12 * (first + wide + WIDTH))


def finish_room(rows: int, cols: int) -> int:
    """Bytes that `finish_list` takes of a workspace."""
    return 8 * len(JOB) + int(_scratch_bytes.py_func(rows, cols))


def finish_scratch(rows: int, cols: int) -> tuple[Any, ...]:
    """Workspace, one after another: a block's lines, padded, and transposed; duals; numbers and words of nodes."""
    first, wide = (-(-side // WIDTH) * WIDTH for side in (rows, cols))
    nodes = first + wide + WIDTH
    memory = np.zeros(_scratch_bytes.py_func(rows, cols) // 8)
    parts, start = [], 0
    for shape in ((rows, wide), (cols, first), (4, max(first, wide)), (3, nodes), (9, nodes)):
        parts.append(memory[start : start + shape[0] * shape[1]].reshape(shape))
        start += parts[-1].size
    return *parts[:4], parts[4].view(np.int64)
