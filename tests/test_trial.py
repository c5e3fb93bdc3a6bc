"""Whether blocks are untied: where many of a few stay open, and nowhere else."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nmflow
from nmflow.errors import NonFiniteError

Array = np.ndarray[Any, np.dtype[Any]]
SHAPE = 256, 512


def gaussian() -> Array:
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def half_zero() -> Array:
    """Half of them pruned before, wherever they lie."""
    return np.where(np.random.default_rng(1).random(SHAPE) < 0.5, 0, gaussian()).astype(np.float32)


def four_bits() -> Array:
    """In four bits, with a scale for every 32 of a row."""
    scales = np.random.default_rng(2).uniform(0.01, 0.02, (SHAPE[0], SHAPE[1] // 32)).astype(np.float32)
    return np.clip(np.rint(gaussian() * 2.6), -7, 7) * np.repeat(scales, 32, axis=1)


def eight_bits() -> Array:
    return np.clip(np.rint(gaussian() * 42), -127, 127) * np.float32(0.0131)


def codes() -> Array:
    """64 numbers that lie on no lattice."""
    rng = np.random.default_rng(3)
    return rng.standard_normal(64).astype(np.float32)[rng.integers(0, 64, SHAPE)]


def bfloat16() -> Array:
    return gaussian().astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("weights", "pattern"),
    [(half_zero, "2:4"), (half_zero, "4:8"), (four_bits, "2:4"), (eight_bits, "4:8"), (half_zero, "8:16")],
)
def test_blocks_of_which_many_stay_open_are_untied(weights: Any, pattern: str) -> None:
    solution = nmflow.solve(weights(), pattern=pattern)
    assert solution.certificate.proven
    assert solution.stats["tied"] > 0.9 * solution.certificate.n_blocks


@pytest.mark.parametrize(
    ("weights", "pattern"),
    [(gaussian, "4:8"), (bfloat16, "4:8"), (codes, "4:8"), (codes, "8:16"), (half_zero, "2:4 at-most")],
)
def test_other_blocks_are_not_though_scores_repeat(weights: Any, pattern: str) -> None:
    solution = nmflow.solve(weights(), pattern=pattern)
    assert solution.certificate.proven
    assert "tied" not in solution.stats
    assert solution.stats.get("augmented", 0) < 0.1 * solution.certificate.n_blocks


def test_a_lattice_has_room_for_zeros_that_no_tried_block_holds() -> None:
    """One entry of a matrix is 0; all others are whole numbers of a scale that rounds, from one on."""
    weights = np.maximum(np.abs(eight_bits()), np.float32(0.0131))
    weights[200, 300] = 0
    whole = np.rint(weights / np.float32(0.0131)).astype(np.int32)
    solution = nmflow.solve(weights, 4, 8)
    assert solution.certificate.proven
    assert whole[solution.mask].sum() == nmflow.solve(whole, 4, 8).objective
    assert solution.stats["tied"] > 0.99 * solution.certificate.n_blocks


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (255, 511), (130, 77)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error_wherever_it_is(place: tuple[int, int], value: float) -> None:
    weights = half_zero()
    weights[place] = value
    with pytest.raises(NonFiniteError, match=rf"{place[0]}, {place[1]}"):
        nmflow.solve(weights, 4, 8)


def test_few_blocks_are_tried_as_well() -> None:
    for shape in ((4, 4), (4, 8), (8, 4), (64, 4), (4, 512)):
        solution = nmflow.solve(half_zero()[: shape[0], : shape[1]], 2, 4)
        assert solution.certificate.proven


def test_a_trial_says_the_same_whatever_the_threads() -> None:
    weights = np.tile(half_zero(), (4, 2))
    one, two = (nmflow.solve(weights, 2, 4, threads=threads) for threads in (1, 2))
    assert np.array_equal(one.mask, two.mask)
    assert one.stats["tied"] == two.stats["tied"] > 0
