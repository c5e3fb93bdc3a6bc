"""Scores near a lattice, solved as small whole numbers: what is proven is proven of the scores themselves."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lanes import unproven

import nmflow
from nmflow.errors import NonFiniteError
from nmflow.solvers import levels
from nmflow.solvers.dual import Dual
from nmflow.solvers.levels import lattice_of

Array = np.ndarray[Any, np.dtype[Any]]


def scaled(shape: tuple[int, int], most: int, scale: float, dtype: Any = np.float32, seed: int = 0) -> Array:
    """Whole numbers times a scale, rounded: what dequantised weights are."""
    whole = np.random.default_rng(seed).integers(-most, most + 1, shape)
    return (whole.astype(np.float32) * np.float32(scale)).astype(dtype)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks of each chunk that was solved as whole numbers were proven by them."""
    counts: list[int] = []
    numbered = Dual._numbered

    def counted(self: Dual, chunk: Any, *others: Any) -> Any:
        result = numbered(self, chunk, *others)
        assert result.proven is not None
        counts.append(chunk.n_blocks - len(result.proven.others))
        return result

    monkeypatch.setattr(Dual, "_numbered", counted)
    return counts


def check(weights: Array, pattern: str, *, absolute: bool = True) -> nmflow.Solution:
    """Every block is proven, in fractions too, with duals and without; the same mask both times."""
    options = {} if absolute else {"scores": weights}
    solution = nmflow.solve(weights, pattern=pattern, duals=True, **options)
    assert solution.certificate.proven
    # duals of float64 scores can have more bits than float64
    rounded = solution.stats.get("integers", 0) + solution.stats.get("rounded", 0)
    assert unproven(weights, solution, absolute=absolute) <= rounded
    assert "rounded" not in solution.stats or weights.dtype == np.float64
    without = nmflow.solve(weights, pattern=pattern, **options)
    assert without.certificate.proven
    assert np.array_equal(without.mask, solution.mask)
    assert without.objective == pytest.approx(solution.objective, rel=1e-12)
    kept = np.abs(weights.astype(np.float64)) if absolute else weights.astype(np.float64)
    assert solution.objective == pytest.approx(kept[solution.mask].sum(), rel=1e-12)
    return solution


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("absolute", [True, False])
def test_every_dtype_is_proven_in_fractions(dtype: Any, absolute: bool, taken: list[int]) -> None:
    solution = check(scaled((64, 64), 4, 0.1, dtype), "4:8", absolute=absolute)
    assert sum(taken) >= 0.9 * 2 * solution.certificate.n_blocks


@pytest.mark.parametrize("pattern", ["3:5", "4:8"])
@pytest.mark.parametrize(("most", "scale"), [(4, 0.1), (7, 1 / 3), (6, 1.3e-14), (5, 1.1e9)])
def test_every_scale_is_proven_in_fractions(most: int, scale: float, pattern: str, taken: list[int]) -> None:
    check(scaled((40, 80), most, scale), pattern)
    assert sum(taken) > 0


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1.3e-100, 2.3e50])
def test_float64_has_lattices_of_its_own(scale: float, taken: list[int]) -> None:
    weights = np.random.default_rng(5).integers(-7, 8, (64, 96)) * scale
    check(weights, "4:8")
    assert sum(taken) > 0


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 1.3e-100, 2.3e50])
@pytest.mark.parametrize("zeros", [0.1, 0.5])
def test_at_most_fill_is_proven_in_whole_numbers(scale: float, zeros: float, taken: list[int]) -> None:
    """Their best masks are those of the whole numbers, however these are scaled; no block needs Python's integers."""
    rng = np.random.default_rng(6)
    whole = np.where(rng.random((64, 96)) < zeros, 0, rng.integers(-7, 8, (64, 96)))
    pattern = nmflow.Pattern(2, 4, fill="at-most")
    best = nmflow.solve(whole, pattern=pattern, solver="network-simplex")
    for duals in (True, False):
        solution = nmflow.solve(whole * scale, pattern=pattern, duals=duals)
        assert solution.certificate.proven
        assert np.abs(whole)[solution.mask].sum() == best.objective
        assert "integers" not in solution.stats
        assert scale != 1.0 or "rounded" not in solution.stats
        assert not duals or unproven(whole * scale, solution, absolute=True) <= solution.stats.get("rounded", 0)
        assert solution.objective == pytest.approx(np.abs(whole * scale)[solution.mask].sum(), rel=1e-12)
    assert sum(taken) > 0


def test_integers_that_float64_rounds_are_proven_under_at_most_fill() -> None:
    weights = (np.random.default_rng(7).standard_normal((64, 64)) * 1e17).astype(np.int64)
    pattern = nmflow.Pattern(2, 4, fill="at-most")
    solution, best = (nmflow.solve(weights, pattern=pattern, solver=name) for name in ("dual", "network-simplex"))
    assert solution.certificate.proven
    assert solution.stats.get("integers", 0) < 0.03 * solution.certificate.n_blocks
    assert np.abs(weights).astype(object)[solution.mask].sum() == np.abs(weights).astype(object)[best.mask].sum()


def test_many_levels_are_proven_too(taken: list[int]) -> None:
    """Eight bits: what rounding leaves of each is up to 63 times the smallest."""
    weights = (np.round(np.random.default_rng(1).standard_normal((128, 128)) * 30) * 0.0137).astype(np.float32)
    check(weights, "8:16")
    assert sum(taken) > 0


@pytest.mark.parametrize("deviation", [4, 10, 15, 20, 40])
@pytest.mark.parametrize("pattern", ["2:4", "8:16"])
def test_quantised_weights_of_several_bits_are_untied_in_whole_numbers(
    pattern: str, deviation: int, taken: list[int]
) -> None:
    # a scale that is one off, or a sample without large scores, would have some lie too far beside the lattice
    whole = np.rint(np.random.default_rng(deviation).standard_normal((256, 512)) * deviation).astype(np.float32)
    solution = nmflow.solve(whole * np.float32(0.0137), pattern=pattern)
    assert solution.proven
    assert sum(taken) > 0.99 * solution.certificate.n_blocks
    assert solution.stats["tied"] > 0.85 * solution.certificate.n_blocks


def test_as_many_levels_as_whole_numbers_have_room_for() -> None:
    """And some that a sample does not hold: beyond 24 bits a float32 would round them."""
    rng = np.random.default_rng(2)
    levels_ = rng.choice([-1020, -1019, -1017, 0, 1, 3, 1015, 1020], (64, 64))
    levels_[:8, :8].flat[:2] = 1020, -1020
    for most in (1500, 4001):
        levels_[33:40, 20:30] = rng.integers(-most, most, (7, 10))
        check((levels_ * np.float32(0.0137)).astype(np.float32), "4:8", absolute=False)


def test_blocks_that_steps_do_not_prove_are_solved_again(monkeypatch: pytest.MonkeyPatch, taken: list[int]) -> None:
    monkeypatch.setattr(levels, "ROOM", 2)
    solution = check(scaled((96, 96), 4, 0.1), "4:8")
    assert sum(taken) < 2 * solution.certificate.n_blocks


def test_a_score_off_the_lattice_is_seen(taken: list[int]) -> None:
    """One that a sample of the matrix does not hold."""
    weights = scaled((64, 64), 4, 0.1)
    for odd in (0.05, 1e30, 0.3 + 2.0**-24, -7e-39):
        weights[37, 41] = odd
        check(weights, "4:8")
    assert not taken


OFF = {
    "far below": (lambda rng, shape: rng.integers(-4, 5, shape) * np.float32(0.1), 1e-20, 1e-20),
    "last bits": (lambda rng, shape: rng.choice([32000, 31936, -31361, -19201, 448, 64], shape), 64.0, 2.0**-17),
    "underflow": (lambda rng, shape: rng.integers(-4, 5, shape) * 2.0**100, 2.0**-60, 2.0**-62),
    "underflow of float64": (lambda rng, shape: rng.integers(-4, 5, shape) * 2.0**800, 2.0**-400, 2.0**-402),
}
"""Scores on a lattice, one that lies on none though it looks as if in few bits, and the distance to others like it."""


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in OFF
        for dtype in (np.float32, np.float64)
        if "float64" not in name or dtype == np.float64
    ],
)
def test_no_score_is_taken_for_a_whole_number_that_it_is_not(
    name: str, dtype: Any, pattern: str, absolute: bool
) -> None:
    """Blocks that a sample of the matrix does not hold, whose scores differ only by what rounds away."""
    rng = np.random.default_rng(3)
    on, start, step = OFF[name]
    scores = on(rng, (64, 128)).astype(dtype)
    scores[9:40, 9:57] = start + step * rng.integers(-7, 8, (31, 48))
    solution = check(scores, pattern, absolute=absolute)
    grade = nmflow.certify(scores if not absolute else np.abs(scores), solution.mask, pattern=pattern)
    assert grade.proven


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_an_error(bad: float) -> None:
    weights = scaled((64, 64), 4, 0.1)
    weights[37, 41] = bad
    with pytest.raises(NonFiniteError):
        nmflow.solve(weights, 4, 8)


def test_ragged_edges_and_batches_are_proven() -> None:
    weights = scaled((3 * 30, 45), 4, 0.1).reshape(3, 30, 45)
    solution = nmflow.solve(weights, 4, 8, layout="batch")
    assert solution.certificate.proven
    for matrix, mask in zip(weights, solution.mask, strict=True):
        assert nmflow.solve(matrix, 4, 8).objective == pytest.approx(
            float(np.abs(matrix.astype(np.float64))[mask].sum()), rel=1e-12
        )


@given(
    st.integers(1, 40),
    st.floats(2.0**-70, 2.0**40, width=32),
    st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
)
def test_a_lattice_holds_what_it_was_found_for(most: int, scale: float, dtype: str) -> None:
    numbers = np.arange(most + 1) * (scale if dtype == "float64" else np.float32(scale))
    with np.errstate(over="ignore"):
        values = numbers.astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float64)
    if not np.isfinite(values).all():
        return
    lattice = lattice_of(values, "float64" if dtype == "float64" else "float32")
    if lattice is None or not lattice.largest:
        return
    coarse, fine = Fraction(lattice.coarse), Fraction(lattice.fine)
    assert coarse >= lattice.step * fine
    for value in values:
        level = round(Fraction(value) / coarse)
        rest = (Fraction(value) - level * coarse) / fine
        assert rest.denominator == 1
        assert abs(rest) <= lattice.largest


@pytest.mark.parametrize(
    ("scale", "dtype"), [(0.1, np.float32), (0.0131, np.float32), (1 / 3, np.float64), (0.5, np.float64)]
)
def test_duals_of_whole_numbers_become_those_of_scores_and_say_where_they_round(scale: float, dtype: Any) -> None:
    lattice = lattice_of((np.arange(9) * dtype(scale)).astype(np.float64), dtype)
    assert lattice is not None
    steps = np.random.default_rng(0).integers(-9, 10, (60, 6)) * lattice.step
    duals = (steps + np.random.default_rng(1).integers(-2, 3, steps.shape) * (lattice.largest > 0)).astype(np.float64)
    duals[:5] = steps[:5]
    lost, before = np.zeros(len(duals), np.uint8), duals.copy()
    lattice.to_scores(duals, lost)
    for k, row in enumerate(before):
        wholes = [round(Fraction(x) / lattice.step) for x in row]
        exact = [
            Fraction(lattice.coarse) * a + Fraction(lattice.fine) * (Fraction(x) - a * lattice.step)
            for a, x in zip(wholes, row, strict=True)
        ]
        assert [float(x) for x in exact] == duals[k].tolist()
        assert lost[k] == any(Fraction(float(x)) != x for x in exact)
    assert lost.any() == (not lattice.linear and dtype is np.float64)


@pytest.mark.parametrize("seed", range(40))
def test_the_scale_of_rounded_numbers_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = np.float32(np.exp(rng.normal(-4, 3)))
    whole = np.rint(rng.standard_normal(2048) * rng.integers(1, 50)).astype(np.float32)
    lattice = lattice_of((np.abs(whole) * scale).astype(np.float64), np.float32)
    assert lattice is not None
    assert lattice.coarse == float(scale)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_numbers_on_a_fine_lattice_are_near_a_coarse_one(dtype: Any) -> None:
    """Tenths in half precision are whole numbers of hundreds of steps, and nearly those of four."""
    values = (np.arange(5) * 0.1).astype(dtype).astype(np.float64)
    lattice = lattice_of(values, np.float32)
    assert lattice is not None
    assert (lattice.largest, lattice.step, lattice.spread) == (1, 8, 32)
    assert not lattice.linear
    codes = np.array([0.0, 1.0, 100.0, 307.0, 511.0])  # near no coarser lattice: what is left counts as they do
    assert lattice_of(codes, np.float32) == levels.Lattice(1.0, 1.0, 0, 1, 0, 511)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal(100),
        np.array([0.0, 1.0, 1e-6]),
        np.array([0.0, 1e300, 5e-324]),
        np.array([-1.7e308, 0.0, 1.7e308]),
        np.array([1e-250, 3e-250, 1e300]),
        np.array([0.0, 0.1, 0.1 + 1e-16, 0.2]),
    ],
)
def test_numbers_without_a_coarse_lattice_have_none(values: Array) -> None:
    assert lattice_of(values, np.float32) is lattice_of(values, np.float64) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("absolute", [True, False])
def test_neighbours_of_a_number_are_whole_numbers_of_its_last_bit(dtype: Any, absolute: bool, taken: list[int]) -> None:
    """As large as floats hold, nearly; negative ones too."""
    steps = np.random.default_rng(3).integers(-2, 3, (64, 64)) * 4.0
    weights = (dtype(1.1) + steps * np.finfo(dtype).eps).astype(dtype)
    check(weights if absolute else -weights, "4:8", absolute=absolute)
    assert sum(taken) > 0


def test_duals_of_more_bits_outlive_a_second_refinement() -> None:
    """One block of these needs Python's integers, and others, whose duals were rounded then, need them later."""
    rng = np.random.default_rng(31464)
    levels_, m = rng.choice([5, 9, 30, 120, 300]), int(rng.choice([4, 8, 16]))
    weights = rng.integers(-levels_, levels_ + 1, (64, 128)) * rng.choice([0.1, 1 / 3, 0.7, 0.0137, 1 / 7, 1e-3])
    solution = nmflow.solve(weights, m // 2, m, scores=weights)
    assert solution.stats["rounded"]
    assert solution.stats["integers"]
    grade = nmflow.certify(weights, solution.mask, m // 2, m)
    assert grade.proven
    assert grade.gap == 0.0


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("seed", range(3))
def test_the_last_bits_of_integers_count_under_at_most_fill(pattern: str, seed: int) -> None:
    """Float64 tells none of them from another, and duals of 0 or more prove nothing by themselves."""
    weights = (1 << 62) + np.random.default_rng(seed).integers(0, 200, (64, 64))
    full, at_most = (nmflow.solve(weights, pattern=pattern, fill=fill) for fill in ("exact", "at-most"))
    assert at_most.proven
    kept = [int(weights[found.mask].astype(object).sum()) for found in (full, at_most)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lines_that_may_have_room_are_proven_by_steps_that_are_large_enough(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under at-most fill duals that are not negative prove nothing of the scores where steps are too small."""
    monkeypatch.setattr(levels, "ROOM", 2)
    weights = np.abs(np.random.default_rng(0).integers(-7, 8, (64, 64))).astype(dtype) * dtype(0.7)
    for fill in ("exact", "at-most"):
        solution = nmflow.solve(weights, 2, 4, fill=fill)
        assert solution.certificate.proven
        scores = oracles.exact(weights)
        assert scores[solution.mask].sum() == oracles.best_total(scores, solution.pattern)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.1, 0.7])
def test_duals_moved_by_less_than_a_step_prove_the_scores_or_are_sought_anew(
    dtype: Any, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "ROOM", 2)
    for seed in range(20):
        weights = np.random.default_rng(seed).integers(1, 8, (64, 64)).astype(dtype) * dtype(scale)
        for m in (4, 8):
            solution = nmflow.solve(weights, m // 2, m, fill="at-most")
            grade = nmflow.certify(weights, solution.mask, m // 2, m, fill="at-most")
            assert grade.proven
            assert grade.gap == 0.0


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_further_beside_the_lattice_than_a_sample_shows_are_proven(dtype: Any, fill: str) -> None:
    """By one or two steps of the last bits: what they add up to is no longer less than a step of the lattice."""
    for scale in (0.1, 1 / 3, 0.7):
        rng = np.random.default_rng(0)
        weights = rng.integers(-4, 5, (64, 64)).astype(dtype) * dtype(scale)
        lattice = levels.lattice_of(weights[:8].astype(np.float64), dtype)
        assert lattice is not None
        beside = rng.integers(-lattice.largest - 1, lattice.largest + 2, weights.shape)
        beside[::8] = beside[:8] = beside[:, :8] = 0
        weights = (weights + beside * lattice.fine).astype(dtype)
        scores = oracles.exact(weights)
        solution = nmflow.solve(weights, 2, 4, fill=fill)
        assert solution.certificate.proven
        assert scores[solution.mask].sum() == oracles.best_total(scores, solution.pattern)


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_duals_of_whole_numbers_have_halves_that_float64_must_hold(sign: float, fill: str) -> None:
    """A mask is graded by them: beyond 2**52 there is none."""
    weights = sign * (2.0**52 + np.random.default_rng(0).integers(-4, 5, (64, 64)) / 2)
    for m in (4, 8):
        solution = nmflow.solve(weights, m // 2, m, scores=weights, fill=fill)
        grade = nmflow.certify(weights, solution.mask, m // 2, m, fill=fill)
        assert grade.proven
        assert grade.gap == 0.0
