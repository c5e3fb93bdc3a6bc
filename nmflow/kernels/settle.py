"""Settling blocks: dual ascent, then the mask that its duals give and its proof, stripe by stripe while in cache."""

from __future__ import annotations

from typing import Any

from numba import types

from nmflow.kernels.ascent import (
    BIAS,
    VECTOR,
    clear_lanes,
    line_step,
    measure_segment,
    read_segment,
    rounds_for,
    set_floors,
    store_duals,
)
from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.proof import grade_span
from nmflow.kernels.scores import KINDS
from nmflow.kernels.simd import LANES, copy_bytes, read_byte, read_word, write_word
from nmflow.kernels.spans import blocks_in_span

__all__ = ["settle_kernel", "settle_scratch"]


def settle_scratch(kind: str, block_shape: tuple[int, int], grid_cols: int) -> int:
    """Bytes of workspace that the kernel needs."""
    rows, cols = block_shape
    item = KINDS[kind]
    lanes = (rows * cols + 2 * rows + 2 * cols) * VECTOR
    numbers = LANES * 8 + LANES * rows * cols * (item.itemsize + 1) + LANES * (rows + cols) * item.work_size
    return lanes + numbers + max(LANES, grid_cols) + 256


@once
def settle_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, warm: bool,
) -> Any:  # fmt: skip
    """Compile for one kind of scores and one pattern; fills are 2 exact, 1 at most, 0 free.

    Returns
    -------
    function (scores, stride, mask, mask_stride, u, v, grid_rows, grid_cols, scratch, blocks, count, sums, exact,
    warm_zoom, zoom, last_zoom, zoom_step) -> int
        Addresses as int64: scores and mask with `stride` and `mask_stride` bytes between rows; u, C-contiguous,
        shape (h, grid_cols) and v, shape (grid_rows, w), both in the work dtype of the kind. With `count` 0 all
        blocks are settled, if `warm` from the duals that are there, and those then open once more; else
        the `count` blocks that `blocks` names, from their duals. blocks: int64, on return those still open; sums: 128
        float64, the kept scores of the blocks that are proven are added; exact: 0 where scores were rounded, so that
        a tie proves nothing. What is left of the scores, S - u - v, is magnified by `zoom` bits where blocks are
        settled once more, and by `zoom_step` more each time until `last_zoom` (at most 16 for scores of 32 bits or
        less, 60 else); by `warm_zoom` for all blocks. Returns how many blocks are open, or -1 if a score is not finite.
    """
    kind = KINDS[kind_name]
    code, item, work = kind.code, kind.itemsize, kind.work_size
    magnitude, given = int(absolute), int(warm)
    bias = BIAS if absolute else 0
    clamp_rows, clamp_cols = int(row_fill == 1), int(col_fill == 1)
    first_rounds, again_rounds, warm_rounds = rounds_for(max(rows, cols)) if col_fill else (0, 0, 0)
    if warm:
        first_rounds = warm_rounds
    row_bytes, block_bytes = cols * VECTOR, cols * item
    segment_bytes, col_bytes = LANES * cols * item, cols * work
    many = blocks_in_span(cols)
    # both duals are whole numbers of 17 bits in the block's unit: float32 holds their sum, if nothing came before; but
    # scores of 64 bits may have been rounded, and then ties prove nothing
    first_make = 3 if work == 4 and not warm else 1
    version = fingerprint()
    lane_count, vector_bytes, lines = LANES, VECTOR, rows + cols
    again_whole = LANES // many * many

    def settle(  # type: ignore[no-untyped-def]
        scores, stride, mask, mask_stride, u, v, grid_rows, grid_cols, scratch, blocks, count, sums, exact, warm_zoom,
        zoom, last_zoom, zoom_step,
    ):  # fmt: skip
        if version == 0:
            return -2
        lanes = (scratch + 63) & ~63
        rows_at = lanes + rows * row_bytes
        cols_at = rows_at + rows * vector_bytes
        row_floors = cols_at + cols * vector_bytes
        col_floors = row_floors + rows * vector_bytes
        scales = col_floors + cols * vector_bytes
        gathered = scales + lane_count * 8
        rows_out = gathered + rows * segment_bytes
        cols_out = rows_out + rows * lane_count * work
        masks = cols_out + lane_count * col_bytes
        flags = masks + rows * lane_count * cols
        u_stride = grid_cols * work
        total = 0 if count else grid_rows * grid_cols
        left, stripe, bad = 0, 0, 0
        # blocks[head:tail] wait to be settled once more, while what is known of them is still in cache
        head, tail = 0, count
        first = 0
        while True:
            if tail - head >= lane_count or (first >= total and head < tail):
                here = min(lane_count, tail - head)
                for lane in range(lane_count):
                    b = read_word(blocks + (head + min(lane, here - 1)) * 8)
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    source = scores + bs * rows * stride + bj * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
                        copy_bytes(
                            u + (bs * rows + i) * u_stride + bj * work, rows_out + (i * lane_count + lane) * work, work
                        )
                    copy_bytes(v + b * col_bytes, cols_out + lane * col_bytes, col_bytes)
                measure_segment(gathered, segment_bytes, scales, code, rows, cols, magnitude)
                read_segment(
                    gathered, segment_bytes, lanes, scales, rows_out, lane_count * work, cols_out, zoom,
                    code, rows, cols, magnitude, 1,
                )  # fmt: skip
                clear_lanes(rows_at, lines)
                if clamp_rows or clamp_cols:
                    set_floors(
                        row_floors, col_floors, scales, rows_out, lane_count * work, cols_out, zoom,
                        code, rows, cols, bias, 1,
                    )  # fmt: skip
                for k in range(again_rounds + 1):
                    relax = -1 if 0 < k < again_rounds else 0
                    for i in range(rows):
                        line_step(
                            lanes + i * row_bytes, cols_at, rows_at + i * vector_bytes, row_floors + i * vector_bytes,
                            relax, cols, vector_bytes, row_budget, clamp_rows, 1,
                        )  # fmt: skip
                    if k < again_rounds:
                        for t in range(cols):
                            line_step(
                                lanes + t * vector_bytes, rows_at, cols_at + t * vector_bytes,
                                col_floors + t * vector_bytes, relax, rows, row_bytes, col_budget, clamp_cols, 1,
                            )  # fmt: skip
                store_duals(
                    rows_at, cols_at, scales, rows_out, lane_count * work, cols_out, zoom, code, rows, cols, bias, 1
                )
                # graded where they were gathered, side by side; lanes beyond the last block hold it again
                even = again_whole if here == lane_count else 0
                for j in range(0, even, many):
                    grade_span(
                        gathered + j * block_bytes, segment_bytes, masks + j * cols, lane_count * cols,
                        rows_out + j * work, lane_count * work, cols_out + j * col_bytes, flags + j, sums, exact,
                        code, rows, cols, many, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                    )  # fmt: skip
                for j in range(even, here):
                    grade_span(
                        gathered + j * block_bytes, segment_bytes, masks + j * cols, lane_count * cols,
                        rows_out + j * work, lane_count * work, cols_out + j * col_bytes, flags + j, sums + 512, exact,
                        code, rows, cols, 1, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                    )  # fmt: skip
                for lane in range(here):
                    b = read_word(blocks + (head + lane) * 8)
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    for i in range(rows):
                        copy_bytes(
                            rows_out + (i * lane_count + lane) * work, u + (bs * rows + i) * u_stride + bj * work, work
                        )
                        copy_bytes(
                            masks + (i * lane_count + lane) * cols,
                            mask + (bs * rows + i) * mask_stride + bj * cols, cols,
                        )  # fmt: skip
                    copy_bytes(cols_out + lane * col_bytes, v + b * col_bytes, col_bytes)
                    write_word(blocks + left * 8, b)
                    left += read_byte(flags + lane) != 0
                head += here
                continue
            if first >= total:
                if left == 0 or zoom >= last_zoom:
                    break
                # what is still open, magnified further
                zoom += zoom_step
                head, tail, left = 0, left, 0
                continue
            here = min(lane_count, total - first)
            s = first // grid_cols
            j = first - s * grid_cols
            whole = j + lane_count <= grid_cols
            if whole:
                base, step = scores + s * rows * stride + j * block_bytes, stride
                to_u, u_step = u + s * rows * u_stride + j * work, u_stride
                to_v = v + (s * grid_cols + j) * col_bytes
            else:
                # the end of one stripe and the start of the next, side by side
                base, step = gathered, segment_bytes
                to_u, u_step, to_v = rows_out, lane_count * work, cols_out
                for lane in range(lane_count):
                    b = first + min(lane, here - 1)
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    source = scores + bs * rows * stride + bj * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
                        if given:
                            copy_bytes(
                                u + (bs * rows + i) * u_stride + bj * work,
                                rows_out + (i * lane_count + lane) * work, work,
                            )  # fmt: skip
                    if given:
                        copy_bytes(v + b * col_bytes, cols_out + lane * col_bytes, col_bytes)
            if measure_segment(base, step, scales, code, rows, cols, magnitude) >= 0:
                bad = 1
            read_segment(base, step, lanes, scales, to_u, u_step, to_v, warm_zoom, code, rows, cols, magnitude, given)
            clear_lanes(rows_at, lines)
            if clamp_rows or clamp_cols:
                set_floors(row_floors, col_floors, scales, to_u, u_step, to_v, warm_zoom, code, rows, cols, bias, given)
            for k in range(first_rounds + 1):
                # past the midpoint, but for the first and the last step
                relax = -1 if 0 < k < first_rounds else 0
                for i in range(rows):
                    line_step(
                        lanes + i * row_bytes, cols_at, rows_at + i * vector_bytes, row_floors + i * vector_bytes,
                        relax, cols, vector_bytes, row_budget, clamp_rows, given,
                    )  # fmt: skip
                if k < first_rounds:
                    for t in range(cols):
                        line_step(
                            lanes + t * vector_bytes, rows_at, cols_at + t * vector_bytes,
                            col_floors + t * vector_bytes, relax, rows, row_bytes, col_budget, clamp_cols, given,
                        )  # fmt: skip
            store_duals(rows_at, cols_at, scales, to_u, u_step, to_v, warm_zoom, code, rows, cols, bias, given)
            if not whole:
                for lane in range(here):
                    b = first + lane
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    for i in range(rows):
                        copy_bytes(
                            rows_out + (i * lane_count + lane) * work, u + (bs * rows + i) * u_stride + bj * work, work
                        )
                    copy_bytes(cols_out + lane * col_bytes, v + b * col_bytes, col_bytes)
            first += here
            # stripes whose duals are all there
            while stripe < grid_rows and (stripe + 1) * grid_cols <= first:
                base, out = scores + stripe * rows * stride, mask + stripe * rows * mask_stride
                to_u, to_v = u + stripe * rows * u_stride, v + stripe * grid_cols * col_bytes
                even = grid_cols // many * many
                for j in range(0, even, many):
                    grade_span(
                        base + j * block_bytes, stride, out + j * cols, mask_stride, to_u + j * work, u_stride,
                        to_v + j * col_bytes, flags + j, sums, exact,
                        code, rows, cols, many, row_budget, col_budget, row_fill, col_fill, magnitude, first_make,
                    )  # fmt: skip
                for j in range(even, grid_cols):
                    grade_span(
                        base + j * block_bytes, stride, out + j * cols, mask_stride, to_u + j * work, u_stride,
                        to_v + j * col_bytes, flags + j, sums + 512, exact,
                        code, rows, cols, 1, row_budget, col_budget, row_fill, col_fill, magnitude, first_make,
                    )  # fmt: skip
                # those that wait move up, so that there is always room
                for k in range(tail - head):
                    write_word(blocks + (left + k) * 8, read_word(blocks + (head + k) * 8))
                head, tail = left, left + tail - head
                for j in range(grid_cols):
                    write_word(blocks + tail * 8, stripe * grid_cols + j)
                    tail += read_byte(flags + j) != 0
                stripe += 1
        return -1 if bad else left

    return compiled(settle, types.int64(*[types.int64] * 17))
