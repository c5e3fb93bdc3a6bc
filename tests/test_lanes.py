"""Masks proven in 16-bit lanes: the duals that come with them prove every block, in fractions."""

from __future__ import annotations

import math
from typing import Any

import families
import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nmflow

Array = np.ndarray[Any, np.dtype[Any]]
PATTERNS = [nmflow.Pattern(2, 4), nmflow.Pattern(3, 5), nmflow.Pattern(2, 4, fill="at-most")]


def unproven(weights: Array, solution: nmflow.Solution, *, absolute: bool) -> int:
    """How many blocks the duals of a solution do not prove as they stand."""
    rows, cols = solution.pattern.block_shape
    scores = oracles.exact(weights, absolute=absolute)
    count = 0
    for i in range(0, weights.shape[0], rows):
        for j in range(0, weights.shape[1], cols):
            block = slice(i, i + rows), slice(j, j + cols)
            u = oracles.exact(solution.row_duals[i : i + rows, j // cols], absolute=False)
            v = oracles.exact(solution.col_duals[i // rows, j : j + cols], absolute=False)
            assert oracles.is_feasible(solution.mask[block], solution.pattern)
            count += not oracles.proves(scores[block], solution.mask[block], solution.pattern, u, v)
    return count


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", [*families.FAMILIES, *families.SIGNED])
def test_duals_prove_every_block_in_fractions(name: str, pattern: nmflow.Pattern) -> None:
    shape = 5 * pattern.m, 7 * pattern.m
    given_scores = name in families.SIGNED
    weights = (families.SIGNED if given_scores else families.FAMILIES)[name](shape, 2)
    options = {"scores": weights} if given_scores else {}
    solution = nmflow.solve(weights, pattern=pattern, duals=True, **options)
    assert solution.certificate.proven
    # duals found in Python's integers are rounded on their way out
    assert unproven(weights, solution, absolute=not given_scores) <= solution.stats.get("integers", 0)


WIDE = (
    "gaussian", "outlier_columns", "heavy_tailed", "near_ties", "mostly_zero", "huge_among_tiny", "binades",
    "subnormal", "largest_float32", "signed",
)  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_rows_of_several_words_whose_scores_take_all_16_bits_are_proven_too(name: str) -> None:
    test_duals_prove_every_block_in_fractions(name, nmflow.Pattern(7, 20))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *((np.float16, size) for size in (2.0**-20, 1.0, 2.0**15)),
        *((ml_dtypes.bfloat16, size) for size in (2.0**-130, 1.0, 2.0**127)),
    ],
    ids=str,
)
def test_what_is_kept_of_short_scores_is_summed_exactly(dtype: Any, size: float) -> None:
    weights = (np.random.default_rng(3).uniform(-1.0, 1.0, (32, 160)) * size).astype(dtype)
    solution = nmflow.solve(weights, 2, 4)
    assert solution.objective == math.fsum(np.abs(weights.astype(np.float64))[solution.mask].tolist())


def test_rows_alone_are_proven_too() -> None:
    weights = families.gaussian((12, 64), 0)
    solution = nmflow.solve(weights, 2, 4, transposable=False, duals=True)
    assert not solution.col_duals.any()
    assert unproven(weights, solution, absolute=True) == 0


def blocks(dtype: Any, bits: Any) -> st.SearchStrategy[Array]:
    """Blocks of any finite numbers of a dtype, by their bits."""

    def finite(words: Array) -> Array:
        values = words.view(dtype)
        with np.errstate(invalid="ignore"):  # signalling NaN
            return np.where(np.isfinite(values), values, np.asarray(1.0, dtype))

    return hnp.arrays(bits, (4, 8)).map(finite)


@pytest.mark.parametrize("absolute", [True, False])
@given(data=st.data())
def test_any_bits_of_any_dtype_are_proven(data: st.DataObject, absolute: bool) -> None:
    dtype, bits = data.draw(
        st.sampled_from(
            [(np.float16, np.uint16), (ml_dtypes.bfloat16, np.uint16), (np.float32, np.uint32), (np.float64, np.uint64)]
        )
    )
    scores = data.draw(blocks(dtype, bits))
    options = {} if absolute else {"scores": scores}
    fill = data.draw(st.sampled_from(["exact", "at-most"]))
    solution = nmflow.solve(scores, 2, 4, duals=True, fill=fill, **options)
    assert solution.certificate.proven
    assert unproven(scores, solution, absolute=absolute) <= solution.stats.get("integers", 0)
    best = oracles.best_total(oracles.exact(scores, absolute=absolute), solution.pattern)
    kept = oracles.exact(scores, absolute=absolute)[solution.mask].sum()
    assert kept == best


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiny_negative_scores_beside_huge_ones_are_below_zero(dtype: Any) -> None:
    """Scaled to the block's largest score they vanish, and are less than 0 all the same."""
    huge, tiny = (1e30, 1e-30) if dtype == np.float32 else (1e300, 5e-324)
    scores = np.full((8, 8), -tiny, dtype)
    scores[::4, ::4] = huge
    scores[1::4, 1::4] = -huge
    scores[2::4, 2::4] = 0.0
    solution = nmflow.solve(scores, 1, 4, scores=scores, duals=True)
    assert solution.certificate.proven
    assert unproven(scores, solution, absolute=False) <= solution.stats.get("integers", 0)
    assert (solution.mask[2::4, 2::4]).all()


@pytest.mark.parametrize("pattern", [(4, 8), (8, 16)])
def test_the_largest_floats_have_finite_duals(pattern: tuple[int, int]) -> None:
    weights = families.largest_float32((32, 32), 0)
    solution = nmflow.solve(weights, *pattern, duals=True)
    assert np.isfinite(solution.row_duals).all()
    assert np.isfinite(solution.col_duals).all()
    assert nmflow.solve(weights, *pattern, warm_start=solution).certificate.proven


@pytest.mark.parametrize("positive", [1.0, 0.7, 0.3])
def test_lines_that_may_stay_below_their_budgets_are_settled_as_if_full_or_not(positive: float) -> None:
    """Full lines at first where most scores are above 0, and a start from there; the best total either way."""
    rng = np.random.default_rng(7)
    scores = np.where(rng.random((48, 64)) < positive, 1.0, -1.0) * np.abs(rng.standard_normal((48, 64)))
    scores = scores.astype(np.float32)
    for row, col in (("2:4", "2:4"), ("2:4", "4:8"), ("1:4", "2:4")):
        pattern = nmflow.Pattern(row=row, col=col, fill="at-most")
        solution = nmflow.solve(scores, pattern=pattern, scores=scores, duals=True)
        exact = oracles.exact(scores, absolute=False)
        assert solution.certificate.proven
        assert unproven(scores, solution, absolute=False) == 0
        assert exact[solution.mask].sum() == oracles.best_total(exact, pattern)


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("close", ["near one", "in order"])
def test_scores_that_lie_close_together_are_settled(close: str, fill: str) -> None:
    """Their differences are far below the steps of lanes at first; no ties, which would be hopeless."""
    gaussian = np.random.default_rng(4).standard_normal((64, 64))
    weights = 1.0 + 1e-7 * gaussian if close == "near one" else np.sort(gaussian, axis=None).reshape(64, 64)
    pattern = nmflow.Pattern(2, 4, fill=fill)
    solution = nmflow.solve(weights, pattern=pattern, duals=True)
    assert solution.certificate.proven
    assert solution.stats.get("augmented", 0) < 0.25 * solution.certificate.n_blocks
    assert unproven(weights, solution, absolute=True) <= solution.stats.get("integers", 0)


def few_bits(shape: tuple[int, int], dtype: Any, seed: int = 0) -> Array:
    """Gaussian scores of a dtype, or of a bfloat16 that was read as float32."""
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return weights.astype(ml_dtypes.bfloat16).astype(np.float32) if dtype == "loaded" else weights.astype(dtype)


FEW_BITS = [
    *(("loaded", pattern, "exact") for pattern in ("2:4", "8:16", "3:6", "4:12", "16:32")),
    # kernels of more kinds take long to compile, by the same way
    *((dtype, pattern, "exact") for dtype in (ml_dtypes.bfloat16, np.float16) for pattern in ("2:4", "8:16")),
    *(("loaded", pattern, "at-most") for pattern in ("2:4", "8:16", "3:6")),
    (ml_dtypes.bfloat16, "2:4", "at-most"),
]


@pytest.mark.parametrize(("dtype", "pattern", "fill"), FEW_BITS)
def test_ties_among_scores_of_few_bits_hardly_need_paths(pattern: str, dtype: Any, fill: str) -> None:
    m = nmflow.Pattern.parse(pattern).m
    weights = few_bits((8 * m, (40 if m < 32 else 16) * m), dtype)
    solution = nmflow.solve(weights, pattern=pattern, duals=True, fill=fill)
    assert solution.stats["ascended"] <= 0.05 * solution.certificate.n_blocks
    assert unproven(weights, solution, absolute=True) == 0


def test_what_was_solved_before_proves_nothing() -> None:
    """The second time the workspace holds another mask and other duals of this very block."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        weights = np.where(rng.random((5, 5)) < 0.8, rng.integers(1, 129, (5, 5)), 0).astype(np.float32)
        once, again = (nmflow.solve(weights, 3, 5, fill="at-most", duals=True, threads=1) for _ in range(2))
        assert unproven(weights, again, absolute=True) == 0
        assert np.array_equal(once.row_duals, again.row_duals)
        assert nmflow.certify(weights, again.mask, 3, 5, fill="at-most", threads=1).proven


@pytest.mark.parametrize("options", [{}, {"transposable": False}, {"fill": "at-most"}], ids=str)
@pytest.mark.parametrize("make", [
    lambda g: g,
    lambda g: -np.abs(g),
    # far apart, so that sums of duals are no floats
    lambda g: np.ldexp(np.sign(g), np.round(30 * g).clip(-120, 120).astype(int)),
    lambda g: g * 2.0**-126,
    lambda g: g * 2.0**125,
    lambda g: np.where(g > 2, g * 2.0**60, g),
    lambda g: np.outer(g[0], g[1, : len(g)]).repeat(2, axis=1),
    lambda g: np.where(np.abs(g) < 1, 0.0, g),
])  # fmt: skip
def test_signed_scores_of_few_bits_are_proven(make: Any, options: dict[str, Any]) -> None:
    given = make(np.random.default_rng(1).standard_normal((64, 128))).astype(ml_dtypes.bfloat16)
    # kernels of more kinds and of larger blocks take long to compile, by the same way
    for weights in (given,) if options else (given, given.astype(np.float32)):
        solution = nmflow.solve(weights, *((4, 8) if options else (8, 16)), scores=weights, duals=True, **options)
        assert solution.certificate.proven
        assert unproven(weights, solution, absolute=False) <= solution.stats.get("integers", 0)


@pytest.mark.parametrize(
    ("dtype", "shape", "pattern"),
    [
        (np.float32, (3, 5), "1:1"), (np.float64, (3, 5), "1:1"), (ml_dtypes.bfloat16, (3, 5), "1:1"),
        (np.float32, (80, 80), "2:2"), (np.float64, (80, 80), "2:2"), (ml_dtypes.bfloat16, (64, 96), "4:4 rows only"),
        (np.float32, (64, 96), "4:4 rows only"),
    ],
)  # fmt: skip
def test_duals_of_lines_that_keep_all_are_numbers(dtype: Any, shape: tuple[int, int], pattern: str) -> None:
    """A step below the least score, which is the least number there is, would prove whatever is kept."""
    rng = np.random.default_rng(0)
    scores = (float(ml_dtypes.finfo(dtype).max) * rng.choice([-1.0, -0.99, 0.5], shape)).astype(dtype)
    solution = nmflow.solve(scores, pattern=pattern, scores=scores, duals=True)
    assert solution.certificate.proven
    assert np.isfinite(solution.row_duals).all()
    assert np.isfinite(solution.col_duals).all()
    rounded = solution.stats.get("integers", 0) + solution.stats.get("rounded", 0)
    assert unproven(scores, solution, absolute=False) <= rounded
