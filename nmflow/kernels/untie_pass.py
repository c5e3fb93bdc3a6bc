"""What `nmflow.kernels.untie` does with the numbers of 32 blocks side by side, for one pattern.

How is said in `nmflow.kernels.tied`, and how numbers are moved in `nmflow.kernels.moved`. For what kind of scores they
stand is known to `nmflow.kernels.untie_ends` alone.
"""

from __future__ import annotations

from nmflow.kernels.ascent import ascend
from nmflow.kernels.compile import call, once, operation
from nmflow.kernels.floors import LOWEST, set_lanes
from nmflow.kernels.lanes import choose_lanes, words_in_row
from nmflow.kernels.memory import move_bytes
from nmflow.kernels.mend import faulty_lanes, tie_lanes
from nmflow.kernels.moved import ZOOM, add_duals, magnify_lanes, move_lanes
from nmflow.kernels.rounds import by_side, rounds_for
from nmflow.kernels.segments import BIAS, BITS, VECTOR
from nmflow.kernels.slack import balance_lanes, first_floors, limit_rows, loosen_lanes, magnify_floors, short_lines
from nmflow.kernels.tied import Width, conclude_lanes, correct_lanes, restore_lanes, round_lanes
from nmflow.kernels.untie_room import Room

__all__ = ["rounds_to_untie", "untie_pass"]

SWEEPS = {16: 6, 64: 8}
"""Most sweeps over the rows in search of duals, by the longer side of a block."""
MORE_ROUNDS, LATER_ROUNDS = 4, 8
"""Rounds beside those of other scores, but in the smallest blocks: what is open then takes longer than to ascend; and
as many more at most where groups leave many blocks open."""
AGAIN_ROUNDS = 5
"""Most rounds of what is magnified."""


def rounds_to_untie(rows: int, cols: int) -> tuple[int, int]:
    """Rounds for the first groups of a share before what is left is magnified, and the most for later ones."""
    side = max(rows, cols)
    rounds = rounds_for(side).first + (MORE_ROUNDS if side > 4 else 0)
    return rounds, rounds + LATER_ROUNDS


@once
def untie_pass(rows: int, cols: int, row_budget: int, col_budget: int, at_most: bool, wide: bool) -> int:
    """Compile the settling of 32 blocks side by side, whose numbers are in the room.

    Returns
    -------
    operation (room, here, offsets, more_offsets, least, part, spare, zooms, fill_first, ascent, mending, rounds, vain)
    -> bits of open blocks
        spare: the `room` of `conclude_lanes`. mending: `mend_kernel`. rounds: of `rounds_to_untie`. vain: 1 if all are
        left to those who need no numbers so large. The others as the kernel has them. Masks are in the room, as bits.
    """
    broad, loose, side = int(wide), int(at_most), max(rows, cols)
    again_rounds = min(rounds_for(side).again, AGAIN_ROUNDS)
    width = Width(broad)
    zoom_bits, vector_bytes = ZOOM, VECTOR
    # what 16 bits lack of a number, above and below
    first_up, moved_bias = (width.late, BIAS) if wide else (0, 0)
    bits, large = BITS, side > 8
    lines, entries, most, lowest = rows + cols, rows * cols, by_side(SWEEPS, side), LOWEST
    duals, lane_bytes = lines + 1, width.size
    short_vectors = rows + words_in_row(cols)
    more_bytes, dual_vectors = entries * width.item, duals * width.size // VECTOR
    (
        moved_in, rows_in, cols_in, u_in, v_in, slack_in, saved_in, words_in, ties_in, grains_in, faults_in, inexact_in,
        _, _, _, _, zero_in, limits_in, floors_in, short_in, mending_in, ahead_in, *_,
    ) = Room.of(rows, cols, wide)  # fmt: skip

    def group(  # type: ignore[no-untyped-def]
        room, here, offsets, more_offsets, least, part, spare, zooms, fill_first, ascent, mending, rounds, vain
    ):
        moved, rows_at, cols_at, u, v = room + moved_in, room + rows_in, room + cols_in, room + u_in, room + v_in
        words, ties, grains, faults = room + words_in, room + ties_in, room + grains_in, room + faults_in
        saved, inexact = room + saved_in, room + inexact_in
        zero, slack, limits = room + zero_in, room + slack_in, room + limits_in
        floors, short = room + floors_in, room + short_in
        if loose:
            if fill_first:
                set_lanes(floors, lines, lowest)
            else:
                first_floors(zero, floors, rows, cols, broad)
        move_lanes(room, moved, offsets, entries, broad)
        set_lanes(cols_at, cols, 0)
        set_lanes(u, dual_vectors, 0)
        # where duals are not negative much lies far below them; a step adds two such differences, in 16 bits
        up, kept_bits = first_up, bits - 1 if loose and not fill_first else bits
        for zoom in range(zooms + 1):
            if zoom:
                up -= zoom_bits
                if loose and not fill_first:
                    magnify_floors(zero, floors, u if wide else rows_at, up, kept_bits, rows, cols, broad)
                if wide:
                    magnify_lanes(room, moved, u, v, offsets, up, kept_bits, rows, cols, broad)
                else:
                    more = more_offsets + (zoom - 1) * more_bytes
                    magnify_lanes(room, moved, rows_at, cols_at, more, 0, kept_bits, rows, cols, broad)
                set_lanes(rows_at, lines, 0)
            ascend(
                ascent, moved, rows_at, cols_at, floors, floors + rows * vector_bytes,
                again_rounds if zoom else rounds, 1, room + ahead_in,
                rows, cols, row_budget, col_budget, 0, loose, loose,
            )  # fmt: skip
            add_duals(rows_at, u, up, 0 if zoom else moved_bias, rows, broad)
            add_duals(cols_at, v, up, 0, cols, broad)
            if wide and not zoom:
                move_bytes(u, saved, duals * lane_bytes)
        choose_lanes(moved, rows_at, cols_at, words, faults, rows, cols, row_budget, col_budget)
        round_lanes(v, grains, least, cols, broad)
        changed = 0
        if loose:
            set_lanes(short, short_vectors, 0)
            limit_rows(zero, slack, short, limits, rows, broad)
        if not loose or fill_first:
            for _ in range(most):
                changed = correct_lanes(room, words, u, v, inexact, limits, rows, cols, broad, loose)
                if changed == 0:
                    break
            broken = faulty_lanes(faults) & ~changed & ((1 << here) - 1)
            if broken != 0 and not vain:
                tie_lanes(room, ties, u, v, inexact, rows, cols, broad)
                call(mending, (words, ties, faults, broken, rows, cols, row_budget, col_budget, room + mending_in))
            if wide and changed != 0:  # duals of a mask that is not the best: others are nearer
                restore_lanes(u, saved, changed, duals, broad)
        if loose:
            if fill_first:
                move_bytes(u, saved, duals * lane_bytes)
            else:
                short_lines(words, short, faults, rows, cols, row_budget, col_budget)
            for _ in range(most):
                limit_rows(zero, slack, short, limits, rows, broad)
                changed = correct_lanes(room, words, u, v, inexact, limits, rows, cols, broad, loose)
                changed |= loosen_lanes(zero, slack, short, u, v, rows, cols, broad)
                if changed == 0:
                    break
            if changed != 0 and (wide or fill_first) and large:
                restore_lanes(u, saved, changed, duals, broad)
                if fill_first:
                    balance_lanes(zero, slack, u, v, changed, rows, cols, broad)
        if vain:
            changed = -1
        return conclude_lanes(u, v, slack, faults, changed, part, spare, here, rows, cols, broad, loose)

    return operation(group, 13)
