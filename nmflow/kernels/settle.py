"""Settling blocks: dual ascent, then the mask that its duals give and its proof, 32 blocks at a time while in cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.ahead import plan_ahead
from nmflow.kernels.ascent import ascent_of
from nmflow.kernels.compile import call, compiled, once, with_plan
from nmflow.kernels.groups import gather_blocks, put_blocks
from nmflow.kernels.memory import read_word, read_words, write_word
from nmflow.kernels.rounds import NONE, rounds_for
from nmflow.kernels.scores import KINDS
from nmflow.kernels.settle_passes import Room, duals_out, first_pass, masks_out, next_pass
from nmflow.kernels.simd import LANES

__all__ = ["settle_kernel", "settle_scratch"]

FEW_BLOCKS = 4 * LANES
"""So many blocks tell whether a warm start is worth it."""


@cache
def settle_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs."""
    return Room.of(kind, *block_shape).size + 64


@once
def settle_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, moved: bool,
) -> Any:  # fmt: skip
    """Compile for one kind of scores and one pattern; fills are 2 exact, 1 at most, 0 free.

    moved : whether what is left of scores is moved where blocks are settled once more, for scores of few bits.

    Returns
    -------
    function (scores, stride, mask, mask_stride, u, v, warm_v, grid_rows, grid_cols, scratch, blocks, block_u, block_v,
    count, sums, exact, fill_first, zoom, last_zoom, zoom_step, digits, offsets) -> int
        Addresses as int64: scores and mask with `stride` and `mask_stride` bytes between rows; u, C-contiguous, shape
        (h, grid_cols) and v, shape (grid_rows, w), both in the work dtype of the kind: the duals of all blocks are
        written there, unless u is 0. warm_v: like v; the search starts from it, unless it is 0, saves no round or
        leaves many blocks open. With `count` 0 all blocks are settled, and those then open once more; else the
        `count` blocks that `blocks` names, from the duals in block_u, shape (count, rows), and block_v, shape (count,
        cols). These three, with room for all blocks, hold on return those still open. blocks: int64; sums: 128
        float64, the kept scores of the blocks that are proven are added; exact: 0 where scores were rounded, so that
        a tie proves nothing: then blocks must be named. fill_first: whether all blocks are settled at first as if
        lines had to be full, under at-most fill where full lines use up both budgets: most best masks are full then,
        and duals that are not negative prove it; those of other blocks are a good start. What is left of the scores,
        S - u - v, is magnified by `zoom` bits where blocks are settled once more, and by `zoom_step` more each time
        until `last_zoom` (at most 16 for scores of 32 bits or less, 60 else), or until that settles few more. digits,
        offsets : see `nmflow.kernels.grains`, read if `moved`.
        Returns how many blocks are open, or -1 if a score is not finite.
    """
    kind, room = KINDS[kind_name], Room.of(kind_name, rows, cols)
    pattern = rows, cols, row_budget, col_budget, row_fill, col_fill, absolute
    clamps = int(row_fill == 1), int(col_fill == 1)
    rounds = rounds_for(max(rows, cols)) if col_fill else NONE
    fillable = row_fill == col_fill == 1 and rows * row_budget == cols * col_budget
    work = kind.work_size
    proof = (room.proof_u, room.proof_v) if moved else (room.u, room.v)
    operations = (
        first_pass(kind_name, *pattern), next_pass(kind_name, *pattern, moved),
        masks_out(kind_name, *pattern, moved), duals_out(kind_name, rows, cols, absolute),
        ascent_of(rows, cols, row_budget, col_budget, int(not col_fill), *clamps),
        gather_blocks(cols * kind.itemsize), gather_blocks(work), gather_blocks(cols * work),
        put_blocks(cols), put_blocks(work), put_blocks(cols * work),
    )  # fmt: skip
    plan = np.array([
        *operations, rows, cols, kind.itemsize, work, room.scores, room.u, room.v, *proof, room.masks, room.names,
        room.ahead, any(clamps), fillable, int(moved), *rounds,
    ], np.int64)  # fmt: skip
    return with_plan(_driver(), plan)


@once
def _driver() -> Any:
    """Compile what all kinds and patterns have in common."""
    lane_count, plan_size, few = LANES, 30, FEW_BLOCKS

    def settle(  # type: ignore[no-untyped-def]
        plan, scores, stride, mask, mask_stride, u, v, warm_v, grid_rows, grid_cols, scratch, blocks, block_u, block_v,
        count, sums, exact, fill_first, zoom, last_zoom, zoom_step, digits, offsets,
    ):  # fmt: skip
        (
            first_at, next_at, masks_at, duals_at, ascent, gather_scores, gather_u, gather_v, put_masks, put_u, put_v,
            rows, cols, item, work, scores_in, u_in, v_in, proof_u_in, proof_v_in, masks_in, names_in, ahead_in,
            clamped, fillable, moved, first_rounds, again_rounds, warm_rounds, most_open,
        ) = read_words(plan, plan_size)  # fmt: skip
        room = (scratch + 63) & ~63
        gathered, room_u, room_v, masks, names, ahead = (
            room + scores_in, room + u_in, room + v_in, room + masks_in, room + names_in, room + ahead_in
        )  # fmt: skip
        v_bytes = cols * work
        total = 0 if count else grid_rows * grid_cols
        filled = fillable & fill_first
        made = filled or not clamped
        first = 0
        plan_ahead(ahead, scores, stride, item, rows, cols, grid_cols, 0, 0, 0, 0, 0)
        if warm_rounds >= first_rounds:
            warm_v = 0  # nothing to gain
        # blocks[head:tail] wait to be settled once more; blocks[:left] were, and are still open
        left, head, tail = 0, 0, count
        while True:
            again = tail - head >= lane_count or (first >= total and head < tail)
            if not again and first >= total:
                if not left or zoom >= last_zoom:
                    break
                # ties, which more bits do not tell apart, but where finer offsets do
                if total and 2 * left > tail and ((2 * left < total and not moved) or 16 * left > 15 * tail):
                    break
                # what is still open, magnified further
                zoom += zoom_step
                head, tail, left = 0, left, 0
                continue
            named, start, here = blocks, head, min(lane_count, tail - head)
            if not again:
                named, start, here = 0, first, min(lane_count, total - first)
            s = first // grid_cols
            j = first - s * grid_cols
            whole = not again and j + lane_count <= grid_cols
            if whole:
                base, step = scores + s * rows * stride + j * cols * item, stride
                to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
                start_v = warm_v + first * v_bytes if warm_v else 0
            else:
                base, step, to, to_step = gathered, lane_count * cols * item, masks, lane_count * cols
                start_v = room_v if warm_v else 0
                call(gather_scores, (scores, stride, rows, grid_cols, named, start, here, gathered))
                if again:
                    call(gather_u, (block_u, work, rows, 1, 0, start, here, room_u))
                    call(gather_v, (block_v, v_bytes, 1, 1, 0, start, here, room_v))
                elif warm_v:
                    call(gather_v, (warm_v, v_bytes, 1, 1, 0, start, here, room_v))
            sure, rounds = 0, warm_rounds if start_v else first_rounds
            if again:
                sure = call(next_at, (room, base, step, zoom, digits, offsets, ascent, again_rounds))
                if sure < 0:
                    return -1
            else:
                plan_ahead(ahead, scores, stride, item, rows, cols, grid_cols, first + here, total, to, to_step, whole)
                open_lanes = call(
                    first_at, (room, base, step, to, to_step, start_v, here, sums, ascent, rounds, filled)
                )
                if open_lanes < 0:
                    return -1
                if u and whole:
                    to_u = u + (s * rows * grid_cols + j) * work
                    call(duals_at, (room, to_u, grid_cols * work, v + first * v_bytes))
                if open_lanes or not made or (u and not whole):
                    call(duals_at, (room, room_u, lane_count * work, room_v))
            if again or not (made or moved):
                open_lanes = call(masks_at, (room, base, step, to, to_step, here, sums, exact * (1 + sure)))
            elif not made:  # masks of moved scores come with the next pass: what the room holds is of other blocks
                open_lanes = (1 << here) - 1
            if not whole:
                call(put_masks, (masks, mask, mask_stride, rows, grid_cols, named, start, here, -1))
                if u:
                    proof_u, proof_v = (room + proof_u_in, room + proof_v_in) if again else (room_u, room_v)
                    call(put_u, (proof_u, u, grid_cols * work, rows, grid_cols, named, start, here, -1))
                    call(put_v, (proof_v, v, v_bytes, 1, 1, named, start, here, -1))
            listed = left if again else tail
            if open_lanes:
                for lane in range(here):
                    if (open_lanes >> lane) & 1:
                        place = start + lane
                        write_word(blocks + listed * 8, read_word(blocks + place * 8) if again else place)
                        write_word(names + lane * 8, listed)
                        listed += 1
                call(put_u, (room_u, block_u, work, rows, 1, names, 0, here, open_lanes))
                call(put_v, (room_v, block_v, v_bytes, 1, 1, names, 0, here, open_lanes))
            if again:
                left, head = listed, head + here
            else:
                tail, first = listed, first + here
                if first >= few and tail * 64 > first * most_open:
                    warm_v = 0  # scores have changed too much
        return left

    return compiled(settle, types.int64(*[types.int64] * 23))
