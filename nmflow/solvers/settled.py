"""Blocks settled by dual ascent: how `nmflow.kernels.settle` is called."""

from __future__ import annotations

from nmflow.blocks import Chunk
from nmflow.certificate import fills
from nmflow.crew import call_on_threads
from nmflow.solvers.judge import by_side, likely_digits, likely_distinct, likely_full
from nmflow.solvers.offsets import fine_offsets
from nmflow.solvers.open_blocks import LONG_ENTRIES, OpenBlocks
from nmflow.workspace import held

__all__ = ["settle"]

ZOOMS = (6, 12, 3)
"""First and last number of bits by which what is left of the scores is magnified where blocks are settled once more,
and the step between."""
FEW_DIGITS, FEW_ZOOMS = 14, (7, 13, 3)
"""Most bits of a score where it is moved then, since differences of scores are often 0; and the same for these."""
ROUNDED = (0, 12, 6)
"""The same where scores were rounded, from nothing."""
AT_MOST = {8: (2, 8, 3), 16: (3, 12, 3), 64: (6, 12, 3)}
"""The same under at-most fill, by the longer side of a block: duals of small blocks have far to go."""
FINEST = {2: 12, 4: 12, 8: 36}
"""The last one, by bytes of a score, where most blocks are open and scores don't repeat: they lie close together."""


def settle(chunk: Chunk, todo: OpenBlocks) -> int:
    """Ascend, make masks and prove them; how many blocks are open.

    All blocks are settled if `todo` is empty, else those in it, from their duals. It holds what is open then.
    """
    from nmflow.kernels.settle import settle_kernel, settle_scratch
    from nmflow.kernels.share import MOST_PARTS, PART, cut_list

    pattern, scores, mask, shape = chunk.pattern, chunk.scores, chunk.mask, chunk.pattern.block_shape
    loose = pattern.fill == "at-most" and pattern.col is not None
    digits = likely_digits(chunk)
    moved = digits <= FEW_DIGITS
    zooms = FEW_ZOOMS if moved else ZOOMS
    if not chunk.exact:
        zooms = ROUNDED
    elif loose:
        zooms = by_side(AT_MOST, pattern)
    fill_first = int(loose and likely_full(chunk, tied=False))
    offsets = fine_offsets(*shape).ctypes.data if moved else 0
    operation, plan = settle_kernel(
        chunk.kind, *shape, pattern.row_budget, pattern.col_budget, *fills(pattern), chunk.absolute, moved
    )  # fmt: skip
    tall, wide = chunk.grid
    shares, share_rows = chunk.shares
    scratch_size = settle_scratch(chunk.kind, shape)
    warm_v = 0 if chunk.warm is None else chunk.warm.ctypes.data
    dense = (0, 0) if todo.dense is None else tuple(side.ctypes.data for side in todo.dense)
    where = (
        plan, scores.ctypes.data, scores.strides[0], mask.ctypes.data, mask.strides[0], *dense, warm_v, tall, wide,
        *todo.addresses,
    )  # fmt: skip

    def go_on(zoom: int, last_zoom: int, zoom_step: int) -> int:
        listed = todo.count
        parts, size = cut_list.py_func(listed) if listed else (shares, share_rows * wide)
        threads = min(chunk.threads, parts)
        _, scratch = held("scratch", scratch_size * threads)
        job = (
            *where, listed, todo.kept_at, int(chunk.exact), fill_first, last_zoom, zoom_step, digits, offsets,
            share_rows, scratch, scratch_size, 0, parts, size, listed, zoom,
        )  # fmt: skip
        room = PART * max(parts, MOST_PARTS)
        return call_on_threads(operation, job, room, threads, wake=scores.size >= LONG_ENTRIES)

    todo.count = go_on(*zooms)
    if 2 * todo.count > chunk.n_blocks and chunk.exact and likely_distinct(chunk):
        todo.count = go_on(zooms[0] + zooms[2], FINEST[scores.itemsize], zooms[2])
    return todo.count
