"""solve() and certify(): Problem -> chunks -> solver -> certificate -> Solution.

(No module is named like a public function: a lazy ``nmflow.solve`` would turn into the module.)
"""

from __future__ import annotations

import math
import operator
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nmflow.blocks import (
    DROP,
    FREE,
    KEEP,
    Chunk,
    Place,
    block_numbers,
    caller_grids,
    grids,
    iter_places,
    load,
    pad,
    region,
    store,
)
from nmflow.certificate import ChunkGrade, Duals, grade
from nmflow.crew import map_on_threads
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError
from nmflow.pattern import Budget, Pattern
from nmflow.problem import Array, Problem, as_mask
from nmflow.reading import kind_of, work_dtype
from nmflow.solution import Certificate, Solution
from nmflow.solvers import get
from nmflow.solvers.base import ChunkSolution, Solver
from nmflow.switching import switch_of, with_previous

__all__ = ["as_pattern", "certify", "solve"]


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
    fill: str = "exact",
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
        changes only where that pays. That sum, rounded once to float64, is the score that is maximised and proven.
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
        the search starts, which is faster where scores changed little. The objective does not depend on it; which of
        several best masks is returned can.
    out : ndarray of bool, shape of weights, optional
        Where to write the mask, for callers who refresh one often; undefined after an error. Not with layout="conv".

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
    Ragged edges are padded with scores of 0. Beside weights and mask, memory stays under 64 MB plus two bytes a block.

    Examples
    --------
    >>> import numpy as np
    >>> s = solve(np.array([[4.0, 1.0], [3.0, 2.0]]), 1, 2)
    >>> s.mask.tolist(), s.objective, s.certificate.proven
    ([[True, False], [False, True]], 6.0, True)
    """
    chosen = as_pattern(n, m, pattern, row=row, col=col, fill=fill, transposable=transposable)
    method = get(solver)
    if duals and not (method.exact or certify):
        raise InputValueError(f'certify must be True for the duals of solver="{method.name}", which finds none itself')
    problem = Problem.build(
        weights, chosen, scores=scores, layout=layout, groups=groups, keep=keep, drop=drop, start=start, out=out
    )
    workers = _threads(threads)
    if previous is not None or switch_cost is not None:
        problem = with_previous(problem, previous, switch_cost, workers)
    if warm_start is not None:
        problem = replace(problem, warm=_warm(problem, warm_start, method))
    method.check(problem)
    return _run(problem, method, workers, keep_duals=duals, certified=certify)


def certify(
    scores: object,
    mask: object,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    row: str | Budget | None = None,
    col: str | Budget | None = None,
    fill: str = "exact",
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

    Notes
    -----
    Duals are found by solving each chunk anew, so grading costs as much as `solve`.

    Examples
    --------
    >>> import numpy as np
    >>> certify(np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[False, True], [True, False]]), 1, 2).gap
    2.0
    """
    chosen = as_pattern(n, m, pattern, row=row, col=col, fill=fill, transposable=transposable)
    problem = Problem.build(
        scores, chosen, scores=None if absolute else scores, layout=layout, groups=groups, keep=keep, drop=drop
    )
    given = as_mask(mask, problem.shape, "mask")
    problem_mask, masks = problem.new_mask()
    problem_mask[...] = given
    method = get("dual")

    def work(place: Place) -> _Part:
        chunk = load(problem, matrices, masks, place)
        if place.padded:  # the real entries are as given; the padding takes what is left, as a free choice
            return _certify_edge(problem, chunk, masks, method)
        return _Part(place, grade(chunk, _best_duals(problem, chunk)), {})

    matrices = problem.matrices(problem.scores)
    parts = map_on_threads(_feasible(work), list(iter_places(problem)), _threads(threads))
    _check_feasible(problem, parts)
    return _certificate(problem, parts)


def as_pattern(
    n: int | None,
    m: int | None,
    pattern: str | Pattern | None,
    *,
    row: str | Budget | None = None,
    col: str | Budget | None = None,
    fill: str = "exact",
    transposable: bool = True,
) -> Pattern:
    """The pattern that a caller's arguments name."""
    if pattern is None:
        return Pattern(n, m, row=row, col=col, fill=fill, transposable=transposable)
    if any(value is not None for value in (n, m, row, col)):
        raise InputValueError("pattern must be given alone, not with n and m or row and col")
    if isinstance(pattern, Pattern):
        if (fill, transposable) != ("exact", True):
            raise InputValueError("fill and transposable must be part of the Pattern, not given beside it")
        return pattern
    return Pattern.parse(pattern, fill=fill, transposable=transposable)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is known of a chunk: its grade, or only what it keeps; or the blocks that have no mask.

    `apart`: blocks whose duals are still to be stored, and these.
    """

    place: Place
    grade: ChunkGrade | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    objective: float = 0.0
    infeasible: Sequence[int] = ()
    apart: tuple[Array, Array, Array] | None = None


class _ContradictionError(Exception):
    """Blocks of a chunk that have no mask; it never leaves this module."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = blocks


def _run(
    problem: Problem,
    method: Solver,
    threads: int,
    *,
    keep_duals: bool = False,
    certified: bool = False,
) -> Solution:
    started = time.perf_counter()
    mask, masks = problem.new_mask()
    matrices = problem.matrices(problem.scores)
    duals = _new_duals(problem) if keep_duals else None
    certified = certified or method.exact

    def work(place: Place) -> _Part:
        chunk = load(problem, matrices, masks, place, duals)
        if certified:
            evidence, graded, counts = _settled_and_graded(problem, chunk, method)
            apart = None if duals is None else _store_duals(duals, chunk, evidence)
            part = _Part(place, graded, counts, graded.objective, apart=apart)
        else:
            part = _Part(place, None, _solved(problem, chunk, method).counts, _kept(chunk))
        store(chunk, masks)
        return part

    parts = map_on_threads(_feasible(work), list(iter_places(problem)), threads)
    _check_feasible(problem, parts)
    if duals is not None:
        duals = _complete(problem, duals, parts)
    certificate = _certificate(problem, parts) if certified else None
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    last = grids(problem)[-1]
    stats = {
        **counts,
        "blocks": last.start + last.rows * last.cols,
        "threads": threads,
        "seconds": time.perf_counter() - started,
    }
    return Solution(
        mask=mask,
        objective=_sum(part.objective for part in parts),
        certificate=certificate,
        solver=method.name,
        pattern=problem.pattern,
        switch=None if problem.previous is None else switch_of(problem, masks, problem.previous, threads),
        row_duals=None if duals is None else _apart(problem, duals[0]),
        col_duals=None if duals is None else _apart(problem, duals[1]),
        stats=stats,
    )


def _solved(problem: Problem, chunk: Chunk, method: Solver) -> ChunkSolution:
    """Solve a chunk; scores that are not finite are an error, and blocks without a mask an exception of ours."""
    if not method.checks_finite and not np.isfinite(chunk.source).all():
        raise problem.non_finite_error()
    solution = method.solve(chunk)
    if not solution.finite:
        raise problem.non_finite_error()
    if solution.infeasible:
        raise _ContradictionError(solution.infeasible)
    return solution


def _settled_and_graded(problem: Problem, chunk: Chunk, method: Solver) -> tuple[Duals, ChunkGrade, dict[str, int]]:
    """Solve a chunk and grade it; what an exact solver leaves unproven is solved again in exact arithmetic."""
    solution = _solved(problem, chunk, method)
    duals, counts = solution.duals, dict(solution.counts)
    if not method.exact and duals.row is None and not duals.special:
        duals = _best_duals(problem, chunk)
    graded = grade(chunk, duals, solution.proven)
    if len(graded.unproven) and method.exact:
        counts["refined"] = len(graded.unproven)
        for refined in method.refine(chunk, graded.unproven, duals):
            duals, graded = refined, grade(chunk, refined, solution.proven)
            if not len(graded.unproven):
                break
        if len(graded.unproven) and method.name != "dual":
            # the evidence of this solver proves too little; any duals may grade its mask
            duals = _best_duals(problem, chunk)
            graded = grade(chunk, duals)
        if duals.special:
            counts["integers"] = len(duals.special)
    return duals, graded, counts


def _warm(problem: Problem, earlier: Solution, method: Solver) -> tuple[Array, ...]:
    """The column duals of an earlier solution, checked to be those of a problem like this one."""
    if not isinstance(earlier, Solution):
        raise InputTypeError(f"warm_start must be a Solution, not {type(earlier).__name__}; pass what solve returned")
    if method.name != "dual":
        raise InputValueError(f'warm_start must go with solver="dual", not "{method.name}", which starts from nothing')
    if earlier.row_duals is None or earlier.col_duals is None:
        raise InputValueError("warm_start must hold duals, not None; call solve with duals=True for it")
    if earlier.pattern != problem.pattern:
        raise InputValueError(f"warm_start must have pattern {problem.pattern}, not {earlier.pattern}; solve anew")
    sides = tuple(side if isinstance(side, tuple) else (side,) for side in (earlier.row_duals, earlier.col_duals))
    rows, cols = problem.pattern.block_shape
    shapes = [((g.rows * rows, g.cols), (g.rows, g.cols * cols)) for g in caller_grids(problem)]
    if [(u.shape, v.shape) for u, v in zip(*sides, strict=True)] != shapes:
        raise InputValueError(f"warm_start must be of a problem of shape {problem.shape}, not of another; solve anew")
    for side in sides:
        if not all(_finite(part) for part in side):
            raise InputValueError("warm_start must hold finite duals, not NaN or infinite ones; solve anew")
    return sides[1] if problem.stack == 1 else (np.concatenate(sides[1]),)


def _finite(values: Array) -> bool:
    """Whether all numbers are finite: told by their sum, unless that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def _best_duals(problem: Problem, chunk: Chunk) -> Duals:
    """Optimal duals of a chunk, whatever its mask: they give the best bound on it."""
    best = replace(chunk, mask=np.empty(chunk.mask.shape, np.bool_), duals=chunk.room_for_duals())
    return _settled_and_graded(problem, best, get("dual"))[0]


def _kept(chunk: Chunk) -> float:
    """Kept score of a chunk, summed in float64 in a fixed order."""
    values = chunk.scores if chunk.kind in ("float32", "float64") else chunk.source.astype(np.float32)
    with np.errstate(over="ignore"):  # float64 scores can add up to more than it holds
        return float(np.sum(np.abs(values) if chunk.absolute else values, dtype=np.float64, where=chunk.mask))


def _sum(values: Iterable[float]) -> float:
    """Sum, correctly rounded; infinite where it is beyond float64."""
    listed = list(values)
    try:
        return math.fsum(listed)
    except OverflowError:
        return math.copysign(math.inf, math.fsum(value / len(listed) for value in listed))


def _certify_edge(problem: Problem, chunk: Chunk, masks: tuple[Array, ...], method: Solver) -> _Part:
    """Grade edge blocks: the padding completes the given mask in any way that the pattern allows."""
    place, mask = chunk.place, masks[chunk.place.matrix]
    part = mask[region(place, chunk.pattern, mask.shape)]
    given, real = pad(part, chunk.pattern), pad(np.ones_like(part), chunk.pattern)
    state = np.where(real, np.where(given, KEEP, DROP), FREE).astype(np.int8)
    chunk.mask[...] = given
    if chunk.pattern.fill == "exact":
        whole = replace(chunk, mask=np.zeros(chunk.mask.shape, np.bool_), state=state)
        failed = set(method.solve(whole).infeasible)
        for block in range(chunk.n_blocks):
            if block not in failed:
                corner = chunk.corner(block)
                chunk.mask[corner] = whole.mask[corner]
    return _Part(place, grade(chunk, _best_duals(problem, chunk)), {})


def _feasible(work: Callable[[Place], _Part]) -> Callable[[Place], _Part]:
    """The same work, where blocks without a mask are a result: the error is to count those of all chunks."""

    def guarded(place: Place) -> _Part:
        try:
            return work(place)
        except _ContradictionError as found:
            return _Part(place, infeasible=found.blocks)

    return guarded


def _check_feasible(problem: Problem, parts: Sequence[_Part]) -> None:
    """Raise InfeasibleError if some block has no mask."""
    if not any(part.infeasible for part in parts):
        return
    inner, all_grids = grids(problem), caller_grids(problem)
    numbers = sorted(
        int(number)
        for part in parts
        if part.infeasible
        for number in block_numbers(part.place, inner[part.place.matrix])[list(part.infeasible)]
    )
    matrix = next(k for k, grid in enumerate(all_grids) if numbers[0] < grid.start + grid.rows * grid.cols)
    i, j = divmod(numbers[0] - all_grids[matrix].start, all_grids[matrix].cols)
    rows, cols = problem.pattern.block_shape
    where = f"rows {i * rows} to {(i + 1) * rows - 1}, columns {j * cols} to {(j + 1) * cols - 1} of matrix {matrix}"
    easier = "" if problem.pattern.fill == "at-most" else ', or use fill="at-most"'
    raise InfeasibleError(
        f"keep and drop must leave a mask of pattern {problem.pattern}, not contradict it as in {len(numbers)} of "
        f"{all_grids[-1].start + all_grids[-1].rows * all_grids[-1].cols} blocks, the first at {where}; "
        f"mark fewer entries there{easier}"
    )


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        count = operator.index(threads)
    except TypeError:
        raise InputValueError(f"threads must be a whole number, not {threads!r}") from None
    if count < 1:
        raise InputValueError(f"threads must be at least 1, not {count}")
    return count


def _certificate(problem: Problem, parts: Sequence[_Part]) -> Certificate:
    """Put the grades of all chunks together; sums are taken in a fixed order."""
    all_grids = grids(problem)
    last = all_grids[-1]
    # untouched where all is proven: then the system gives it no memory
    status = np.zeros(last.start + last.rows * last.cols, np.uint8)
    numbers, gaps = [], []
    for part in parts:
        if part.grade is None or not len(part.grade.unproven):
            continue
        place, grid = part.place, all_grids[part.place.matrix]
        view = status[grid.start : grid.start + grid.rows * grid.cols].reshape(grid.rows, grid.cols)
        target = view[place.block_rows, place.block_cols]
        target[...] = part.grade.status.reshape(target.shape)
        numbers.append(block_numbers(place, grid)[part.grade.unproven])
        gaps.append(part.grade.gaps)
    unproven, all_gaps, gap = np.empty(0, np.int64), np.empty(0), 0.0
    if numbers:
        unproven, all_gaps = np.concatenate(numbers), np.concatenate(gaps)
        order = np.argsort(unproven, kind="stable")
        unproven, all_gaps = unproven[order], all_gaps[order]
        gap = _sum(all_gaps)
    objective = _sum(part.grade.objective for part in parts if part.grade is not None)
    # an infeasible mask has no gap, but what its feasible blocks could gain is still known: the bound is left open
    bound = objective + gap
    return Certificate(
        problem.pattern, objective, gap, bound, status, unproven, all_gaps,
        tuple((grid.rows // problem.stack, grid.cols) for grid in all_grids for _ in range(problem.stack)),
    )  # fmt: skip


def _new_duals(problem: Problem) -> tuple[list[Array], list[Array]]:
    rows, cols = problem.pattern.block_shape
    dtype = work_dtype(kind_of(problem))
    all_grids = grids(problem)
    return (
        [np.empty((grid.rows * rows, grid.cols), dtype) for grid in all_grids],
        [np.empty((grid.rows, grid.cols * cols), dtype) for grid in all_grids],
    )


def _store_duals(target: tuple[list[Array], list[Array]], chunk: Chunk, duals: Duals) -> tuple[Array, Array, Array]:
    """Store the duals of most blocks of a chunk; numbers and float64 duals of the others."""
    rows, cols = chunk.pattern.block_shape
    tall, wide = chunk.grid
    if duals.row is None or duals.col is None:
        others = np.arange(chunk.n_blocks)
    else:
        others = duals.apart()
        if chunk.duals is None or not np.shares_memory(chunk.duals[0], target[0][chunk.place.matrix]):
            u = duals.row.reshape(tall, rows, wide).transpose(0, 2, 1)
            v = duals.col.reshape(tall, wide, cols)
            _put_duals(target, chunk.place, np.arange(chunk.n_blocks), u.reshape(-1, rows), v.reshape(-1, cols))
    return others, *duals.gather(chunk, others)


def _put_duals(target: tuple[list[Array], list[Array]], place: Place, blocks: Array, u: Array, v: Array) -> None:
    """Write the duals of some blocks of a place, by their numbers there."""
    wide = place.block_cols.stop - place.block_cols.start
    i, j = np.divmod(blocks, wide)
    i, j = i + place.block_rows.start, j + place.block_cols.start
    all_u, all_v = target[0][place.matrix], target[1][place.matrix]
    all_u.reshape(-1, u.shape[1], all_u.shape[1])[i, :, j] = u
    all_v.reshape(len(all_v), -1, v.shape[1])[i, j] = v


def _complete(
    problem: Problem, duals: tuple[list[Array], list[Array]], parts: Sequence[_Part]
) -> tuple[list[Array], list[Array]]:
    """Put in the duals that stood apart; all are float64 then if one of them needs it."""
    apart = [(part.place, *part.apart) for part in parts if part.apart is not None]
    # where all blocks of a chunk stand apart nothing was written, and what lies there can be any bits
    with np.errstate(over="ignore", invalid="ignore"):
        wide = any((side.astype(np.float32) != side).any() for _, _, *sides in apart for side in sides)
        if wide and duals[0][0].dtype != np.float64:
            duals = [side.astype(np.float64) for side in duals[0]], [side.astype(np.float64) for side in duals[1]]
    for place, blocks, u, v in apart:
        _put_duals(duals, place, blocks, u, v)
    return duals


def _apart(problem: Problem, arrays: list[Array]) -> Array | tuple[Array, ...]:
    """The duals of each matrix of the caller's array; alone if there is one."""
    parts = arrays if problem.stack == 1 else list(arrays[0].reshape(problem.stack, -1, arrays[0].shape[1]))
    return parts[0] if len(parts) == 1 else tuple(parts)
