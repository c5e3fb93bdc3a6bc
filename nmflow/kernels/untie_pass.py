"""What `nmflow.kernels.untie` does with 32 blocks side by side, for one kind of scores and one pattern.

Both are operations (`nmflow.kernels.compile`). How is said in `nmflow.kernels.tied`; how scores become whole numbers in
`nmflow.kernels.numbers`, and how these are moved in `nmflow.kernels.moved`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from nmflow.kernels.ahead import WORDS
from nmflow.kernels.ascent import ascend
from nmflow.kernels.compile import call, once, operation
from nmflow.kernels.floors import set_lanes
from nmflow.kernels.lanes import choose_lanes, words_in_row
from nmflow.kernels.memory import move_bytes
from nmflow.kernels.mend import faulty_lanes, mend_room, tie_lanes
from nmflow.kernels.moved import ZOOM, add_duals, magnify_lanes, move_lanes
from nmflow.kernels.numbers import read_cut, read_lattice
from nmflow.kernels.rounds import rounds_for
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import BIAS, BITS, VECTOR, measure_segment
from nmflow.kernels.simd import LANES
from nmflow.kernels.single import copy_duals, copy_lane, copy_words
from nmflow.kernels.tied import Width, conclude_lanes, correct_lanes, restore_lanes, round_lanes

__all__ = ["Room", "lane_out", "rounds_to_untie", "untie_pass"]

SWEEPS = 8
"""Most sweeps over the rows in search of duals."""
MORE_ROUNDS = 5
"""Rounds of narrow lanes beside those of other scores: what is open then takes longer than to ascend, but in the
smallest blocks. Wide ones are magnified in any case."""
LATER_ROUNDS = 8
"""As many more at most of wide lanes, where groups leave many blocks open, as learned codes do."""
NEAR = 5
"""Bits by which duals can be larger than scores: where that is beyond float64, they could not be handed out."""


class Room(NamedTuple):
    """Where things lie in the workspace of a group: bytes from its start, a multiple of 64, where its numbers are.

    moved : the numbers moved, as 16-bit lanes hold them. rows_at, cols_at : the duals of these. u, v : those of the
    numbers; saved : those that wide lanes had before they were magnified. words, ties : the masks, and what lies on the
    duals, as bits. grains, faults, inexact, lows, shifts, scales, units : see `nmflow.kernels.numbers` and
    `nmflow.kernels.tied`. scores, masks : those of the blocks, side by side. mending : see `nmflow.kernels.mend`.
    ahead : see `nmflow.kernels.ahead`. size : bytes of all.
    """

    moved: int
    rows_at: int
    cols_at: int
    u: int
    v: int
    saved: int
    words: int
    ties: int
    grains: int
    faults: int
    inexact: int
    lows: int
    shifts: int
    scales: int
    units: int
    scores: int
    masks: int
    mending: int
    ahead: int
    size: int

    @classmethod
    def of(cls, kind_name: str, rows: int, cols: int, wide: bool) -> Room:
        """The room of one kind of scores, one shape of blocks and one width of lanes."""
        kind, lane = KINDS[kind_name], Width(wide).size
        entries, words = rows * cols, rows * words_in_row(cols) * VECTOR
        sizes = (
            entries * lane, entries * VECTOR, rows * VECTOR, cols * VECTOR, rows * lane, cols * lane,
            (rows + cols) * lane, words, words, lane, VECTOR, 3 * lane, lane, lane, LANES * 8, LANES * 8,
            LANES * entries * kind.itemsize, LANES * entries, mend_room(), WORDS * 8,
        )  # fmt: skip
        return cls(*accumulate(sizes))


def rounds_to_untie(rows: int, cols: int, wide: bool) -> tuple[int, int]:
    """Rounds for the first groups of a share before what is left is magnified, and the most for later ones."""
    side = max(rows, cols)
    rounds = rounds_for(side).first + (MORE_ROUNDS if side > 4 and not wide else 0)
    return rounds, rounds + (LATER_ROUNDS if wide else 0)


@once
def untie_pass(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, absolute: bool, lattice: bool, wide: bool
) -> int:
    """Compile the settling of 32 blocks side by side.

    Returns
    -------
    operation (room, base, by, to, to_step, here, sums, offsets, more_offsets, shift, least, part, spare, zooms, ascent,
    mending, rounds, coarse, fine, step, low, largest) -> bits of open blocks, -1 if a score is off the lattice or not
    finite
        base, by, to, to_step: scores and mask, each with the bytes between rows. spare: the `room` of `conclude_lanes`.
        mending: `mend_kernel`. rounds: of `rounds_to_untie`. The others as the kernel has them.
    """
    kind = KINDS[kind_name]
    code, magnitude, broad = kind.code, int(absolute), int(wide)
    again_rounds = rounds_for(max(rows, cols)).again
    width = Width(broad)
    beyond = NEAR << kind.mantissa if kind.itemsize == 8 and not lattice else 0
    zoom_bits = ZOOM
    # what 16 bits lack of a number, above and below
    first_up, moved_bias = (BITS, BIAS) if wide else (0, 0)
    bits = BITS
    lines, entries, most = rows + cols, rows * cols, SWEEPS
    lane_bytes = width.size
    more_bytes, base_vectors, cut_vectors = entries * width.item, lines * width.size // VECTOR, 3 * width.size // VECTOR
    (
        moved_in, rows_in, cols_in, u_in, v_in, saved_in, words_in, ties_in, grains_in, faults_in, inexact_in, lows_in,
        shifts_in, scales_in, units_in, _, _, mending_in, ahead_in, _,
    ) = Room.of(kind_name, rows, cols, wide)  # fmt: skip

    def group(  # type: ignore[no-untyped-def]
        room, base, by, to, to_step, here, sums, offsets, more_offsets, shift, least, part, spare, zooms, ascent,
        mending, rounds, coarse, fine, step, low, largest,
    ):  # fmt: skip
        moved, rows_at, cols_at, u, v = room + moved_in, room + rows_in, room + cols_in, room + u_in, room + v_in
        words, ties, grains, faults = room + words_in, room + ties_in, room + grains_in, room + faults_in
        saved, inexact = room + saved_in, room + inexact_in
        lows, shifts, scales, units = room + lows_in, room + shifts_in, room + scales_in, room + units_in
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
            read_cut(base, by, room, grains, inexact, lows, shifts, scales, units, code, rows, cols, magnitude)
        move_lanes(room, moved, offsets, entries, broad)
        set_lanes(cols_at, cols, 0)
        set_lanes(u, base_vectors, 0)
        up = first_up
        for zoom in range(zooms + 1):
            if zoom:
                up -= zoom_bits
                if wide:
                    magnify_lanes(room, moved, u, v, offsets, up, rows, cols, broad)
                else:
                    more = more_offsets + (zoom - 1) * more_bytes
                    magnify_lanes(room, moved, rows_at, cols_at, more, 0, rows, cols, broad)
                set_lanes(rows_at, lines, 0)
            ascend(
                ascent, moved, rows_at, cols_at, 0, 0, again_rounds if zoom else rounds, room + ahead_in,
                rows, cols, row_budget, col_budget, 0, 0, 0,
            )  # fmt: skip
            add_duals(rows_at, u, up, 0 if zoom else moved_bias, rows, broad)
            add_duals(cols_at, v, up, 0, cols, broad)
            if wide and not zoom:
                move_bytes(u, saved, lines * lane_bytes)
        choose_lanes(moved, rows_at, cols_at, words, faults, rows, cols, row_budget, col_budget)
        round_lanes(v, grains, least, cols, broad)
        changed = 0
        for _ in range(most):
            changed = correct_lanes(room, words, u, v, inexact, rows, cols, broad)
            if changed == 0:
                break
        if wide and changed != 0:  # duals of a mask that is not the best: others are nearer
            restore_lanes(u, saved, changed, lines, broad)
        if top + beyond >= 0:
            changed = -1  # all are left to those who need no numbers so large
        broken = faulty_lanes(faults) & ~changed & ((1 << here) - 1)
        if broken != 0:
            tie_lanes(room, ties, u, v, inexact, rows, cols, broad)
            call(mending, (words, ties, faults, broken, rows, cols, row_budget, col_budget, room + mending_in))
        return conclude_lanes(
            base, by, to, to_step, u, v, words, faults, changed, part, spare, sums, here,
            code, rows, cols, magnitude, broad,
        )  # fmt: skip

    return operation(group, 17, 5)


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
