"""The contract of a solver: a frozen, configured object that fills in the mask of a chunk of blocks."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.certificate import Proven
from nmflow.duals import BlockDuals, Duals
from nmflow.errors import InfeasibleError, SolverLimitError
from nmflow.pattern import Fill, Pattern
from nmflow.problem import Problem

__all__ = ["BlockDuals", "BlockSolver", "ChunkSolution", "Solver"]


class ChunkSolution(NamedTuple):
    """What a solver knows of the mask that it wrote.

    Attributes
    ----------
    duals : Duals
        Evidence for the certificate; may be empty. Its arrays may be the solver's workspace: they hold until it solves
        another chunk on the same thread.
    finite : bool
        False if a score was NaN or infinite; then nothing else counts.
    infeasible : tuple of int
        Blocks that no mask satisfies.
    counts : mapping
        Statistics, added up over chunks.
    proven : Proven or None
        Blocks that were proven when their masks were made; None if nothing was graded.
    """

    duals: Duals = Duals()
    finite: bool = True
    infeasible: tuple[int, ...] = ()
    counts: Mapping[str, int] = MappingProxyType({})
    proven: Proven | None = None


class Solver(abc.ABC):
    """A way to choose masks. Subclasses are frozen dataclasses; their fields are their options.

    Class attributes
    ----------------
    name : str
        Key in the table of solvers.
    exact : bool
        Whether every block ends proven. The masks of other solvers are certified only where that is asked for.
    fills : tuple of str
        The fills that its masks can have.
    improves : bool
        Whether it takes a mask to start from.
    guarantee : str
        What is promised, in words.
    kept_ratio : float or None
        Least kept score over the best one, for non-negative scores, where that is promised.
    pruned_ratio : float or None
        Most pruned score over the least possible one, for non-negative scores, where that is promised.
    warm_starts : bool
        Whether it can begin with the duals of an earlier solution.
    checks_finite : bool
        Whether it looks for NaN and infinite scores itself; else they are looked for before it is called.
    shares_chunks : bool
        Whether threads share a chunk, so that a small problem is one; else it is cut into several.
    tolerance : float or None
        For a solver that stops at a tolerance: a block loses at most tolerance * entries * largest |score|.
    library : str or None
        Optional library that it needs, as one imports it.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    guarantee: ClassVar[str]
    fills: ClassVar[tuple[Fill, ...]] = ("exact", "at-most")
    improves: ClassVar[bool] = False
    kept_ratio: ClassVar[float | None] = None
    pruned_ratio: ClassVar[float | None] = None
    tolerance: ClassVar[float | None] = None
    warm_starts: ClassVar[bool] = False
    checks_finite: ClassVar[bool] = False
    shares_chunks: ClassVar[bool] = False
    library: ClassVar[str | None] = None

    def check(self, problem: Problem) -> None:
        """Raise SolverLimitError if this solver cannot take the problem."""
        if problem.pattern.fill not in self.fills:
            raise SolverLimitError(
                f'fill must be {" or ".join(self.fills)} for solver="{self.name}", not {problem.pattern.fill}; '
                f"its masks can keep less in a line"
            )
        if problem.start is not None and not self.improves:
            raise SolverLimitError(
                f'start must be given to a solver that improves a mask, not to solver="{self.name}"; '
                f'use solver="local-search"'
            )

    @abc.abstractmethod
    def solve(self, chunk: Chunk) -> ChunkSolution:
        """Fill in ``chunk.mask``; the chunk's scores are only read."""

    def refine(self, chunk: Chunk, blocks: Array, given: Duals) -> Iterator[Duals]:
        """Solve again, in ever more exact arithmetic, the blocks that the certificate could not prove.

        Rewrites their masks and yields the duals of the whole chunk after each try. A solver that has no such
        arithmetic yields nothing.
        """
        yield from ()


class BlockSolver(Solver):
    """A reference solver: one block at a time, in Python."""

    @abc.abstractmethod
    def solve_block(
        self, numbers: Array, exponent: int, pattern: Pattern, state: Array | None
    ) -> tuple[Array, BlockDuals | None]:
        """Choose the mask of one block.

        Parameters
        ----------
        numbers : ndarray of object (Python integers), shape (R, C)
            score = numbers * 2**exponent, exactly.
        exponent : int
        pattern : Pattern
        state : ndarray of int8, shape (R, C), or None
            KEEP, DROP or FREE.

        Returns
        -------
        mask : ndarray of bool, shape (R, C)
        duals : BlockDuals or None

        Raises
        ------
        InfeasibleError
            If keep and drop leave no mask.
        SolverLimitError
            If the block cannot be solved without more loss than the options allow.
        """

    def solve(self, chunk: Chunk) -> ChunkSolution:
        """Solve the blocks one by one; an error says which block it is about."""
        special: dict[int, BlockDuals] = {}
        infeasible = []
        for block in range(chunk.n_blocks):
            numbers, exponent = chunk.block_integers(block)
            try:
                mask, duals = self.solve_block(numbers, exponent, chunk.pattern, chunk.block_state(block))
            except InfeasibleError:
                infeasible.append(block)
                continue
            except SolverLimitError as error:
                matrix, row, col = chunk.where(block)
                raise SolverLimitError(f"{error} (block row {row}, block column {col} of matrix {matrix})") from None
            chunk.mask[chunk.corner(block)] = mask
            if duals is not None:
                special[block] = duals
        return ChunkSolution(Duals(special=special), infeasible=tuple(infeasible))
