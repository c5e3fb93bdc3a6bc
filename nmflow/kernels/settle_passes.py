"""What `nmflow.kernels.settle` does with 32 blocks side by side, for one kind of scores and one pattern.

All are operations (`nmflow.kernels.compile`). They work in a *room*, the address of memory laid out as `Room` says, and
take `base` and `step`, the address of the first score and the bytes between rows; `to` and `to_step`, the same of the
mask; `here`, how many of the blocks count; and `sums`, 128 float64 to which the kept scores of proven blocks are added.
"""

from __future__ import annotations

from nmflow.kernels.ascent import ascend
from nmflow.kernels.carry import fill
from nmflow.kernels.compile import call, once, operation
from nmflow.kernels.cuts import read_segment
from nmflow.kernels.floors import LOWEST, set_floors, set_lanes
from nmflow.kernels.grains import add_offsets, read_rest, round_duals
from nmflow.kernels.lanes import WORD, choose_lanes, level_lanes, prove_lanes
from nmflow.kernels.memory import read_byte
from nmflow.kernels.mend import faulty_lanes
from nmflow.kernels.proof import grade_span
from nmflow.kernels.room import Room
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BITS, first_bits, load_duals, measure_segment, store_duals
from nmflow.kernels.simd import LANES
from nmflow.kernels.spans import blocks_in_span
from nmflow.kernels.surplus import surplus_lanes

__all__ = ["duals_out", "first_pass", "masks_out", "next_pass"]


FEW_TIES = 8
"""Longest side of a block in which scores of half precision seldom tie: to drop ties takes longer than it saves."""


def _first_bias(rows: int, cols: int, absolute: bool) -> int:
    """What is taken from magnitudes in the first pass, so that they are centred on 0."""
    return 1 << (first_bits(max(rows, cols)) - 1) if absolute else 0


@once
def first_pass(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool,
) -> int:  # fmt: skip
    """Compile the first ascent, and the making and proof of masks in whole numbers, where columns are not free.

    Returns
    -------
    operation (room, base, step, to, to_step, warm_v, here, sums, ascent, rounds, filled, dropping) -> bits of open
    blocks
        warm_v: address of column duals to begin with, (32, cols), or 0. filled: whether lines that need not be full
        are settled as if they had to. dropping: `drop_kernel`, for scores of few bits. -1 if a score is not finite;
        nothing is made under at-most fill if not `filled`.
    """
    kind = KINDS[kind_name]
    code, magnitude = kind.code, int(absolute)
    bits, bias = first_bits(max(rows, cols)), _first_bias(rows, cols, absolute)
    clamp_rows, clamp_cols = int(row_fill == 1), int(col_fill == 1)
    clamped, lines, lowest = clamp_rows or clamp_cols, rows + cols, LOWEST
    least = 1 << kind.mantissa
    surplus = kind.mantissa < WORD and max(rows, cols) > FEW_TIES
    rows_in, cols_in, row_floors, col_floors, words_in, faults_in, marks_in, scales_in, *_, ahead_in, _ = Room.of(
        kind_name, rows, cols
    )

    def first(room, base, step, to, to_step, warm_v, here, sums, ascent, rounds, filled, dropping):  # type: ignore[no-untyped-def]
        rows_at, cols_at, scales = room + rows_in, room + cols_in, room + scales_in
        if measure_segment(base, step, scales, code, rows, cols, magnitude, bits) >= 0:
            return -1
        read_segment(base, step, room, scales, code, rows, cols, magnitude, bias)
        if warm_v:
            load_duals(cols_at, scales, warm_v, code, cols)
        else:
            set_lanes(cols_at, cols, 0)
        if clamped:
            if filled:
                set_lanes(room + row_floors, lines, lowest)
            else:
                set_floors(room + row_floors, room + col_floors, scales, 0, 0, 0, 0, code, rows, cols, bias, 0)
        ascend(
            ascent, room, rows_at, cols_at, room + row_floors, room + col_floors, rounds, 0, room + ahead_in,
            rows, cols, row_budget, col_budget, 0, clamp_rows, clamp_cols,
        )  # fmt: skip
        if clamped:
            if not filled:
                return 0
            level_lanes(rows_at, cols_at, rows, cols, bias)
        words, faults = room + words_in, room + faults_in
        choose_lanes(room, rows_at, cols_at, words, faults, rows, cols, row_budget, col_budget)
        if surplus:
            broken = faulty_lanes(faults) & ((1 << here) - 1)
            if broken != 0:
                broken &= surplus_lanes(words, room + marks_in, rows, cols, row_budget, col_budget)
                call(dropping, (
                    words, room + marks_in, faults, room, rows_at, cols_at, broken, rows, cols, bias, least,
                ))  # fmt: skip
        return prove_lanes(
            base, step, to, to_step, scales, words, faults, sums, here, code, rows, cols, magnitude
        )  # fmt: skip

    return operation(first, 12)


@once
def next_pass(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, moved: bool,
) -> int:  # fmt: skip
    """Compile an ascent of what is left beside the duals in the room, magnified by `zoom` bits, which changes these.

    moved : whether that is moved by `offsets`. Then it gets a mask too, as bits, and duals that may prove it: see
    `nmflow.kernels.grains`.

    Returns
    -------
    operation (room, base, step, zoom, digits, offsets, ascent, rounds) -> 1 if all u + v of these are floats, 0 if
    not or not moved, -1 if a score is not finite
    """
    kind = KINDS[kind_name]
    code, magnitude, bits = kind.code, int(absolute), BITS
    clamp_rows, clamp_cols, free_cols = int(row_fill == 1), int(col_fill == 1), int(not col_fill)
    clamped, lines, u_stride = clamp_rows | clamp_cols, rows + cols, LANES * kind.work_size
    entries, col_count, move = rows * cols, 0 if free_cols else col_budget, int(moved)
    (
        rows_in, cols_in, row_floors, col_floors, words_in, faults_in, _, scales_in, grains_in, _, u_in, v_in,
        proof_u_in, proof_v_in, *_, ahead_in, _,
    ) = Room.of(kind_name, rows, cols)  # fmt: skip

    def again(room, base, step, zoom, digits, offsets, ascent, rounds):  # type: ignore[no-untyped-def]
        rows_at, cols_at, scales, grains = room + rows_in, room + cols_in, room + scales_in, room + grains_in
        u, v = room + u_in, room + v_in
        if measure_segment(base, step, scales, code, rows, cols, magnitude, bits) >= 0:
            return -1
        read_rest(base, step, room, scales, u, u_stride, v, zoom, digits, grains, code, rows, cols, magnitude, move)
        set_lanes(rows_at, lines, 0)
        if clamped:
            set_floors(
                room + row_floors, room + col_floors, scales, u, u_stride, v, zoom, code, rows, cols, 0, 1
            )  # fmt: skip
        if moved:
            add_offsets(room, scales, zoom, grains, offsets, code, entries)
        ascend(
            ascent, room, rows_at, cols_at, room + row_floors, room + col_floors, rounds, 1,
            room + ahead_in, rows, cols, row_budget, col_budget, free_cols, clamp_rows, clamp_cols,
        )  # fmt: skip
        store_duals(rows_at, cols_at, scales, u, u_stride, v, zoom, code, rows, cols, 0, 1)
        if moved:
            choose_lanes(room, rows_at, cols_at, room + words_in, room + faults_in, rows, cols, row_budget, col_count)
            return round_duals(
                u, u_stride, v, room + proof_u_in, room + proof_v_in, grains, code, rows, cols, free_cols, clamped
            )  # fmt: skip
        return 0

    return operation(again, 8)


@once
def duals_out(kind_name: str, rows: int, cols: int, absolute: bool) -> int:
    """Compile the writing of the duals that the first pass left in lanes.

    Returns
    -------
    operation (room, u, u_stride, v) -> 0
    """
    kind = KINDS[kind_name]
    code, bias = kind.code, _first_bias(rows, cols, absolute)
    room_of = Room.of(kind_name, rows, cols)
    rows_in, cols_in, scales_in = room_of.rows_at, room_of.cols_at, room_of.scales

    def out(room, u, u_stride, v):  # type: ignore[no-untyped-def]
        store_duals(room + rows_in, room + cols_in, room + scales_in, u, u_stride, v, 0, code, rows, cols, bias, 0)
        return 0

    return operation(out, 4)


@once
def masks_out(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, row_fill: int, col_fill: int,
    absolute: bool, moved: bool,
) -> int:  # fmt: skip
    """Compile the making of masks from the duals in the room and their proof; where `moved`, masks are there as bits.

    Returns
    -------
    operation (room, base, step, to, to_step, here, sums, exact) -> bits of the blocks that are open
        exact: as `grade_span` has it.
    """
    kind = KINDS[kind_name]
    code, magnitude, item, work = kind.code, int(absolute), kind.itemsize, kind.work_size
    many, u_stride = blocks_in_span(cols), LANES * kind.work_size
    spans_end, lane_count = LANES // many * many, LANES
    even_spans = spans_end == LANES
    room_of = Room.of(kind_name, rows, cols)
    u_in, v_in, flags_in, words_in = room_of.u, room_of.v, room_of.flags, room_of.words
    faults_in, make = room_of.faults, 1
    if moved:
        u_in, v_in, make = room_of.proof_u, room_of.proof_v, 2

    def grade(room, base, step, to, to_step, here, sums, exact):  # type: ignore[no-untyped-def]
        u, v, flags, open_lanes = room + u_in, room + v_in, room + flags_in, 0
        words, faults = room + words_in, room + faults_in
        if even_spans:  # where they are not full, what comes after `here` is in the room too: it must not be proven
            even = -(-here // many) * many
            fill(u + here * work, (even - here) * work, 255)
        else:
            even = spans_end if here == lane_count else 0
        for k in range(0, even, many):
            grade_span(
                base + k * cols * item, step, to + k * cols, to_step, u + k * work, u_stride, v + k * cols * work,
                flags + k, sums, exact, words + 2 * k, faults + 2 * k,
                code, rows, cols, many, row_budget, col_budget, row_fill, col_fill, magnitude, make,
            )  # fmt: skip
        if not even_spans:
            for k in range(even, here):
                grade_span(
                    base + k * cols * item, step, to + k * cols, to_step, u + k * work, u_stride, v + k * cols * work,
                    flags + k, sums + 512, exact, words + 2 * k, faults + 2 * k,
                    code, rows, cols, 1, row_budget, col_budget, row_fill, col_fill, magnitude, make,
                )  # fmt: skip
        for k in range(here):
            open_lanes |= (read_byte(flags + k) != 0) << k
        return open_lanes

    return operation(grade, 8)
