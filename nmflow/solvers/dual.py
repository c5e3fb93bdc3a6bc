"""Our own solver: dual ascent on many blocks at once, then shortest augmenting paths on what is left, then integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.certificate import Proven
from nmflow.duals import Duals
from nmflow.pattern import Pattern
from nmflow.solvers.base import ChunkSolution, Solver
from nmflow.solvers.in_parts import in_parts, is_large
from nmflow.solvers.judge import fillable, likely_full
from nmflow.solvers.levels import Lattice
from nmflow.solvers.open_blocks import OpenBlocks, room_for_duals
from nmflow.solvers.paths import augment, finish, in_integers, kept_score
from nmflow.solvers.settled import settle
from nmflow.solvers.trial import plan
from nmflow.solvers.untied import Untied, untie, untie_on

__all__ = ["Dual"]


@dataclass(frozen=True)
class Dual(Solver):
    """Exact for every pattern, fill, and finite score; every block ends proven.

    Notes
    -----
    1. Dual ascent in 16-bit integers, 32 blocks to a vector (`nmflow.kernels.settle`), settles and proves most blocks.
       O(M^2 log^2 M) a round and block, and a fixed number of rounds. What is still open then is magnified for more
       rounds, a few times; over 99% of blocks of Gaussian scores are proven by then. Scores of few bits, bfloat16 say,
       are moved a little there, since many differ by nothing (`nmflow.kernels.grains`).
       Under at-most fill, lines are taken as full at first, which proves most blocks where most scores are above 0.
    2. Where scores repeat and many of a few blocks stay open (`nmflow.solvers.trial`), all are moved a little from the
       first, and duals of the true ones follow (`nmflow.kernels.untie`). Scores near a lattice are solved as small
       whole numbers (`nmflow.solvers.levels`).
    3. Shortest augmenting paths (`nmflow.kernels.finish`) from those duals settle the others, in float64. O(M^2) a
       path; at most M^2 paths, on Gaussian scores about one; ties are mended without any path of some length.
    4. Blocks that the certificate can't prove then (ties that float64 rounds) are solved by the same paths in 64-bit
       integers where scores fit in 54 bits, less what they have in common, and the last ones in Python integers: rare,
       and slow.

    Ties go to the entry that comes first in the order of the paths; the mask is a function of values, dtype, memory
    order and options alone.
    """

    name: ClassVar[str] = "dual"
    exact: ClassVar[bool] = True
    guarantee: ClassVar[str] = "optimal, every block proven"
    kept_ratio: ClassVar[float | None] = 1.0
    warm_starts: ClassVar[bool] = True
    checks_finite: ClassVar[bool] = True
    shares_chunks: ClassVar[bool] = True

    def solve(self, chunk: Chunk) -> ChunkSolution:
        """Ascend, untie or augment; see the class."""
        if not chunk.exact and fillable(chunk.pattern) and chunk.state is None and likely_full(chunk):
            full = replace(chunk, pattern=Pattern(row=chunk.pattern.row, col=chunk.pattern.col))
            full = replace(full, duals=chunk.duals or room_for_duals(chunk))
            return self._filled(chunk, self._solved(full, tied=False))
        tied, lattice = plan(chunk)
        if tied and is_large(chunk):
            return in_parts(chunk, self.solve)
        if lattice is not None:
            untied = untie_on(lattice, chunk)
            if untied is not None:
                return self._finished(chunk, self._numbered(chunk, lattice, untied))
        return self._solved(chunk, tied=tied)

    def _filled(self, chunk: Chunk, full: ChunkSolution) -> ChunkSolution:
        """Under at-most fill, take what was solved as if lines had to be full where its duals can be made non-negative.

        Adding a number to all u and taking it from all v of a block changes nothing of what they prove.
        """
        from nmflow.kernels.level import level_kernel

        if full.proven is None:  # a score is not finite
            return full
        blocks = np.arange(chunk.n_blocks)
        u, v = full.duals.gather(chunk, blocks)
        good = np.empty(chunk.n_blocks, np.uint8)
        level_kernel()(u, v, good)
        good[full.proven.others] = False
        proven = Proven(kept_score(chunk, np.flatnonzero(good)), np.flatnonzero(good == 0))
        return self._finished(chunk, full._replace(duals=Duals(blocks=blocks, block_row=u, block_col=v), proven=proven))

    def _finished(self, chunk: Chunk, full: ChunkSolution) -> ChunkSolution:
        """Send paths through the blocks that are not proven under the fill of the chunk."""
        if full.proven is None or not len(full.proven.others):
            return full
        left = full.proven.others
        u, v = full.duals.gather(chunk, left)
        start = Duals(blocks=left, block_row=u, block_col=v)
        proven = finish(chunk, start, begun=False)
        proven = proven._replace(objective=full.proven.objective + proven.objective)
        counts = dict(full.counts)
        if "tied" not in counts:  # through what is left of those paths were sent before
            counts["augmented"] = counts.get("augmented", 0) + len(left)
        return ChunkSolution(full.duals.updated(start), counts=counts, proven=proven)

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
            near = lattice.near if chunk.pattern.fill == "exact" else lattice.is_near
            holds = partial(near, largest=untied.largest)
            added, others = finish(chunk, open_, untied.numbers, lattice.low, holds=holds)
            kept += added
        if chunk.duals is None:  # only those to go on from
            blocks, (u, v) = others, open_.gather(chunk, others)
        else:
            blocks, (u, v) = np.arange(chunk.n_blocks), untied.every
            u[untied.blocks], v[untied.blocks] = untied.u, untied.v
        lost = np.zeros(len(blocks), np.uint8)
        lattice.to_scores(u, lost)
        lattice.to_scores(v, lost)
        if lost.any():
            counts["rounded"] = int(lost.sum())
        return ChunkSolution(Duals(blocks=blocks, block_row=u, block_col=v), counts=counts, proven=Proven(kept, others))

    def _solved(self, chunk: Chunk, *, tied: bool) -> ChunkSolution:
        """Solve a chunk by its scores; where it is `tied` all of them are moved."""
        if tied:
            untied = untie(chunk)
            if untied is None:
                return ChunkSolution(finite=False)
            counts = {"tied": chunk.n_blocks - len(untied.blocks)}
            row, col = chunk.duals or (None, None)
            known = start = Duals(row, col, untied.blocks, untied.u, untied.v)
            if chunk.duals is not None:
                u, v = untied.every
                known = start._replace(blocks=np.arange(chunk.n_blocks), block_row=u, block_col=v)
            return self._ended(chunk, known, start, (untied.kept, 0.0), counts, begun=True)
        todo = OpenBlocks(chunk)
        if not chunk.exact:  # scores that were rounded are compared as floats, where a tie proves nothing
            todo.add_all()
        counts = {"ascended": settle(chunk, todo)}
        if todo.count < 0:
            return ChunkSolution(finite=False)
        if todo.augmented:
            counts["augmented"] = todo.augmented
        known = todo.duals()
        if chunk.state is not None:
            # blocks with fixed entries were settled without them, so all are graded anew
            return self._augmented(chunk, np.union1d(todo.blocks, chunk.fixed_blocks), known, counts)
        return self._ended(chunk, known, known, (todo.kept, todo.augmented_kept), counts, begun=False)

    def _ended(
        self, chunk: Chunk, known: Duals, start: Duals, kept: tuple[float, float], counts: dict[str, int], *,
        begun: bool,
    ) -> ChunkSolution:  # fmt: skip
        """Send paths through the blocks that are open, from the duals in `start`.

        kept : what the others keep: those settled, and those that paths were sent through already.
        """
        blocks = start.blocks if start.blocks is not None else np.empty(0, np.int64)
        settled, by_paths = kept
        if not len(blocks):
            return ChunkSolution(known, counts=counts, proven=Proven(settled + by_paths, blocks))
        counts["augmented"] = counts.get("augmented", 0) + len(blocks)
        proven = finish(chunk, start, begun=begun)
        proven = proven._replace(objective=settled + (by_paths + proven.objective))
        return ChunkSolution(known.updated(start), counts=counts, proven=proven)

    def _augmented(self, chunk: Chunk, blocks: Array, start: Duals, counts: dict[str, int]) -> ChunkSolution:
        """Send paths through some blocks of a chunk with fixed entries."""
        from nmflow.kernels.augment import FAILED

        counts["augmented"] = len(blocks)
        if not len(blocks):
            return ChunkSolution(start, counts=counts)
        ended, duals = augment(chunk, blocks, start, integers=False)
        failed = tuple(int(b) for b in blocks[ended == FAILED])
        return ChunkSolution(start.updated(duals), infeasible=failed, counts=counts)

    def refine(self, chunk: Chunk, blocks: Array, given: Duals) -> Iterator[Duals]:
        """Augment in 64-bit integers, then in Python's."""
        from nmflow.kernels.augment import EXACT

        duals = given
        if chunk.exact:
            ended, found = augment(chunk, blocks, given, integers=True)
            duals = given.updated(found)
            yield duals
            blocks = blocks[ended != EXACT]
        if len(blocks):
            yield duals._replace(special={**(duals.special or {}), **in_integers(chunk, blocks, duals)})
