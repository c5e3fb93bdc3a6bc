"""Scores cut to whole steps: q = floor(S / unit) for any S, in whatever way a dtype is read."""

from __future__ import annotations

from fractions import Fraction
from math import floor, frexp
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numba import types

from nmflow.kernels.compile import compiled
from nmflow.kernels.cuts import read_segment
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import VECTOR, first_bits, measure_segment
from nmflow.kernels.simd import LANES

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = 2


def cut(scores: Array, cols: int, bits: int, *, absolute: bool) -> tuple[Array, Array]:
    """Steps of 32 blocks side by side, shape (32,), and what lanes hold of them, shape (rows, cols, 32)."""
    kind = KINDS[scores.dtype.name]
    code, rows, magnitude = kind.code, ROWS, int(absolute)

    def run(address, stride, lanes, scales):  # type: ignore[no-untyped-def]
        verdict = measure_segment(address, stride, scales, code, rows, cols, magnitude, bits)
        read_segment(address, stride, lanes, scales, code, rows, cols, magnitude, 0)
        return verdict

    room = np.empty(ROWS * cols * VECTOR + VECTOR, np.uint8)
    start = -room.ctypes.data % VECTOR  # lanes are read and written whole, so they must lie on a line
    lanes = room[start : start + ROWS * cols * VECTOR].view(np.uint16 if absolute else np.int16)
    lanes = lanes.reshape(ROWS, cols, LANES)
    scales = np.empty(LANES, kind.work_dtype)
    given = np.ascontiguousarray(scores)
    assert compiled(run, types.int64(*[types.int64] * 4))(
        given.ctypes.data, given.strides[0], lanes.ctypes.data, scales.ctypes.data
    ) < 0  # fmt: skip
    return scales, lanes


def check(scores: Array, cols: int, bits: int, *, absolute: bool) -> None:
    scales, lanes = cut(scores, cols, bits, absolute=absolute)
    exact = (np.abs(scores) if absolute else scores).astype(np.float64)
    for block in range(LANES):
        unit = Fraction(float(scales[block]))
        inside = exact[:, block * cols : (block + 1) * cols]
        size = bits if absolute else bits - 1
        highest = frexp(float(np.abs(inside).max()))[1]
        assert Fraction(unit) >= Fraction(2) ** (highest - size)  # so that what lanes hold fits
        wanted = [[floor(Fraction(score) / unit) for score in row] for row in inside.tolist()]
        assert lanes[:, :, block].tolist() == wanted


def finite(dtype: Any) -> Array:
    """All finite numbers of 16 bits that are not negative, in order."""
    numbers: Array = np.arange(1 << 15, dtype=np.uint16).view(dtype)
    return numbers[np.isfinite(numbers.astype(np.float32))]


@pytest.mark.parametrize("bits", [first_bits(4), first_bits(16)])
@pytest.mark.parametrize("cols", [4, 5])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_all_magnitudes_of_16_bits_are_cut_below_any_largest(dtype: Any, cols: int, bits: int) -> None:
    numbers, rng = finite(dtype), np.random.default_rng(0)
    count = LANES * ROWS * cols
    signs = np.array([1, -1], dtype)
    for spread in (1, 64, len(numbers)):  # neighbours, the same binade or so, anything
        first = rng.integers(0, len(numbers) - min(count, len(numbers)), 6)
        for start in (0, len(numbers) - count, *first.tolist()):
            picked = start + rng.integers(0, min(spread * count, len(numbers) - start), count)
            picked[0] = min(start + spread, len(numbers) - 1)
            scores = numbers[picked].reshape(ROWS, -1) * rng.choice(signs, (ROWS, LANES * cols))
            check(scores, cols, bits, absolute=True)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_scores_of_all_sizes_are_cut_in_all_dtypes(name: str, absolute: bool) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    info, rng = ml_dtypes.finfo(dtype), np.random.default_rng(1)
    lowest, highest = frexp(float(info.smallest_subnormal))[1], frexp(float(info.max))[1] - 1
    with np.errstate(under="ignore"):
        for width in (0, 8, highest - lowest):
            powers = rng.integers(0, width + 1, (ROWS, LANES * 4)) + rng.integers(lowest, highest - width + 1)
            scores = np.ldexp(rng.uniform(0.5, 1.0, powers.shape), powers) * rng.choice([-1, 1], powers.shape)
            check(scores.astype(dtype), 4, first_bits(4), absolute=absolute)
