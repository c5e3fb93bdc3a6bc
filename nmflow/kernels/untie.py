"""Untying blocks: those whose scores repeat are settled and proven, 32 blocks at a time while in cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.ahead import plan_ahead
from nmflow.kernels.ascent import ascent_of
from nmflow.kernels.compile import call, compiled, once, with_plan
from nmflow.kernels.groups import gather_blocks, put_blocks
from nmflow.kernels.memory import read_float, read_short, read_words, write_word
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BIAS
from nmflow.kernels.simd import LANES
from nmflow.kernels.tied import Width
from nmflow.kernels.untie_pass import Room, lane_out, untie_pass

__all__ = ["untie_kernel", "untie_scratch"]


@cache
def untie_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs."""
    return Room.of(kind, *block_shape, True).size + 64


@once
def untie_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, absolute: bool, lattice: bool, wide: bool
) -> Any:
    """Compile for one kind of scores and one pattern with exact fill; scores on a lattice, or cut, which is wide.

    Returns
    -------
    function (scores, stride, mask, mask_stride, grid_cols, scratch, blocks, count, block_u, block_v, numbers, sums,
    offsets, more_offsets, shift, least, part, spare, zooms, keep, coarse, fine, step, low, largest) -> int
        scores, stride, mask, mask_stride, sums: as `nmflow.kernels.settle`. count: all blocks. blocks: (count,) int64,
        output: those that stay open. block_u, block_v : (count, rows) and (count, cols) float64, output:
        duals of the blocks, of those that stay open if not `keep`, in their order. On a lattice these are duals of
        T - low, and numbers, (count, rows, cols) int16, or int32 if wide, holds T - low of blocks that stay open. Their
        masks say which ties to keep. offsets : (rows, cols) of numbers as lanes hold them; more_offsets : if narrow,
        what is left of them in parts of 64, and of 4096. coarse, fine, step, low, largest, shift: see `read_lattice`.
        least : a power of two, of which column duals are multiples before they are corrected; part, spare : see
        `conclude_lanes`. zooms : times that what is left is magnified.
        Returns how many blocks are open, or -1 if a score is off the lattice, which no NaN is on, or not finite.
    """
    kind, room = KINDS[kind_name], Room.of(kind_name, rows, cols, wide)
    operations = (
        untie_pass(kind_name, rows, cols, row_budget, col_budget, absolute, lattice, wide),
        ascent_of(rows, cols, row_budget, col_budget, 0, 0, 0), lane_out(rows, cols, lattice, wide),
        gather_blocks(cols * kind.itemsize), put_blocks(cols),
    )  # fmt: skip
    plan = np.array([
        *operations, rows, cols, kind.itemsize, Width(int(wide)).item, 0 if wide else BIAS, lattice, room.u, room.v,
        room.words, room.lows, room.shifts, room.units, room.scores, room.masks, room.ahead,
    ], np.int64)  # fmt: skip
    return with_plan(_driver(), plan)


@once
def _driver() -> Any:
    """Compile what all kinds and patterns have in common."""
    lane_count, plan_size = LANES, 20

    def untie(  # type: ignore[no-untyped-def]
        plan, scores, stride, mask, mask_stride, grid_cols, scratch, blocks, count, block_u, block_v, numbers, sums,
        offsets, more_offsets, shift, least, part, spare, zooms, keep, coarse, fine, step, low, largest,
    ):  # fmt: skip
        (
            pass_at, ascent, out_at, gather_scores, put_masks, rows, cols, item, number_bytes, lane_bias, lattice,
            u_in, v_in, words_in, lows_in, shifts_in, units_in, scores_in, masks_in, ahead_in,
        ) = read_words(plan, plan_size)  # fmt: skip
        room = (scratch + 63) & ~63
        lows, shifts, units = room + lows_in, room + shifts_in, room + units_in
        gathered, masks = room + scores_in, room + masks_in
        left = 0
        for first in range(0, count, lane_count):
            here = min(lane_count, count - first)
            s = first // grid_cols
            j = first - s * grid_cols
            whole = here == lane_count and j + lane_count <= grid_cols
            if whole:
                base, by = scores + s * rows * stride + j * cols * item, stride
                to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
            else:
                base, by, to, to_step = gathered, lane_count * cols * item, masks, lane_count * cols
                call(gather_scores, (scores, stride, rows, grid_cols, 0, first, here, gathered))
            plan_ahead(
                room + ahead_in, scores, stride, item, rows, cols, grid_cols, first + here, count, to, to_step, whole
            )
            open_lanes = call(pass_at, (
                room, base, by, to, to_step, here, sums, offsets, more_offsets, shift, least, part, spare, zooms,
                ascent, coarse, fine, step, low, largest,
            ))  # fmt: skip
            if open_lanes < 0:
                return -1
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
                        unit, plus = 2.0**-shift, 2.0**-shift * lane_bias
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
        return left

    i8, f8 = types.int64, types.float64
    return compiled(untie, i8(*[i8] * 21, *[f8] * 5))
