"""Untying blocks: those whose scores repeat are settled and proven, 32 blocks at a time while in cache."""

from __future__ import annotations

from functools import cache

import numpy as np

from nmflow.kernels.ahead import plan_ahead
from nmflow.kernels.ascent import ascent_of
from nmflow.kernels.boxes import LAST
from nmflow.kernels.compile import call, lasting, once, operation, part
from nmflow.kernels.groups import gather_blocks, put_blocks
from nmflow.kernels.memory import (
    add_word,
    move_bytes,
    read_float,
    read_short,
    read_word,
    read_words,
    write_word,
)
from nmflow.kernels.mend import mend_kernel
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BIAS
from nmflow.kernels.share import PART, SUMS, move_open
from nmflow.kernels.simd import LANES
from nmflow.kernels.tied import Width
from nmflow.kernels.untie_ends import lane_out, masks_out, numbers_in
from nmflow.kernels.untie_pass import rounds_to_untie, untie_pass
from nmflow.kernels.untie_room import Room

__all__ = ["untie_kernel", "untie_scratch"]

JOB = (
    "plan", "scores", "stride", "mask", "mask_stride", "grid_rows", "grid_cols", "blocks", "block_u", "block_v",
    "numbers", "sums", "offsets", "more_offsets", "shift", "least", "spared", "spare", "zooms", "fill_first",
    "keep", "share_rows", "scratch", "scratch_size", "coarse", "fine", "step", "low", "largest", "next",
)  # fmt: skip
"""What a job says; the last numbers but one are float64, and the last the next share to take."""
PLAN = 25
"""Operations and numbers of a plan."""
MANY_OPEN, MORE = 4, 4
"""Where so many blocks of a group are open, those that follow ascend so many rounds more."""


@cache
def untie_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs."""
    return Room.of(*block_shape, True, KINDS[kind].itemsize).size + 64


@once
def untie_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, at_most: bool, absolute: bool,
    lattice: bool, wide: bool,
) -> tuple[int, int]:  # fmt: skip
    """Compile for one kind of scores and one pattern; scores on a lattice, or cut, which is wide.

    Returns
    -------
    operation, plan
        operation (job, number) -> int, for `nmflow.crew.call_on_threads`: how many blocks stay open, or -1 if a score
        is off the lattice, which no NaN is on, or not finite. job : address of numbers, as `JOB` has them; those that
        `nmflow.kernels.settle` has too mean the same, and so does plan.

        blocks: int64, output: those that stay open. block_u, block_v : (n_blocks, rows) and (n_blocks, cols) float64,
        output: duals of the blocks, of those that stay open if not `keep`, in their order. On a lattice these are duals
        of T, and numbers, (n_blocks, rows, cols) int16, or int32 if wide, holds T - low of blocks that stay open.
        Their masks say which ties to keep. offsets : (rows, cols) of numbers as lanes hold them; more_offsets : if
        narrow, what is left of them in parts of 64, and of 4096. coarse, fine, step, low, largest, shift: see
        `read_lattice`. least : a power of two, of which column duals are multiples before they are corrected; spared,
        spare : see `conclude_lanes`. zooms : times that what is left is magnified. fill_first : under
        at-most fill, whether blocks are untied as if lines had to be full; duals that are not negative prove it then.
    """
    kind, room = KINDS[kind_name], Room.of(rows, cols, wide)
    operations = (
        numbers_in(kind_name, rows, cols, at_most, absolute, lattice, wide),
        untie_pass(rows, cols, row_budget, col_budget, at_most, wide),
        masks_out(kind_name, rows, cols, absolute),
        ascent_of(rows, cols, row_budget, col_budget, 0, int(at_most), int(at_most)),
        mend_kernel(), lane_out(rows, cols, lattice, wide),
        gather_blocks(cols * kind.itemsize), put_blocks(cols),
    )  # fmt: skip
    plan = np.array([
        rows, cols, lattice, Width(int(wide)).item, *operations, kind.itemsize, 0 if wide else BIAS, room.u, room.v,
        room.words, room.lows, room.shifts, room.units, room.scores, room.masks, room.ahead,
        *rounds_to_untie(rows, cols),
    ], np.int64)  # fmt: skip
    return _driver(), lasting(plan)


@part
def _untie_share(  # type: ignore[no-untyped-def]
    plan, scratch, scores, stride, mask, mask_stride, grid_cols, blocks, count, block_u, block_v, numbers, sums,
    offsets, more_offsets, shift, least, spared, spare, zooms, fill_first, keep, coarse, fine, step, low, largest,
):  # fmt: skip
    """Untie `count` blocks; how many stay open, or -1."""
    (
        rows, cols, lattice, number_bytes, numbers_at, pass_at, masks_at, ascent, mending, out_at, gather_scores,
        put_masks, item, lane_bias, u_in, v_in, words_in, lows_in, shifts_in, units_in, scores_in, masks_in, ahead_in,
        rounds, most_rounds,
    ) = read_words(plan, PLAN)  # fmt: skip
    room = (scratch + 63) & ~63
    lows, shifts, units = room + lows_in, room + shifts_in, room + units_in
    gathered, masks = room + scores_in, room + masks_in
    left = 0
    for first in range(0, count, LANES):
        here = min(LANES, count - first)
        s = first // grid_cols
        j = first - s * grid_cols
        whole = here == LANES and j + LANES <= grid_cols
        if whole:
            base, by = scores + s * rows * stride + j * cols * item, stride
            to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
        else:
            base, by, to, to_step = gathered, LANES * cols * item, masks, LANES * cols
            call(gather_scores, (scores, stride, rows, grid_cols, 0, first, here, gathered))
        plan_ahead(
            room + ahead_in, scores, stride, item, rows, cols, grid_cols, first + here, count, to, to_step, whole
        )
        vain = call(numbers_at, (room, base, by, shift, coarse, fine, step, low, largest))
        if vain < 0:
            return -1
        open_lanes = call(pass_at, (
            room, here, offsets, more_offsets, least, spared, spare, zooms, fill_first, ascent, mending, rounds, vain,
        ))  # fmt: skip
        call(masks_at, (base, by, to, to_step, room + words_in, open_lanes, sums, here))
        before = left
        if not whole:
            call(put_masks, (masks, mask, mask_stride, rows, grid_cols, 0, first, here, ~open_lanes))
        for lane in range(here if open_lanes or keep else 0):
            is_open = (open_lanes >> lane) & 1
            if is_open or keep:
                b = first + lane
                s = b // grid_cols
                target = mask + s * rows * mask_stride + (b - s * grid_cols) * cols
                k = b if keep else left
                if lattice:
                    unit, plus = 2.0**-shift, 2.0**-shift * lane_bias + low
                else:  # a block's numbers and duals are of its own steps
                    whole_step = read_float(units + lane * 8)
                    unit = whole_step * 2.0 ** -read_short(shifts + lane * 4)
                    plus = whole_step * read_short(lows + lane * 4)
                call(out_at, (
                    room + u_in, room + v_in, room, room + words_in, lane, block_u + k * rows * 8,
                    block_v + k * cols * 8, numbers + left * rows * cols * number_bytes, target if is_open else 0,
                    mask_stride, shift, unit, plus,
                ))  # fmt: skip
            if is_open:
                write_word(blocks + left * 8, b)
                left += 1
        if left - before >= MANY_OPEN:
            rounds = min(rounds + MORE, most_rounds)
    return left


@once
def _driver() -> int:
    """Compile what all kinds and patterns have in common."""
    whole_numbers, part_bytes, sum_bytes, last = JOB.index("coarse"), 8 * PART, 8 * SUMS, LAST

    def untie(job, number):  # type: ignore[no-untyped-def]
        (
            plan, scores, stride, mask, mask_stride, grid_rows, grid_cols, blocks, block_u, block_v, numbers, sums,
            offsets, more_offsets, shift, least, spared, spare, zooms, fill_first, keep, share_rows, scratch,
            scratch_size,
        ) = read_words(job, whole_numbers)  # fmt: skip
        at = job + 8 * whole_numbers
        coarse, fine, step, low, largest = (
            read_float(at), read_float(at + 8), read_float(at + 16), read_float(at + 24), read_float(at + 32)
        )  # fmt: skip
        state = at + 40
        rows, cols, lattice, number_bytes = read_words(plan, 4)
        scratch += max(number, 0) * scratch_size
        u_bytes, v_bytes, block_bytes = rows * 8, cols * 8, rows * cols * number_bytes * lattice  # else there are none
        size, total = share_rows * grid_cols, grid_rows * grid_cols
        parts = -(-grid_rows // share_rows)
        while True:
            k = add_word(state, 1)
            if k >= parts:
                break
            first, top = k * size, k * share_rows * rows
            left = _untie_share(
                plan, scratch, scores + top * stride, stride, mask + top * mask_stride, mask_stride, grid_cols,
                blocks + first * 8, min(size, total - first), block_u + first * u_bytes, block_v + first * v_bytes,
                numbers + first * block_bytes, sums + k * sum_bytes, offsets, more_offsets, shift, least, spared, spare,
                zooms, fill_first, keep, coarse, fine, step, low, largest,
            )  # fmt: skip
            write_word(state + 8 + k * part_bytes, left)
        if number != last:
            return 0
        left = 0
        for k in range(parts):
            here, first = read_word(state + 8 + k * part_bytes), k * size
            if here < 0:
                return -1
            if k:
                dual = 0 if keep else 8  # where the duals of all blocks are kept they stay
                move_open(blocks, block_u, block_v, rows * dual, cols * dual, first, left, here, first)
                move_bytes(numbers + first * block_bytes, numbers + left * block_bytes, here * block_bytes)
            left += here
        return left

    return operation(untie, 2)
