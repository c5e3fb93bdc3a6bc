"""Our own solver: dual ascent on many blocks at once, then shortest augmenting paths on what is left, then integers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nmflow.blocks import DROP, KEEP, Chunk
from nmflow.certificate import BlockDuals, Duals, Proven, block_scores, fills
from nmflow.pattern import Pattern
from nmflow.problem import Array
from nmflow.solvers.base import ChunkSolution, Solver

__all__ = ["Dual"]

UNTIED_ENTRIES = 1 << 16
"""Entries of the blocks that are untied together: half a MiB of float64, several arrays of which fit the cache."""
EXACT_BITS = 50
"""Scores of at most so many bits leave sums along short paths exact in float64."""


@dataclass(frozen=True)
class Dual(Solver):
    """Exact for every pattern, fill, and finite score; every block ends proven.

    Notes
    -----
    1. Dual ascent in 16-bit integers, 32 blocks to a vector (`nmflow.kernels.settle`), settles most blocks: over 99% at
       2:4 and 4:8, 98% at 8:16 and 92% at 16:32 on Gaussian scores. O(M^2 log^2 M) a round and block, and a fixed
       number of rounds. Blocks whose scores repeat are solved with each score moved a little, then repaired
       (`nmflow.kernels.recover`).
    2. Shortest augmenting paths (`nmflow.kernels.augment`) from those duals settle the others, in float64. O(M^2) a
       path; at most M^2 paths, on Gaussian scores about one.
    3. Blocks that the certificate can't prove then (ties that float64 rounds) are solved by the same paths in 64-bit
       integers where scores fit in 54 bits, and the last ones in Python integers: rare, milliseconds each.

    Ties go to the entry that comes first in the order of the paths; the mask is a function of values, dtype and
    options alone.
    """

    name: ClassVar[str] = "dual"
    exact: ClassVar[bool] = True
    guarantee: ClassVar[str] = "optimal, every block proven"
    kept_ratio: ClassVar[float | None] = 1.0
    checks_finite: ClassVar[bool] = True

    def solve(self, chunk: Chunk) -> ChunkSolution:
        """Ascend, untie or augment; see the class."""
        from nmflow.kernels.augment import FAILED
        from nmflow.kernels.settle import AGAIN, ALL, SOME

        tall, wide = chunk.grid
        dtype = np.float64 if chunk.kind == "float64" else np.float32
        if chunk.duals is None:
            height, width = chunk.mask.shape
            u = _workspace("row", height * wide, dtype).reshape(height, wide)
            v = _workspace("col", tall * width, dtype).reshape(tall, width)
        else:
            u, v = chunk.duals
        blocks = _workspace("blocks", chunk.n_blocks + 1, np.int64)
        sums = np.zeros(128)
        left = self._settle(chunk, u, v, blocks, 0, ALL if chunk.duals is None else AGAIN, sums)
        if left < 0:
            return ChunkSolution(finite=False)
        counts = {"ascended": left}
        start = Duals(u, v)
        others = blocks[:left].copy()
        if self._tied(chunk, blocks[:left]):
            start, tied = self._untie(chunk, blocks[:left], start)
            counts["tied"] = left - len(tied)
            blocks = tied
        else:
            if left and chunk.pattern.col is not None:
                left = self._settle(chunk, u, v, blocks, left, SOME, sums)
            others = blocks = blocks[:left]
        if chunk.state is not None:
            blocks = np.union1d(blocks, chunk.fixed_blocks())
        # blocks with fixed entries were graded without them
        with np.errstate(over="ignore"):
            proven = None if chunk.state is not None else Proven(float(sums.sum()), others)
        if not len(blocks):
            return ChunkSolution(start, counts=counts, proven=proven)
        ended, duals = self._augment(chunk, blocks, start, integers=False)
        failed = tuple(int(b) for b in blocks[ended == FAILED])
        counts["augmented"] = len(blocks)
        return ChunkSolution(start.updated(duals), infeasible=failed, counts=counts, proven=proven)

    def _tied(self, chunk: Chunk, blocks: Array) -> bool:
        """Whether many blocks are open because their scores repeat: judged by a few of them, by their place alone."""
        if len(blocks) <= chunk.n_blocks // 8 or chunk.pattern.fill != "exact" or chunk.state is not None:
            return False
        if chunk.pattern.col is None or not chunk.exact:
            return False
        sample = block_scores(chunk, blocks[:: -(-len(blocks) // 8)])
        ordered = np.sort(sample.reshape(len(sample), -1), axis=1)
        if np.median((ordered[:, 1:] == ordered[:, :-1]).mean(axis=1)) < 0.25:
            return False
        # scores of a wide range would round in float64, and rounded duals prove nothing
        scaled = np.ldexp(sample, EXACT_BITS - int(np.frexp(np.abs(sample).max())[1]))
        return bool((scaled == np.floor(scaled)).all())

    def _untie(self, chunk: Chunk, blocks: Array, start: Duals) -> tuple[Duals, Array]:
        """Settle blocks whose scores repeat: move each score a little, solve, and repair the mask for the true scores.

        A few blocks at a time, so that memory stays small. Returns the duals, and the blocks that are still open.
        """
        rows, cols = chunk.pattern.block_shape
        size = max(64, UNTIED_ENTRIES // (rows * cols))
        pieces = []
        for first in range(0, len(blocks), size):
            part = blocks[first : first + size].copy()
            done, u, v = self._untie_some(chunk, part)
            pieces.append((part[done], u[done], v[done], part[~done]))
        numbers, u, v, still_open = (np.concatenate(side) for side in zip(*pieces, strict=True))
        return replace(start, blocks=numbers, block_row=u, block_col=v), still_open

    def _untie_some(self, chunk: Chunk, blocks: Array) -> tuple[Array, Array, Array]:
        """Which of the blocks are settled, and duals that prove their masks."""
        from nmflow.kernels.recover import recover_kernel
        from nmflow.kernels.settle import ALL, SOME

        rows, cols = chunk.pattern.block_shape
        values = block_scores(chunk, blocks)
        # a constant added to a block changes no best mask under exact fill; its spread then sets the scale
        low = values.min(axis=(1, 2), keepdims=True)
        spread = values.max(axis=(1, 2), keepdims=True) - low
        spread[spread == 0.0] = 1.0
        moved = values - low
        moved += spread * _offsets(rows, cols)
        stripe = np.ascontiguousarray(moved.transpose(1, 0, 2)).reshape(rows, -1)
        beside = replace(
            chunk, scores=stripe, source=stripe, kind="float64", absolute=False, mask=np.empty(stripe.shape, np.bool_)
        )
        row, col = np.empty((rows, len(blocks))), np.empty((1, stripe.shape[1]))
        numbers = np.empty(len(blocks) + 1, np.int64)
        sums = np.empty(128)
        left = self._settle(beside, row, col, numbers, 0, ALL, sums)
        for _ in range(2):
            left = self._settle(beside, row, col, numbers, left, SOME, sums) if left > 0 else 0
        if left:
            self._augment(beside, numbers[:left], Duals(row, col), integers=False)
        masks = np.ascontiguousarray(beside.mask.reshape(rows, len(blocks), cols).transpose(1, 0, 2))
        u, v = np.empty((len(blocks), rows)), col.reshape(len(blocks), cols)
        done = np.zeros(len(blocks), np.bool_)
        # where the scores as they are have another mask, the search for duals finds the exchange that leads there
        recover_kernel()(values, u, v, masks.view(np.uint8), 4 * (rows + cols), done)
        chunk.put(blocks[done], masks[done])
        return done, u, v

    def _settle(self, chunk: Chunk, u: Array, v: Array, blocks: Array, count: int, mode: int, sums: Array) -> int:
        """Ascend and threshold; see `nmflow.kernels.settle`."""
        from nmflow.kernels.settle import settle_kernel, settle_scratch

        pattern, scores, mask = chunk.pattern, chunk.scores, chunk.mask
        shape = pattern.block_shape
        scratch = _workspace("scratch", settle_scratch(chunk.kind, shape, chunk.grid[1]), np.uint8)
        kernel = settle_kernel(
            chunk.kind, *shape, pattern.row_budget, pattern.col_budget, *fills(pattern), chunk.absolute, mode
        )
        return int(
            kernel(
                scores.ctypes.data, scores.strides[0], mask.ctypes.data, mask.strides[0], u.ctypes.data, v.ctypes.data,
                *chunk.grid, scratch.ctypes.data, blocks.ctypes.data, count,
                sums.ctypes.data, int(chunk.exact),
            )
        )  # fmt: skip

    def _augment(self, chunk: Chunk, blocks: Array, start: Duals, *, integers: bool) -> tuple[Array, Duals]:
        """Solve some blocks one by one, from the duals in `start`; how each ended, and the duals of the chunk."""
        from nmflow.kernels.augment import FIXED_IN, FIXED_OUT, LOOSE, OUT, augment_kernel

        pattern = chunk.pattern
        u, v = start.gather(chunk, blocks)
        u[~np.isfinite(u)] = 0.0
        v[~np.isfinite(v)] = 0.0
        arcs = np.full((len(blocks), *pattern.block_shape), OUT, np.uint8)
        if chunk.state is not None:
            state = chunk.gather_state(blocks)
            arcs[state == KEEP], arcs[state == DROP] = FIXED_IN, FIXED_OUT
        ended = np.empty(len(blocks), np.uint8)
        augment_kernel(integers)(
            block_scores(chunk, blocks), u, v, arcs, pattern.row_budget, _room(pattern), pattern.row_exact,
            pattern.col_exact, ended,
        )  # fmt: skip
        arcs &= 1
        done = ended != LOOSE
        chunk.put(blocks[done], arcs[done])
        return ended, Duals(start.row, start.col, blocks, u, v)

    def refine(self, chunk: Chunk, blocks: Array, given: Duals) -> Iterator[Duals]:
        """Augment in 64-bit integers, then in Python's."""
        from nmflow.kernels.augment import EXACT

        duals = given
        if chunk.exact:
            ended, found = self._augment(chunk, blocks, given, integers=True)
            duals = given.updated(found)
            yield duals
            blocks = blocks[ended != EXACT]
        if len(blocks):
            yield replace(duals, special=self._in_integers(chunk, blocks, duals))

    def _in_integers(self, chunk: Chunk, blocks: Array, given: Duals) -> dict[int, BlockDuals]:
        """Solve some blocks in Python integers."""
        from nmflow.kernels.augment import FIXED_IN, FIXED_OUT, augment_block

        pattern = chunk.pattern
        rows, cols = pattern.block_shape
        u, v = given.gather(chunk, blocks)
        out = {}
        for k, block in enumerate(int(b) for b in blocks):
            numbers, exponent = chunk.block_integers(block)
            state = chunk.block_state(block)
            row, col = _whole(u[k], exponent), _whole(v[k], exponent)
            arc = np.zeros((rows, cols), np.int64)
            if state is not None:
                arc[state == KEEP], arc[state == DROP] = FIXED_IN, FIXED_OUT
            augment_block(  # type: ignore[no-untyped-call]
                numbers, row, col, arc, pattern.row_budget, _room(pattern), pattern.row_exact, pattern.col_exact
            )
            chunk.mask[chunk.corner(block)] = arc & 1
            out[block] = BlockDuals(row, col, exponent)
        return out


_kept = threading.local()


def _workspace(name: str, count: int, dtype: npt.DTypeLike) -> Array:
    """An array that the thread keeps from chunk to chunk: fresh memory costs more than the ascent at small m."""
    buffers: dict[str, Array] = _kept.__dict__
    size = count * np.dtype(dtype).itemsize
    if name not in buffers or buffers[name].size < size:
        buffers[name] = np.empty(size, np.uint8)
    return buffers[name][:size].view(dtype)


@cache
def _offsets(rows: int, cols: int) -> Array:
    """Fixed offsets for the entries of a block, all different: shares of its spread, below an eighth."""
    order = np.random.Generator(np.random.PCG64(rows * 64 + cols)).permutation(rows * cols)
    return order.reshape(rows, cols) / (rows * cols * 8.0)


def _room(pattern: Pattern) -> int:
    """Budget of a column; a free one gets a unit to spare, so that it is never full and its dual stays 0."""
    return pattern.col_budget if pattern.col else pattern.block_shape[0] + 1


def _whole(values: Array, exponent: int) -> Array:
    """Floats as the nearest multiples of 2**exponent below, in units of it: Python integers."""
    from fractions import Fraction

    out = np.empty(len(values), object)
    for k, value in enumerate(values):
        out[k] = int(Fraction(float(value)) / Fraction(2) ** exponent) if np.isfinite(value) else 0
    return out
