"""Settling blocks: dual ascent, then the mask that its duals give and its proof, 32 blocks at a time while in cache."""

from __future__ import annotations

from functools import cache

import numpy as np

from nmflow.kernels.ascent import ascent_of
from nmflow.kernels.boxes import LAST, MORE
from nmflow.kernels.compile import lasting, once, operation
from nmflow.kernels.finish import finish_list, finish_room
from nmflow.kernels.groups import gather_blocks, put_blocks
from nmflow.kernels.memory import LINE, add_word, read_float, read_word, read_words, write_float, write_word
from nmflow.kernels.ranked import rank_duals, rank_pass
from nmflow.kernels.room import Room
from nmflow.kernels.rounds import NONE, rounds_for
from nmflow.kernels.scores import KINDS
from nmflow.kernels.settle_passes import duals_out, first_pass, masks_out, next_pass
from nmflow.kernels.share import PART, SUMS, clear_sums, cut_list, fold_sums, is_vain, move_open, settle_share
from nmflow.kernels.surplus import drop_kernel

__all__ = ["settle_kernel", "settle_scratch"]

JOB = (
    "plan", "scores", "stride", "mask", "mask_stride", "u", "v", "warm_v", "grid_rows", "grid_cols", "blocks",
    "block_u", "block_v", "count", "kept", "exact", "fill_first", "last_zoom", "zoom_step", "digits", "offsets",
    "share_rows", "finish", "few", "scratch", "scratch_size",
)  # fmt: skip
"""What a job says."""
STATE = ("next", "parts", "size", "listed", "zoom", "paths")
"""What follows: the next part to take, how many there are, and blocks of each; how many blocks are listed; how far what
is left of open ones is magnified first; and whether paths are sent through them. `PART` for each part come after."""
JOB_SIZE, STATE_BYTES, PART_BYTES, SUM_BYTES = len(JOB), 8 * len(STATE), 8 * PART, 8 * SUMS


@cache
def settle_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs, from the sums of a part on; no cache line is of two threads."""
    size = max(8 * SUMS + Room.of(kind, *block_shape).size, finish_room(*block_shape))
    return -(-(size + 2 * LINE) // LINE) * LINE


@once
def settle_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, moved: bool, exact: bool,
) -> tuple[int, int]:  # fmt: skip
    """Compile for one kind of scores and one pattern; fills are 2 exact, 1 at most, 0 free.

    moved : whether what is left of scores is moved where blocks are settled once more, for scores of few bits. exact :
    whether scores are not rounded: where columns are free, no block is then settled once more.

    Returns
    -------
    operation, plan
        operation (job, number) -> int, for `nmflow.crew.call_on_threads`: how many blocks are open, or -1 if a score
        is not finite. job : address of int64, as `JOB` and `STATE` name them, and room for `PART` for each part. Each
        thread takes parts until none is left: at first shares, of `share_rows` rows of blocks, or parts of a list.
        What the shares leave open is listed, and what is settled together then is a list again; as is what paths are
        sent through.
        plan : address of what is called and where things lie.

        scores, mask : addresses, with `stride` and `mask_stride` bytes between rows. u, v : C-contiguous, shapes (h,
        grid_cols) and (grid_rows, w), in the work dtype of the kind: the duals of all blocks are written there, unless
        u is 0. warm_v: like v; the search starts from it, unless it is 0 or leaves many blocks open.
        With `count` 0 all blocks are settled, and those then open once more; else the `count` blocks that `blocks`
        names, int64, from the duals in block_u, shape (count, rows), and block_v, shape (count, cols). These three,
        with room for all blocks, hold on return those still open. kept: address of a float64 to which the kept scores
        of the blocks that are proven are added, part by part in order; exact: 0 where scores were rounded, so that a
        tie proves nothing: then blocks must be named. fill_first: whether all blocks are settled at first as if lines
        had to be full, under at-most fill where full lines use up both budgets: most best masks are full then, and
        duals that are not negative prove it; those of other blocks are a good start. What is left of the scores,
        S - u - v, is magnified by `zoom` bits where blocks are settled once more, and by `zoom_step` more each time
        until `last_zoom` (at most 16 for scores of 32 bits or less, 60 else), or until that settles few more. digits,
        offsets : see `nmflow.kernels.grains`, read if `moved`. finish : address of a plan of `nmflow.kernels.finish`:
        if no more than `few` blocks are left open, paths are sent through them. How many these prove is written after
        `kept`, and what they keep is added after that; their duals are not written. scratch : of workspace,
        `scratch_size` bytes for each thread. What is found does not depend on which thread takes what.
    """
    kind, room = KINDS[kind_name], Room.of(kind_name, rows, cols)
    pattern = rows, cols, row_budget, col_budget, row_fill, col_fill, absolute
    clamps = int(row_fill == 1), int(col_fill == 1)
    rounds = rounds_for(max(rows, cols)) if col_fill else NONE
    fillable = row_fill == col_fill == 1 and rows * row_budget == cols * col_budget
    work = kind.work_size
    proof = (room.proof_u, room.proof_v) if moved else (room.u, room.v)
    ranked = not col_fill
    once_more = (0, 0)
    if not (ranked and exact):
        once_more = next_pass(kind_name, *pattern, moved), masks_out(kind_name, *pattern, moved)
    operations = (
        rank_pass(kind_name, rows, cols, row_budget, row_fill, absolute) if ranked else first_pass(kind_name, *pattern),
        *once_more,
        rank_duals(kind_name, rows, cols) if ranked else duals_out(kind_name, rows, cols, absolute),
        ascent_of(rows, cols, row_budget, col_budget, int(not col_fill), *clamps),
        gather_blocks(cols * kind.itemsize), gather_blocks(work), gather_blocks(cols * work),
        put_blocks(cols), put_blocks(work), put_blocks(cols * work),
    )  # fmt: skip
    plan = np.array([
        rows, cols, work, int(moved), *operations, kind.itemsize, room.scores, room.u, room.v, *proof, room.masks,
        room.names, room.ahead, any(clamps) and not ranked, fillable, *rounds, drop_kernel(),
    ], np.int64)  # fmt: skip
    return _driver(), lasting(plan)


@once
def _driver() -> int:
    """Compile what all kinds and patterns have in common."""

    return operation(_settle, 2)


def _settle(job, number):  # type: ignore[no-untyped-def]
    (
        plan, scores, stride, mask, mask_stride, u, v, warm_v, grid_rows, grid_cols, blocks, block_u, block_v,
        count, kept, exact, fill_first, last_zoom, zoom_step, digits, offsets, share_rows, finish, few, scratch,
        scratch_size,
    ) = read_words(job, JOB_SIZE)  # fmt: skip
    state = job + 8 * JOB_SIZE
    sums = scratch + max(number, 0) * scratch_size
    rows, cols, work, moved = read_words(plan, 4)
    u_bytes, v_bytes, total = rows * work, cols * work, grid_rows * grid_cols
    while True:
        parts, size, listed, zoom, paths = read_words(state + 8, 5)
        end_zoom = zoom if listed and parts > 1 else last_zoom
        while True:
            k = add_word(state, 1)
            if k >= parts:
                break
            first, says = k * size, state + STATE_BYTES + k * PART_BYTES
            here = min(size, (listed or total) - first)
            names, u_from, v_from = blocks + first * 8, block_u + first * u_bytes, block_v + first * v_bytes
            if paths:
                write_float(says + 8, 0.0)
                left = finish_list(
                    finish, scores, stride, mask, mask_stride, grid_cols, names, u_from, v_from, work, here, says + 8,
                    sums,
                )  # fmt: skip
                write_word(says, left)
                continue
            at, row = (0, 0) if listed else (first, k * share_rows * rows)  # where a share lies; a list is of all
            clear_sums(sums)
            left = settle_share(
                plan, sums + SUM_BYTES, scores + row * stride, stride, mask + row * mask_stride, mask_stride,
                u + at * u_bytes if u else 0, v + at * v_bytes, warm_v + at * v_bytes if warm_v else 0, grid_cols,
                names, u_from, v_from, 0 if listed else here, here if listed else 0, sums, exact, fill_first,
                zoom, end_zoom, zoom_step, digits, offsets, listed or parts == 1,
            )  # fmt: skip
            write_word(says, left)
            write_float(says + 8, fold_sums(sums))
        if number != LAST:
            return 0
        left, adds = 0, kept + 16 if paths else kept
        for k in range(parts):
            says = state + STATE_BYTES + k * PART_BYTES
            here = read_word(says)
            if here < 0:
                return -1
            write_float(adds, read_float(adds) + read_float(says + 8))
            if k:
                first = k * size
                move_open(blocks, block_u, block_v, u_bytes, v_bytes, first, left, here, 0 if listed else first)
            left += here
        if paths:
            write_word(kept + 8, listed - left)
            return left
        ended = parts == 1 or (listed and (zoom >= last_zoom or is_vain(left, listed, 0 if count else total, moved)))
        if left == 0 or (ended and left > few):
            return left
        if listed and not ended:
            zoom += zoom_step
        parts, size = cut_list(left, ended)
        for k, word in enumerate((np.int64(0), parts, size, left, zoom, np.int64(ended))):
            write_word(state + 8 * k, word)
        if parts > 1:
            return MORE
