"""Settling blocks: dual ascent, then the mask that its duals give and its proof, 32 blocks at a time while in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.ascent import LOWEST, ascend, rounds_for, set_floors, set_lanes
from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.lanes import level_lanes, prove_lanes, words_in_row
from nmflow.kernels.proof import grade_span
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BIAS, VECTOR, load_duals, measure_segment, read_segment, store_duals
from nmflow.kernels.simd import LANES, copy_bytes, read_byte, read_word, write_word
from nmflow.kernels.spans import blocks_in_span

__all__ = ["settle_kernel", "settle_scratch"]


def settle_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs."""
    rows, cols = block_shape
    item = KINDS[kind]
    lanes = (rows * cols + 2 * rows + 2 * cols + rows * words_in_row(cols)) * VECTOR
    numbers = LANES * 8 + LANES * rows * cols * (item.itemsize + 1) + LANES * (rows + cols) * item.work_size
    return lanes + numbers + LANES + 256


@once
def settle_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, warm: bool,
) -> Any:  # fmt: skip
    """Compile for one kind of scores and one pattern; fills are 2 exact, 1 at most, 0 free.

    Returns
    -------
    function (scores, stride, mask, mask_stride, u, v, warm_v, grid_rows, grid_cols, scratch, blocks, block_u, block_v,
    count, sums, exact, fill_first, zoom, last_zoom, zoom_step) -> int
        Addresses as int64: scores and mask with `stride` and `mask_stride` bytes between rows; u, C-contiguous,
        shape (h, grid_cols) and v, shape (grid_rows, w), both in the work dtype of the kind: the duals of all blocks
        are written there, unless u is 0. warm_v: like v; if `warm` the search starts from it. With `count` 0
        all blocks are settled, and those then open once more; else the `count` blocks that `blocks` names, from the
        duals in block_u, shape (count, rows), and block_v, shape (count, cols). These three, with room for all
        blocks, hold on return those still open. blocks: int64; sums: 128 float64, the kept scores of the blocks that
        are proven are added; exact: 0 where scores were rounded, so that a tie proves nothing: then blocks must be
        named. fill_first: whether all blocks are settled at first as if lines had to be full, under at-most fill where
        full lines use up both budgets: most best masks are full then, and duals that are not negative prove it; those
        of other blocks are a good start. What is left of the scores, S - u - v, is magnified by `zoom` bits where
        blocks are settled once more, and by `zoom_step` more each time until `last_zoom` (at most 16 for scores of 32
        bits or less, 60 else), or until that settles few more.
        Returns how many blocks are open, or -1 if a score is not finite.
    """
    kind = KINDS[kind_name]
    code, item, work = kind.code, kind.itemsize, kind.work_size
    magnitude, given = int(absolute), int(warm)
    bias = BIAS if absolute else 0
    clamp_rows, clamp_cols = int(row_fill == 1), int(col_fill == 1)
    clamped = clamp_rows or clamp_cols
    fillable = int(row_fill == col_fill == 1 and rows * row_budget == cols * col_budget)
    first_rounds, again_rounds, warm_rounds = rounds_for(max(rows, cols)) if col_fill else (0, 0, 0)
    if warm:
        first_rounds = warm_rounds
    free_cols = int(not col_fill)
    row_bytes, block_bytes = cols * VECTOR, cols * item
    segment_bytes, u_bytes, v_bytes = LANES * cols * item, rows * work, cols * work
    many = blocks_in_span(cols)
    version = fingerprint()
    lane_count, vector_bytes, in_row, lines = LANES, VECTOR, words_in_row(cols), rows + cols
    whole_spans, lowest = LANES // many * many, LOWEST

    def settle(  # type: ignore[no-untyped-def]
        scores, stride, mask, mask_stride, u, v, warm_v, grid_rows, grid_cols, scratch, blocks, block_u, block_v,
        count, sums, exact, fill_first, zoom, last_zoom, zoom_step,
    ):  # fmt: skip
        if version == 0:
            return -2
        lanes = (scratch + 63) & ~63
        rows_at = lanes + rows * row_bytes
        cols_at = rows_at + rows * vector_bytes
        row_floors = cols_at + cols * vector_bytes
        col_floors = row_floors + rows * vector_bytes
        words = col_floors + cols * vector_bytes
        scales = words + rows * in_row * vector_bytes
        gathered = scales + lane_count * 8
        rows_out = gathered + rows * segment_bytes
        cols_out = rows_out + rows * lane_count * work
        masks = cols_out + lane_count * v_bytes
        flags = masks + rows * lane_count * cols
        u_stride, out_stride, masks_stride = grid_cols * work, lane_count * work, lane_count * cols
        total = 0 if count else grid_rows * grid_cols
        filled = fillable and fill_first
        bad, first = 0, 0
        # blocks[head:tail] wait to be settled once more; blocks[:left] were, and are still open
        left, head, tail = 0, 0, count
        while True:
            again = tail - head >= lane_count or (first >= total and head < tail)
            if not again and first >= total:
                if left == 0 or zoom >= last_zoom:
                    break
                # ties, which more bits do not tell apart
                if total and 2 * left > tail and (2 * left < total or 16 * left > 15 * tail):
                    break
                # what is still open, magnified further
                zoom += zoom_step
                head, tail, left = 0, left, 0
                continue
            here = min(lane_count, tail - head if again else total - first)
            s = first // grid_cols
            j = first - s * grid_cols
            whole = not again and j + lane_count <= grid_cols
            if whole:
                base, step = scores + s * rows * stride + j * block_bytes, stride
                to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
            else:
                # blocks that wait, or the end of one stripe and the start of the next: side by side in a copy
                base, step, to, to_step = gathered, segment_bytes, masks, masks_stride
                for lane in range(lane_count):  # lanes beyond the last block hold it again
                    at = min(lane, here - 1)
                    b = read_word(blocks + (head + at) * 8) if again else first + at
                    bs = b // grid_cols
                    source = scores + bs * rows * stride + (b - bs * grid_cols) * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
                    if again:
                        for i in range(rows):
                            at_u = block_u + (head + at) * u_bytes + i * work
                            copy_bytes(at_u, rows_out + i * out_stride + lane * work, work)
                        copy_bytes(block_v + (head + at) * v_bytes, cols_out + lane * v_bytes, v_bytes)
                    elif given:
                        copy_bytes(warm_v + b * v_bytes, cols_out + lane * v_bytes, v_bytes)
            open_lanes = 0
            if measure_segment(base, step, scales, code, rows, cols, magnitude) >= 0:
                bad = 1
            if again:
                read_segment(
                    base, step, lanes, scales, rows_out, out_stride, cols_out, zoom, code, rows, cols, magnitude, 1
                )
                set_lanes(rows_at, lines, 0)
                if clamped:
                    set_floors(
                        row_floors, col_floors, scales, rows_out, out_stride, cols_out, zoom, code, rows, cols, bias, 1
                    )
            else:
                read_segment(base, step, lanes, scales, u, 0, v, 0, code, rows, cols, magnitude, 0)
                if given:
                    load_duals(cols_at, scales, (warm_v + first * v_bytes) if whole else cols_out, code, cols)
                else:
                    set_lanes(cols_at, cols, 0)
                if filled:
                    set_lanes(row_floors, lines, lowest)
                elif clamped:
                    set_floors(row_floors, col_floors, scales, u, 0, v, 0, code, rows, cols, bias, 0)
            ascend(  # here for both, since it is most of the code
                lanes, rows_at, cols_at, row_floors, col_floors, again_rounds if again else first_rounds,
                rows, cols, row_budget, col_budget, free_cols, clamp_rows, clamp_cols,
            )  # fmt: skip
            if again:
                store_duals(rows_at, cols_at, scales, rows_out, out_stride, cols_out, zoom, code, rows, cols, bias, 1)
            else:
                if filled:
                    level_lanes(rows_at, cols_at, rows, cols, bias)
                if filled or not clamped:
                    open_lanes = prove_lanes(
                        base, step, to, to_step, lanes, rows_at, cols_at, scales, words, sums, here,
                        code, rows, cols, row_budget, col_budget, col_fill, magnitude,
                    )  # fmt: skip
                if u and whole:
                    to_u, to_v = u + s * rows * u_stride + j * work, v + first * v_bytes
                    store_duals(rows_at, cols_at, scales, to_u, u_stride, to_v, 0, code, rows, cols, bias, 0)
                if (clamped and not filled) or open_lanes or (u and not whole):
                    store_duals(rows_at, cols_at, scales, rows_out, out_stride, cols_out, 0, code, rows, cols, bias, 0)
            if again or (clamped and not filled):
                even = whole_spans if here == lane_count else 0
                for k in range(0, even, many):
                    grade_span(
                        base + k * block_bytes, step, to + k * cols, to_step, rows_out + k * work, out_stride,
                        cols_out + k * v_bytes, flags + k, sums, exact,
                        code, rows, cols, many, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                    )  # fmt: skip
                for k in range(even, here):
                    grade_span(
                        base + k * block_bytes, step, to + k * cols, to_step, rows_out + k * work, out_stride,
                        cols_out + k * v_bytes, flags + k, sums + 512, exact,
                        code, rows, cols, 1, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                    )  # fmt: skip
                for k in range(here):
                    open_lanes |= np.int64(read_byte(flags + k) != 0) << k
            if open_lanes or not whole:
                for lane in range(here):
                    b = read_word(blocks + (head + lane) * 8) if again else first + lane
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    if not whole:
                        target = mask + bs * rows * mask_stride + bj * cols
                        for i in range(rows):
                            copy_bytes(masks + i * masks_stride + lane * cols, target + i * mask_stride, cols)
                    if u and not whole:
                        for i in range(rows):
                            at_u = u + (bs * rows + i) * u_stride + bj * work
                            copy_bytes(rows_out + i * out_stride + lane * work, at_u, work)
                        copy_bytes(cols_out + lane * v_bytes, v + b * v_bytes, v_bytes)
                    if (open_lanes >> lane) & 1:
                        to_list = left if again else tail
                        write_word(blocks + to_list * 8, b)
                        for i in range(rows):
                            copy_bytes(
                                rows_out + i * out_stride + lane * work, block_u + to_list * u_bytes + i * work, work
                            )
                        copy_bytes(cols_out + lane * v_bytes, block_v + to_list * v_bytes, v_bytes)
                        if again:
                            left += 1
                        else:
                            tail += 1
            if again:
                head += here
            else:
                first += here
        return -1 if bad else left

    return compiled(settle, types.int64(*[types.int64] * 20))
