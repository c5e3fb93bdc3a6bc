"""Seeded families of instances: what weights look like, and what breaks solvers.

Each function takes a shape and a seed and returns an array. `FAMILIES` are weights, whose scores are their absolute
values; `SIGNED` are meant for ``scores=``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Family = Callable[[Shape, int], Array]


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaussian(shape: Shape, seed: int) -> Array:
    return _rng(seed).standard_normal(shape).astype(np.float32)


def gaussian_float64(shape: Shape, seed: int) -> Array:
    return _rng(seed).standard_normal(shape)


def gaussian_float16(shape: Shape, seed: int) -> Array:
    return _rng(seed).standard_normal(shape).astype(np.float16)


def gaussian_bfloat16(shape: Shape, seed: int) -> Array:
    return _rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)


def outlier_columns(shape: Shape, seed: int) -> Array:
    """Three in a hundred columns (at least one) are ten to a hundred times larger: activations scale so."""
    rng = _rng(seed)
    scale = np.ones(shape[-1])
    chosen = rng.random(shape[-1]) < 0.03
    chosen[rng.integers(shape[-1])] = True
    scale[chosen] = rng.uniform(10.0, 100.0, int(chosen.sum()))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def heavy_tailed(shape: Shape, seed: int) -> Array:
    return _rng(seed).standard_t(1.5, shape).astype(np.float32)


def all_equal(shape: Shape, seed: int) -> Array:
    return np.full(shape, np.float32(0.1) * (seed + 1), np.float32)


def few_values(shape: Shape, seed: int) -> Array:
    return _rng(seed).integers(0, 3, shape).astype(np.float32) * np.float32(0.1)


def near_ties(shape: Shape, seed: int) -> Array:
    """Values that differ in the last bits only."""
    steps = _rng(seed).integers(-2, 3, shape).astype(np.int32)
    return (np.full(shape, 1.1, np.float32).view(np.int32) + steps).view(np.float32)


def near_ties_float64(shape: Shape, seed: int) -> Array:
    steps = _rng(seed).integers(-2, 3, shape).astype(np.int64)
    return (np.full(shape, 1.1).view(np.int64) + steps).view(np.float64)


def mostly_zero(shape: Shape, seed: int) -> Array:
    rng = _rng(seed)
    return np.where(rng.random(shape) < 0.1, rng.standard_normal(shape), 0.0).astype(np.float32)


def all_zero(shape: Shape, seed: int) -> Array:
    return np.where(_rng(seed).random(shape) < 0.5, np.float32(0.0), np.float32(-0.0))


def huge_among_tiny(shape: Shape, seed: int) -> Array:
    """1e30 beside 1e-30: a gap of exactly 0.0 in float64 proves nothing here."""
    rng = _rng(seed)
    values = rng.uniform(0.5, 2.0, shape) * 1e-30
    values.ravel()[rng.integers(values.size, size=max(1, values.size // 16))] = 1e30
    return values.astype(np.float32)


def huge_among_tiny_float64(shape: Shape, seed: int) -> Array:
    return huge_among_tiny(shape, seed).astype(np.float64) ** 3


def binades(shape: Shape, seed: int) -> Array:
    """Powers of two over 60 binades, with zeros."""
    rng = _rng(seed)
    return np.where(rng.random(shape) < 0.2, 0.0, 2.0 ** rng.integers(-30, 31, shape)).astype(np.float32)


def no_float_duals(shape: Shape, seed: int) -> Array:
    """Built of 2**60, 1 and 2**-60: at 1:3 there are blocks that no float64 duals can prove."""
    return _rng(seed).choice([0.0, 2.0**-60, 1.0, 2.0**60], shape)


def subnormal(shape: Shape, seed: int) -> Array:
    return (_rng(seed).integers(-9, 10, shape) * np.float64(2.0**-149)).astype(np.float32)


def subnormal_float64(shape: Shape, seed: int) -> Array:
    return _rng(seed).integers(-9, 10, shape) * np.float64(5e-324)


def subnormal_float16(shape: Shape, seed: int) -> Array:
    return (_rng(seed).integers(-9, 10, shape) * 2.0**-24).astype(np.float16)


def largest_float64(shape: Shape, seed: int) -> Array:
    """Near the top of the range, where sums and differences overflow."""
    return _rng(seed).uniform(-1.0, 1.0, shape) * np.finfo(np.float64).max


def largest_float32(shape: Shape, seed: int) -> Array:
    return (_rng(seed).uniform(-1.0, 1.0, shape) * np.finfo(np.float32).max).astype(np.float32)


def int8(shape: Shape, seed: int) -> Array:
    """All int8 values, -128 often: it counts 128."""
    rng = _rng(seed)
    return np.where(rng.random(shape) < 0.2, -128, rng.integers(-128, 128, shape)).astype(np.int8)


def uint8(shape: Shape, seed: int) -> Array:
    return _rng(seed).integers(0, 256, shape, np.uint8)


def int16(shape: Shape, seed: int) -> Array:
    return _rng(seed).integers(-(2**15), 2**15, shape, np.int16)


def int32(shape: Shape, seed: int) -> Array:
    return _rng(seed).integers(-(2**31), 2**31, shape, np.int32)


def int64_limits(shape: Shape, seed: int) -> Array:
    """Near the limits of int64, where neighbours share one float64; the least value has no int64 magnitude."""
    rng = _rng(seed)
    near = np.iinfo(np.int64).max - rng.integers(0, 9, shape)
    return np.where(rng.random(shape) < 0.2, np.iinfo(np.int64).min, np.where(rng.random(shape) < 0.5, near, -near))


def uint64_limits(shape: Shape, seed: int) -> Array:
    return np.iinfo(np.uint64).max - _rng(seed).integers(0, 9, shape, np.uint64)


def low_rank(shape: Shape, seed: int) -> Array:
    rng = _rng(seed)
    rows, cols = rng.standard_normal((shape[0], 1)), rng.standard_normal((1, shape[1]))
    return (rows * cols).astype(np.float32)


def additive(shape: Shape, seed: int) -> Array:
    """Row plus column: under exact fill every mask is equally good."""
    rng = _rng(seed)
    return (rng.integers(1, 9, (shape[0], 1)) + rng.integers(1, 9, (1, shape[1]))).astype(np.float32)


def signed(shape: Shape, seed: int) -> Array:
    return gaussian(shape, seed)


def signed_negative(shape: Shape, seed: int) -> Array:
    """All negative: at-most fill keeps nothing."""
    return -np.abs(gaussian(shape, seed)) - np.float32(0.5)


def signed_int8(shape: Shape, seed: int) -> Array:
    return int8(shape, seed)


def signed_float64(shape: Shape, seed: int) -> Array:
    return gaussian_float64(shape, seed)


def signed_int64_limits(shape: Shape, seed: int) -> Array:
    return int64_limits(shape, seed)


def signed_largest(shape: Shape, seed: int) -> Array:
    """The two ends of the range: duals lie beyond it, and so do their sums."""
    return np.where(_rng(seed).random(shape) < 0.5, 1.0, -1.0) * np.finfo(np.float64).max


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        gaussian,
        gaussian_float64,
        gaussian_float16,
        gaussian_bfloat16,
        outlier_columns,
        heavy_tailed,
        all_equal,
        few_values,
        near_ties,
        near_ties_float64,
        mostly_zero,
        all_zero,
        huge_among_tiny,
        huge_among_tiny_float64,
        binades,
        no_float_duals,
        subnormal,
        subnormal_float64,
        subnormal_float16,
        largest_float64,
        largest_float32,
        int8,
        uint8,
        int16,
        int32,
        int64_limits,
        uint64_limits,
        low_rank,
        additive,
    )
}
"""Weights: the score is the absolute value."""

SIGNED: dict[str, Family] = {
    family.__name__: family
    for family in (signed, signed_negative, signed_int8, signed_float64, signed_largest, signed_int64_limits)
}
"""Scores, taken with their sign."""
HALVES = {
    name
    for name, make in (FAMILIES | SIGNED).items()
    if (array := make((4, 4), 0)).itemsize == 2 and array.dtype.kind not in "iu"
}
"""Families of 16-bit floats, taken for few patterns: kernels of more take long to compile, by the same way."""

RAGGED: tuple[tuple[int, int], ...] = ((1, 1), (1, 9), (9, 1), (3, 3), (4, 7), (7, 4), (5, 6), (13, 10), (2, 17))
"""Shapes that are no multiples of the usual blocks."""
