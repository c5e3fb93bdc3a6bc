"""Contestants: whatever makes a mask of a matrix and can be measured."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable

from nmflow.arrays import Array
from nmflow.errors import MissingLibraryError, NmflowError
from nmflow.pattern import Pattern
from nmflow.solution import Solution

__all__ = ["Answer", "Contestant", "TableSolver", "missing", "table_solvers"]

Answer = Solution | Array
"""What a contestant makes of a matrix; an array is its mask."""


class Contestant(abc.ABC):
    """Something that makes a mask of a matrix: a solver of ours, or another's.

    Attributes
    ----------
    name : str
    threads : int
        Threads that it runs on.
    peer : bool
        Whether it comes from elsewhere; its masks are then graded by `nmflow.certify`.
    """

    name: str
    threads: int
    peer: bool

    @abc.abstractmethod
    def prepare(self, pattern: Pattern) -> Callable[[Array], Answer]:
        """Get ready, outside of what is timed; then from a matrix to its mask.

        Raises
        ------
        MissingLibraryError
            If a library is not installed.
        NmflowError
            If it cannot do the pattern.
        """


class TableSolver(Contestant):
    """A solver of the table, as ``nmflow.solve`` runs it: checks and proof included."""

    peer = False

    def __init__(self, name: str, threads: int) -> None:
        from nmflow.solvers import get
        from nmflow.solvers.base import BlockSolver

        self.name = name
        self.threads = threads
        with contextlib.suppress(NmflowError):  # a missing one is reported when it is to run
            if isinstance(get(name), BlockSolver):
                self.threads = 1  # one block at a time in Python: further threads would only wait for each other

    def prepare(self, pattern: Pattern) -> Callable[[Array], Answer]:
        """Look the solver up; one that cannot fill as asked fills as it can, and is graded by what was asked."""
        from nmflow.pipeline import solve
        from nmflow.solvers import get

        solver = get(self.name)
        if pattern.fill not in solver.fills:
            fill = solver.fills[0]
            pattern = Pattern(row=pattern.row, col=pattern.col, fill=fill, transposable=pattern.transposable)
        return lambda weights: solve(weights, pattern=pattern, solver=solver, threads=self.threads)


def table_solvers(threads: int) -> list[Contestant]:
    """Every solver in the table."""
    from nmflow.solvers import names

    return [TableSolver(name, threads) for name in names()]


def missing(name: str, library: str, package: str) -> MissingLibraryError:
    """The error for a peer whose library is not there."""
    return MissingLibraryError(f"{name} needs {library}, which is not installed; pip install {package}")
