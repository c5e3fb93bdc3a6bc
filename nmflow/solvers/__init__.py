"""The table of solvers. To add one: a module with a Solver in it, and a line here.

Modules are imported when a solver is asked for, and their libraries when it runs.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from nmflow.errors import InputTypeError, MissingLibraryError, UnknownSolverError
from nmflow.solvers.base import Solver

__all__ = ["SOLVERS", "get", "names"]

SOLVERS: dict[str, str] = {
    "dual": "nmflow.solvers.dual:Dual",
    "network-simplex": "nmflow.solvers.network_simplex:NetworkSimplex",
    "ortools": "nmflow.solvers.or_tools:OrTools",
    "lp": "nmflow.solvers.lp:LinearProgram",
    "enumerate": "nmflow.solvers.enumeration:Enumerate",
    "greedy": "nmflow.solvers.greedy:Greedy",
    "two-approx": "nmflow.solvers.two_approx:TwoApprox",
    "two-approx-refill": "nmflow.solvers.two_approx:refilled",
    "local-search": "nmflow.solvers.local_search:LocalSearch",
    "entropic": "nmflow.solvers.entropic:Entropic",
}
"""Where each solver lives, as "module:class"."""


def names() -> tuple[str, ...]:
    """Names of the solvers, the default first."""
    return tuple(SOLVERS)


def get(solver: str | Solver) -> Solver:
    """Find a solver by its name, with its default options; or take one that is configured already.

    Parameters
    ----------
    solver : str or Solver

    Returns
    -------
    Solver

    Raises
    ------
    UnknownSolverError
        If the name is not in the table.
    InputTypeError
        If it is neither a name nor a Solver.
    MissingLibraryError
        If the library that the solver needs is not installed.

    Examples
    --------
    >>> get("network-simplex")
    NetworkSimplex()
    """
    if isinstance(solver, str):
        if solver not in SOLVERS:
            known = ", ".join(SOLVERS)
            raise UnknownSolverError(f"solver must be one of {known}, not {solver!r}")
        made: object = _default(solver)
    else:
        made = solver
    if not isinstance(made, Solver):
        raise InputTypeError(f"solver must be a name or a Solver, not {made!r}; the names are {', '.join(SOLVERS)}")
    if made.library is not None and find_spec(made.library) is None:
        raise MissingLibraryError(
            f'solver "{made.name}" needs {made.library}, which is not installed; pip install "nmflow[reference]"'
        )
    return made


@cache
def _default(name: str) -> object:
    """The solver of that name: it is frozen, so one is enough."""
    module, _, attribute = SOLVERS[name].partition(":")
    return getattr(import_module(module), attribute)()
