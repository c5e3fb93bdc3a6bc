"""How 32 blocks get into the lanes of `nmflow.kernels.untie`, and what became of them out of these.

All are operations (`nmflow.kernels.compile`). They know the kind of scores; what lies between them does not.
"""

from __future__ import annotations

from nmflow.kernels.compile import once, operation
from nmflow.kernels.floors import set_lanes
from nmflow.kernels.lanes import spread_lanes
from nmflow.kernels.numbers import read_cut, read_lattice
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BIAS, BITS, VECTOR, measure_segment
from nmflow.kernels.single import copy_duals, copy_lane, copy_words
from nmflow.kernels.slack import place_zero
from nmflow.kernels.tied import Width
from nmflow.kernels.untie_room import Room

__all__ = ["lane_out", "masks_out", "numbers_in"]

NEAR = 5
"""Bits by which duals can be larger than scores: where that is beyond float64, they could not be handed out."""


@once
def numbers_in(kind_name: str, rows: int, cols: int, at_most: bool, absolute: bool, lattice: bool, wide: bool) -> int:
    """Compile the reading of scores as numbers (`nmflow.kernels.numbers`).

    Returns
    -------
    operation (room, base, by, shift, coarse, fine, step, low, largest) -> 0, or -1 if a score is off the lattice or not
    finite, or 1 if they are so large that duals may be beyond float64
        base, by: scores, with the bytes between rows. The others as `read_lattice` has them.
    """
    kind = KINDS[kind_name]
    code, magnitude, broad, loose, cut = kind.code, int(absolute), int(wide), int(at_most), int(not lattice)
    beyond = NEAR << kind.mantissa if kind.itemsize == 8 and not lattice else 0
    bits, cut_vectors = BITS, 3 * Width(broad).size // VECTOR
    room_of = Room.of(rows, cols, wide)
    grains_in, inexact_in, lows_in, shifts_in = room_of.grains, room_of.inexact, room_of.lows, room_of.shifts
    scales_in, units_in, zero_in = room_of.scales, room_of.units, room_of.zero

    def read(room, base, by, shift, coarse, fine, step, low, largest):  # type: ignore[no-untyped-def]
        grains, inexact, scales = room + grains_in, room + inexact_in, room + scales_in
        lows, shifts, units = room + lows_in, room + shifts_in, room + units_in
        top = -1
        if lattice:
            set_lanes(inexact, cut_vectors, 0)  # nothing of a number is cut off
            if read_lattice(
                base, by, room, grains, coarse, fine, step, low, largest, shift, code, rows, cols, magnitude, broad
            ) == 0:  # fmt: skip
                return -1
        else:
            top = measure_segment(base, by, scales, code, rows, cols, magnitude, bits)
            if top >= 0:
                return -1
            read_cut(base, by, room, grains, inexact, lows, shifts, scales, units, code, rows, cols, magnitude, loose)
        if loose:
            place_zero(room + zero_in, low, shift, lows, shifts, broad, cut)
        return int(top + beyond >= 0)

    return operation(read, 4, 5)


@once
def masks_out(kind_name: str, rows: int, cols: int, absolute: bool) -> int:
    """Compile the writing of masks.

    Returns
    -------
    operation (base, by, to, to_step, words, open_lanes, sums, here) -> 0
        As `spread_lanes` has them.
    """
    code, magnitude = KINDS[kind_name].code, int(absolute)

    def out(base, by, to, to_step, words, open_lanes, sums, here):  # type: ignore[no-untyped-def]
        spread_lanes(base, by, to, to_step, words, open_lanes, sums, here, code, rows, cols, magnitude)
        return 0

    return operation(out, 8)


@once
def lane_out(rows: int, cols: int, lattice: bool, wide: bool) -> int:
    """Compile the writing of what became of the block in one lane.

    Returns
    -------
    operation (u, v, lanes, words, lane, block_u, block_v, numbers, mask, mask_stride, shift, unit, plus) -> 0
        u, v, lanes, words: in the room. Duals times `unit`, and `plus` in rows, go to block_u and block_v, (rows,) and
        (cols,) float64. Where mask is not 0 the block is open: its mask goes there, and on a lattice its numbers, less
        `shift` bits, to `numbers`.
    """
    broad, bias, entries = int(wide), 0 if wide else BIAS, rows * cols

    def out(u, v, lanes, words, lane, block_u, block_v, numbers, mask, mask_stride, shift, unit, plus):  # type: ignore[no-untyped-def]
        copy_duals(u, lane, block_u, unit, plus, rows, broad)
        copy_duals(v, lane, block_v, unit, 0.0, cols, broad)
        if mask:
            copy_words(words, lane, mask, mask_stride, rows, cols)
            if lattice:
                copy_lane(lanes, lane, numbers, bias, shift, entries, broad)
        return 0

    return operation(out, 11, 2)
