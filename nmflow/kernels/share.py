"""Settling a share of the blocks of a chunk, on one thread: the loop over groups of them, and the list of open ones."""

from __future__ import annotations

from nmflow.kernels.ahead import SMALL, plan_ahead
from nmflow.kernels.carry import ask
from nmflow.kernels.compile import call, part
from nmflow.kernels.memory import move_bytes, read_float, read_word, read_words, write_float, write_word
from nmflow.kernels.simd import LANES

__all__ = ["MOST_PARTS", "PART", "SUMS", "clear_sums", "cut_list", "fold_sums", "is_vain", "move_open", "settle_share"]

PLAN = 33
"""Operations and numbers of a plan (`nmflow.kernels.settle`)."""
FEW_BLOCKS = 4 * LANES
"""So many blocks tell whether a warm start is worth it."""
LONG_PATHS = 300
"""Entries of a block for each block left: where there are no fewer, paths through these take no longer than to settle
their group once more."""
FEW_PATHS = 4
"""Least blocks of a part that paths are sent through."""
PART, SUMS, MOST_PARTS = 8, 128, 16
"""Numbers that tell what became of a part, a cache line of them: how many of its blocks are open, and what the others
keep, float64; those that add this up; and how many parts a list is cut into at most."""


@part
def settle_share(  # type: ignore[no-untyped-def]
    plan, scratch, scores, stride, mask, mask_stride, u, v, warm_v, grid_cols, blocks, block_u, block_v, total, count,
    sums, exact, fill_first, zoom, last_zoom, zoom_step, digits, offsets, alone,
):  # fmt: skip
    """Settle `total` blocks, or once more the `count` that are listed; how many are then open and listed.

    -1 if a score is not finite. If not `alone`, some of these were not settled once more.
    """
    (
        rows, cols, work, moved, first_at, next_at, masks_at, duals_at, ascent, gather_scores, gather_u, gather_v,
        put_masks, put_u, put_v, item, scores_in, u_in, v_in, proof_u_in, proof_v_in, masks_in, names_in, ahead_in,
        clamped, fillable, first_rounds, again_rounds, warm_rounds, most_open, few_open, many_open,
        dropping,
    ) = read_words(plan, PLAN)  # fmt: skip
    room = (scratch + 63) & ~63
    gathered, room_u, room_v, masks, names, ahead = (
        room + scores_in, room + u_in, room + v_in, room + masks_in, room + names_in, room + ahead_in
    )  # fmt: skip
    v_bytes = cols * work
    filled = fillable & fill_first
    made = filled or not clamped
    few = min(FEW_BLOCKS, total // 2)
    plan_ahead(ahead, scores, stride, item, rows, cols, grid_cols, 0, 0, 0, 0, 0)
    # blocks[head:tail] wait to be settled once more; blocks[:left] were, and are still open
    first, left, head, tail = 0, 0, 0, count
    warm, falling = warm_rounds, True  # rounds of a warm start, fewer while these do
    while True:
        again = tail - head >= LANES or (first >= total and head < tail and alone)
        if not again and first >= total:
            few_left = left == 0 or (exact and left * LONG_PATHS <= rows * cols)
            if not alone or few_left or zoom >= last_zoom or is_vain(left, tail, total, moved):
                break
            # what is still open, magnified further
            zoom += zoom_step
            head, tail, left = 0, left, 0
            continue
        named, start, here = blocks, head, min(LANES, tail - head)
        if not again:
            named, start, here = 0, first, min(LANES, total - first)
        s = first // grid_cols
        j = first - s * grid_cols
        whole = not again and j + LANES <= grid_cols
        if whole:
            base, step = scores + s * rows * stride + j * cols * item, stride
            to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
            start_v = warm_v + first * v_bytes if warm_v else 0
        else:
            base, step, to, to_step = gathered, LANES * cols * item, masks, LANES * cols
            start_v = room_v if warm_v else 0
            call(gather_scores, (scores, stride, rows, grid_cols, named, start, here, gathered))
            if again:
                call(gather_u, (block_u, work, rows, 1, 0, start, here, room_u))
                call(gather_v, (block_v, v_bytes, 1, 1, 0, start, here, room_v))
            elif warm_v:
                call(gather_v, (warm_v, v_bytes, 1, 1, 0, start, here, room_v))
        sure, rounds = 0, warm if start_v else first_rounds
        if again:
            sure = call(next_at, (room, base, step, zoom, digits, offsets, ascent, again_rounds))
            if sure < 0:
                return -1
        else:
            plan_ahead(ahead, scores, stride, item, rows, cols, grid_cols, first + here, total, to, to_step, whole)
            to_u = u + (s * rows * grid_cols + j) * work
            if u and whole and rows * cols > SMALL:  # where its duals go; small blocks wait for memory anyway
                ask(to_u, grid_cols * work, rows, LANES * work)
                ask(v + first * v_bytes, 0, 1, LANES * v_bytes)
            open_lanes = call(
                first_at, (room, base, step, to, to_step, start_v, here, sums, ascent, rounds, filled, dropping)
            )  # fmt: skip
            if open_lanes < 0:
                return -1
            if u and whole:
                call(duals_at, (room, to_u, grid_cols * work, v + first * v_bytes))
            if open_lanes or not made or (u and not whole):
                call(duals_at, (room, room_u, LANES * work, room_v))
        if again or not (made or moved):
            open_lanes = call(masks_at, (room, base, step, to, to_step, here, sums, exact * (1 + sure)))
        elif not made:  # masks of moved scores come with the next pass: what the room holds is of other blocks
            open_lanes = (1 << here) - 1
        if not whole:
            call(put_masks, (masks, mask, mask_stride, rows, grid_cols, named, start, here, -1))
            if u:
                proof_u, proof_v = (room + proof_u_in, room + proof_v_in) if again else (room_u, room_v)
                call(put_u, (proof_u, u, grid_cols * work, rows, grid_cols, named, start, here, -1))
                call(put_v, (proof_v, v, v_bytes, 1, 1, named, start, here, -1))
        listed = left if again else tail
        if open_lanes:
            for lane in range(here):
                if (open_lanes >> lane) & 1:
                    place = start + lane
                    write_word(blocks + listed * 8, read_word(blocks + place * 8) if again else place)
                    write_word(names + lane * 8, listed)
                    listed += 1
            call(put_u, (room_u, block_u, work, rows, 1, names, 0, here, open_lanes))
            call(put_v, (room_v, block_v, v_bytes, 1, 1, names, 0, here, open_lanes))
        if again:
            left, head = listed, head + here
        else:
            opened = listed - tail
            tail, first = listed, first + here
            if opened >= many_open:
                warm, falling = warm_rounds if opened >= 2 * many_open else min(warm + 1, warm_rounds), False
            elif falling and opened <= few_open:
                warm -= (warm + 1) // 3
            if first >= few and tail * 64 > first * most_open:
                warm_v = 0  # scores have changed too much
    if not alone:
        move_open(blocks, block_u, block_v, rows * work, v_bytes, head, left, tail - head, 0)
        left += tail - head
    return left


@part
def clear_sums(sums):  # type: ignore[no-untyped-def]
    """Begin the `SUMS` numbers that add up what a part keeps."""
    for k in range(SUMS):
        write_float(sums + k * 8, 0.0)


@part
def fold_sums(sums):  # type: ignore[no-untyped-def]
    """Their sum, in order."""
    total = 0.0
    for k in range(SUMS):
        total += read_float(sums + k * 8)
    return total


@part
def move_open(blocks, block_u, block_v, u_bytes, v_bytes, first, to, count, plus):  # type: ignore[no-untyped-def]
    """Move `count` blocks from place `first` of a list down to `to`, and add to their numbers."""
    for k in range(count):
        write_word(blocks + (to + k) * 8, read_word(blocks + (first + k) * 8) + plus)
    move_bytes(block_u + first * u_bytes, block_u + to * u_bytes, count * u_bytes)
    move_bytes(block_v + first * v_bytes, block_v + to * v_bytes, count * v_bytes)


@part
def is_vain(left, listed, total, moved):  # type: ignore[no-untyped-def]
    """Whether what is `left` of a list ties: more bits do not tell that apart, but finer offsets of moved scores do."""
    return total and 4 * left > 3 * listed and ((2 * left < total and not moved) or 16 * left > 15 * listed)


@part
def cut_list(count, paths):  # type: ignore[no-untyped-def]
    """Cut a list of blocks into parts: how many, and how many blocks a part has; whole groups where not for paths."""
    least = FEW_PATHS if paths else LANES
    groups = -(-count // least)
    each = -(-groups // MOST_PARTS)
    return -(-groups // each), each * least
