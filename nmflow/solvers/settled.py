"""Blocks settled by dual ascent: how `nmflow.kernels.settle` is called."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from nmflow.blocks import Chunk
from nmflow.certificate import fills
from nmflow.crew import call_on_threads
from nmflow.pattern import Pattern
from nmflow.solvers.judge import by_side, likely_digits, likely_distinct, likely_full
from nmflow.solvers.offsets import fine_offsets
from nmflow.solvers.open_blocks import LONG_ENTRIES, OpenBlocks
from nmflow.solvers.paths import paths_plan
from nmflow.workspace import held

__all__ = ["FEW_DIGITS", "settle"]

ZOOMS = (6, 16, 2)
"""First and last number of bits by which what is left of the scores is magnified where blocks are settled once more,
and the step between."""
FEW_DIGITS, FEW_ZOOMS = 14, {8: (6, 16, 2), 16: (7, 15, 2), 64: (8, 14, 3)}
"""Most bits of a score where it is moved then, since differences of scores are often 0; and the same for these, by the
longer side of a block."""
ROUNDED = (0, 12, 6)
"""The same where scores were rounded, from nothing."""
AT_MOST = {4: (2, 16, 2), 8: (3, 15, 2), 16: (5, 15, 2), 64: (6, 12, 3)}
"""The same under at-most fill: duals of small blocks have far to go."""
FEW_ENTRIES = 1 << 17
"""Open blocks of no more entries are sent paths through where they are found: to make arrays of some blocks for
`nmflow.solvers.paths` takes longer than the paths."""
CLOSE = {2: (9, 12, 3), 4: (9, 12, 3), 8: (9, 36, 3)}
"""The same after that, by bytes of a score, where most blocks are open and scores differ: they lie close together."""


class _Way(NamedTuple):
    """How the blocks of a chunk are settled.

    operation, plan, scratch, cut_list, part, most_parts : of the kernel. loose : whether fill is at most. offsets :
    their address, or 0. zooms : as in `ZOOMS`. few : the most blocks that paths are sent through in the kernel.
    """

    operation: int
    plan: int
    scratch: int
    cut_list: Callable[[int, bool], tuple[int, int]]
    part: int
    most_parts: int
    loose: bool
    offsets: int
    zooms: tuple[int, int, int]
    few: int


_paths: dict[int, int] = {}
"""What `nmflow.kernels.finish` is told for the plan of a way: compiled when a block is open for the first time."""


@cache
def _way(kind: str, pattern: Pattern, absolute: bool, exact: bool, moved: bool) -> _Way:
    from nmflow.kernels.compile import lasting
    from nmflow.kernels.settle import settle_kernel, settle_scratch
    from nmflow.kernels.share import MOST_PARTS, PART, cut_list

    shape = pattern.block_shape
    loose = pattern.fill == "at-most" and pattern.col is not None
    zooms = by_side(FEW_ZOOMS, pattern) if moved else ZOOMS
    if not exact:
        zooms = ROUNDED
    elif loose:
        zooms = by_side(AT_MOST, pattern)
    offsets = lasting(fine_offsets(*shape)) if moved else 0
    operation, plan = settle_kernel(
        kind, *shape, pattern.row_budget, pattern.col_budget, *fills(pattern), absolute, moved, exact
    )  # fmt: skip
    few = FEW_ENTRIES // math.prod(shape) if exact else 0
    return _Way(
        operation, plan, settle_scratch(kind, shape), cut_list.py_func, PART, MOST_PARTS, loose,
        offsets, zooms, few,
    )  # fmt: skip


def settle(chunk: Chunk, todo: OpenBlocks, *, paths: bool = True) -> int:
    """Ascend, make masks and prove them; how many blocks are open, or below 0 if a score is not finite.

    All blocks are settled if `todo` is empty, else those in it, from their duals. It holds what is open then.
    paths : whether paths may be sent through a few blocks.
    """
    scores, mask, digits, exact = chunk.scores, chunk.mask, likely_digits(chunk), chunk.exact
    way = _way(chunk.kind, chunk.pattern, chunk.absolute, exact, digits <= FEW_DIGITS)
    fill_first = int(way.loose and likely_full(chunk))
    tall, wide = chunk.grid
    shares, share_rows = chunk.shares
    warm_v = 0 if chunk.warm is None else chunk.warm.ctypes.data
    dense = (0, 0) if todo.dense is None else tuple(side.ctypes.data for side in todo.dense)
    few = min(way.few, chunk.n_blocks // 2) if paths and todo.dense is None else 0
    where = (
        way.plan, scores.ctypes.data, scores.strides[0], mask.ctypes.data, mask.strides[0], *dense, warm_v, tall, wide,
        *todo.addresses,
    )  # fmt: skip

    def go_on(zoom: int, last_zoom: int, zoom_step: int, *, send: bool = False) -> int:
        listed, finish = todo.count, _paths.get(way.plan, 0)
        parts, size = way.cut_list(listed, send) if listed else (shares, share_rows * wide)
        threads = min(chunk.threads, parts)
        _, scratch = held("scratch", way.scratch * threads)
        job = (
            *where, listed, todo.kept_at, int(exact), fill_first, last_zoom, zoom_step, digits, way.offsets,
            share_rows, finish, few if finish else 0, scratch, way.scratch, 0, parts, size, listed, zoom, int(send),
        )  # fmt: skip
        room = way.part * max(parts, way.most_parts)
        return call_on_threads(way.operation, job, room, threads, wake=scores.size >= LONG_ENTRIES)

    todo.count = go_on(*way.zooms)
    if not paths:
        return todo.count
    if todo.count > 0 and way.plan not in _paths:
        _, _paths[way.plan] = paths_plan(chunk.kind, chunk.absolute, chunk.pattern)
        if todo.count <= few:
            todo.count = go_on(*way.zooms, send=True)
    if 2 * todo.count > chunk.n_blocks and exact and likely_distinct(chunk):
        todo.count = go_on(*CLOSE[scores.itemsize])
    return todo.count + todo.augmented
