"""Blocks finished one by one, from any duals: proven in fractions, whatever their shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest

from nmflow import Pattern
from nmflow.kernels.finish import finish_kernel, finish_scratch

Array = np.ndarray[Any, np.dtype[Any]]


def finish(
    values: Array, u: Array, v: Array, r: int, c: int, *, fill: int = 2, exact: bool = True
) -> tuple[Array, Array, float]:
    """Masks, flags and the kept score of blocks; their duals are changed in place."""
    count, rows, cols = values.shape
    mask = np.full((count * rows, cols), 7, np.uint8)
    flags = np.empty(count, np.uint8)
    kept = finish_kernel()(
        values, u, v, mask, np.arange(count), r, c, c, fill, fill, exact, False, *finish_scratch(rows, cols), flags
    )  # fmt: skip
    return mask.reshape(values.shape), flags, kept


def scores_of(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if kind == "gaussian":
        return rng.standard_normal(shape).astype(np.float32).astype(np.float64)
    if kind == "few":
        return (rng.integers(0, 3, shape) * np.float32(0.1)).astype(np.float32).astype(np.float64)
    if kind == "zero":
        return (rng.standard_normal(shape) * (rng.random(shape) < 0.1)).astype(np.float32).astype(np.float64)
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)


@pytest.mark.parametrize("kind", ["gaussian", "few", "zero", "wide"])
@pytest.mark.parametrize(("rows", "cols", "r", "c"), [(4, 4, 2, 2), (5, 5, 3, 3), (8, 4, 2, 4), (12, 24, 10, 5)])
@pytest.mark.parametrize("start", ["zero", "noise"])
@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_every_block_is_proven_in_fractions(
    kind: str, rows: int, cols: int, r: int, c: int, start: str, fill: str
) -> None:
    rng = np.random.default_rng(rows)
    values = scores_of(kind, (30, rows, cols), rng)
    # of few bits, as where they come from is
    u, v = (np.round(rng.standard_normal((30, side)) * 1024) / 1024 * (start == "noise") for side in (rows, cols))
    mask, flags, kept = finish(values, u, v, r, c, fill=2 if fill == "exact" else 1)
    row, col = (f"{budget}:{length}" for budget, length in ((r, cols), (c, rows)))
    pattern = Pattern(row=row, col=col, fill=fill)
    for k in np.flatnonzero(flags == 0):
        args = [oracles.exact(x[k], absolute=False) for x in (values, u, v)]
        assert oracles.proves(args[0], mask[k].astype(bool), pattern, *args[1:])
    assert kept == pytest.approx(values[flags == 0][mask[flags == 0] == 1].sum(), rel=1e-12)
    # sums of scores of all sizes round, and what rounding leaves is for other arithmetic
    assert kind == "wide" or not flags.any()


def test_a_margin_proves_scores_of_53_bits() -> None:
    """Sums along paths round at nearly every block of this size; duals between the scores prove them all the same."""
    values = np.random.default_rng(3).standard_normal((20, 32, 32))
    _, flags, _ = finish(values, np.zeros((20, 32)), np.zeros((20, 32)), 16, 16)
    assert not flags.any()


@pytest.mark.parametrize("kind", ["gaussian", "few"])
def test_the_largest_blocks_use_every_bit_of_a_word(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = scores_of(kind, (3, 64, 64), rng)
    u, v = np.zeros((3, 64)), np.zeros((3, 64))
    mask, flags, _ = finish(values, u, v, 40, 40)
    assert not flags.any()
    assert (mask.sum(axis=1) == 40).all()
    assert (mask.sum(axis=2) == 40).all()
    for k in range(3):
        reduced = oracles.exact(values[k], absolute=False) - oracles.exact(u[k], absolute=False)[:, None]
        reduced = reduced - oracles.exact(v[k], absolute=False)[None, :]
        assert (reduced[mask[k] == 1] >= 0).all()
        assert (reduced[mask[k] == 0] <= 0).all()


def test_distances_beyond_float64_are_left_unproven() -> None:
    values = np.full((1, 4, 4), -1.7e308)
    values[0, :2, :2] = 1.7e308
    mask, flags, _ = finish(values, np.zeros((1, 4)), np.zeros((1, 4)), 2, 2)
    assert set(np.unique(mask)) <= {0, 1}
    assert flags[0] or ((mask.sum(axis=1) == 2).all() and (mask.sum(axis=2) == 2).all())


def test_ties_of_rounded_scores_prove_nothing() -> None:
    values = np.ones((2, 4, 4))
    values[1] = np.array([[4, 3, 1, 1], [4, 3, 1, 1], [1, 1, 4, 3], [1, 1, 4, 3]])
    _, flags, _ = finish(values, np.zeros((2, 4)), np.zeros((2, 4)), 2, 2, exact=False)
    assert flags.tolist() == [1, 0]
