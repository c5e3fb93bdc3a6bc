"""solve() and certify(): a caller's arguments -> Problem -> Solution, or Certificate.

(No module is named like a public function: a lazy ``nmflow.solve`` would turn into the module.)
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from nmflow.asked import check_flags, thread_count
from nmflow.earlier import earlier_duals
from nmflow.errors import InputValueError
from nmflow.given import as_mask
from nmflow.pattern import Budget, Fill, Pattern
from nmflow.problem import Problem
from nmflow.running import grade_mask, run
from nmflow.solution import Certificate, Solution
from nmflow.solvers import get
from nmflow.solvers.base import Solver
from nmflow.switching import with_previous

__all__ = ["as_pattern", "certify", "check_method", "solve"]


def solve(
    weights: object,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    row: str | Budget | None = None,
    col: str | Budget | None = None,
    scores: object | None = None,
    solver: str | Solver = "dual",
    fill: Fill = "exact",
    transposable: bool = True,
    keep: object | None = None,
    drop: object | None = None,
    previous: object | None = None,
    switch_cost: float | None = None,
    start: object | None = None,
    layout: str | None = None,
    groups: int = 1,
    threads: int | None = None,
    duals: bool = False,
    certify: bool = False,
    warm_start: Solution | None = None,
    out: object | None = None,
) -> Solution:
    """Find the best N:M mask of a weight matrix, with a proof.

    Maximises the sum of scores kept, with n kept of every m consecutive entries in rows and in columns.

    Parameters
    ----------
    weights : array, shape (R, C) or as `layout` says
        float16, bfloat16, float32, float64 or integers to 64 bits; any strides; read-only arrays too.
    n, m : int
        Keep n of m, 1 <= n <= m <= 64. Instead: ``pattern="2:4"`` or a Pattern.
    row, col : str or Budget, optional
        Different budgets in the two directions, instead of n and m: ``row="2:4", col="4:8"`` keeps 2 of 4 consecutive
        entries along each row and 4 of 8 along each column. Where their densities differ only
        ``fill="at-most"`` is feasible.
    scores : array of the shape of weights, optional
        What an entry is worth; may be negative. Default: absolute values, widened first. The objective W + W.T of
        Hubara et al. 2021 is ``scores=abs(W) + abs(W).T``.
    solver : str or Solver
        Name in the table of solvers; see `nmflow.solvers.names`.
    fill : {"exact", "at-most"}
        Exactly n in every line of a block, or no more than n.
    transposable : bool
        False constrains rows only.
    keep, drop : array of bool, shape of weights, optional
        Entries that must be kept, must be dropped.
    previous : array of bool, shape of weights, optional
        An earlier mask: what it kept is worth `switch_cost` times the mean magnitude of a score more, so the mask
        changes only where that pays. That sum, rounded to float64, is the score that is maximised and proven (integers
        beyond 2^53 are rounded before, too).
    switch_cost : float, optional
        At least 0; goes with `previous`.
    start : array of bool, shape of weights, optional
        A mask to improve, for ``solver="local-search"``.
    layout : {None, "conv", "batch"}
        None: a matrix. "conv": (out, in/groups, *kernel), seen as out x (kernel . in). "batch": leading axes
        are separate matrices.
    groups : int
        Convolution groups; blocks do not straddle them.
    threads : int, optional
        Default: the cores that this process may use. The mask does not depend on it.
    duals : bool
        Keep the duals in the solution (8/m bytes an entry, 16/m where they need float64).
    certify : bool
        Prove a bound and a gap for the mask of a solver that is not exact too, which costs as much as solving exactly.
        Masks of exact solvers always have their certificate.
    warm_start : Solution, optional
        Of a problem of the same shape and pattern, made with ``duals=True``, for ``solver="dual"``: its duals are where
        the search starts, which is faster where scores changed little. Blocks of up to 8 x 8 and rows alone take no
        longer from nothing, so there its numbers are not read. The objective does not depend on it; which of several
        best masks is returned can.
    out : ndarray of bool, shape of weights, optional
        Where to write the mask, for callers who refresh one often; undefined after an error. It must lie apart from all
        that is read. Not with layout="conv".

    Returns
    -------
    Solution

    Raises
    ------
    PatternError
        If the pattern is not one.
    InputTypeError, InputValueError, NonFiniteError
        If an array cannot be used: dtype, rank, emptiness, shape, NaN or infinite scores.
    InfeasibleError
        If keep and drop leave some block without a mask; it names the first and says how many.
    UnknownSolverError, MissingLibraryError, SolverLimitError
        If the solver is not there or cannot take the problem.

    Notes
    -----
    Ragged edges are padded with scores of 0. Beside weights and mask, memory stays under 64 MB plus two bytes a block;
    with ``duals=True`` up to twice the size of the duals comes to that where most scores repeat. Where entries are
    converted or copied, each thread beyond the eighth takes up to 8 MB more.

    Examples
    --------
    >>> import numpy as np
    >>> s = solve(np.array([[4.0, 1.0], [3.0, 2.0]]), 1, 2)
    >>> s.mask.tolist(), s.objective, s.proven
    ([[True, False], [False, True]], 6.0, True)
    """
    chosen = as_pattern(n, m, pattern, row=row, col=col, fill=fill, transposable=transposable)
    method = get(solver)
    check_flags(duals=duals, certify=certify)
    if duals and not (method.exact or certify):
        raise InputValueError(f'certify must be True for the duals of solver="{method.name}", which finds none itself')
    problem = Problem.build(
        weights, chosen, scores=scores, layout=layout, groups=groups, keep=keep, drop=drop, start=start, out=out
    )
    workers = thread_count(threads)
    if previous is not None or switch_cost is not None:
        problem = with_previous(problem, previous, switch_cost, workers)
    if warm_start is not None:
        if not method.warm_starts:
            raise InputValueError(f'warm_start must go with solver="dual", not "{method.name}", which cannot use it')
        problem = replace(problem, warm=earlier_duals(problem, warm_start))
    method.check(problem)
    return run(problem, method, workers, keep_duals=duals, certified=certify)


def certify(
    scores: object,
    mask: object,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    row: str | Budget | None = None,
    col: str | Budget | None = None,
    fill: Fill = "exact",
    transposable: bool = True,
    keep: object | None = None,
    drop: object | None = None,
    layout: str | None = None,
    groups: int = 1,
    threads: int | None = None,
    absolute: bool = False,
) -> Certificate:
    """Grade any mask: feasible or not, kept score, bound on the best one, gap.

    Parameters
    ----------
    scores : array
        What an entry is worth (not its absolute value, unless `absolute`).
    mask : array of bool, same shape
        True = kept; from any tool.
    n, m, pattern, row, col, fill, transposable, keep, drop, layout, groups, threads
        As for `solve`. A mask that keep or drop forbids is graded infeasible.
    absolute : bool
        Take absolute values of `scores`, as `solve` does with weights.

    Returns
    -------
    Certificate
        Its gap is NaN and `feasible` False where the mask breaks the pattern.

    Raises
    ------
    PatternError, InputTypeError, InputValueError, NonFiniteError
        As `solve`; or if `mask` is not boolean, or not of the shape of `scores`.
    InfeasibleError
        If keep and drop leave some block without a mask.

    Notes
    -----
    Duals are found by solving each chunk anew, so grading costs as much as `solve`, and a copy of the mask.

    Examples
    --------
    >>> import numpy as np
    >>> certify(np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[False, True], [True, False]]), 1, 2).gap
    2.0
    """
    check_flags(absolute=absolute)
    chosen = as_pattern(n, m, pattern, row=row, col=col, fill=fill, transposable=transposable)
    problem = Problem.build(
        scores, chosen, scores=None if absolute else scores, layout=layout, groups=groups, keep=keep, drop=drop,
        name="scores",
    )  # fmt: skip
    return grade_mask(problem, as_mask(mask, problem.shape, "mask"), thread_count(threads))


def check_method(solver: str | Solver, threads: int | None) -> None:
    """Raise what `solve` raises for these: at the door of a function that has other work to do first."""
    get(solver)
    thread_count(threads)


# A pattern that was asked for before is the same one: to make it takes as long as to solve a few blocks.
_numbered, _named = lru_cache(typed=True)(Pattern), lru_cache(typed=True)(Pattern.parse)


def as_pattern(
    n: int | None,
    m: int | None,
    pattern: str | Pattern | None,
    *,
    row: str | Budget | None = None,
    col: str | Budget | None = None,
    fill: Fill = "exact",
    transposable: bool = True,
) -> Pattern:
    """The pattern that a caller's arguments name."""
    if pattern is None:
        try:
            return _numbered(n, m, row=row, col=col, fill=fill, transposable=transposable)
        except TypeError:  # what cannot be looked up: its error says more
            return Pattern(n, m, row=row, col=col, fill=fill, transposable=transposable)
    if any(value is not None for value in (n, m, row, col)):
        raise InputValueError("pattern must be given alone, not with n and m or row and col")
    if isinstance(pattern, Pattern):
        if (fill, transposable) != ("exact", True):
            raise InputValueError("fill and transposable must be part of the Pattern, not given beside it")
        return pattern
    try:
        return _named(pattern, fill=fill, transposable=transposable)
    except TypeError:
        return Pattern.parse(pattern, fill=fill, transposable=transposable)
