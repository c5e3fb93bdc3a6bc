"""Paths: blocks that are solved one by one, in float64, in 64-bit integers, and in Python's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import DROP, KEEP, Chunk
from nmflow.certificate import Proven, block_scores, fills
from nmflow.crew import call_on_threads, map_on_threads
from nmflow.duals import BlockDuals, Duals
from nmflow.integers import integers_of
from nmflow.pattern import Pattern
from nmflow.sums import added
from nmflow.workspace import kept_for

__all__ = ["augment", "finish", "in_integers", "kept_score", "paths_plan"]

BATCH_ENTRIES, LEAST_ENTRIES, BATCHES = 1 << 17, 1 << 14, 8
"""Scores of blocks that are finished at a time, as float64: at most, so that they stay in a cache; at least, since to
begin takes a while too; and in how many batches where neither counts, so that threads have their share."""
LARGEST = 1 << 53
"""Whole numbers up to this are float64."""


def finish(
    chunk: Chunk, open_: Duals, numbers: Array | None = None, low: int = 0, *,
    holds: Callable[[Array, Array], Array] | None = None, begun: bool = True,
) -> Proven:  # fmt: skip
    """Send paths through blocks that stand apart, to optimal duals; which of them are proven.

    numbers : shape (k, R, C), what to read instead of the scores, less `low`. holds : says of duals of some of these,
    which it may change in place, whether what they prove is proven of the scores; without it, what is kept is of the
    numbers. begun : whether masks say which ties to keep.
    """
    pattern, blocks, u, v = chunk.pattern, open_.blocks, open_.block_row, open_.block_col
    if blocks is None or u is None or v is None:
        raise AssertionError("open blocks must have duals of their own")
    for side in (u, v):  # written where they lie
        if side.dtype != np.float64 or not side.flags.c_contiguous:
            raise AssertionError("duals must be float64, side by side")
    flags = np.empty(len(blocks), np.uint8)
    single = chunk.kind != "float64"
    near = single and chunk.duals is not None

    def finish_some(part: slice) -> float:
        names, row, col = np.ascontiguousarray(blocks[part], np.int64), u[part], v[part]
        verdicts, kept = flags[part], np.zeros(1)
        some = None if numbers is None else np.add(numbers[part], low, dtype=np.float64, order="C")
        lists = names.ctypes.data, row.ctypes.data, col.ctypes.data, 8, len(names)
        left = _finish(chunk, some, (*lists, verdicts.ctypes.data, kept.ctypes.data), near=near, begun=begun)
        if left:
            from nmflow.kernels.between import between_kernel
            from nmflow.kernels.finish import finish_scratch

            left_open = np.flatnonzero(verdicts)
            at = part.start + left_open
            values = block_scores(chunk, blocks[at]) if some is None else some[left_open]
            row, col, verdicts = u[at], v[at], flags[at]
            kept += between_kernel()(
                values, row, col, chunk.mask.view(np.uint8), blocks[at], *_rules(pattern), chunk.exact, near, single,
                *finish_scratch(*pattern.block_shape), verdicts,
            )  # fmt: skip
            u[at], v[at], flags[at] = row, col, verdicts
        if holds is None:
            return float(kept[0])
        flags[part] |= ~holds(u[part], v[part])
        return kept_score(chunk, names[flags[part] == 0])

    kept = sum(map_on_threads(finish_some, _batches(chunk, blocks), chunk.threads), 0.0)
    return Proven(kept, blocks[flags != 0])


def _finish(chunk: Chunk, numbers: Array | None, lists: tuple[int, ...], *, near: bool, begun: bool) -> int:
    """Call `nmflow.kernels.finish` for some blocks; how many are not proven."""
    from nmflow.kernels.finish import BEST

    scores, mask, wide = chunk.scores, chunk.mask, chunk.grid[1]
    if numbers is None:
        source = scores.ctypes.data, scores.strides[0], wide, 0
        operation, plan = paths_plan(chunk.kind, chunk.absolute, chunk.pattern)
    else:  # the blocks alone, one below the other
        source = numbers.ctypes.data, numbers.strides[1], 1, 1
        operation, plan = paths_plan("float64", False, chunk.pattern)
    _, scratch = kept_for(("paths", chunk.pattern.block_shape), lambda: _scratch(*chunk.pattern.block_shape))
    places = mask.ctypes.data, mask.strides[0], wide
    known = BEST if begun and numbers is None else int(begun)  # no number was cut off
    job = (plan, *source, *places, *lists, int(chunk.exact), int(near), known, scratch)
    return call_on_threads(operation, job, 0, 1)


def paths_plan(kind: str, absolute: bool, pattern: Pattern) -> tuple[int, int]:
    """The operation of `nmflow.kernels.finish`, and its plan for scores of a kind."""
    from nmflow.kernels.finish import finish_plan

    operation, plan = finish_plan(kind, absolute, *pattern.block_shape, *_rules(pattern))
    return operation, plan


def _scratch(rows: int, cols: int) -> tuple[Array, int]:
    """Workspace for paths, and where it lies."""
    from nmflow.kernels.finish import finish_scratch

    memory = finish_scratch(rows, cols)[0]
    return memory, memory.ctypes.data


def _rules(pattern: Pattern) -> tuple[int, ...]:
    """Budgets, and how lines are filled, as paths have them."""
    return pattern.row_budget, pattern.col_budget, _room(pattern), *fills(pattern)


def augment(chunk: Chunk, blocks: Array, start: Duals, *, integers: bool) -> tuple[Array, Duals]:
    """Solve some blocks one by one, from the duals in `start`; how each ended, and the duals of the chunk."""
    u, v = start.gather(chunk, blocks)
    for side in (u, v):  # paths start from finite duals; some are beyond the work dtype
        side[~np.isfinite(side)] = 0.0
    ended = np.empty(len(blocks), np.uint8)
    for part in _batches(chunk, blocks):
        some = blocks[part]
        _augment(chunk, some, block_scores(chunk, some), u[part], v[part], ended[part], integers=integers)
    return ended, Duals(start.row, start.col, blocks, u, v)


def _batches(chunk: Chunk, blocks: Array) -> list[slice]:
    entries = math.prod(chunk.pattern.block_shape)
    size = -(-min(max(len(blocks) * entries // BATCHES, LEAST_ENTRIES), BATCH_ENTRIES) // entries)
    return [slice(first, first + size) for first in range(0, len(blocks), size)]


def _augment(chunk: Chunk, blocks: Array, values: Array, u: Array, v: Array, ended: Array, *, integers: bool) -> None:
    """Solve some blocks of these scores, and write the masks of those that can be; duals change where they lie."""
    from nmflow.kernels.augment import LOOSE, augment_kernel

    pattern, arcs = chunk.pattern, _arcs(chunk, blocks)
    augment_kernel(integers)(
        values, u, v, arcs, pattern.row_budget, _room(pattern), pattern.row_exact, pattern.col_exact, ended
    )  # fmt: skip
    done = ended != LOOSE
    chunk.put(blocks[done], arcs[done] & 1)


def _arcs(chunk: Chunk, blocks: Array) -> Array:
    """What `nmflow.kernels.transport` is told of entries that are kept or dropped by order."""
    from nmflow.kernels.transport import FIXED_IN, FIXED_OUT, OUT

    arcs = np.full((len(blocks), *chunk.pattern.block_shape), OUT, np.uint8)
    if chunk.state is not None:
        state = chunk.gather_state(blocks)
        arcs[state == KEEP], arcs[state == DROP] = FIXED_IN, FIXED_OUT
    return arcs


def in_integers(chunk: Chunk, blocks: Array, given: Duals) -> dict[int, BlockDuals]:
    """Solve some blocks as whole numbers of any size.

    Where rows are full, what all numbers of a block have in common changes no mask: mostly, float64 holds the rest, and
    paths in 64-bit integers do.
    """
    from nmflow.kernels.augment import EXACT

    found = {}
    for part in _batches(chunk, blocks):
        starts = zip(*given.gather(chunk, blocks[part]), strict=True)
        some = [_Whole.of(chunk, int(block), *start) for block, start in zip(blocks[part], starts, strict=True)]
        small = [each for each in some if each.fits]
        if small:
            names = np.array([each.block for each in small])
            values, u, v = (
                np.array([np.clip(getattr(each, name), -LARGEST, LARGEST) for each in small], np.float64)
                for name in ("numbers", "row", "col")
            )
            ended = np.empty(len(small), np.uint8)
            _augment(chunk, names, values, u, v, ended, integers=True)
            for k in np.flatnonzero(ended == EXACT):
                both, power = integers_of(np.concatenate([u[k], v[k]]))  # numbers of 54 bits, fractions of ours
                both, power = both << max(0, power), min(0, power)
                found[small[k].block] = small[k].duals(both[: u.shape[1]], both[u.shape[1] :], power)
        for each in some:
            if each.block not in found:
                found[each.block] = each.solved(chunk)
    return found


@dataclass(frozen=True, slots=True)
class _Whole:
    """A block in Python's integers, numbers = S / 2**exponent - shift, and the duals to start from."""

    block: int
    numbers: Array
    exponent: int
    shift: int
    row: Array
    col: Array

    @classmethod
    def of(cls, chunk: Chunk, block: int, u: Array, v: Array) -> _Whole:
        """Read a block."""
        numbers, exponent = chunk.block_integers(block)
        shift = int(numbers.min()) if chunk.pattern.row_exact else 0
        return cls(block, numbers - shift, exponent, shift, _steps(u, exponent) - shift, _steps(v, exponent))

    @property
    def fits(self) -> bool:
        """Whether float64 holds the numbers."""
        return max(-int(self.numbers.min()), int(self.numbers.max())) <= LARGEST

    def duals(self, row: Array, col: Array, power: int = 0) -> BlockDuals:
        """Duals of the scores, by those of the numbers over 2**power, which is at most 0."""
        return BlockDuals(row + (self.shift << -power), col, self.exponent + power)

    def solved(self, chunk: Chunk) -> BlockDuals:
        """Send paths through the block in Python's integers; its duals."""
        from nmflow.kernels.transport import augment_block

        pattern, row, col = chunk.pattern, self.row.copy(), self.col.copy()
        arcs = _arcs(chunk, np.array([self.block]))[0].astype(np.int64)
        augment_block(  # type: ignore[no-untyped-call]
            self.numbers, row, col, arcs, pattern.row_budget, _room(pattern), pattern.row_exact, pattern.col_exact
        )
        chunk.mask[chunk.corner(self.block)] = arcs & 1
        return self.duals(row, col)


def kept_score(chunk: Chunk, blocks: Array) -> float:
    """What the mask keeps of some blocks."""
    from nmflow.kernels.kept import WIDE, kept_kernel

    shape, sums = chunk.pattern.block_shape, np.zeros(WIDE)
    kept_kernel(chunk.kind, chunk.absolute)(
        chunk.scores.ctypes.data, chunk.scores.strides[0], chunk.mask.ctypes.data, chunk.mask.strides[0],
        *shape, chunk.grid[1], blocks.ctypes.data, len(blocks), sums.ctypes.data,
    )  # fmt: skip
    return added(sums)


def _room(pattern: Pattern) -> int:
    """Budget of a column; a free one gets a unit to spare, so that it is never full and its dual stays 0."""
    return pattern.col_budget if pattern.col else pattern.block_shape[0] + 1


def _steps(values: Array, exponent: int) -> Array:
    """Floats in units of 2**exponent, cut to Python integers, which are where paths start; 0 where there are none."""
    with np.errstate(over="ignore", under="ignore"):
        steps = np.ldexp(values, -exponent)
    steps[~np.isfinite(steps)] = 0.0
    whole = np.empty(len(steps), object)
    whole[:] = [int(step) for step in steps]
    return whole
