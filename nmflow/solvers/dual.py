"""Our own solver: dual ascent on many blocks at once, then shortest augmenting paths on what is left, then integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from nmflow.blocks import DROP, KEEP, Chunk
from nmflow.certificate import BlockDuals, Duals, Proven, block_scores, fills
from nmflow.pattern import Pattern
from nmflow.problem import Array
from nmflow.reading import work_dtype
from nmflow.solvers.base import ChunkSolution, Solver
from nmflow.solvers.levels import Lattice, lattice_of
from nmflow.solvers.open_blocks import OpenBlocks, workspace
from nmflow.solvers.untied import Untied, untie, untie_on

__all__ = ["Dual"]

Entry = TypeVar("Entry")

ZOOMS, ROUNDED = (6, 12, 3), (0, 12, 6)
"""First and last number of bits by which what is left of the scores is magnified where blocks are settled once more,
and the step between; and the same where scores were rounded, from nothing."""
AT_MOST = {8: (2, 8, 3), 16: (3, 12, 3), 64: (6, 12, 3)}
"""The same under at-most fill, by the longer side of a block: duals of small blocks have far to go."""
TIED_SHARE = 0.5
"""Share of a block's scores that must repeat before all blocks are moved."""
MANY = {8: 1000, 16: 400, 64: 2}
"""Where more than one of so many blocks is still open after that, by the longer side of a block, they are moved too;
larger blocks take longer to move than to augment."""
POSITIVE, TIED_POSITIVE, MOST_POSITIVE = 1.5, 0.5, 0.95
"""Under at-most fill, blocks are settled as if lines had to be full where this many times as many scores are above 0 as
lines keep; the same where most of those repeat; and a share of all scores that is always enough."""
BATCH_ENTRIES = 1 << 17
"""Scores of blocks that are finished at a time, as float64: they stay in a cache."""
FEWEST = 32
"""Blocks that are moved or settled once more side by side: for fewer than these a kernel is not worth compiling."""


@dataclass(frozen=True)
class Dual(Solver):
    """Exact for every pattern, fill, and finite score; every block ends proven.

    Notes
    -----
    1. Dual ascent in 16-bit integers, 32 blocks to a vector (`nmflow.kernels.settle`), settles and proves most blocks.
       O(M^2 log^2 M) a round and block, and a fixed number of rounds. What is still open then is magnified for more
       rounds, three times at most; over 99% of blocks of Gaussian scores are proven by then.
    2. Blocks whose scores repeat are settled with each score moved a little, and duals of the true scores follow
       (`nmflow.kernels.untie`). Scores near a lattice are solved as small whole numbers (`nmflow.solvers.levels`).
    3. Shortest augmenting paths (`nmflow.kernels.finish`) from those duals settle the others, in float64. O(M^2) a
       path; at most M^2 paths, on Gaussian scores about one; ties are mended without any path of some length.
    4. Blocks that the certificate can't prove then (ties that float64 rounds) are solved by the same paths in 64-bit
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
        if _fillable(chunk.pattern) and chunk.state is None and _likely_full(chunk):
            full = replace(
                chunk, pattern=Pattern(row=chunk.pattern.row, col=chunk.pattern.col),
                duals=chunk.duals or chunk.room_for_duals(),
            )  # fmt: skip
            tied, lattice = self._plan(full)
            if tied or lattice is not None:
                return self._filled(chunk, self._planned(full, tied, lattice))
        return self._planned(chunk, *self._plan(chunk))

    def _planned(self, chunk: Chunk, tied: bool, lattice: Lattice | None) -> ChunkSolution:
        """Solve a chunk by whole numbers on a lattice, or by its scores."""
        if lattice is not None:
            untied = untie_on(lattice, chunk)
            if untied is not None:
                return self._numbered(chunk, lattice, untied)
        return self._solved(chunk, tied=tied)

    def _filled(self, chunk: Chunk, full: ChunkSolution) -> ChunkSolution:
        """Under at-most fill, take what was solved as if lines had to be full where its duals can be made non-negative.

        Adding a number to all u and taking it from all v of a block changes nothing of what they prove.
        """
        from nmflow.kernels.level import level_kernel

        if not full.finite:
            return full
        if full.proven is None or "rounded" in full.counts:  # duals are not those that prove it
            return self._solved(chunk, tied=False)
        blocks = np.arange(chunk.n_blocks)
        u, v = full.duals.gather(chunk, blocks)
        good = np.empty(chunk.n_blocks, np.uint8)
        level_kernel()(u, v, good)
        good[full.proven.others] = False
        left = np.flatnonzero(good == 0)
        every = Duals() if chunk.duals is None else Duals(blocks=blocks, block_row=u, block_col=v)
        if not len(left):
            return ChunkSolution(every, counts=full.counts, proven=full.proven)
        start = Duals(blocks=left, block_row=u[left], block_col=v[left])
        proven = self._finish(chunk, start, begun=False)
        proven = replace(proven, objective=_kept(chunk, np.flatnonzero(good)) + proven.objective)
        counts = {**full.counts, "augmented": full.counts.get("augmented", 0) + len(left)}
        return ChunkSolution(every.updated(start), counts=counts, proven=proven)

    def augment(self, chunk: Chunk) -> ChunkSolution:
        """Send paths through all blocks of a small chunk, from nothing, by kernels that take any pattern."""
        blocks, (rows, cols) = np.arange(chunk.n_blocks), chunk.pattern.block_shape
        nothing = np.zeros((len(blocks), rows)), np.zeros((len(blocks), cols))
        return self._augmented(chunk, blocks, Duals(None, None, blocks, *nothing), {})

    def _numbered(self, chunk: Chunk, lattice: Lattice, untied: Untied) -> ChunkSolution:
        """Send paths through what whole numbers left open, in these numbers; what that proves of the scores."""
        open_ = Duals(blocks=untied.blocks, block_row=untied.u, block_col=untied.v)
        counts, kept, others = {"tied": chunk.n_blocks - len(untied.blocks)}, untied.kept, untied.blocks
        if len(untied.blocks):
            counts["augmented"] = len(untied.blocks)
            others = self._finish(chunk, open_, untied.numbers).others
            others = np.union1d(others, untied.blocks[~lattice.near(untied.u, untied.v, untied.largest)])
            kept += _kept(chunk, np.setdiff1d(untied.blocks, others))
        # where nobody asks for duals, only those to go on from
        blocks = others if chunk.duals is None else np.arange(chunk.n_blocks)
        u, v = untied.every.updated(open_).gather(chunk, blocks)
        (u, u_lost), (v, v_lost) = lattice.dual(u, lattice.low), lattice.dual(v)
        if u_lost.any() or v_lost.any():
            counts["rounded"] = int((u_lost.any(axis=1) | v_lost.any(axis=1)).sum())
        return ChunkSolution(Duals(blocks=blocks, block_row=u, block_col=v), counts=counts, proven=Proven(kept, others))

    def _solved(self, chunk: Chunk, *, tied: bool) -> ChunkSolution:
        """Solve a chunk by its scores; where it is `tied` all of them are moved."""
        todo = OpenBlocks(chunk)
        counts = {}
        if chunk.exact and not tied:
            counts["ascended"] = self._settle(chunk, todo)
        else:
            todo.add_all()
            if not tied:  # scores that were rounded are compared as floats, where a tie proves nothing
                todo.u[:] = todo.v[:] = 0.0
                counts["ascended"] = self._settle(chunk, todo)
        if todo.count < 0:
            return ChunkSolution(finite=False)
        with np.errstate(over="ignore"):
            kept = float(todo.sums.sum())
        few = max(FEWEST, chunk.n_blocks // _by_side(MANY, chunk.pattern))
        begun = todo.count > (0 if tied else few) and self._movable(chunk)
        if begun:
            untied = untie(chunk, todo.blocks[: todo.count].copy(), None if tied else (todo.u, todo.v))
            if untied is None:
                return ChunkSolution(finite=False)
            counts["tied"] = todo.count - len(untied.blocks)
            kept += untied.kept
            row, col = todo.dense or (None, None)
            known = replace(untied.every, row=row, col=col)
            start = replace(known, blocks=untied.blocks, block_row=untied.u, block_col=untied.v)
        else:
            known = start = todo.duals()
        blocks = start.blocks if start.blocks is not None else np.empty(0, np.int64)
        if chunk.state is not None:
            # blocks with fixed entries were settled without them, so all are graded anew
            return self._augmented(chunk, np.union1d(blocks, chunk.fixed_blocks), start, counts)
        if not len(blocks):
            return ChunkSolution(known, counts=counts, proven=Proven(kept, blocks))
        counts["augmented"] = len(blocks)
        proven = self._finish(chunk, start, begun=begun)
        proven = replace(proven, objective=kept + proven.objective)
        return ChunkSolution(known.updated(start), counts=counts, proven=proven)

    def _augmented(self, chunk: Chunk, blocks: Array, start: Duals, counts: dict[str, int]) -> ChunkSolution:
        """Send paths through some blocks of a chunk with fixed entries."""
        from nmflow.kernels.augment import FAILED

        counts["augmented"] = len(blocks)
        if not len(blocks):
            return ChunkSolution(start, counts=counts)
        ended, duals = self._augment(chunk, blocks, start, integers=False)
        failed = tuple(int(b) for b in blocks[ended == FAILED])
        return ChunkSolution(start.updated(duals), infeasible=failed, counts=counts)

    def _finish(self, chunk: Chunk, open_: Duals, numbers: Array | None = None, *, begun: bool = True) -> Proven:
        """Send paths through blocks that stand apart, to optimal duals; which of them are proven.

        numbers : shape (k, R, C), what to read instead of the scores. begun : whether masks say which ties to keep.
        """
        from nmflow.kernels.finish import finish_kernel, finish_scratch

        pattern, blocks, u, v = chunk.pattern, open_.blocks, open_.block_row, open_.block_col
        if blocks is None or u is None or v is None:
            raise AssertionError("open blocks must have duals of their own")
        _make_finite(u, v)
        flags = np.empty(len(blocks), np.uint8)
        rows, cols = pattern.block_shape
        size = max(1, BATCH_ENTRIES // (rows * cols))
        single = 0 if chunk.kind == "float64" else 1 if chunk.duals is not None else 2
        values = workspace("values", min(size, len(blocks)) * rows * cols, np.float64).reshape(-1, rows, cols)
        finish, scratch, mask, kept = finish_kernel(), finish_scratch(rows, cols), chunk.mask.view(np.uint8), 0.0
        for first in range(0, len(blocks), size):
            part = slice(first, first + size)
            some = values[: len(blocks[part])]
            if numbers is None:
                block_scores(chunk, blocks[part], some)
            else:
                some[...] = numbers[part]
            kept += finish(
                some, u[part], v[part], mask, blocks[part], pattern.row_budget, pattern.col_budget, _room(pattern),
                *fills(pattern), chunk.exact, single, begun, *scratch, flags[part],
            )  # fmt: skip
        return Proven(kept, blocks[flags != 0])

    def _plan(self, chunk: Chunk) -> tuple[bool, Lattice | None]:
        """Whether most scores repeat, and the lattice on which they lie: judged by a few."""
        if not self._movable(chunk):
            return False, None
        some = chunk.scores[0, :128].tolist()  # most matrices are told by a part of one line
        if 1.0 - len(set(some)) / len(some) < TIED_SHARE / 2:
            return False, None
        places = np.arange(0, chunk.n_blocks, -(-chunk.n_blocks // 8))
        sample = block_scores(chunk, places)
        if not np.isfinite(sample).all() or _repeated(sample.reshape(len(sample), -1)[:, :256]) < TIED_SHARE:
            return False, None
        return True, lattice_of(sample, work_dtype(chunk.kind))

    def _movable(self, chunk: Chunk) -> bool:
        """Whether scores can be moved a little and the mask repaired after."""
        exact = chunk.pattern.fill == "exact" and chunk.pattern.col is not None
        return exact and chunk.state is None and chunk.exact

    def _settle(self, chunk: Chunk, todo: OpenBlocks) -> int:
        """Ascend, make masks and prove them; how many blocks are open. See `nmflow.kernels.settle`."""
        from nmflow.kernels.settle import settle_kernel, settle_scratch

        pattern, scores, mask = chunk.pattern, chunk.scores, chunk.mask
        zooms, loose = ZOOMS if chunk.exact else ROUNDED, pattern.fill == "at-most" and pattern.col is not None
        if loose:
            zooms = _by_side(AT_MOST, pattern)
        shape = pattern.block_shape
        scratch = workspace("scratch", settle_scratch(chunk.kind, shape), np.uint8)
        kernel = settle_kernel(
            chunk.kind, *shape, pattern.row_budget, pattern.col_budget, *fills(pattern), chunk.absolute,
            chunk.warm is not None,
        )  # fmt: skip
        todo.count = kernel(
            scores.ctypes.data, scores.strides[0], mask.ctypes.data, mask.strides[0], *todo.dense_addresses,
            0 if chunk.warm is None else chunk.warm.ctypes.data, *chunk.grid, scratch.ctypes.data, *todo.addresses,
            todo.count, todo.sums.ctypes.data, int(chunk.exact),
            int(loose and _mostly_positive(chunk, POSITIVE)), *zooms,
        )  # fmt: skip
        return todo.count

    def _augment(self, chunk: Chunk, blocks: Array, start: Duals, *, integers: bool) -> tuple[Array, Duals]:
        """Solve some blocks one by one, from the duals in `start`; how each ended, and the duals of the chunk."""
        from nmflow.kernels.augment import FIXED_IN, FIXED_OUT, LOOSE, OUT, augment_kernel

        pattern = chunk.pattern
        u, v = start.gather(chunk, blocks)
        _make_finite(u, v)
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


def _make_finite(*duals: Array) -> None:
    """0 where duals are beyond the work dtype: paths start from finite ones."""
    for side in duals:
        side[~np.isfinite(side)] = 0.0


def _repeated(lines: Array) -> float:
    """Share of the numbers of a line that equal an earlier one of it: the median over lines."""
    ordered = np.sort(lines, axis=1)
    shares = np.count_nonzero(ordered[:, 1:] == ordered[:, :-1], axis=1)
    return float(np.sort(shares)[len(lines) // 2] / ordered.shape[1])


def _kept(chunk: Chunk, blocks: Array) -> float:
    """What the mask keeps of some blocks."""
    from nmflow.kernels.kept import kept_kernel

    shape, sums = chunk.pattern.block_shape, np.zeros(chunk.pattern.block_shape[1])
    kept_kernel(chunk.kind, *shape, chunk.absolute)(
        chunk.scores.ctypes.data, chunk.scores.strides[0], chunk.mask.ctypes.data, chunk.mask.strides[0],
        chunk.grid[1], blocks.ctypes.data, len(blocks), sums.ctypes.data,
    )  # fmt: skip
    with np.errstate(over="ignore"):
        return float(sums.sum())


def _fillable(pattern: Pattern) -> bool:
    """Whether fill is at most, and full lines can use up the budgets of both sides."""
    rows, cols = pattern.block_shape
    both = pattern.fill == "at-most" and pattern.col is not None
    return both and rows * pattern.row_budget == cols * pattern.col_budget


def _by_side(table: dict[int, Entry], pattern: Pattern) -> Entry:
    """The entry of a table for the longer side of a block."""
    side = max(pattern.block_shape)
    return next(entry for most, entry in table.items() if side <= most)


def _few_scores(chunk: Chunk) -> Array:
    """Some scores of a chunk, by which it is judged; float64."""
    some = chunk.source[:: max(1, len(chunk.source) // 8), :128].astype(np.float64)
    return np.abs(some) if chunk.absolute else some


def _mostly_positive(chunk: Chunk, times: float) -> bool:
    """Whether so many times as many scores are above 0 as lines keep, or nearly all are."""
    share = float(np.mean(_few_scores(chunk) > 0))
    return share > min(times * chunk.pattern.row_budget / chunk.pattern.block_shape[1], MOST_POSITIVE)


def _repeat_above_0(chunk: Chunk) -> bool:
    """Whether most of the scores above 0 repeat."""
    some = _few_scores(chunk)
    some = some[some > 0]
    return len(np.unique(some)) < TIED_SHARE * len(some)


def _likely_full(chunk: Chunk) -> bool:
    """Whether most best masks fill all lines, as far as a few scores tell."""
    return _mostly_positive(chunk, POSITIVE) or (_mostly_positive(chunk, TIED_POSITIVE) and _repeat_above_0(chunk))


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
