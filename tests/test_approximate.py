"""Approximate solvers: their guarantees on every family they hold for, their options, and what they refuse."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import families
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nmflow
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError, SolverLimitError
from nmflow.pattern import Pattern
from nmflow.solvers import approximate
from nmflow.solvers.entropic import Entropic
from nmflow.solvers.greedy import Greedy
from nmflow.solvers.local_search import LocalSearch
from nmflow.solvers.two_approx import TwoApprox

Array = Any
PATTERNS = [
    Pattern(2, 4),
    Pattern(1, 4),
    Pattern(3, 4),
    Pattern(2, 3),
    Pattern(2, 5),
    Pattern(4, 8),
    Pattern(1, 1),
    Pattern(2, 4, fill="at-most"),
    Pattern(row="2:4", col="4:8"),
    Pattern(row="1:4", col="3:4", fill="at-most"),
    Pattern(2, 4, transposable=False),
]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def kept(scores: Array, mask: Array) -> Fraction:
    return Fraction(scores[mask].sum())


def best_mask(weights: Array, pattern: Pattern) -> Array:
    """Found by a solver that shares no kernel with those compared; in float64, where narrower dtypes are exact."""
    wide = weights.astype(np.float64) if weights.itemsize < 8 else weights
    return nmflow.solve(wide, pattern=pattern, solver="network-simplex").mask


@every_pattern
@pytest.mark.parametrize("family", families.FAMILIES)
def test_guarantees_on_every_family(pattern: Pattern, family: str) -> None:
    rows, cols = pattern.block_shape
    weights = families.FAMILIES[family]((3 * rows, 4 * cols), 11)
    scores = oracles.exact(weights)
    best = kept(scores, mask := best_mask(weights, pattern))
    assert oracles.violations(mask, pattern) == []
    for solver in (Greedy(), TwoApprox(refill=True), LocalSearch(), Entropic(iterations=20)):
        mask = nmflow.solve(weights, pattern=pattern, solver=solver).mask
        assert oracles.violations(mask, pattern) == []
        if solver.kept_ratio is not None:
            assert kept(scores, mask) >= Fraction(solver.kept_ratio) * best
        if solver.pruned_ratio is not None:
            assert scores.sum() - kept(scores, mask) <= 2 * (scores.sum() - best)
    loose = Pattern(row=pattern.row, col=pattern.col, fill="at-most", transposable=pattern.transposable)
    mask = nmflow.solve(weights, pattern=loose, solver="two-approx").mask
    assert oracles.violations(mask, loose) == []
    assert scores.sum() - kept(scores, mask) <= 2 * (scores.sum() - best)


spiky = hnp.arrays(np.int64, (4, 4), elements=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 100, 10**4]))


@settings(max_examples=150, deadline=None)
@given(spiky, st.sampled_from([1, 2, 3]))
def test_guarantees_on_blocks_where_a_repair_is_dear(scores: Array, n: int) -> None:
    exact = oracles.exact(scores)
    best = oracles.best_score(exact, Pattern(n, 4))
    assert best is not None
    for solver in (Greedy(), LocalSearch(), TwoApprox(refill=True)):
        mask = nmflow.solve(scores, n, 4, solver=solver).mask
        assert oracles.is_feasible(mask, Pattern(n, 4))
        if solver.kept_ratio is not None:
            assert 2 * kept(exact, mask) >= best
        if solver.pruned_ratio is not None:
            assert exact.sum() - kept(exact, mask) <= 2 * (exact.sum() - best)


@settings(max_examples=60, deadline=None)
@given(spiky, st.sampled_from([1, 2, 3]), st.booleans())
def test_guarantees_where_scaling_would_lose_small_scores(whole: Array, n: int, distinct: bool) -> None:
    """What is pruned is of the small ones, 600 decades below those that are kept."""
    scores = whole * np.where(whole < 100, 1e-300, 1e298)
    if distinct:
        scores += np.arange(16).reshape(4, 4) * 1e-302
    exact = oracles.exact(scores)
    best = oracles.best_score(exact, Pattern(n, 4))
    assert best is not None
    for name, fill in (("two-approx", "at-most"), ("two-approx-refill", "at-most"), ("two-approx-refill", "exact")):
        mask = nmflow.solve(scores, n, 4, solver=name, fill=fill).mask
        assert exact.sum() - kept(exact, mask) <= 2 * (exact.sum() - best)
    for name in ("greedy", "local-search"):
        assert 2 * kept(exact, nmflow.solve(scores, n, 4, solver=name).mask) >= best


def test_a_repair_that_would_lose_too_much_is_left_to_an_exact_solver() -> None:
    """Greedy keeps (0, 0) first; all that could complete it must then drop the only score that counts."""
    keep = np.zeros((4, 4), bool)
    weights = np.zeros((4, 4))
    weights[0, 0] = 1.0
    drop = np.zeros((4, 4), bool)
    drop[1, 1:3] = True  # row 1 must keep columns 0 and 3
    solution = nmflow.solve(weights, 2, 4, solver="greedy", drop=drop, keep=keep)
    best = nmflow.solve(weights, 2, 4, drop=drop)
    assert solution.objective == best.objective == 1.0


@pytest.mark.parametrize("name", ["greedy", "local-search", "two-approx-refill"])
@pytest.mark.parametrize("blocks", [1, 40])  # few go another way
def test_what_is_left_to_an_exact_solver_is_solved_exactly(name: str, blocks: int) -> None:
    """Beside an entry that must be dropped the others are lost in float64, and only whole numbers tell."""
    scores = np.tile(np.array([[0, 1, 1e25], [3, 1, 0], [0, 0, 1]], np.float32), (1, blocks))
    drop = np.tile(np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]], bool), (1, blocks))
    solution = nmflow.solve(scores, 1, 3, solver=name, drop=drop, certify=True)
    assert solution.stats["left_to_exact"] == blocks
    assert solution.objective == solution.bound == 5.0 * blocks


@pytest.mark.parametrize("n", [1, 2])
def test_half_is_kept_beside_fixed_entries_of_any_size(n: int) -> None:
    rng = np.random.default_rng(n)
    left = 0
    for _ in range(300):
        scores = rng.choice([0.0, 1.0, 2.0, 1e-20, 1e25, 1e300], (4, 4)) * rng.integers(1, 4, (4, 4))
        drop = rng.random((4, 4)) < 0.3
        try:
            best = nmflow.solve(scores, n, 4, drop=drop)
        except InfeasibleError:
            continue
        exact = oracles.exact(scores)
        for name in ("greedy", "local-search"):
            found = nmflow.solve(scores, n, 4, drop=drop, solver=name)
            assert 2 * kept(exact, found.mask) >= kept(exact, best.mask)
            left += found.stats.get("left_to_exact", 0)
    assert left > 20


def test_two_is_reached() -> None:
    weights = np.array([[0.0, 2.0, 1.0], [0.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    raw = nmflow.solve(weights, 2, 3, fill="at-most", solver="two-approx")
    assert weights.sum() - raw.objective == 2 * (weights.sum() - nmflow.solve(weights, 2, 3).objective)


def test_lightest_first_is_the_best_rows_and_the_best_columns_at_once() -> None:
    weights = families.gaussian((32, 48), 9)
    raw = nmflow.solve(weights, 4, 8, fill="at-most", solver="two-approx").mask
    by_rows = nmflow.solve(weights, 4, 8, transposable=False).mask
    by_cols = nmflow.solve(weights.T, 4, 8, transposable=False).mask.T
    assert np.array_equal(raw, by_rows & by_cols)


def test_the_two_forms_are_told_apart() -> None:
    weights = families.gaussian((64, 64), 2)
    raw = nmflow.solve(weights, 4, 8, fill="at-most", solver=TwoApprox())
    full = nmflow.solve(weights, 4, 8, solver=TwoApprox(refill=True))
    assert (raw.solver, full.solver) == ("two-approx", "two-approx-refill")
    assert raw.mask.mean() < 0.45
    assert full.mask.mean() == 0.5
    assert not (raw.mask & ~full.mask).any() or full.objective > raw.objective
    with pytest.raises(SolverLimitError, match='fill must be at-most for solver="two-approx", not exact'):
        nmflow.solve(weights, 4, 8, solver="two-approx")


@pytest.mark.parametrize(("n", "m"), [(4, 8), (8, 16), (16, 32)])
def test_entropic_is_within_a_thousandth_on_gaussian_blocks(n: int, m: int) -> None:
    weights = families.gaussian((256, 256), 21)
    best, found = nmflow.solve(weights, n, m), nmflow.solve(weights, n, m, solver="entropic", certify=True)
    assert found.bound == pytest.approx(best.objective, rel=1e-12)
    assert found.relative_gap <= 1e-3
    assert found.gap == pytest.approx(best.objective - found.objective, rel=1e-6)
    greedy = nmflow.solve(weights, n, m, solver="greedy")
    assert found.objective > nmflow.solve(weights, n, m, solver="local-search").objective > greedy.objective


def test_entropic_options() -> None:
    weights = families.gaussian((64, 64), 3)
    rough = nmflow.solve(weights, 4, 8, solver=Entropic(iterations=1, sweeps=0))
    fine = nmflow.solve(weights, 4, 8, solver=Entropic())
    assert fine.objective > rough.objective
    assert "swaps" not in rough.stats
    for options, message in (
        ({"temperature": 0.0}, "temperature must be above 0, not 0"),
        ({"temperature": float("nan")}, "temperature must be finite and not negative, not nan"),
        ({"temperature": 10**400}, "temperature must be finite and not negative, not 1000"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
        ({"iterations": True}, "iterations must be a whole number, not True"),
        ({"sweeps": -1}, "sweeps must be at least 0, not -1"),
    ):
        with pytest.raises((InputTypeError, InputValueError), match=message):
            Entropic(**options)
    with pytest.raises(InputValueError, match="sweeps must be at least 1, not 0"):
        LocalSearch(sweeps=0)
    for solver in (LocalSearch(sweeps=1 << 70), Entropic(iterations=np.int8(20), sweeps=1 << 70)):
        assert nmflow.solve(weights, 4, 8, solver=solver).mask.sum() == weights.size // 2


@every_pattern
def test_local_search_improves_a_mask(pattern: Pattern) -> None:
    rows, cols = pattern.block_shape
    weights, other = (families.gaussian((3 * rows, 5 * cols), seed).astype(np.float64) for seed in (4, 5))
    start = best_mask(other, pattern)
    given = start.copy()
    found = nmflow.solve(weights, pattern=pattern, solver="local-search", start=start)
    assert kept(oracles.exact(weights), found.mask) >= kept(oracles.exact(weights), start)
    assert oracles.violations(found.mask, pattern) == []
    best = best_mask(weights, pattern)
    kept_best = nmflow.solve(weights, pattern=pattern, solver="local-search", start=best).mask
    assert kept(oracles.exact(weights), kept_best) == kept(oracles.exact(weights), best)
    assert np.array_equal(start, given)


def test_no_swap_is_left() -> None:
    weights = np.abs(families.gaussian((8, 8), 6)).astype(np.float64)
    mask = nmflow.solve(weights, 4, 8, solver="local-search").mask
    for i, j in np.argwhere(mask):
        for a, b in np.argwhere(mask):
            if not mask[i, b] and not mask[a, j]:
                assert weights[i, b] + weights[a, j] <= weights[i, j] + weights[a, b] + 1e-12


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("shape", [(16, 16), (13, 10), (3, 3)], ids=str)
def test_a_start_that_breaks_the_pattern_is_made_to_keep_to_it(fill: str, shape: tuple[int, int]) -> None:
    weights = families.gaussian(shape, 7)
    for start in (np.ones(shape, bool), np.zeros(shape, bool)):
        found = nmflow.solve(weights, 2, 4, fill=fill, solver="local-search", start=start)
        assert oracles.violations(found.mask, Pattern(2, 4, fill=fill)) == []


def test_a_start_follows_the_layout() -> None:
    weights = families.gaussian((8, 5, 3, 2), 8)
    for layout in ("conv", "batch"):
        best = nmflow.solve(weights, 2, 4, layout=layout)
        again = nmflow.solve(weights, 2, 4, layout=layout, solver="local-search", start=best.mask)
        assert again.objective == pytest.approx(best.objective, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (5, 4), (8, 8)], ids=str)
def test_a_start_may_be_read_only_and_is_left_as_it_is(shape: tuple[int, int]) -> None:
    weights = families.gaussian(shape, 9)
    start = nmflow.solve(weights, 2, 4, solver="greedy").mask[::-1].copy()
    before = start.copy()
    start.flags.writeable = False
    assert nmflow.solve(weights, 2, 4, solver="local-search", start=start).mask.any()
    assert np.array_equal(start, before)


def test_bad_starts() -> None:
    weights = np.ones((4, 4))
    with pytest.raises(InputValueError, match=r"start must have shape \(4, 4\), not \(4, 5\)"):
        nmflow.solve(weights, 2, 4, solver="local-search", start=np.ones((4, 5), bool))
    with pytest.raises(InputTypeError, match="start must be boolean, not float64"):
        nmflow.solve(weights, 2, 4, solver="local-search", start=weights)
    for solver in ("dual", "greedy", "enumerate"):
        with pytest.raises(SolverLimitError, match=f'start must be given to a solver .*, not to solver="{solver}"'):
            nmflow.solve(weights, 2, 4, solver=solver, start=np.ones((4, 4), bool))


def test_duals_need_a_certificate() -> None:
    with pytest.raises(InputValueError, match='certify must be True for the duals of solver="greedy"'):
        nmflow.solve(np.ones((4, 4)), 2, 4, solver="greedy", duals=True)
    solution = nmflow.solve(np.ones((4, 4)), 2, 4, solver="greedy", duals=True, certify=True)
    assert solution.row_duals.shape == (4, 1)


@pytest.mark.parametrize("name", ["greedy", "local-search", "entropic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_duals_of_a_certificate_give_its_bound(name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time: what NumPy hands out holds anything."""
    weights = families.gaussian((64, 96), 1).astype(dtype)
    empty = np.empty

    def dirty(*args: Any, **options: Any) -> Any:
        made = empty(*args, **options)
        if made.dtype.kind == "f":
            made.fill(np.nan)
        return made

    monkeypatch.setattr(np, "empty", dirty)
    solution = nmflow.solve(weights, 4, 8, solver=name, certify=True, duals=True)
    u, v = solution.row_duals.astype(float), solution.col_duals.astype(float)
    above = np.abs(weights).astype(float) - np.repeat(u, 8, axis=1) - np.repeat(v, 8, axis=0)
    bound = 4 * u.sum() + 4 * v.sum() + np.maximum(above, 0.0).sum()
    assert bound == pytest.approx(solution.bound, rel=1e-6)


@pytest.mark.parametrize("name", ["greedy", "two-approx-refill", "local-search", "entropic"])
def test_many_blocks_in_stripes(name: str) -> None:
    """More blocks than are laid out at a time: each is what it is alone."""
    weights = families.gaussian((64, 4096), 1)
    whole = nmflow.solve(weights, 2, 4, solver=name, threads=2).mask
    part = nmflow.solve(weights[32:, 2048:], 2, 4, solver=name).mask
    assert np.array_equal(whole[32:, 2048:], part)


@pytest.mark.parametrize("solver", ["entropic", "local-search"])
def test_blocks_without_a_mask_are_named_wherever_stripes_end(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).random((16, 64))
    drop = np.zeros(weights.shape, bool)
    drop[8, 40:43] = True
    messages = []
    for entries in (approximate.STRIPE_ENTRIES, 5 * 16):
        monkeypatch.setattr(approximate, "STRIPE_ENTRIES", entries)
        with pytest.raises(InfeasibleError) as caught:
            nmflow.solve(weights, 2, 4, drop=drop, solver=solver)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "rows 8 to 11, columns 40 to 43" in messages[0]
