"""The certificate: grades masks from anywhere, and calls proven only what is.

`certify` is held against enumeration (what the best mask keeps), `grade` against the definition, evaluated in
fractions (what given duals prove).
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import families
import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nmflow
from nmflow import solvers
from nmflow.blocks import KEEP, Chunk, load
from nmflow.certificate import Proven, grade, grade_exactly
from nmflow.cutting import Place, places
from nmflow.duals import BlockDuals, Duals
from nmflow.errors import InputTypeError, InputValueError, SolverLimitError
from nmflow.integers import integers_of
from nmflow.pattern import Pattern
from nmflow.problem import Problem
from nmflow.solution import Status

Array = Any
P24 = Pattern(2, 4)
PATTERNS = [
    P24,
    Pattern(1, 3),
    Pattern(2, 4, fill="at-most"),
    Pattern(2, 4, transposable=False),
    Pattern(1, 4, transposable=False, fill="at-most"),
    Pattern(row="1:2", col="2:4"),
]
small_integers = st.integers(-9, 9)


@cache
def masks_of(pattern: Pattern) -> list[Array]:
    return list(oracles.masks(pattern))


@cache
def feasible_at(pattern: Pattern, shape: tuple[int, int]) -> list[bytes]:
    """Every mask that a block of this real shape, padded, can have."""
    return sorted({np.ascontiguousarray(mask[: shape[0], : shape[1]]).tobytes() for mask in masks_of(pattern)})


# Masks from elsewhere


@st.composite
def graded_blocks(draw: st.DrawFn) -> tuple[Pattern, Array, Array]:
    """A block, cut at an edge or whole, with integer scores and a mask: half of the time a feasible one."""
    pattern = draw(st.sampled_from(PATTERNS))
    rows, cols = pattern.block_shape
    shape = draw(st.integers(1, rows)), draw(st.integers(1, cols))
    scores = draw(hnp.arrays(np.int64, shape, elements=small_integers))
    if draw(st.booleans()):
        raw = draw(st.sampled_from(feasible_at(pattern, shape)))
        return pattern, scores, np.frombuffer(raw, bool).reshape(shape)
    return pattern, scores, draw(hnp.arrays(np.bool_, shape))


@settings(max_examples=400, deadline=None)
@given(graded_blocks())
def test_a_block_is_graded_as_enumeration_grades_it(block: tuple[Pattern, Array, Array]) -> None:
    pattern, scores, mask = block
    certificate = nmflow.certify(scores, mask, pattern=pattern)
    kept = int(scores[mask].sum())
    best = oracles.best_total(oracles.exact(scores, absolute=False), pattern)
    assert certificate.objective == kept
    assert certificate.n_blocks == 1
    assert certificate.feasible == (np.ascontiguousarray(mask).tobytes() in feasible_at(pattern, scores.shape))
    if not certificate.feasible:
        assert math.isnan(certificate.gap)
        assert math.isnan(certificate.relative_gap)
        assert certificate.status.tolist() == [Status.INFEASIBLE]
        assert not certificate.proven
        return
    assert certificate.gap == pytest.approx(float(best - kept), abs=1e-9)
    assert certificate.bound == pytest.approx(float(best), abs=1e-9)
    assert certificate.proven == (kept == best)
    assert certificate.status.tolist() == [Status.PROVEN if kept == best else Status.UNPROVEN]


def test_each_block_has_its_own_grade() -> None:
    """One block of six is poor, one breaks the pattern along a column only, the others stay proven."""
    scores = families.int8((8, 12), 3).astype(np.int16)
    best = nmflow.solve(scores, 2, 4, scores=scores).mask
    mask = best.copy()
    mask[0:4, 4:8] = np.roll(mask[0:4, 4:8], 1, axis=0)
    mask[4:8, 8:12] = [[1, 1, 0, 0]] * 4
    certificate = nmflow.certify(scores, mask, 2, 4)
    assert certificate.status.tolist() == [0, 1, 0, 0, 0, 2]
    assert certificate.unproven.tolist() == [1, 5]
    block = (slice(0, 4), slice(4, 8))
    assert certificate.gaps[0] == scores[block][best[block]].sum() - scores[block][mask[block]].sum()
    assert certificate.gaps[0] > 0
    assert math.isnan(certificate.gaps[1])
    assert math.isnan(certificate.gap)
    assert (certificate.n_blocks, certificate.n_proven) == (6, 4)
    assert not certificate.feasible
    assert not certificate.proven
    assert [certificate.where(number) for number in certificate.unproven] == [(0, 0, 1), (0, 1, 2)]


def test_the_first_block_of_a_batch_and_of_groups_is_found() -> None:
    weights = families.gaussian((3, 8, 8), 0)
    mask = nmflow.solve(weights, 2, 4, layout="batch").mask
    mask[1, 5, 6] ^= True
    certificate = nmflow.certify(weights, mask, 2, 4, layout="batch", absolute=True)
    assert [certificate.where(number) for number in certificate.unproven] == [(1, 1, 1)]
    with pytest.raises(InputValueError, match="number must be from 0 to 11, not 12"):
        certificate.where(12)


@pytest.mark.parametrize("shape", [(5, 6), (3, 9), (1, 1), (9, 2)], ids=str)
def test_ragged_edges(shape: tuple[int, int]) -> None:
    """A line at the edge may keep less, where a full mask of the padded block allows it; never more."""
    weights = families.gaussian(shape, 2)
    best = nmflow.solve(weights, 2, 4)
    graded = nmflow.certify(weights, best.mask, 2, 4, absolute=True)
    assert graded.proven
    assert graded.objective == best.objective
    everything = nmflow.certify(weights, np.ones(shape, bool), 2, 4, absolute=True)
    assert everything.feasible == (max(shape) <= 2)


def test_keeping_nothing_is_a_mask_under_at_most_fill_only() -> None:
    weights = families.gaussian((8, 8), 1)
    nothing = np.zeros((8, 8), bool)
    at_most = nmflow.certify(weights, nothing, 2, 4, fill="at-most", absolute=True)
    assert at_most.feasible
    assert at_most.objective == 0.0
    assert at_most.gap == pytest.approx(nmflow.solve(weights, 2, 4, fill="at-most").objective, rel=1e-12)
    assert at_most.relative_gap == pytest.approx(1.0)
    assert not nmflow.certify(weights, nothing, 2, 4, absolute=True).feasible


def test_nothing_to_gain_is_no_gap() -> None:
    certificate = nmflow.certify(np.zeros((4, 4)), np.zeros((4, 4), bool), 2, 4, fill="at-most")
    assert certificate.proven
    assert (certificate.gap, certificate.bound, certificate.relative_gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "scores",
    [
        [[1e300, -1e308], [-1e308, 0.0]],
        [[np.finfo(np.float64).max, -np.finfo(np.float64).max], [0.0, 0.0]],
    ],
    ids=["objective", "gap"],
)
def test_sums_beyond_float64_leave_bounds_that_hold(scores: list[list[float]]) -> None:
    """A mask that keeps to the pattern has a gap and a bound, infinite where no number is large enough."""
    certificate = nmflow.certify(np.array(scores), np.array([[False, True], [True, False]]), 1, 2)
    assert certificate.feasible
    assert not certificate.proven
    assert certificate.gap == math.inf
    assert certificate.bound == math.inf
    assert certificate.relative_gap == math.inf
    poor = nmflow.certify(np.full((2, 2), -1e308), np.eye(2, dtype=bool), 1, 2, fill="at-most")
    assert (poor.objective, poor.gap, poor.bound) == (-math.inf, math.inf, math.inf)  # the best mask keeps nothing


def test_absolute_is_what_solve_maximises() -> None:
    weights = families.gaussian((8, 8), 1)
    mask = nmflow.solve(weights, 2, 4).mask
    assert nmflow.certify(weights, mask, 2, 4, absolute=True).proven
    assert not nmflow.certify(weights, mask, 2, 4).proven
    assert nmflow.certify(np.abs(weights), mask, 2, 4).proven


def test_masks_that_are_refused() -> None:
    weights = np.ones((4, 4))
    with pytest.raises(InputTypeError, match="mask must be boolean, not float64"):
        nmflow.certify(weights, weights, 2, 4)
    with pytest.raises(InputValueError, match=r"mask must have shape \(4, 4\), not \(4, 5\)"):
        nmflow.certify(weights, np.ones((4, 5), bool), 2, 4)


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_the_mask_of_every_solver_is_graded_alike(name: str, fill: str) -> None:
    pattern = Pattern(2, 4, fill=fill)
    weights = families.few_values((9, 10), 4).astype(np.float64) + families.int8((9, 10), 1)
    if fill not in solvers.get(name).fills:
        with pytest.raises(SolverLimitError, match="fill must be"):
            nmflow.solve(weights, pattern=pattern, solver=name)
        return
    solution = nmflow.solve(weights, pattern=pattern, solver=name)
    graded = nmflow.certify(weights, solution.mask, pattern=pattern, absolute=True)
    best = oracles.best_total(oracles.exact(weights), pattern)
    assert graded.feasible
    assert graded.objective == pytest.approx(solution.objective, rel=1e-12)
    assert graded.gap == pytest.approx(float(best) - graded.objective, abs=1e-9)
    if solvers.get(name).exact:
        assert graded.proven


# Where rounding would prove too much


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_huge_score_hides_no_loss_of_a_tiny_one(dtype: Any) -> None:
    """1e30 beside 1e-30: in float64 sums every mask that keeps the large one has a gap of exactly 0."""
    scores = families.huge_among_tiny((4, 4), 0).astype(dtype)
    assert (scores > 1).sum() == 1
    exact = oracles.exact(scores)
    best = nmflow.solve(scores, 2, 4)
    assert best.certificate.proven
    assert exact[best.mask].sum() == oracles.best_score(exact, P24)
    graded = 0
    for mask in masks_of(P24):
        certificate = nmflow.certify(scores, mask, 2, 4)
        loss = Fraction(exact[best.mask].sum() - exact[mask].sum())
        assert certificate.proven == (loss == 0)
        if 0 < loss < 1:
            graded += 1
            assert certificate.objective == best.objective  # the sums can't tell
            assert certificate.gap == pytest.approx(float(loss), rel=1e-6, abs=0)
    assert graded > 10


def test_no_float_duals_prove_this_block() -> None:
    """u and v would need both 2**60 and 2**-60; integers hold them."""
    scores = np.array([[2.0**60, 2.0**60, 0.0], [1.0, 1.0, 2.0**-60], [0.0, 1.0, 2.0**-60]])
    solution = nmflow.solve(scores, 1, 3)
    exact = oracles.exact(scores)
    assert solution.certificate.proven
    assert solution.stats["integers"] == 1
    assert exact[solution.mask].sum() == oracles.best_score(exact, Pattern(1, 3))
    best = Fraction(exact[solution.mask].sum())
    for mask in masks_of(Pattern(1, 3)):
        assert nmflow.certify(scores, mask, 1, 3).proven == (exact[mask].sum() == best)


@pytest.mark.parametrize("name", ["int64_limits", "uint64_limits"])
def test_integers_that_float64_rounds(name: str) -> None:
    """Neighbours that share a float64 differ all the same."""
    weights = families.FAMILIES[name]((4, 4), 1)
    exact = oracles.exact(weights)
    best = oracles.best_score(exact, P24)
    proven = 0
    for mask in masks_of(P24):
        certificate = nmflow.certify(weights, mask, 2, 4, absolute=True)
        assert certificate.proven == (exact[mask].sum() == best)
        proven += certificate.proven
    assert 0 < proven < 90


def rounded_integers(seed: int) -> Array:
    """Integers beyond 2**53 that differ by less than float64 can tell, some beside small ones."""
    rng = np.random.default_rng(seed)
    near = 2 ** rng.integers(53, 62, (15, 1)) + rng.integers(-20, 21, (15, 60))
    return np.where(rng.random(near.shape) < 0.5 * (seed % 2), rng.integers(0, 2048, near.shape), near)


@pytest.mark.parametrize("pattern", [Pattern(1, 2), Pattern(1, 3), Pattern(1, 2, fill="at-most")], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_a_rounded_score_on_a_rounded_sum_of_duals_proves_nothing(pattern: Pattern, seed: int) -> None:
    """Float64 duals lie on scores, so that what rounds alike looks like a tie."""
    scores = rounded_integers(seed)
    solution = nmflow.solve(scores, pattern=pattern, scores=scores)
    exact = oracles.exact(scores, absolute=False)
    assert solution.proven
    assert Fraction(exact[solution.mask].sum()) == oracles.best_total(exact, pattern)


@pytest.mark.parametrize("seed", range(4))
def test_gaps_of_rounded_scores_are_bounds(seed: int) -> None:
    scores, lossy = rounded_integers(seed)[:14], 0
    solution = nmflow.solve(scores, 1, 2, scores=scores, solver="greedy", certify=True)
    grade = solution.certificate
    gaps = dict(zip(grade.unproven.tolist(), grade.gaps.tolist(), strict=True))
    parts = (oracles.blocks(array, Pattern(1, 2)) for array in (oracles.exact(scores, absolute=False), solution.mask))
    for number, ((_, block), (_, mask)) in enumerate(zip(*parts, strict=True)):
        lost = oracles.best_score(block, Pattern(1, 2)) - block[mask].sum()
        assert gaps.get(number, 0.0) == float(lost)
        lossy += lost > 0
    assert lossy


@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_integers_of_all_sizes(fill: str) -> None:
    """Rows with more large scores than they may keep, in Python integers."""
    pattern = Pattern(2, 4, fill=fill)
    info = np.iinfo(np.int64)
    weights = np.random.default_rng(0).integers(info.min, info.max, (8, 8), endpoint=True)
    solution = nmflow.solve(weights, pattern=pattern)
    exact = oracles.exact(weights)
    assert solution.certificate.proven
    assert exact[solution.mask].sum() == oracles.best_total(exact, pattern)


@pytest.mark.parametrize("pattern", ["8:16", "2:4", "1:3"])
@pytest.mark.parametrize("family", ["grid", "bfloat16"])
def test_a_mask_that_is_proven_is_graded_as_proven(family: str, pattern: str) -> None:
    """Also where whole numbers proved it, whose duals are rounded on their way to those of the scores."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-7, 8, (48, 48)) * 0.0137
    if family == "bfloat16":
        weights = rng.choice([1e-10, 1e10], (48, 48)).astype(ml_dtypes.bfloat16)
    solution = nmflow.solve(weights, pattern=pattern)
    graded = nmflow.certify(weights, solution.mask, pattern=pattern, absolute=True)
    assert solution.proven
    assert graded.proven
    assert graded.gap == 0.0


@pytest.mark.parametrize(
    ("scores", "pattern", "total"),
    [
        (np.repeat([1.2e308, -1.2e308], [16, 8]).reshape(6, 4), "4:4", math.inf),
        (np.repeat([1.7e308, -1.7e308], 16).reshape(8, 4), "4:4", 0.0),
        (np.pad([[1.2e308, 1.2e308], [-1.2e308, 0.0]], ((0, 7), (0, 7)), constant_values=1.0), "8:8", 1.2e308),
        (np.pad([[1e308] * 3, [-1e308] * 3], ((0, 6), (0, 5)), constant_values=0.5), "8:8", 29.0),
    ],
)
def test_sums_that_leave_float64_on_the_way(scores: Array, pattern: str, total: float) -> None:
    solution = nmflow.solve(scores, pattern=pattern, scores=scores)
    assert solution.objective == total
    assert solution.proven
    assert nmflow.certify(scores, solution.mask, pattern=pattern).objective == total
    other = nmflow.solve(scores, pattern=pattern, scores=scores, solver="greedy")
    assert other.objective == total
    again = nmflow.solve(scores, pattern=pattern, scores=scores, previous=solution.mask, switch_cost=0.0)
    assert again.switch.kept_score == total


def test_a_bound_is_no_less_than_the_best_score_where_the_objective_is_beyond_float64() -> None:
    crossed = np.array([[0, 1], [1, 0]], bool)
    grade = nmflow.certify(np.array([[-0.5e308, -1e308], [-1e308, -0.5e308]]), crossed, 1, 2)
    assert (grade.objective, grade.gap, grade.bound, grade.relative_gap) == (-math.inf, 1e308, -1e308, 1.0)
    grade = nmflow.certify(np.array([[1e308, 0.5e308], [0.5e308, 1e308]]), crossed, 1, 2)
    assert (grade.objective, grade.gap, grade.bound) == (1e308, 1e308, math.inf)
    assert math.isnan(grade.relative_gap)


def test_where_a_block_lies() -> None:
    grade = nmflow.certify(np.ones((8, 12)), np.ones((8, 12), bool), 4, 4)
    assert grade.where(np.int64(5)) == (0, 1, 2)
    for number in (-1, 6):
        with pytest.raises(InputValueError, match=f"number must be from 0 to 5, not {number}"):
            grade.where(number)
    with pytest.raises(InputTypeError, match=r"number must be a whole number, not 1\.5"):
        grade.where(1.5)


# The definition, in fractions


def chunk_of(scores: Array, pattern: Pattern, mask: Array) -> Chunk:
    problem = Problem.build(scores, pattern, scores=scores)
    matrices = problem.matrices(problem.scores)
    (place,) = places(problem).all
    return load(problem, matrices, (mask.copy(),), place)


@st.composite
def graded_duals(draw: st.DrawFn, dtype: Any, low: float, high: float) -> tuple[Pattern, Array, Array, Array, Array]:
    """A block of one pattern with a feasible mask, and duals among which many lie exactly on a sum."""
    pattern = draw(st.sampled_from([P24, Pattern(2, 4, fill="at-most"), Pattern(2, 4, transposable=False)]))
    width = 8 * np.dtype(dtype).itemsize
    numbers = st.floats(low, high, width=width) | st.integers(-3, 3).map(float)
    shape = pattern.block_shape
    mask = draw(st.sampled_from(masks_of(pattern)))
    u, v = (draw(hnp.arrays(dtype, side, elements=numbers)) for side in shape)
    scores = draw(hnp.arrays(dtype, shape, elements=numbers))
    if draw(st.booleans()):  # signs that fit, by a hair
        up, down = np.dtype(dtype).type(np.inf), np.dtype(dtype).type(-np.inf)
        with np.errstate(over="ignore"):
            sums = u[:, None] + v[None, :]
        near = [sums, np.nextafter(sums, up), np.nextafter(sums, down)]
        chosen = draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 3)))
        for k, values in enumerate(near):
            scores = np.where((chosen == k) & np.isfinite(values), values, scores)
        if draw(st.booleans()):
            scores = np.where(np.isfinite(sums), np.where(mask, np.maximum(scores, sums), np.minimum(scores, sums)), 0)
            scores = scores.astype(dtype)
    return pattern, scores, mask, u, v


def hold_to_the_definition(
    pattern: Pattern, scores: Array, mask: Array, u: Array, v: Array, status: int, gap: float
) -> None:
    exact = oracles.exact(scores, absolute=False)
    left, right = oracles.exact(u, absolute=False), oracles.exact(v, absolute=False)
    assert (status == Status.PROVEN) == oracles.proves(exact, mask, pattern, left, right)
    bound = oracles.dual_bound(exact, pattern, left, right)
    free_columns = pattern.col is None
    if free_columns and any(right):
        bound = None  # a line without a budget has no dual
    if bound is None:
        assert status == Status.UNPROVEN
        assert gap == math.inf
    else:
        slack = bound - exact[mask].sum()
        assert slack >= 0
        assert gap == pytest.approx(float(slack), rel=1e-12, abs=1e-320) if slack < 1e308 else gap > 1e307


@settings(max_examples=300, deadline=None)
@given(graded_duals(np.float32, -8, 8) | graded_duals(np.float32, -(2.0**126), 2.0**126))
def test_float32_duals_prove_what_they_prove(case: tuple[Pattern, Array, Array, Array, Array]) -> None:
    pattern, scores, mask, u, v = case
    graded = grade(chunk_of(scores, pattern, mask), Duals(u[:, None].copy(), v[None, :].copy()))
    gap = float(graded.gaps[0]) if len(graded.gaps) else 0.0
    if pattern.col is None and v.any():  # nothing is proven by duals of columns that have no budget
        assert graded.status[0] != Status.PROVEN
        return
    hold_to_the_definition(pattern, scores, mask, u, v, int(graded.status[0]), gap)


@settings(max_examples=300, deadline=None)
@given(graded_duals(np.float64, -8, 8) | graded_duals(np.float64, -1e300, 1e300))
def test_float64_duals_prove_what_they_prove(case: tuple[Pattern, Array, Array, Array, Array]) -> None:
    pattern, scores, mask, u, v = case
    none = np.full((len(u), 1), np.nan), np.full((1, len(v)), np.nan)  # these prove nothing
    duals = Duals(*none, np.array([0]), u[None].copy(), v[None].copy())
    graded = grade(chunk_of(scores, pattern, mask), duals)
    gap = float(graded.gaps[0]) if len(graded.gaps) else 0.0
    hold_to_the_definition(pattern, scores, mask, u, v, int(graded.status[0]), gap)


@settings(max_examples=200, deadline=None)
@given(graded_duals(np.float64, -8, 8) | graded_duals(np.float64, -1e300, 1e300), st.booleans())
def test_integer_duals_prove_what_they_prove(
    case: tuple[Pattern, Array, Array, Array, Array], as_integers: bool
) -> None:
    pattern, scores, mask, u, v = case
    numbers, exponent = integers_of(scores)
    if as_integers:
        both, power = integers_of(np.concatenate([u, v]))
        duals = BlockDuals(both[: len(u)], both[len(u) :], power)
    else:
        duals = BlockDuals(u, v)
    status, gap = grade_exactly(numbers, exponent, mask, duals, pattern, None)
    hold_to_the_definition(pattern, scores, mask, u, v, status, gap)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_integers_grade_fixed_entries_and_bad_masks(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from([P24, Pattern(2, 4, fill="at-most")]))
    numbers = data.draw(hnp.arrays(np.int64, (4, 4), elements=small_integers))
    mask = data.draw(hnp.arrays(np.bool_, (4, 4)) | st.sampled_from(masks_of(pattern)))
    state = data.draw(hnp.arrays(np.int8, (4, 4), elements=st.sampled_from([0, 0, 0, 0, 0, 1, -1])))
    if data.draw(st.booleans()):  # a state that the mask obeys
        state = np.where(mask, np.abs(state), -np.abs(state)).astype(np.int8)
    u, v = (data.draw(hnp.arrays(np.int64, 4, elements=small_integers)).astype(object) for _ in range(2))
    keep, drop = state == 1, state == -1
    status, gap = grade_exactly(numbers.astype(object), -3, mask, BlockDuals(u, v, -3), pattern, state)
    scores = oracles.exact(numbers, absolute=False) / 8
    left, right = (np.array([Fraction(int(x), 8) for x in side], object) for side in (u, v))
    if not oracles.is_feasible(mask, pattern, keep, drop):
        assert status == Status.INFEASIBLE
        assert math.isnan(gap)
        return
    assert (status == Status.PROVEN) == oracles.proves(scores, mask, pattern, left, right, keep, drop)
    bound = oracles.dual_bound(scores, pattern, left, right, keep, drop)
    assert gap == (math.inf if bound is None else float(bound - scores[mask].sum()))


def test_missing_duals_count_as_zero() -> None:
    scores = np.abs(families.int8((4, 4), 0).astype(np.int16))
    mask = masks_of(P24)[0]
    graded = grade(chunk_of(scores, P24, mask), Duals())
    assert graded.status.tolist() == [Status.UNPROVEN]
    assert graded.gaps.tolist() == [scores[~mask].sum()]


def test_a_gap_whose_sum_overflows_on_the_way_is_what_the_mask_loses() -> None:
    largest = np.finfo(np.float64).max
    scores = np.array([[largest / 2, largest, 5e-324], [5e-324, 0.0, largest / 2]])
    mask = np.array([[True, False, False], [False, True, False]])
    grade = nmflow.certify(scores, mask, row="1:3", col="1:2", fill="at-most")
    best = nmflow.solve(scores, row="1:3", col="1:2", fill="at-most").mask
    lost = sum(map(Fraction, scores[best].tolist())) - sum(map(Fraction, scores[mask].tolist()))
    assert grade.gap == pytest.approx(float(lost))


@pytest.mark.parametrize("order", ["F", "backwards"])
def test_a_mask_may_lie_in_memory_in_any_order(order: str) -> None:
    weights = families.gaussian((18, 21), 2)
    mask = nmflow.solve(weights, 2, 4).mask
    given = np.asfortranarray(mask) if order == "F" else np.ascontiguousarray(mask[::-1, ::-1])[::-1, ::-1]
    given.flags.writeable = False
    graded, best = (nmflow.certify(weights, each, 2, 4, absolute=True) for each in (given, mask))
    assert graded.proven
    assert graded.objective == best.objective


def test_numbers_and_gaps_of_blocks_stand_in_order() -> None:
    weights = families.gaussian((18, 21), 2)
    mask = nmflow.solve(-weights, 2, 4).mask
    graded = nmflow.certify(weights, mask, 2, 4)
    assert (np.diff(graded.unproven) > 0).all()
    best = nmflow.solve(weights, 2, 4, scores=weights).mask
    for number, gap in zip(graded.unproven, graded.gaps, strict=True):
        _, i, j = graded.where(number)
        area = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
        lost = weights[area][best[area]].sum(dtype=float) - weights[area][mask[area]].sum(dtype=float)
        assert gap == pytest.approx(lost, rel=1e-5)


def test_a_gap_is_relative_to_the_size_of_its_bound() -> None:
    scores = -1.0 - np.abs(families.gaussian((8, 8), 3)).astype(np.float64)
    graded = nmflow.certify(scores, nmflow.solve(-scores, 2, 4, scores=-scores).mask, 2, 4)
    assert graded.bound < 0 < graded.gap
    assert graded.relative_gap == graded.gap / -graded.bound


def _chunk(pattern: nmflow.Pattern, wide: int, scores: Any = None) -> Chunk:
    rows, cols = pattern.block_shape
    scores = np.zeros((rows, wide * cols)) if scores is None else scores
    place = Place(0, slice(0, 1), slice(0, wide), (slice(0, rows), slice(0, wide * cols)), False)
    return Chunk(scores, scores, "float64", False, True, pattern, None, np.zeros(scores.shape, bool), place)


def test_fixed_entries_are_graded_where_all_was_proven() -> None:
    """What proved the others may not have known of entries that must be kept."""
    chunk = _chunk(Pattern(1, 2), 2)
    chunk.mask[...] = [[1, 0, 1, 0], [0, 1, 0, 1]]
    state = np.zeros((2, 4), np.int8)
    state[0, 3] = KEEP
    graded = grade(replace(chunk, state=state), Duals(), Proven(0.0, np.empty(0, np.int64)))
    assert graded.status is not None
    assert graded.status.tolist() == [Status.PROVEN, Status.INFEASIBLE]


def test_duals_that_stand_apart_go_before_others() -> None:
    """Blocks 0, 2 and 5 known; 2 and 4 of them newer; 1 given one by one. Nothing that was given changes."""

    def apart(blocks: list[int], value: float) -> Duals:
        names = np.array(blocks)
        return Duals(blocks=names, block_row=np.outer(names + value, np.ones(2)), block_col=np.zeros((len(names), 3)))

    old, new = apart([0, 2, 5], 0.25), apart([2, 4], 0.5)
    both = old.updated(new)
    assert both.blocks is not None
    assert both.blocks.tolist() == [0, 2, 4, 5]
    chunk = _chunk(nmflow.Pattern(row="2:3", col="1:2", fill="at-most"), 6)
    wanted = np.arange(6)
    u, _ = both.gather(chunk, wanted)
    assert u[:, 0].tolist() == [0.25, 0.0, 2.5, 0.0, 4.5, 5.25]
    subset = old.updated(apart([2], 0.75))
    assert subset.gather(chunk, wanted)[0][:, 0].tolist() == [0.25, 0.0, 2.75, 0.0, 0.0, 5.25]
    assert old.block_row is not None
    assert old.block_row[:, 0].tolist() == [0.25, 2.25, 5.25]
    u, _ = old.gather(chunk, old.blocks)
    u += 1.0
    assert old.block_row[:, 0].tolist() == [0.25, 2.25, 5.25]
    special = both._replace(special={1: BlockDuals(np.ones(2), np.ones(3), 3)})
    assert special.apart().tolist() == [0, 1, 2, 4, 5]
    assert special.gather(chunk, wanted)[0][:, 0].tolist() == [0.25, 8.0, 2.5, 0.0, 4.5, 5.25]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("side", ["row", "col"])
@pytest.mark.parametrize("kind", ["exact", "rounded"])
def test_duals_that_are_not_finite_leave_the_gap_open(bad: float, fill: str, side: str, kind: str) -> None:
    chunk = _chunk(nmflow.Pattern(2, 4, fill=fill), 3, scores=np.random.default_rng(0).random((4, 12)))
    if kind == "rounded":
        chunk = replace(chunk, exact=False)
    chunk.mask[...] = np.tile(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool), 3)
    u, v = np.zeros((3, 4)), np.zeros((3, 4))
    (u if side == "row" else v)[1, 2] = bad
    duals = Duals(blocks=np.arange(3), block_row=u, block_col=v)
    graded = grade(chunk, duals, Proven(0.0, np.arange(3)))
    assert graded.unproven.tolist() == [0, 1, 2]
    assert graded.gaps[1] == np.inf
    assert np.isfinite(graded.gaps[[0, 2]]).all()
