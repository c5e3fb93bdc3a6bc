"""What every solver in the table must do; a new one is tested as soon as it has a line there.

What is asked of a solver follows from what it declares: `exact` (as good as the best mask, and proven), `tolerance`
(close to it), `kept_ratio` (at least that share of it), `pruned_ratio` (prunes at most that times the least). Only
masks' scores are compared, never tied masks.
"""

from __future__ import annotations

import math
import sys
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
from nmflow import solvers
from nmflow.errors import InfeasibleError, NonFiniteError, NotCertifiedError, SolverLimitError
from nmflow.pattern import Pattern
from nmflow.problem import Problem

Array = Any
EVERY_FAMILY = {**families.FAMILIES, **families.SIGNED}
PATTERNS = [
    Pattern(2, 4),
    Pattern(1, 3),
    Pattern(2, 4, fill="at-most"),
    Pattern(2, 2),
    Pattern(2, 4, transposable=False),
    Pattern(1, 4, transposable=False, fill="at-most"),
    Pattern(row="1:2", col="2:4"),
    Pattern(row="1:3", col="2:4", fill="at-most"),
]
EVERY_DTYPE = PATTERNS[:3]
"""The others are solved in float64 alone, which holds most dtypes: kernels take long to compile, by the same way."""
NEVER_REFUSE = {"dual", "network-simplex"}
"""These take every finite input; the others may refuse a block that they cannot hold, and say so."""

every_solver = pytest.mark.parametrize("name", solvers.names())
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def suited(name: str, pattern: Pattern) -> Pattern:
    """The pattern, or the same at most where the solver's masks can keep less; it must refuse the other."""
    solver = solvers.get(name)
    if pattern.fill in solver.fills:
        return pattern
    with pytest.raises(SolverLimitError, match=f'fill must be {solver.fills[0]} for solver="{name}"'):
        solver.check(Problem.build(np.ones((1, 1)), pattern))
    return Pattern(row=pattern.row, col=pattern.col, fill=solver.fills[0], transposable=pattern.transposable)


def widened(array: Array) -> Array:
    """In float64, where that is exact."""
    return array.astype(np.float64) if array.itemsize < 8 else array


def solve(name: str, weights: Array, pattern: Pattern, **options: Any) -> nmflow.Solution:
    """Solve and certify, a pattern that is suited to the solver."""
    chosen = suited(name, pattern)
    if pattern in PATTERNS and chosen not in EVERY_DTYPE:
        weights = widened(weights)
        options |= {key: widened(options[key]) for key in ("scores",) if key in options}
    try:
        return nmflow.solve(weights, pattern=chosen, solver=name, certify=True, **options)
    except SolverLimitError:
        if name in NEVER_REFUSE or (weights.dtype == np.float32 and np.abs(weights).max() < 10):
            raise
        pytest.skip("refused, as declared")


def check(name: str, solution: nmflow.Solution, scores: Array, absolute: bool = True) -> None:
    """Hold a solution of one matrix to what its solver declares, in exact arithmetic."""
    solver, pattern, certificate = solvers.get(name), solution.pattern, solution.certificate
    exact = oracles.exact(scores, absolute=absolute)
    kept, best = Fraction(exact[solution.mask].sum()), oracles.best_total(exact, pattern)
    assert oracles.violations(solution.mask, pattern) == []
    assert certificate.feasible
    assert kept <= best
    largest = max(abs(exact.ravel()))
    # The certificate rounds sums of float64: by far less than this.
    rounding = Fraction(1e-12) * largest * exact.size
    if math.isinf(solution.objective):  # a sum beyond the range of float64
        assert kept > Fraction(sys.float_info.max) - rounding
    else:
        assert abs(Fraction(solution.objective) - kept) <= rounding
    assert math.isinf(solution.bound) or Fraction(solution.bound) >= best - rounding
    assert solution.gap >= 0
    if certificate.proven:
        assert kept == best
        assert solution.gap == 0.0
    if solver.exact:
        assert certificate.proven
        assert certificate.n_proven == certificate.n_blocks
    if solver.tolerance is not None:
        rows, cols = pattern.block_shape
        padded = math.ceil(exact.shape[0] / rows) * rows * math.ceil(exact.shape[1] / cols) * cols
        assert best - kept <= Fraction(solver.tolerance) * padded * largest
    if min(exact.ravel()) >= 0:
        if solver.kept_ratio is not None:
            assert kept >= Fraction(solver.kept_ratio) * best
        if solver.pruned_ratio is not None:
            assert exact.sum() - kept <= Fraction(solver.pruned_ratio) * (exact.sum() - best)


def test_declarations() -> None:
    for name in solvers.names():
        solver = solvers.get(name)
        assert solver.name == name
        assert solver.guarantee
        assert hash(solver) == hash(solvers.get(name))  # frozen, and equal to another one of the same options
        assert solver == solvers.get(name)


CASES = [
    (family, pattern)
    for family in EVERY_FAMILY
    for pattern in PATTERNS
    if family not in families.HALVES or pattern in PATTERNS[:2]
]


@every_solver
@pytest.mark.parametrize(("family", "pattern"), CASES, ids=str)
def test_families(name: str, family: str, pattern: Pattern) -> None:
    rows, cols = pattern.block_shape
    array = EVERY_FAMILY[family]((2 * rows, 3 * cols), 5)
    if family in families.FAMILIES:
        check(name, solve(name, array, pattern), array)
    else:
        check(name, solve(name, np.zeros_like(array), pattern, scores=array), array, absolute=False)


@every_solver
@every_pattern
@pytest.mark.parametrize("shape", families.RAGGED, ids=str)
def test_ragged_shapes(name: str, pattern: Pattern, shape: tuple[int, int]) -> None:
    array = families.gaussian(shape, 3)
    check(name, solve(name, array, pattern), array)
    check(name, solve(name, array, pattern, scores=array), array, absolute=False)


@every_solver
def test_at_most_fill_can_keep_more(name: str) -> None:
    weights = np.full((3, 3), 10.0)
    weights[[0, 0, 1, 2], [0, 1, 2, 2]] = 0.0
    for fill, best in (("exact", 40.0), ("at-most", 50.0)):
        solution = solve(name, weights, Pattern(2, 3, fill=fill))
        check(name, solution, weights)
        if solvers.get(name).exact:
            assert solution.objective == solution.bound == best


@every_solver
def test_negative_scores_are_not_kept_under_at_most_fill(name: str) -> None:
    scores = np.full((4, 4), -1.0)
    solution = solve(name, scores, Pattern(2, 4, fill="at-most"), scores=scores)
    check(name, solution, scores, absolute=False)
    if solvers.get(name).exact:
        assert solution.objective == solution.bound == 0.0
        assert not solution.mask.any()


@every_solver
@pytest.mark.parametrize(("dtype", "least"), [("int8", 128.0), ("int16", 2.0**15), ("int32", 2.0**31)])
def test_the_least_integer_counts_its_magnitude(name: str, dtype: str, least: float) -> None:
    info = np.iinfo(dtype)
    weights = np.full((4, 4), info.max, dtype)
    weights[0, 0] = info.min
    solution = solve(name, weights, Pattern(2, 4))
    check(name, solution, weights)
    if solvers.get(name).exact:
        assert solution.mask[0, 0]
        assert solution.objective == least + 7 * info.max


@every_solver
def test_no_float_duals(name: str) -> None:
    """A block that no float64 duals prove: facts of 2**60 beside 2**-60."""
    weights = np.array([[2.0**60, 2.0**60, 0.0], [1.0, 1.0, 2.0**-60], [0.0, 1.0, 2.0**-60]])
    check(name, solve(name, weights, Pattern(1, 3)), weights)


@every_solver
@pytest.mark.parametrize(
    "weights",
    [
        np.asfortranarray(families.gaussian((9, 14), 1)),
        families.gaussian((18, 28), 1)[::2, ::-2],
        families.gaussian((9, 14), 1).astype(">f4"),
        np.ones((9, 1, 14), np.float32)[:, 0],
        np.broadcast_to(np.float32(2.0), (9, 14)),
    ],
    ids=["fortran", "strided", "big-endian", "sliced", "broadcast"],
)
def test_any_memory_order(name: str, weights: Array) -> None:
    before = weights.copy()
    weights = weights.view()
    weights.setflags(write=False)
    solution = solve(name, weights, Pattern(2, 4))
    check(name, solution, weights)
    assert np.array_equal(weights, before)
    assert solution.mask.dtype == bool
    assert solution.mask.shape == weights.shape


@every_solver
def test_the_mask_is_a_function_of_its_input(name: str) -> None:
    for family in ("gaussian", "few_values", "all_equal"):
        weights = EVERY_FAMILY[family]((30, 41), 2)
        masks = [solve(name, weights, Pattern(2, 4), threads=threads).mask for threads in (1, 2, 1)]
        assert np.array_equal(masks[0], masks[1])
        assert np.array_equal(masks[0], masks[2])


@every_solver
def test_layouts_solve_each_matrix(name: str) -> None:
    weights = families.gaussian((6, 5, 3, 2), 8)
    for layout, groups in (("batch", 1), ("conv", 1), ("conv", 2)):
        solution = solve(name, weights, Pattern(2, 4), layout=layout, groups=groups)
        assert solution.mask.shape == weights.shape
        problem = Problem.build(weights, suited(name, Pattern(2, 4)), layout=layout, groups=groups)
        total = 0.0
        for matrix, mask in zip(problem.matrices(weights), problem.matrices(solution.mask), strict=True):
            alone = solve(name, np.ascontiguousarray(matrix.rows(0, matrix.shape[0])), Pattern(2, 4))
            total += alone.objective
            assert oracles.violations(mask.rows(0, matrix.shape[0]), suited(name, Pattern(2, 4))) == []
        assert solution.objective == pytest.approx(total, rel=1e-12)
        assert np.abs(weights[solution.mask]).sum(dtype=float) == pytest.approx(total, rel=1e-12)


@every_solver
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(name: str, bad: float) -> None:
    weights = families.gaussian((9, 10), 0)
    weights[8, 3] = weights[5, 5] = bad
    with pytest.raises(NonFiniteError, match=r"at 2 of 90 entries, the first at \(5, 5\)"):
        solve(name, weights, Pattern(2, 4))


@every_solver
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_keep_and_drop(name: str, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(PATTERNS))
    array = data.draw(hnp.arrays(np.int64, pattern.block_shape, elements=st.integers(-4, 4)))
    state = data.draw(hnp.arrays(np.int8, pattern.block_shape, elements=st.sampled_from([0, 0, 0, 1, -1])))
    keep, drop = state == 1, state == -1
    exact = oracles.exact(array, absolute=False)
    pattern = suited(name, pattern)
    best = oracles.best_score(exact, pattern, keep, drop)
    if best is None:
        with pytest.raises(InfeasibleError, match=r"keep and drop must leave a mask .* in 1 of 1 blocks, the first at"):
            solve(name, array, pattern, scores=array, keep=keep, drop=drop)
        return
    solution = solve(name, array, pattern, scores=array, keep=keep, drop=drop)
    assert oracles.is_feasible(solution.mask, pattern, keep, drop)
    assert solution.certificate.feasible
    assert solution.objective == exact[solution.mask].sum()
    assert solution.bound >= best
    if solvers.get(name).exact:
        assert solution.certificate.proven
        assert solution.objective == solution.bound == best
    graded = nmflow.certify(array, solution.mask, pattern=pattern, keep=keep, drop=drop)
    assert (graded.feasible, graded.objective, graded.bound) == (True, solution.objective, best)


@every_solver
@pytest.mark.parametrize("pattern", [Pattern(2, 2), Pattern(2, 4)], ids=str)
def test_every_entry_is_fixed(name: str, pattern: Pattern) -> None:
    weights = families.gaussian((4, 4), 6)
    keep = nmflow.solve(-np.abs(weights), pattern=pattern).mask
    solution = solve(name, weights, pattern, keep=keep, drop=~keep)
    assert np.array_equal(solution.mask, keep)
    if solvers.get(name).exact:
        assert solution.proven
    if suited(name, pattern).row_exact:
        with pytest.raises(InfeasibleError, match="keep and drop must leave a mask of pattern"):
            solve(name, weights, pattern, drop=np.ones(keep.shape, np.bool_))


@every_solver
def test_a_certificate_is_made_where_it_is_asked_for(name: str) -> None:
    pattern = suited(name, Pattern(2, 4))
    weights = families.gaussian((12, 12), 4)
    solution = nmflow.solve(weights, pattern=pattern, solver=name)
    certified = nmflow.solve(weights, pattern=pattern, solver=name, certify=True)
    assert np.array_equal(solution.mask, certified.mask)
    assert solution.objective == pytest.approx(certified.objective, rel=1e-12)
    assert certified.certificate is not None
    if solvers.get(name).exact:
        assert solution.proven
        return
    assert solution.certificate is None
    for attribute in ("bound", "gap", "relative_gap", "proven"):
        with pytest.raises(NotCertifiedError, match=rf'{attribute} must be proven .* solver="{name}" is not exact'):
            getattr(solution, attribute)


EXACT = [name for name in solvers.names() if solvers.get(name).exact]
exact_solver = pytest.mark.parametrize("name", EXACT)
blocks_of_integers = st.sampled_from(PATTERNS).flatmap(
    lambda pattern: st.tuples(
        st.just(pattern), hnp.arrays(np.int64, pattern.block_shape, elements=st.integers(-9, 9) | st.integers(0, 2))
    )
)


def best_by(name: str, scores: Array, pattern: Pattern) -> float:
    return nmflow.solve(scores, pattern=pattern, scores=scores, solver=name).objective


@exact_solver
@settings(max_examples=15, deadline=None)
@given(blocks_of_integers, st.randoms(use_true_random=False))
def test_permuting_lines_changes_nothing(name: str, block: tuple[Pattern, Array], random: Any) -> None:
    pattern, scores = block
    rows, cols = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(rows)
    random.shuffle(cols)
    assert best_by(name, scores[rows][:, cols], pattern) == best_by(name, scores, pattern)


@exact_solver
@settings(max_examples=15, deadline=None)
@given(blocks_of_integers)
def test_transposing_changes_nothing(name: str, block: tuple[Pattern, Array]) -> None:
    pattern, scores = block
    if pattern.col is not None:
        turned = Pattern(row=pattern.col, col=pattern.row, fill=pattern.fill)
        assert best_by(name, scores.T, turned) == best_by(name, scores, pattern)


@exact_solver
@settings(max_examples=15, deadline=None)
@given(blocks_of_integers, st.integers(-100, 100))
def test_scaling_scales(name: str, block: tuple[Pattern, Array], power: int) -> None:
    pattern, scores = block
    scaled = np.ldexp(scores.astype(np.float64), power)
    assert best_by(name, scaled, pattern) == np.ldexp(best_by(name, scores, pattern), power)


@exact_solver
@settings(max_examples=15, deadline=None)
@given(blocks_of_integers, st.integers(-50, 50), st.integers(-50, 50))
def test_a_constant_on_a_full_line_shifts_the_optimum(
    name: str, block: tuple[Pattern, Array], by_row: int, by_col: int
) -> None:
    pattern, scores = block
    if pattern.fill == "at-most":
        return
    shifted = scores.copy()
    shifted[0] += by_row
    expected = by_row * pattern.row_budget
    if pattern.col is not None:
        shifted[:, -1] += by_col
        expected += by_col * pattern.col_budget
    assert best_by(name, shifted, pattern) == best_by(name, scores, pattern) + expected


@exact_solver
@pytest.mark.parametrize(
    "pattern", [Pattern(4, 8), Pattern(3, 7), Pattern(8, 16), Pattern(4, 8, fill="at-most")], ids=str
)
@pytest.mark.parametrize("family", ["gaussian", "outlier_columns", "few_values", "near_ties", "int8", "low_rank"])
def test_exact_solvers_agree_on_larger_blocks(name: str, pattern: Pattern, family: str) -> None:
    array = EVERY_FAMILY[family](tuple(2 * side for side in pattern.block_shape), 6)
    solution = solve(name, array, pattern) if name != "enumerate" else pytest.skip("too many masks")
    assert solution.certificate.proven
    reference = nmflow.solve(array, pattern=pattern, solver="network-simplex")
    exact = oracles.exact(array)
    assert exact[solution.mask].sum() == exact[reference.mask].sum()
