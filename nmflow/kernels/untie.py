"""Untying blocks: those whose scores repeat are settled and proven, 32 blocks at a time while in cache.

How is said in `nmflow.kernels.tied`; how scores become whole numbers in `nmflow.kernels.numbers`, and how these are
moved in `nmflow.kernels.moved`.
"""

from __future__ import annotations

from typing import Any

from numba import types

from nmflow.kernels.ascent import ascend, rounds_for, set_lanes
from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.lanes import words_in_row
from nmflow.kernels.moved import ZOOM, add_duals, begin_duals, magnify_lanes, move_lanes
from nmflow.kernels.numbers import read_cut, read_lattice
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BIAS, BITS, VECTOR, measure_segment
from nmflow.kernels.simd import LANES, copy_bytes, read_float, read_short, read_word, write_word
from nmflow.kernels.single import copy_duals, copy_lane, copy_words
from nmflow.kernels.tied import Width, choose_lanes, conclude_lanes, correct_lanes, round_lanes

__all__ = ["untie_kernel", "untie_scratch"]

SWEEPS = 8
"""Most sweeps over the rows in search of duals."""
MORE_ROUNDS = 4
"""Rounds beside those of other scores: what is open then takes longer than to ascend, but in the smallest blocks."""


def untie_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs."""
    rows, cols = block_shape
    item = KINDS[kind]
    narrow = rows * cols + rows + cols + rows * words_in_row(cols) + 1
    wide = rows * cols + rows + cols + 6
    lanes = narrow * VECTOR + wide * 2 * VECTOR
    return lanes + LANES * (16 + rows * cols * (item.itemsize + 1) + (rows + cols) * item.work_size) + 64


@once
def untie_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, absolute: bool, lattice: bool, wide: bool
) -> Any:
    """Compile for one kind of scores and one pattern with exact fill; scores on a lattice, or cut, which is wide.

    Returns
    -------
    function (scores, stride, mask, mask_stride, grid_cols, scratch, blocks, count, given_u, given_v, block_u, block_v,
    numbers, sums, offsets, more_offsets, coarse, fine, step, low, largest, shift, least, part, room, zooms, keep)
    -> int
        scores, stride, mask, mask_stride, sums: as `nmflow.kernels.settle`. blocks: the `count` blocks to settle,
        int64; holds on return those still open. given_u, given_v : duals to begin with, as `settle` leaves them, or 0:
        only where scores are cut. block_u, block_v : (count, rows) and (count, cols) float64, output: duals of the
        blocks, of those that stay open if not `keep`, in their order. On a lattice these are duals of T - low, and
        numbers, (count, rows, cols) int16, or int32 if wide, holds T - low of blocks that stay open. Their masks say
        which ties to keep. offsets : (rows, cols) of numbers as lanes hold them; more_offsets : if narrow, what is left
        of them in parts of 64, and of 4096. coarse, fine, step, low, largest, shift: see `read_lattice`. least : a
        power of two, of which column duals are multiples before they are corrected; part, room : see `conclude_lanes`.
        zooms : times that what is left is magnified.
        Returns how many blocks are open, or -1 if a score is off the lattice, which no NaN is on, or not finite.
    """
    kind = KINDS[kind_name]
    code, item, work, magnitude, broad = kind.code, kind.itemsize, kind.work_size, int(absolute), int(wide)
    rounds, again_rounds, _ = rounds_for(max(rows, cols))
    rounds += MORE_ROUNDS if max(rows, cols) > 4 else 0
    width = Width(broad)
    lane_bytes, number_bytes, zoom_bits = width.size, width.item, ZOOM
    # what 16 bits lack of a number, above and below: the moved ones, and those in lanes
    first_up, moved_bias, lane_bias = (BITS, BIAS, 0) if wide else (0, 0, BIAS)
    block_bytes, segment_bytes = cols * item, LANES * cols * item
    version = fingerprint()
    lane_count, vector_bytes, lines, entries, most = LANES, VECTOR, rows + cols, rows * cols, SWEEPS
    in_row, base_vectors, cut_vectors = words_in_row(cols), lines * lane_bytes // VECTOR, 3 * lane_bytes // VECTOR

    def untie(  # type: ignore[no-untyped-def]
        scores, stride, mask, mask_stride, grid_cols, scratch, blocks, count, given_u, given_v, block_u, block_v,
        numbers, sums, offsets, more_offsets, coarse, fine, step, low, largest, shift, least, part, room, zooms, keep,
    ):  # fmt: skip
        if version == 0:
            return -2
        lanes = (scratch + 63) & ~63
        moved = lanes + entries * lane_bytes
        rows_at = moved + entries * vector_bytes
        cols_at = rows_at + rows * vector_bytes
        u = cols_at + cols * vector_bytes
        v = u + rows * lane_bytes
        words = v + cols * lane_bytes
        grains = words + rows * in_row * vector_bytes
        faults = grains + lane_bytes
        inexact = faults + vector_bytes
        lows = inexact + 3 * lane_bytes
        shifts = lows + lane_bytes
        scales = shifts + lane_bytes
        units = scales + lane_count * 8
        gathered = units + lane_count * 8
        start_u = gathered + rows * segment_bytes
        start_v = start_u + rows * lane_count * work
        masks = start_v + cols * lane_count * work
        masks_stride = lane_count * cols
        left = 0
        if lattice:  # nothing of a number is cut off
            set_lanes(inexact, cut_vectors, 0)
        for first in range(0, count, lane_count):
            here = min(lane_count, count - first)
            b = read_word(blocks + first * 8)
            s = b // grid_cols
            j = b - s * grid_cols
            whole = here == lane_count and j + lane_count <= grid_cols
            whole = whole and read_word(blocks + (first + lane_count - 1) * 8) == b + lane_count - 1
            if whole:
                base, by = scores + s * rows * stride + j * block_bytes, stride
                to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
            else:  # side by side in a copy; lanes beyond the last block hold it again
                base, by, to, to_step = gathered, segment_bytes, masks, masks_stride
                for lane in range(lane_count):
                    b = read_word(blocks + (first + min(lane, here - 1)) * 8)
                    s = b // grid_cols
                    source = scores + s * rows * stride + (b - s * grid_cols) * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
            if lattice:
                if read_lattice(
                    base, by, lanes, grains, coarse, fine, step, low, largest, shift, code, rows, cols, magnitude, broad
                ) == 0:  # fmt: skip
                    return -1
            else:
                if measure_segment(base, by, scales, code, rows, cols, magnitude) >= 0:
                    return -1
                read_cut(base, by, lanes, grains, inexact, lows, shifts, scales, units, code, rows, cols, magnitude)
            if given_u:
                for lane in range(lane_count):
                    k = first + min(lane, here - 1)
                    for i in range(rows):
                        copy_bytes(given_u + (k * rows + i) * work, start_u + (i * lane_count + lane) * work, work)
                    for i in range(cols):
                        copy_bytes(given_v + (k * cols + i) * work, start_v + (i * lane_count + lane) * work, work)
                begin_duals(start_u, start_v, lows, shifts, units, u, v, work, rows, cols)
            else:
                move_lanes(lanes, moved, offsets, entries, broad)
                set_lanes(cols_at, cols, 0)
                set_lanes(u, base_vectors, 0)
            up = first_up
            for zoom in range(1 if given_u else 0, zooms + 1):
                if zoom:
                    up -= zoom_bits
                    if wide:
                        magnify_lanes(lanes, moved, u, v, offsets, up, rows, cols, broad)
                    else:
                        more = more_offsets + (zoom - 1) * entries * number_bytes
                        magnify_lanes(lanes, moved, rows_at, cols_at, more, 0, rows, cols, broad)
                    set_lanes(rows_at, lines, 0)
                ascend(
                    moved, rows_at, cols_at, rows_at, cols_at, again_rounds if zoom else rounds,
                    rows, cols, row_budget, col_budget, 0, 0, 0,
                )  # fmt: skip
                add_duals(rows_at, u, up, 0 if zoom else moved_bias, rows, broad)
                add_duals(cols_at, v, up, 0, cols, broad)
            choose_lanes(moved, rows_at, cols_at, words, faults, rows, cols, row_budget, col_budget)
            round_lanes(v, grains, least, cols, broad)
            changed = 0
            for _ in range(most):
                changed = correct_lanes(lanes, words, u, v, inexact, rows, cols, broad)
                if changed == 0:
                    break
            open_lanes = conclude_lanes(
                base, by, to, to_step, u, v, words, faults, changed, part, room, sums, here,
                code, rows, cols, magnitude, broad,
            )  # fmt: skip
            if not (open_lanes or keep or not whole):
                continue
            for lane in range(here):
                b = read_word(blocks + (first + lane) * 8)
                s = b // grid_cols
                target = mask + s * rows * mask_stride + (b - s * grid_cols) * cols
                is_open = (open_lanes >> lane) & 1
                if is_open:
                    copy_words(words, lane, target, mask_stride, rows, cols)
                elif not whole:
                    for i in range(rows):
                        copy_bytes(masks + i * masks_stride + lane * cols, target + i * mask_stride, cols)
                if is_open or keep:
                    k = first + lane if keep else left
                    if lattice:
                        unit, plus = 2.0**-shift, 2.0**-shift * lane_bias
                    else:  # a block's numbers and duals are of its own steps
                        whole_step = read_float(units + lane * 8)
                        unit = whole_step * 2.0 ** -read_short(shifts + lane * 4)
                        plus = whole_step * read_short(lows + lane * 4)
                    copy_duals(u, lane, block_u + k * rows * 8, unit, plus, rows, broad)
                    copy_duals(v, lane, block_v + k * cols * 8, unit, 0.0, cols, broad)
                if is_open:
                    if lattice:
                        copy_lane(
                            lanes, lane, numbers + left * entries * number_bytes, lane_bias, shift, entries, broad
                        )
                    write_word(blocks + left * 8, b)
                    left += 1
        return left

    i8, f8 = types.int64, types.float64
    return compiled(untie, i8(*[i8] * 16, *[f8] * 5, *[i8] * 6))
