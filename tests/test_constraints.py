"""General constraints of solve and certify: unequal budgets, keep, drop, previous; and their bad input."""

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
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError, NonFiniteError, PatternError
from nmflow.pattern import Budget, Pattern

Array = Any
UNEQUAL = [
    ("2:4", "4:8", "exact"),
    ("4:8", "2:4", "exact"),
    ("1:2", "4:8", "exact"),
    ("3:6", "1:2", "exact"),
    ("1:4", "2:4", "at-most"),
    ("3:4", "1:2", "at-most"),
    ("2:3", "2:5", "at-most"),
    ("1:1", "1:3", "at-most"),
    ("5:7", "2:3", "at-most"),
]
NAMES = ["dual", "network-simplex", "ortools", "lp"]


UNEQUAL_CASES = [
    (*case, family)
    for case in UNEQUAL
    for family in ("gaussian", "few_values", "near_ties", "int8", "mostly_zero", "signed")
    # kernels of more take long to compile, by the same way
    if family in ("gaussian", "signed") or case in UNEQUAL[:: 4 if family == "int8" else 2]
]


@pytest.mark.parametrize(("row", "col", "fill", "family"), UNEQUAL_CASES)
def test_unequal_budgets(row: str, col: str, fill: str, family: str) -> None:
    pattern = Pattern(row=row, col=col, fill=fill)
    rows, cols = pattern.block_shape
    make = {**families.FAMILIES, **families.SIGNED}[family]
    array = make((2 * rows + 1, 3 * cols + 1), 3)
    exact = oracles.exact(array, absolute=False)
    best = oracles.best_total(exact, pattern)
    for name in NAMES:
        solution = nmflow.solve(array, row=row, col=col, fill=fill, solver=name, certify=True, scores=array)
        assert oracles.violations(solution.mask, pattern) == []
        if name != "lp":
            assert Fraction(exact[solution.mask].sum()) == best
            assert solution.proven
        graded = nmflow.certify(array, solution.mask, row=row, col=col, fill=fill)
        assert graded.feasible
        assert graded.proven or name == "lp"
        assert graded.objective == pytest.approx(float(exact[solution.mask].sum()), rel=1e-9, abs=1e-9)


def test_row_and_col_are_turned_by_a_transpose() -> None:
    weights = families.gaussian((24, 40), 2)
    straight = nmflow.solve(weights, row="2:4", col="4:8")
    turned = nmflow.solve(weights.T, row=Budget(4, 8), col=Budget(2, 4))
    assert straight.objective == pytest.approx(turned.objective, rel=1e-12)
    assert straight.mask.reshape(24, 10, 4).sum(2).tolist() == np.full((24, 10), 2).tolist()
    assert straight.mask.reshape(3, 8, 40).sum(1).tolist() == np.full((3, 40), 4).tolist()


def test_bad_budgets() -> None:
    weights = np.ones((8, 8))
    for solve in (nmflow.solve, lambda w, **options: nmflow.certify(w, w > 0, **options)):
        with pytest.raises(PatternError, match='fill="exact" is infeasible for row 2:4 with col 2:8'):
            solve(weights, row="2:4", col="2:8")
        with pytest.raises(PatternError, match="row= needs col= as well"):
            solve(weights, row="2:4")
        with pytest.raises(PatternError, match="pattern must be given"):
            solve(weights, col="2:4")
        with pytest.raises(InputValueError, match="pattern must be given alone"):
            solve(weights, pattern="2:4", row="2:4", col="2:4")
        with pytest.raises(PatternError, match="col= cannot be used with transposable=False"):
            solve(weights, row="2:4", col="2:4", transposable=False)
    solution = nmflow.solve(weights, row="2:4", col="2:8", fill="at-most")
    assert solution.objective == 16.0
    assert solution.proven
    assert nmflow.solve(weights, row="2:4", transposable=False).objective == 32.0


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=4), elements=st.integers(-2, 3)),
    st.sampled_from([1, 2, 3]),
)
def test_at_most_against_brute_force(scores: Array, n: int) -> None:
    side = min(scores.shape)
    scores, pattern = scores[:side, :side], Pattern(min(n, side), side, fill="at-most")
    best = max(int(scores[mask].sum()) for mask in oracles.masks(pattern))
    solution = nmflow.solve(scores, pattern=pattern, scores=scores)
    assert solution.objective == solution.bound == best
    assert solution.proven
    assert not (solution.mask & (scores < 0)).any()


marks = st.sampled_from([0] * 6 + [1, -1])


@pytest.mark.parametrize(
    "pattern", [Pattern(2, 4), Pattern(2, 4, fill="at-most"), Pattern(row="1:2", col="2:4")], ids=str
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_keep_and_drop_over_ragged_edges(pattern: Pattern, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    array = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(-4, 4)))
    state = data.draw(hnp.arrays(np.int8, shape, elements=marks))
    keep, drop = state == 1, state == -1
    exact = oracles.exact(array, absolute=False)
    bests = [
        oracles.best_score(block, pattern, kept, dropped)
        for (_, block), (_, kept), (_, dropped) in zip(
            oracles.blocks(exact, pattern), oracles.blocks(keep, pattern), oracles.blocks(drop, pattern), strict=True
        )
    ]
    bad = [number for number, best in enumerate(bests) if best is None]
    if bad:
        rows, cols = pattern.block_shape
        i, j = divmod(bad[0], -(-shape[1] // cols))
        where = f"in {len(bad)} of {len(bests)} blocks, the first at rows {i * rows} to .*, columns {j * cols} to "
        for call in (
            lambda: nmflow.solve(array, pattern=pattern, scores=array, keep=keep, drop=drop),
            lambda: nmflow.solve(array, pattern=pattern, scores=array, keep=keep, drop=drop, solver="network-simplex"),
            lambda: nmflow.solve(array, pattern=pattern, scores=array, keep=keep, drop=drop, solver="local-search"),
            lambda: nmflow.certify(array, keep, pattern=pattern, keep=keep, drop=drop),
        ):
            with pytest.raises(InfeasibleError, match=where):
                call()
        return
    solution = nmflow.solve(array, pattern=pattern, scores=array, keep=keep, drop=drop)
    assert solution.mask[keep].all()
    assert not solution.mask[drop].any()
    assert solution.proven
    assert solution.objective == solution.bound == sum(best for best in bests if best is not None)
    graded = nmflow.certify(array, solution.mask, pattern=pattern, keep=keep, drop=drop)
    assert (graded.proven, graded.objective) == (True, solution.objective)
    free = nmflow.solve(array, pattern=pattern, scores=array)
    if not free.mask[keep].all() or free.mask[drop].any():
        assert not nmflow.certify(array, free.mask, pattern=pattern, keep=keep, drop=drop).feasible


def test_contradictions_are_counted_over_the_whole_problem() -> None:
    weights, drop = np.ones((3, 64, 64), np.float32), np.zeros((3, 64, 64), bool)
    drop[1, 5, 8:12] = drop[1, 60, 4:7] = drop[2, :4, 60:] = True
    message = (
        r"keep and drop must leave a mask of pattern 2:4, not contradict it as in 3 of 768 blocks, the first at "
        r'rows 4 to 7, columns 8 to 11 of matrix 1; mark fewer entries there, or use fill="at-most"'
    )
    for threads in (1, 2):
        for solver in ("dual", "greedy"):
            with pytest.raises(InfeasibleError, match=message):
                nmflow.solve(weights, 2, 4, layout="batch", drop=drop, threads=threads, solver=solver)
    assert nmflow.solve(weights, 2, 4, layout="batch", drop=drop, fill="at-most").proven
    keep = np.zeros((4, 4), bool)
    keep[0] = True
    with pytest.raises(
        InfeasibleError, match=r"in 1 of 1 blocks, the first at .* of matrix 0; mark fewer entries there$"
    ):
        nmflow.solve(np.ones((4, 4)), 2, 4, fill="at-most", keep=keep)


def test_keep_and_drop_must_not_overlap() -> None:
    both = np.zeros((4, 4), bool)
    both[2, 1] = both[3, 3] = True
    with pytest.raises(InfeasibleError, match=r"as they do at \(2, 1\) and at 2 in all"):
        nmflow.solve(np.ones((4, 4)), 2, 4, keep=both, drop=both)


@pytest.mark.parametrize("name", ["keep", "drop", "previous"])
def test_bad_masks(name: str) -> None:
    weights = np.ones((4, 4))
    extra = {"switch_cost": 1.0} if name == "previous" else {}
    with pytest.raises(InputValueError, match=rf"{name} must have shape \(4, 4\), not \(4, 5\)"):
        nmflow.solve(weights, 2, 4, **{name: np.ones((4, 5), bool)}, **extra)
    with pytest.raises(InputTypeError, match=f"{name} must be boolean, not int8"):
        nmflow.solve(weights, 2, 4, **{name: np.ones((4, 4), np.int8)}, **extra)
    if name != "previous":
        with pytest.raises(InputTypeError, match=f"{name} must be boolean, not int8"):
            nmflow.certify(weights, weights > 0, 2, 4, **{name: np.ones((4, 4), np.int8)})


@pytest.mark.parametrize("cost", [-0.5, float("nan"), float("inf"), 10**400, "much", 1j])
def test_bad_switch_costs(cost: Any) -> None:
    with pytest.raises(InputValueError, match="switch_cost must be a finite number of at least 0, not"):
        nmflow.solve(np.ones((4, 4)), 2, 4, previous=np.ones((4, 4), bool), switch_cost=cost)


def test_switching_needs_both_arguments_and_finite_scores() -> None:
    weights, previous = np.ones((4, 4)), np.ones((4, 4), bool)
    for options in ({"previous": previous}, {"switch_cost": 1.0}):
        with pytest.raises(InputValueError, match="previous and switch_cost must be given together"):
            nmflow.solve(weights, 2, 4, **options)
    with pytest.raises(InputValueError, match=r"switch_cost must leave scores finite, .* 2.0 does"):
        nmflow.solve(np.full((4, 4), 1e308), 2, 4, previous=previous, switch_cost=2.0)
    weights[1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"at 1 of 16 entries, the first at \(1, 2\)"):
        nmflow.solve(weights, 2, 4, previous=previous, switch_cost=1.0)


SWITCHED = ["gaussian", "gaussian_float16", "gaussian_bfloat16", "int8", "uint64_limits", "few_values", "signed"]


SWITCHES = [
    (family, pattern)
    for pattern in (Pattern(2, 4), Pattern(2, 4, fill="at-most"), Pattern(row="1:2", col="2:4"))
    for family in (SWITCHED if pattern == Pattern(2, 4) else ["gaussian", "few_values", "signed"])
]


@pytest.mark.parametrize(("family", "pattern"), SWITCHES, ids=str)
def test_previous_is_a_bonus_on_the_scores(family: str, pattern: Pattern) -> None:
    make = {**families.FAMILIES, **families.SIGNED}[family]
    array, signed = make((13, 18), 5), family == "signed"
    previous = nmflow.solve(families.gaussian((13, 18), 6), pattern=pattern).mask
    wide = array.astype(np.float64)
    scores = wide if signed else np.abs(wide)
    options = {"scores": array} if signed else {}
    flips = []
    for cost in (0.0, 0.3, 1.0, 1e6):
        bonus = cost * np.abs(wide).mean()
        given = scores + bonus * previous
        best = oracles.best_total(oracles.exact(given, absolute=False), pattern)
        for name in ("dual", "network-simplex"):
            found = nmflow.solve(array, pattern=pattern, previous=previous, switch_cost=cost, solver=name, **options)
            switch = found.switch
            assert switch is not None
            assert found.proven
            assert found.objective == pytest.approx(float(best), rel=1e-9)
            assert switch.bonus == pytest.approx(bonus, rel=1e-12)
            assert switch.flips == np.count_nonzero(found.mask != previous)
            assert switch.kept_again == np.count_nonzero(found.mask & previous)
            assert switch.kept_score == pytest.approx(scores[found.mask].sum(), rel=1e-12, abs=1e-9)
            assert found.objective == pytest.approx(switch.kept_score + switch.bonus * switch.kept_again, rel=1e-9)
        flips.append(switch.flips)
    assert flips[0] >= flips[-1]
    if pattern.fill == "exact":
        assert flips[-1] == 0
    assert nmflow.solve(array, pattern=pattern, solver="network-simplex", **options).switch is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_a_switch_cost_may_be_a_number_of_numpy(dtype: Any) -> None:
    weights, previous = families.gaussian((8, 8), 0), families.gaussian((8, 8), 1) > 0
    found, same = (nmflow.solve(weights, 2, 4, previous=previous, switch_cost=cost) for cost in (dtype(1), 1.0))
    assert found.objective == same.objective


def test_switching_follows_the_layout() -> None:
    weights = families.gaussian((6, 5, 3, 2), 8)
    for layout in ("conv", "batch"):
        previous = nmflow.solve(weights, 2, 4, layout=layout).mask
        changed = nmflow.solve(-weights[::-1], 2, 4, layout=layout, previous=previous, switch_cost=1e4)
        assert changed.switch is not None
        assert changed.switch.flips == 0
        assert changed.proven


def test_the_sum_with_the_transpose_is_a_matter_of_scores() -> None:
    weights = families.gaussian((16, 16), 4)
    both = np.abs(weights) + np.abs(weights).T
    solution = nmflow.solve(weights, 2, 4, scores=both)
    assert solution.objective == pytest.approx(nmflow.solve(both, 2, 4).objective, rel=1e-12)


def test_matrices_seen_as_one_are_solved_as_they_are_apart() -> None:
    """A stack of whole blocks is one tall matrix inside; where its memory is in another order, it is not."""
    weights, rng = families.gaussian((3, 2, 12, 14), 4), np.random.default_rng(5)
    marks = {"drop": rng.random(weights.shape) < 0.05, "previous": rng.random(weights.shape) < 0.5}

    def reordered(array: Array) -> Array:
        return array.swapaxes(0, 1).copy().swapaxes(0, 1)

    for options in ({}, {"drop": marks["drop"]}, {"previous": marks["previous"], "switch_cost": 0.3}):
        one = nmflow.solve(weights, 6, 12, layout="batch", duals=True, **options)
        others = {key: value if key == "switch_cost" else reordered(value) for key, value in options.items()}
        out = reordered(np.empty(weights.shape, bool))
        apart = nmflow.solve(reordered(weights), 6, 12, layout="batch", duals=True, out=out, **others)
        assert apart.mask is out
        assert np.array_equal(one.mask, apart.mask)
        assert one.proven
        assert one.objective == pytest.approx(apart.objective, rel=1e-15)
        assert one.certificate.grids == apart.certificate.grids == ((1, 2),) * 6
        for mine, other in ((one.row_duals, apart.row_duals), (one.col_duals, apart.col_duals)):
            assert len(mine) == 6
            assert all(np.array_equal(*pair) for pair in zip(mine, other, strict=True))
        for start in (one, apart):
            assert np.array_equal(
                nmflow.solve(weights, 6, 12, layout="batch", warm_start=start, **options).mask, one.mask
            )
    each = [nmflow.solve(weights[index], 6, 12) for index in np.ndindex(3, 2)]
    one = nmflow.solve(weights, 6, 12, layout="batch")
    assert np.array_equal(one.mask, np.reshape([solution.mask for solution in each], weights.shape))
    conv = families.gaussian((24, 5, 3), 6)
    one = nmflow.solve(conv, 6, 12, layout="conv", groups=3)
    assert np.array_equal(
        one.mask, np.concatenate([nmflow.solve(conv[8 * g : 8 * g + 8], 6, 12, layout="conv").mask for g in range(3)])
    )


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float64", 1e308), ("float64", 1e-300), ("float32", 1e38), ("float16", 6e4), ("int64", 2**62)]
)
def test_the_worth_of_an_earlier_mask_is_measured_at_any_range(dtype: str, scale: float) -> None:
    """Scores of any size and memory order, bands of rows and what is left of them, and sums beyond float64."""
    rng = np.random.default_rng(8)
    weights, previous = (rng.random((40, 7001)) * scale).astype(dtype), rng.random((40, 7001)) < 0.5
    exact = sum(map(Fraction, weights.astype(np.float64).ravel().tolist())) / weights.size / 4
    bonuses = set()
    for order, threads in ((np.asarray, 1), (np.asarray, 2), (np.asfortranarray, 2)):
        found = nmflow.solve(order(weights), 2, 4, previous=order(previous), switch_cost=0.25, threads=threads)
        assert found.proven
        assert found.switch.flips == np.count_nonzero(found.mask ^ previous)
        assert found.switch.kept_again == np.count_nonzero(found.mask & previous)
        bonuses.add(found.switch.bonus)
    assert len(bonuses) == 1
    assert bonuses.pop() == pytest.approx(float(exact), rel=1e-12, abs=5e-324)


@pytest.mark.parametrize("shape", [(8, 12), (373, 1325)], ids=["a band", "bands"])
def test_a_mean_is_never_above_the_largest(shape: tuple[int, int]) -> None:
    weights = np.full(shape, np.finfo(np.float64).max)
    before = np.random.default_rng(0).random(shape) < 0.5
    solution = nmflow.solve(weights, 2, 4, previous=before, switch_cost=0.0)
    assert solution.certificate.proven
    with pytest.raises(InputValueError, match="switch_cost must leave scores finite"):
        nmflow.solve(weights, 2, 4, previous=before, switch_cost=0.5)
    weights[-1, -1] = np.nan
    with pytest.raises(NonFiniteError, match=f"at 1 of {weights.size} entries"):
        nmflow.solve(weights, 2, 4, previous=before, switch_cost=0.0)


def test_the_first_of_a_matrix_can_be_the_first_without_a_mask() -> None:
    drop = np.zeros((3, 8, 8), bool)
    drop[1, :4, :4] = drop[2] = True
    with pytest.raises(
        InfeasibleError, match=r"in 5 of 12 blocks, the first at rows 0 to 3, columns 0 to 3 of matrix 1"
    ):
        nmflow.solve(np.ones(drop.shape), 2, 4, layout="batch", drop=drop)


def test_the_first_block_without_a_mask_can_be_at_an_edge() -> None:
    drop = np.zeros((8, 10), bool)
    drop[4, 4:8] = drop[:4, 8:] = True  # the edge is solved last
    with pytest.raises(
        InfeasibleError, match=r"in 2 of 6 blocks, the first at rows 0 to 3, columns 8 to 11 of matrix 0"
    ):
        nmflow.solve(np.ones(drop.shape), row="4:4", col="4:4", drop=drop)


def test_blocks_without_a_mask_are_told_by_rows_and_columns_of_their_own() -> None:
    drop = np.zeros((9, 11), bool)
    drop[4:8, 6:8] = drop[8:, :2] = True
    with pytest.raises(InfeasibleError, match=r"2 of 18 blocks, the first at rows 4 to 7, columns 6 to 7 of matrix 0"):
        nmflow.solve(np.ones(drop.shape), row="1:2", col="2:4", drop=drop)


def test_rounded_integers_with_lines_that_cannot_be_full_have_masks_under_at_most_fill() -> None:
    """As if lines had to be full there is none."""
    weights = (np.random.default_rng(7).standard_normal((32, 32)) * 1e17).astype(np.int64)
    drop = np.zeros(weights.shape, bool)
    drop[8, 12:15] = True
    pattern = nmflow.Pattern(2, 4, fill="at-most")
    solution = nmflow.solve(weights, pattern=pattern, drop=drop)
    assert solution.certificate.proven
    assert not solution.mask[drop].any()
