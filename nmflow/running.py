"""Running a solver over the chunks of a problem, and grading what it gives while it is in cache."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from nmflow.arithmetic import in_plain_arithmetic
from nmflow.arrays import Array
from nmflow.blocks import DROP, FREE, KEEP, Chunk, load, pad, store
from nmflow.certificate import ChunkGrade, Proven, grade
from nmflow.crew import map_on_threads
from nmflow.cutting import Place, places
from nmflow.dual_arrays import DualArrays
from nmflow.duals import Duals
from nmflow.gathered import Part, certificate_of, check_feasible, kept_score
from nmflow.problem import Problem
from nmflow.solution import Certificate, Solution
from nmflow.solvers import get
from nmflow.solvers.base import ChunkSolution, Solver
from nmflow.solvers.open_blocks import room_for_duals
from nmflow.sums import in_range
from nmflow.switching import switch_of
from nmflow.workspace import with_own_workspace, workspace

__all__ = ["grade_mask", "run"]


class _ContradictionError(Exception):
    """Blocks of a chunk that have no mask; it never leaves this module."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = blocks


@in_plain_arithmetic
@with_own_workspace
def run(
    problem: Problem,
    method: Solver,
    threads: int,
    *,
    keep_duals: bool = False,
    certified: bool = False,
) -> Solution:
    """Solve a problem on some threads; `certified`: whether masks of a solver that is not exact are graded too."""
    started = time.perf_counter()
    mask, masks = problem.new_mask()
    matrices = problem.matrices(problem.scores)
    duals = DualArrays(problem) if keep_duals else None
    certified = certified or method.exact
    cut = places(problem, shared=method.shares_chunks)
    at_once, each = cut.threads(threads)

    def work(place: Place) -> Part:
        chunk = load(problem, matrices, masks, place, None if duals is None else (duals.row, duals.col), each)
        if certified:
            evidence, graded, counts = _settled_and_graded(problem, chunk, method)
            if duals is not None:
                duals.store(chunk, evidence)
            part = _part(chunk, graded.objective, graded, counts)
        else:
            solution = _solved(problem, chunk, method)
            part = _part(chunk, _kept(chunk), None, solution.counts)
        store(chunk, masks)
        return part

    parts = map_on_threads(partial(_tried, work), cut.all, at_once)
    check_feasible(problem, cut, parts)
    row_duals, col_duals = (None, None) if duals is None else duals.complete()
    certificate = certificate_of(problem, cut, parts) if certified else None
    counts = Counter[str]()
    for part in parts:
        counts.update(part.counts)
    stats = {**counts, "blocks": cut.n_blocks, "threads": threads, "seconds": time.perf_counter() - started}
    return Solution(
        mask=mask,
        objective=kept_score(parts) if certificate is None else certificate.objective,
        certificate=certificate,
        solver=method.name,
        pattern=problem.pattern,
        switch=None if problem.previous is None else switch_of(problem, masks, problem.previous, threads),
        row_duals=row_duals,
        col_duals=col_duals,
        stats=stats,
    )


@in_plain_arithmetic
@with_own_workspace
def grade_mask(problem: Problem, mask: Array, threads: int) -> Certificate:
    """Grade a mask of the problem's shape, by duals of best masks."""
    if problem.layout == "conv" or mask.strides[-1] != 1:  # the entries of a row
        whole, masks = problem.new_mask()
        whole[...] = mask
    else:
        masks = tuple(matrix.array for matrix in problem.matrices(mask))
    method, matrices = get("dual"), problem.matrices(problem.scores)
    cut = places(problem, shared=method.shares_chunks, graded=True)
    at_once, each = cut.threads(threads)

    def work(place: Place) -> Part:
        chunk = load(problem, matrices, masks, place, threads=each)
        if place.padded:  # the real entries are as given; the padding takes what is left, as a free choice
            return _certify_edge(problem, chunk, masks, method)
        graded = grade(chunk, _best_duals(problem, chunk))
        return _part(chunk, graded.objective, graded, {})

    parts = map_on_threads(partial(_tried, work), cut.all, at_once)
    check_feasible(problem, cut, parts)
    return certificate_of(problem, cut, parts)


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
        duals, graded = _refined(chunk, method, duals, graded, solution.proven)
        if len(graded.unproven) and method != get("dual"):
            # the evidence of this solver proves too little; any duals may grade its mask
            duals = _best_duals(problem, chunk)
            graded = grade(chunk, duals)
    if duals.special:
        counts["integers"] = len(duals.special)
    return duals, graded, counts


def _refined(
    chunk: Chunk, method: Solver, duals: Duals, graded: ChunkGrade, proven: Proven | None
) -> tuple[Duals, ChunkGrade]:
    """Solve what is not proven in ever more exact arithmetic, until it is."""
    for refined in method.refine(chunk, graded.unproven, duals):
        duals, graded = refined, grade(chunk, refined, proven)
        if not len(graded.unproven):
            break
    return duals, graded


def _best_duals(problem: Problem, chunk: Chunk) -> Duals:
    """Optimal duals of a chunk, whatever its mask: they give the best bound on it."""
    mask = workspace("graded mask", chunk.mask.size, np.bool_).reshape(chunk.mask.shape)
    best = replace(chunk, mask=mask, duals=room_for_duals(chunk))
    method = get("dual")
    duals, _, counts = _settled_and_graded(problem, best, method)
    if counts.get("rounded"):  # whole numbers proved these blocks; what became of their duals may prove nothing
        duals, _ = _refined(best, method, duals, grade(best, duals), None)
    return duals


def _part(chunk: Chunk, objective: float, graded: ChunkGrade | None, counts: Mapping[str, int]) -> Part:
    """What is known of a chunk; its sum is taken anew where it went beyond float64."""
    return Part(chunk.place, graded, counts, *in_range(objective, lambda: _values(chunk)[chunk.mask]))


def _kept(chunk: Chunk) -> float:
    """Kept score of a chunk, summed in float64 in a fixed order."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(_values(chunk), dtype=np.float64, where=chunk.mask))


def _values(chunk: Chunk) -> Array:
    """The scores of a chunk, in a dtype that can be added up."""
    values = chunk.scores if chunk.kind in ("float32", "float64") else chunk.source.astype(np.float32)
    return np.abs(values) if chunk.absolute else values


def _certify_edge(problem: Problem, chunk: Chunk, masks: tuple[Array, ...], method: Solver) -> Part:
    """Grade edge blocks: the padding completes the given mask in any way that the pattern allows."""
    place, mask = chunk.place, masks[chunk.place.matrix]
    part = mask[place.area]
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
    graded = grade(chunk, _best_duals(problem, chunk))
    return _part(chunk, graded.objective, graded, {})


def _tried(work: Callable[[Place], Part], place: Place) -> Part:
    """The work on a place; blocks without a mask are a result, since the error counts all of them."""
    try:
        return work(place)
    except _ContradictionError as found:
        return Part(place, infeasible=found.blocks)
