"""Rows alone: the largest of each row, the first of those that are alike, whatever the scores."""

from __future__ import annotations

from typing import Any

import families
import ml_dtypes
import numpy as np
import pytest
from test_lanes import unproven

import nmflow

Array = np.ndarray[Any, np.dtype[Any]]
PATTERNS = [(2, 4), (1, 3), (5, 12), (8, 16), (1, 1), (3, 20)]
ALL, SIGNED = (
    [name for name, make in some.items() if make((4, 4), 0).dtype.kind not in "iu"]
    for some in (families.FAMILIES, families.SIGNED)
)
LONG = [(16, 32), (33, 64)]
"""Of rows that take two words and four: their kernels take long to compile."""


def largest(scores: Array, n: int, m: int, fill: str) -> Array:
    """The n largest of each m, the first of those that are alike; under at-most fill, those above 0."""
    groups = scores.reshape(len(scores), -1, m)
    order = np.argsort(-groups, axis=-1, kind="stable")[..., :n]
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    if fill == "at-most":
        mask &= groups > 0
    return mask.reshape(scores.shape)


def check(weights: Array, n: int, m: int, *, fill: Any = "exact", signed: bool = False) -> None:
    pattern, given = nmflow.Pattern(n, m, transposable=False, fill=fill), {"scores": weights} if signed else {}
    wide = weights.astype(np.float64)
    scores = wide if signed else np.abs(wide)
    expected = largest(scores, n, m, fill)
    with np.errstate(over="ignore", invalid="ignore"):  # some sums are beyond float64
        kept = float(scores[expected].sum())
    solution = nmflow.solve(weights, pattern=pattern, duals=True, **given)
    plain = nmflow.solve(weights, pattern=pattern, **given)
    assert np.array_equal(solution.mask, expected)
    assert np.array_equal(plain.mask, expected)
    for found in (solution, plain):
        assert found.certificate.proven
        assert not np.isfinite(kept) or found.objective == pytest.approx(kept, rel=1e-12)
        assert "augmented" not in found.stats
    assert not np.any(solution.col_duals)
    assert unproven(weights, solution, absolute=not signed) == 0


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("family", ALL)
def test_the_largest_of_each_row_are_kept(family: str, n: int, m: int, fill: str) -> None:
    check(families.FAMILIES[family]((m, 40 * m), 3), n, m, fill=fill)


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("family", SIGNED)
def test_signed_scores_have_their_order(family: str, fill: str) -> None:
    check(families.SIGNED[family]((16, 160), 3), 2, 4, fill=fill, signed=True)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (8, 16)])
def test_values_that_repeat_take_no_longer_way(n: int, m: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for signed in (False, True):
        check(rng.integers(-2, 3, (2 * m, 33 * m)).astype(dtype), n, m, signed=signed)
        check(np.zeros((2 * m, 33 * m), dtype), n, m, signed=signed)


@pytest.mark.parametrize(("n", "m"), LONG)
def test_long_rows_have_several_words(n: int, m: int) -> None:
    check(families.gaussian((m, 40 * m), 1), n, m)
    check(families.few_values((m, 40 * m), 1), n, m)


def test_more_threads_find_the_same() -> None:
    weights = families.few_values((512, 1024), 0)
    for pattern in ("2:4 rows only", "8:16 rows only"):
        one, two = (nmflow.solve(weights, pattern=pattern, threads=threads, duals=True) for threads in (1, 2))
        assert np.array_equal(one.mask, two.mask)
        assert np.array_equal(one.row_duals, two.row_duals)
        assert one.objective == two.objective


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_scores_that_are_not_finite_are_refused(dtype: Any, wrong: float) -> None:
    weights = families.gaussian((64, 128), 0).astype(dtype)
    weights[37, 101] = wrong
    with pytest.raises(nmflow.NmflowError, match="finite"):
        nmflow.solve(weights, pattern="2:4 rows only")
    with pytest.raises(nmflow.NmflowError, match="finite"):
        nmflow.solve(weights, pattern="2:4 rows only", scores=weights)


def test_integers_that_are_rounded_are_proven_as_they_are() -> None:
    """Of 64 bits: as float64 many are alike that are not."""
    weights = (1 << 62) + np.random.default_rng(0).integers(0, 64, (32, 64))
    solution = nmflow.solve(weights, pattern="2:4 rows only")
    assert solution.certificate.proven
    groups = np.sort(weights.reshape(-1, 4), axis=1)[:, 2:]
    assert sum(int(x) for x in weights[solution.mask]) == sum(int(x) for x in groups.ravel())
