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

__all__ = ["AGAIN", "ALL", "SOME", "settle_kernel", "settle_scratch"]

ALL, SOME, AGAIN = 0, 1, 2
"""What to settle: all blocks, from nothing; the blocks named, from the duals that are there; all, from the duals that
are there."""


def settle_scratch(kind: str, block_shape: tuple[int, int], grid_cols: int) -> int:
    """Bytes of workspace that the kernel needs."""
    rows, cols = block_shape
    item = KINDS[kind]
    lanes = (rows * cols + 2 * rows + 2 * cols) * VECTOR
    numbers = LANES * 8 + LANES * rows * cols * item.itemsize + LANES * (rows + cols) * item.work_size
    return lanes + numbers + max(LANES, grid_cols) + 256


@once
def settle_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, mode: int,
) -> Any:  # fmt: skip
    """Compile for one kind of scores and one pattern; fills are 2 exact, 1 at most, 0 free; mode ALL, SOME or AGAIN.

    Returns
    -------
    function (scores, stride, mask, mask_stride, u, v, grid_rows, grid_cols, scratch, blocks, count, sums, exact) -> int
        Addresses as int64: scores and mask with `stride` and `mask_stride` bytes between rows; u, C-contiguous,
        shape (h, grid_cols) and v, shape (grid_rows, w), both in the work dtype of the kind; blocks, int64: with SOME
        the `count` to settle, on return those still open; sums: 128 float64, the kept scores of the blocks that are
        proven are added; exact: 0 where scores were rounded, so that a tie proves nothing. Returns how many blocks are
        open, or -1 if a score is not finite.
    """
    kind = KINDS[kind_name]
    code, item, work = kind.code, kind.itemsize, kind.work_size
    magnitude, some, given = int(absolute), int(mode == SOME), int(mode != ALL)
    bias = BIAS if absolute else 0
    clamp_rows, clamp_cols = int(row_fill == 1), int(col_fill == 1)
    rounds = rounds_for(max(rows, cols))[mode] if col_fill else 0
    row_bytes, block_bytes = cols * VECTOR, cols * item
    segment_bytes, col_bytes = LANES * cols * item, cols * work
    many = blocks_in_span(cols)
    version = fingerprint()
    lane_count, vector_bytes, lines = LANES, VECTOR, rows + cols

    def settle(scores, stride, mask, mask_stride, u, v, grid_rows, grid_cols, scratch, blocks, count, sums, exact):  # type: ignore[no-untyped-def]
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
        flags = cols_out + lane_count * col_bytes
        u_stride = grid_cols * work
        total = count if some else grid_rows * grid_cols
        left, stripe, bad = 0, 0, 0
        for first in range(0, total, lane_count):
            here = min(lane_count, total - first)
            s = first // grid_cols
            j = first - s * grid_cols
            whole = some == 0 and j + lane_count <= grid_cols
            if whole:
                base, step = scores + s * rows * stride + j * block_bytes, stride
                to_u, u_step = u + s * rows * u_stride + j * work, u_stride
                to_v = v + (s * grid_cols + j) * col_bytes
            else:
                # blocks from here and there, or from the end of one stripe and the start of the next, side by side
                base, step = gathered, segment_bytes
                to_u, u_step, to_v = rows_out, lane_count * work, cols_out
                for lane in range(lane_count):
                    b = first + min(lane, here - 1)
                    if some:
                        b = read_word(blocks + b * 8)
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    source = scores + bs * rows * stride + bj * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
                    if given:
                        for i in range(rows):
                            copy_bytes(
                                u + (bs * rows + i) * u_stride + bj * work,
                                rows_out + (i * lane_count + lane) * work, work,
                            )  # fmt: skip
                        copy_bytes(v + b * col_bytes, cols_out + lane * col_bytes, col_bytes)
            if measure_segment(base, step, scales, code, rows, cols, magnitude) >= 0:
                bad = 1
            read_segment(base, step, lanes, scales, to_u, u_step, to_v, code, rows, cols, magnitude, given)
            clear_lanes(rows_at, lines)
            if clamp_rows or clamp_cols:
                set_floors(row_floors, col_floors, scales, to_u, u_step, to_v, code, rows, cols, bias, given)
            for k in range(rounds + 1):
                # past the midpoint, but for the first and the last step
                relax = -1 if 0 < k < rounds else 0
                for i in range(rows):
                    line_step(
                        lanes + i * row_bytes, cols_at, rows_at + i * vector_bytes, row_floors + i * vector_bytes,
                        relax, cols, vector_bytes, row_budget, clamp_rows, given,
                    )  # fmt: skip
                if k < rounds:
                    for t in range(cols):
                        line_step(
                            lanes + t * vector_bytes, rows_at, cols_at + t * vector_bytes,
                            col_floors + t * vector_bytes, relax, rows, row_bytes, col_budget, clamp_cols, given,
                        )  # fmt: skip
            store_duals(rows_at, cols_at, scales, to_u, u_step, to_v, code, rows, cols, bias, given)
            if not whole:
                for lane in range(here):
                    b = first + lane
                    if some:
                        b = read_word(blocks + b * 8)
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    for i in range(rows):
                        copy_bytes(
                            rows_out + (i * lane_count + lane) * work, u + (bs * rows + i) * u_stride + bj * work, work
                        )
                    copy_bytes(cols_out + lane * col_bytes, v + b * col_bytes, col_bytes)
            if some:
                for lane in range(here):
                    b = read_word(blocks + (first + lane) * 8)
                    bs = b // grid_cols
                    bj = b - bs * grid_cols
                    grade_span(
                        scores + bs * rows * stride + bj * block_bytes, stride,
                        mask + bs * rows * mask_stride + bj * cols, mask_stride,
                        u + bs * rows * u_stride + bj * work, u_stride, v + b * col_bytes, flags,
                        sums + 512, exact,
                        code, rows, cols, 1, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                    )  # fmt: skip
                    write_word(blocks + left * 8, b)
                    left += read_byte(flags) != 0
            else:
                # stripes whose duals are all there
                while stripe < grid_rows and (stripe + 1) * grid_cols <= first + here:
                    base, out = scores + stripe * rows * stride, mask + stripe * rows * mask_stride
                    to_u, to_v = u + stripe * rows * u_stride, v + stripe * grid_cols * col_bytes
                    even = grid_cols // many * many
                    for j in range(0, even, many):
                        grade_span(
                            base + j * block_bytes, stride, out + j * cols, mask_stride, to_u + j * work, u_stride,
                            to_v + j * col_bytes, flags + j, sums, exact,
                            code, rows, cols, many, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                        )  # fmt: skip
                    for j in range(even, grid_cols):
                        grade_span(
                            base + j * block_bytes, stride, out + j * cols, mask_stride, to_u + j * work, u_stride,
                            to_v + j * col_bytes, flags + j, sums + 512, exact,
                            code, rows, cols, 1, row_budget, col_budget, row_fill, col_fill, magnitude, 1,
                        )  # fmt: skip
                    for j in range(grid_cols):
                        write_word(blocks + left * 8, stripe * grid_cols + j)
                        left += read_byte(flags + j) != 0
                    stripe += 1
        return -1 if bad else left

    return compiled(settle, types.int64(*[types.int64] * 13))
