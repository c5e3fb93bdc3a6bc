"""What the approximate solvers share: blocks as float64, a stripe at a time, and the way out to an exact solver."""

from __future__ import annotations

import abc
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.certificate import grade
from nmflow.pattern import Pattern
from nmflow.solvers.base import ChunkSolution, Solver

__all__ = ["Approximate", "Blocks"]

STRIPE_ENTRIES = 1 << 17
"""Entries that are laid out at a time: 1 MiB of float64."""
FEWEST = 32
"""For fewer blocks than these a kernel that settles blocks side by side is not worth compiling."""
LARGEST, SCALE = 2.0**900, 2.0**-200
"""Blocks with larger scores are scaled down, so that sums and differences are finite."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Some blocks of a chunk, laid out for the kernels of the approximate solvers.

    Attributes
    ----------
    values : ndarray of float64, shape (k, R, C)
        Scores, rounded where they are integers of more than 53 bits; scaled by a power of two where they are huge.
    state : ndarray of int8, shape (k, R, C), or of size 0
        KEEP, DROP or FREE.
    start : ndarray of uint8, shape (k, R, C), or of size 0
        A mask to start from.
    mask : ndarray of uint8, shape (k, R, C)
        Output.
    left : ndarray of uint8, shape (k,)
        Output: 1 for blocks that are left to an exact solver.
    pattern : Pattern
    trusted : bool
        Whether `values` order entries as the scores do.
    spread : ndarray of int, shape (j,)
        Blocks of scores so far apart that the small ones are lost by scaling: these an exact solver settles.
    spread_values : ndarray of float64, shape (j, R, C)
        Their scores, not scaled.
    """

    values: Array
    state: Array
    start: Array
    mask: Array
    left: Array
    pattern: Pattern
    trusted: bool
    spread: Array
    spread_values: Array

    @property
    def budgets(self) -> tuple[int, int]:
        """Budgets of a row and of a column."""
        return self.pattern.row_budget, self.pattern.col_budget

    @property
    def fills(self) -> tuple[bool, bool]:
        """Whether lines are filled exactly, and whether columns are free."""
        return self.pattern.row_exact, self.pattern.col is None

    def choose_by(self, method: int, keys: Array | None = None) -> None:
        """Write `mask` and `left` by a method of `nmflow.kernels.choose`, in the order of `keys`, or of `values`."""
        from nmflow.kernels.choose import choose_kernel

        choose_kernel()(
            self.values, self.values if keys is None else keys, self.state, self.start, *self.budgets, *self.fills,
            method, self.trusted, self.mask, self.left,
        )  # fmt: skip


class Approximate(Solver):
    """A solver that is not exact: subclasses fill in masks of `Blocks`."""

    exact = False

    @abc.abstractmethod
    def choose(self, blocks: Blocks) -> dict[str, int]:
        """Write `mask` and `left`; return statistics."""

    def solve(self, chunk: Chunk) -> ChunkSolution:
        """Choose masks a stripe of blocks at a time; what is left, an exact solver settles."""
        tall, wide = chunk.grid
        rows, cols = chunk.pattern.block_shape
        counts = Counter[str]()
        infeasible: list[int] = []
        wide_step = max(1, STRIPE_ENTRIES // (rows * cols))
        tall_step = max(1, wide_step // wide)
        for i in range(0, tall, tall_step):
            for j in range(0, wide, wide_step):
                area = (
                    slice(i * rows, min(i + tall_step, tall) * rows),
                    slice(j * cols, min(j + wide_step, wide) * cols),
                )
                shape = ((area[0].stop - area[0].start) // rows, (area[1].stop - area[1].start) // cols)
                blocks = _blocks(chunk, area)
                found = self.choose(blocks)
                blocks.left[blocks.spread] = 1
                blocks.values[blocks.spread] = blocks.spread_values
                left = np.flatnonzero(blocks.left)
                if len(left):
                    found = {**found, "left_to_exact": len(left)}
                    failed = left[_solve_exactly(chunk, blocks, left)]
                    infeasible.extend(((i + failed // shape[1]) * wide + j + failed % shape[1]).tolist())
                counts.update(found)
                chunk.mask[area] = (
                    blocks.mask.reshape(*shape, rows, cols).transpose(0, 2, 1, 3).reshape(chunk.mask[area].shape)
                )
        return ChunkSolution(infeasible=tuple(sorted(infeasible)), counts=counts)


def _laid_out(part: Array, pattern: Pattern) -> Array:
    """A rectangle of whole blocks as an array (k, R, C), copied."""
    rows, cols = pattern.block_shape
    tall, wide = part.shape[0] // rows, part.shape[1] // cols
    return np.array(part.reshape(tall, rows, wide, cols).transpose(0, 2, 1, 3), order="C").reshape(-1, rows, cols)


def _blocks(chunk: Chunk, area: tuple[slice, slice]) -> Blocks:
    part = (chunk.scores if chunk.kind in ("float32", "float64") else chunk.source)[area]
    values = _laid_out(part, chunk.pattern).astype(np.float64)
    if chunk.absolute:
        np.abs(values, out=values)
    spread = np.empty(0, np.int64)
    spread_values = values[spread]
    if chunk.kind == "float64" and float(np.abs(values).max()) > LARGEST:
        large = np.flatnonzero(np.abs(values).max(axis=(1, 2)) > LARGEST)
        scaled = values[large] * SCALE
        spread = large[(scaled / SCALE != values[large]).any(axis=(1, 2))]
        spread_values = values[spread]
        values[large] = scaled
    none = np.empty((0, 1, 1), np.int8)
    return Blocks(
        values=values,
        state=none if chunk.state is None else _laid_out(chunk.state[area], chunk.pattern),
        start=none.view(np.uint8)
        if chunk.start is None
        else _laid_out(chunk.start[area], chunk.pattern).view(np.uint8),
        mask=np.empty(values.shape, np.uint8),
        left=np.empty(len(values), np.uint8),
        pattern=chunk.pattern,
        trusted=chunk.exact and not len(spread),
        spread=spread,
        spread_values=spread_values,
    )


def _solve_exactly(chunk: Chunk, blocks: Blocks, left: Array) -> Array:
    """Solve some blocks with the default solver until each is proven; which have no mask, as positions in `left`."""
    from nmflow.solvers.dual import Dual

    rows, cols = chunk.pattern.block_shape

    def in_a_row(array: Array) -> Array:
        return np.ascontiguousarray(array[left].transpose(1, 0, 2)).reshape(rows, len(left) * cols)

    values = in_a_row(blocks.values)
    mask = np.empty(values.shape, np.bool_)
    alone = Chunk(
        scores=values,
        source=values,
        kind="float64",
        absolute=False,
        exact=True,
        pattern=chunk.pattern,
        state=in_a_row(blocks.state) if blocks.state.size else None,
        mask=mask,
        place=chunk.place,
    )
    exact = Dual()
    solution = exact.solve(alone) if len(left) >= FEWEST else exact.augment(alone)
    graded = grade(alone, solution.duals, solution.proven)
    open_ = np.setdiff1d(graded.unproven, solution.infeasible)
    for duals in exact.refine(alone, open_, solution.duals) if len(open_) else ():
        if not len(np.setdiff1d(grade(alone, duals, solution.proven).unproven, solution.infeasible)):
            break
    blocks.mask[left] = mask.reshape(rows, len(left), cols).transpose(1, 0, 2)
    return np.array(solution.infeasible, np.int64)
