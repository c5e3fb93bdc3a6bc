"""solve() and certify(): Problem -> chunks -> solver -> certificate -> Solution.

(No module is named like a public function: a lazy ``nmflow.solve`` would turn into the module.)
"""

from __future__ import annotations

import math
import operator
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from nmflow.blocks import (
    DROP,
    FREE,
    KEEP,
    Chunk,
    Grid,
    Place,
    block_numbers,
    grids,
    iter_places,
    load,
    pad,
    region,
    store,
)
from nmflow.certificate import ChunkGrade, Duals, grade
from nmflow.errors import InfeasibleError, InputValueError
from nmflow.pattern import Pattern
from nmflow.problem import Array, Problem, as_mask
from nmflow.solution import Certificate, Solution, Status
from nmflow.solvers import get
from nmflow.solvers.base import Solver

__all__ = ["as_pattern", "certify", "solve"]

Item, Result = TypeVar("Item"), TypeVar("Result")


def solve(
    weights: object,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    scores: object | None = None,
    solver: str | Solver = "dual",
    fill: str = "exact",
    transposable: bool = True,
    layout: str | None = None,
    groups: int = 1,
    threads: int | None = None,
    duals: bool = False,
) -> Solution:
    """Find the best N:M mask of a weight matrix, with a proof.

    Maximises the sum of scores kept, with n kept of every m consecutive entries in rows and in columns.

    Parameters
    ----------
    weights : array, shape (R, C) or as `layout` says
        float16, bfloat16, float32, float64 or integers to 64 bits; any strides; read-only arrays too.
    n, m : int
        Keep n of m, 1 <= n <= m <= 64. Instead: ``pattern="2:4"`` or a Pattern.
    scores : array of the shape of weights, optional
        What an entry is worth; may be negative. Default: absolute values, widened first.
    solver : str or Solver
        Name in the table of solvers; see `nmflow.solvers.names`.
    fill : {"exact", "at-most"}
        Exactly n in every line of a block, or no more than n.
    transposable : bool
        False constrains rows only.
    layout : {None, "conv", "batch"}
        None: a matrix. "conv": (out, in/groups, *kernel), seen as out x (kernel . in). "batch": leading axes
        are separate matrices.
    groups : int
        Convolution groups; blocks do not straddle them.
    threads : int, optional
        Default: the cores that this process may use. The mask does not depend on it.
    duals : bool
        Keep the duals in the solution (16/m bytes an entry).

    Returns
    -------
    Solution

    Raises
    ------
    PatternError
        If the pattern is not one.
    InputTypeError, InputValueError, NonFiniteError
        If an array cannot be used: dtype, rank, emptiness, shape, NaN or infinite scores.
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
    chosen = as_pattern(n, m, pattern, fill=fill, transposable=transposable)
    method = get(solver)
    problem = Problem.build(weights, chosen, scores=scores, layout=layout, groups=groups)
    method.check(problem)
    return _run(problem, method, _threads(threads), keep_duals=duals)


def certify(
    scores: object,
    mask: object,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    fill: str = "exact",
    transposable: bool = True,
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
    n, m, pattern, fill, transposable, layout, groups, threads
        As for `solve`.
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
    chosen = as_pattern(n, m, pattern, fill=fill, transposable=transposable)
    if absolute:
        problem = Problem.build(scores, chosen, layout=layout, groups=groups)
    else:
        problem = Problem.build(scores, chosen, scores=scores, layout=layout, groups=groups)
    given = as_mask(mask, problem.shape, "mask")
    problem_mask, masks = problem.new_mask()
    problem_mask[...] = given
    method = get("dual")

    def work(place: Place) -> _Part:
        chunk = load(problem, matrices, masks, place)
        if place.padded:  # the real entries are as given; the padding takes what is left, as a free choice
            return _certify_edge(problem, chunk, masks, method)
        best = replace(chunk, mask=np.empty(chunk.mask.shape, np.bool_))
        return _Part(place, grade(chunk, _settled_and_graded(problem, best, method, place)[0]), {})

    matrices = problem.matrices(problem.scores)
    parts = _map(work, list(iter_places(problem)), _threads(threads))
    return _certificate(problem, parts)


def as_pattern(
    n: int | None, m: int | None, pattern: str | Pattern | None, *, fill: str = "exact", transposable: bool = True
) -> Pattern:
    """The pattern that a caller's arguments name."""
    if pattern is None:
        return Pattern(n, m, fill=fill, transposable=transposable)
    if n is not None or m is not None:
        raise InputValueError("pattern must be given alone, not with n and m")
    if isinstance(pattern, Pattern):
        if (fill, transposable) != ("exact", True):
            raise InputValueError("fill and transposable must be part of the Pattern, not given beside it")
        return pattern
    return Pattern.parse(pattern, fill=fill, transposable=transposable)


@dataclass(frozen=True, slots=True)
class _Part:
    place: Place
    grade: ChunkGrade
    counts: dict[str, int]


def _run(problem: Problem, method: Solver, threads: int, *, keep_duals: bool) -> Solution:
    started = time.perf_counter()
    mask, masks = problem.new_mask()
    matrices = problem.matrices(problem.scores)
    duals = _new_duals(problem) if keep_duals else None
    all_grids = grids(problem)

    def work(place: Place) -> _Part:
        chunk = load(problem, matrices, masks, place)
        evidence, graded, counts = _settled_and_graded(problem, chunk, method, place)
        store(chunk, masks)
        if duals is not None:
            _store_duals(duals, chunk, evidence, all_grids[place.matrix])
        return _Part(place, graded, counts)

    parts = _map(work, list(iter_places(problem)), threads)
    certificate = _certificate(problem, parts)
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    stats = {**counts, "threads": threads, "seconds": time.perf_counter() - started}
    row, col = (None, None) if duals is None else (_single(duals[0]), _single(duals[1]))
    return Solution(mask, certificate, method.name, problem.pattern, row, col, stats)


def _settled_and_graded(
    problem: Problem, chunk: Chunk, method: Solver, place: Place
) -> tuple[Duals, ChunkGrade, dict[str, int]]:
    """Solve a chunk and grade it; what an exact solver leaves unproven is solved again in exact arithmetic."""
    if not method.checks_finite and not np.isfinite(chunk.source).all():
        raise problem.non_finite_error()
    solution = method.solve(chunk)
    if not solution.finite:
        raise problem.non_finite_error()
    if solution.infeasible:
        raise _infeasible(problem, chunk, solution.infeasible, place)
    duals, counts = solution.duals, dict(solution.counts)
    graded = grade(chunk, duals)
    if len(graded.unproven) and method.exact:
        counts["refined"] = len(graded.unproven)
        for refined in method.refine(chunk, graded.unproven, duals):
            duals, graded = refined, grade(chunk, refined)
            if not len(graded.unproven):
                break
        if len(graded.unproven) and method.name != "dual":
            # the evidence of this solver proves too little; any duals may grade its mask
            best = replace(chunk, mask=np.empty(chunk.mask.shape, np.bool_))
            duals = _settled_and_graded(problem, best, get("dual"), place)[0]
            graded = grade(chunk, duals)
        if duals.special:
            counts["integers"] = len(duals.special)
    return duals, graded, counts


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
    best = replace(chunk, mask=np.empty(chunk.mask.shape, np.bool_))
    duals = _settled_and_graded(problem, best, method, place)[0]
    return _Part(place, grade(chunk, duals), {})


def _infeasible(problem: Problem, chunk: Chunk, blocks: Sequence[int], place: Place) -> InfeasibleError:
    i, j = divmod(blocks[0], chunk.place.block_cols.stop - chunk.place.block_cols.start)
    rows, cols = chunk.pattern.block_shape
    where = f"rows {(place.block_rows.start + i) * rows}.., columns {(place.block_cols.start + j) * cols}.."
    return InfeasibleError(
        f"keep and drop must leave a mask of pattern {chunk.pattern}, not contradict it as in {len(blocks)} blocks here, "
        f"the first at {where} of matrix {place.matrix}; keep fewer or drop fewer there, or use fill='at-most'"
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


def _map(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Apply `work` to all items on our own threads, in any order; results in the items' order.

    A pool for each call: one kept for later would be dead in a forked child.
    """
    threads = min(threads, len(items))
    if threads == 1:
        return [work(item) for item in items]
    results: list[Any] = [None] * len(items)
    numbers, lock, stop = iter(range(len(items))), threading.Lock(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = work(items[number])
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(threads - 1, "nmflow") as pool:
        futures = [pool.submit(run) for _ in range(threads - 1)]
        run()
        for future in futures:
            future.result()
    return results


def _certificate(problem: Problem, parts: Sequence[_Part]) -> Certificate:
    """Put the grades of all chunks together; sums are taken in a fixed order."""
    all_grids = grids(problem)
    last = all_grids[-1]
    status = np.empty(last.start + last.rows * last.cols, np.uint8)
    numbers, gaps = [], []
    for part in parts:
        place, grid = part.place, all_grids[part.place.matrix]
        view = status[grid.start : grid.start + grid.rows * grid.cols].reshape(grid.rows, grid.cols)
        target = view[place.block_rows, place.block_cols]
        target[...] = part.grade.status.reshape(target.shape)
        if len(part.grade.unproven):
            numbers.append(block_numbers(place, grid)[part.grade.unproven])
            gaps.append(part.grade.gaps)
    unproven = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
    all_gaps = np.concatenate(gaps) if gaps else np.empty(0)
    order = np.argsort(unproven, kind="stable")
    objective = math.fsum(part.grade.objective for part in parts)
    gap = math.fsum(all_gaps[order]) if len(all_gaps) else 0.0
    # an infeasible mask has no gap, but what its feasible blocks could gain is still known: the bound is left open
    bound = objective + gap
    return Certificate(
        problem.pattern, objective, gap, bound, status, unproven[order], all_gaps[order],
        tuple((grid.rows, grid.cols) for grid in all_grids),
    )  # fmt: skip


def _new_duals(problem: Problem) -> tuple[list[Array], list[Array]]:
    rows, cols = problem.pattern.block_shape
    all_grids = grids(problem)
    return (
        [np.zeros((grid.rows * rows, grid.cols)) for grid in all_grids],
        [np.zeros((grid.rows, grid.cols * cols)) for grid in all_grids],
    )


def _store_duals(target: tuple[list[Array], list[Array]], chunk: Chunk, duals: Duals, grid: Grid) -> None:
    rows, cols = chunk.pattern.block_shape
    place = chunk.place
    u, v = duals.gather(chunk, np.arange(chunk.n_blocks))
    tall = place.block_rows.stop - place.block_rows.start
    wide = place.block_cols.stop - place.block_cols.start
    all_u = target[0][place.matrix].reshape(grid.rows, rows, grid.cols)
    all_v = target[1][place.matrix].reshape(grid.rows, grid.cols, cols)
    all_u[place.block_rows, :, place.block_cols] = u.reshape(tall, wide, rows).transpose(0, 2, 1)
    all_v[place.block_rows, place.block_cols] = v.reshape(tall, wide, cols)


def _single(arrays: list[Array]) -> Array | tuple[Array, ...]:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)
