"""Reading: a caller's entries in the form that kernels take, which are the array itself wherever it can be."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array, is_bfloat16
from nmflow.problem import Problem

__all__ = ["Kind", "in_rows", "kind_of", "readable", "turned", "with_bonus", "work_dtype"]

FEWEST_ENTRIES = 1 << 14
"""Entries that are worth a kernel: NumPy turns fewer than these in cache."""
Kind = Literal["float32", "float64", "float16", "bfloat16"]


def kind_of(problem: Problem) -> Kind:
    """The kind in which the kernels read the scores of a problem."""
    return "float64" if problem.previous is not None and problem.bonus else _kind(problem.scores.dtype)


@cache
def _kind(dtype: np.dtype[Any]) -> Kind:
    if dtype.kind in "iu":
        return "float32" if dtype.itemsize <= 2 else "float64"
    kind: Kind = "bfloat16" if is_bfloat16(dtype) else dtype.newbyteorder("=").name  # type: ignore[assignment]
    return kind


def work_dtype(kind: Kind) -> npt.DTypeLike:
    """The dtype in which scores of a kind are compared, and their duals written."""
    return np.float64 if kind == "float64" else np.float32


def readable(part: Array) -> tuple[Array, Kind, bool]:
    """The entries in a dtype that the kernels read: the array itself if it can be, else a converted copy.

    Returns
    -------
    values : ndarray of float32, float64, or uint16 for the two dtypes of 16 bits; rows C-contiguous
    kind : str
    exact : bool
        False where 64-bit integers were rounded to float64.
    """
    dtype = part.dtype
    kind = _kind(dtype)
    if dtype.kind in "iu":
        values = part.astype(kind, order="C")
        # Below 2**53, not up to it: 2**53 + 1 rounds to 2**53.
        exact = dtype.itemsize < 8 or not values.size or float(np.abs(values).max()) < 2.0**53
        return values, kind, exact
    if not dtype.isnative:
        part = part.astype(dtype.newbyteorder("="))
    if dtype.itemsize == 2:
        part = part.view(np.uint16)
    return in_rows(part), kind, True


def turned(part: Array) -> Array:
    """The same entries with those of a row side by side, where those of a column are: NumPy takes far longer."""
    item, (down, across) = part.itemsize, part.strides
    if down != item or across == item or part.size < FEWEST_ENTRIES:
        return part
    from nmflow.kernels.turn import turn_kernel

    copy = np.empty(part.shape, part.dtype)
    turn_kernel(item)(part.ctypes.data, across, copy.ctypes.data, copy.strides[0], *part.shape)
    return copy


def with_bonus(part: Array, absolute: bool, previous: Array, bonus: float) -> Array:
    """Scores with the bonus of those that an earlier mask kept: float64, each sum rounded once."""
    from nmflow.kernels.switch import bonus_kernel

    (scores, kind, _), previous = readable(part), in_rows(previous)
    sums = np.empty(part.shape)
    bonus_kernel(kind, absolute)(
        scores.ctypes.data, scores.strides[0], previous.ctypes.data, previous.strides[0], sums.ctypes.data, *part.shape,
        bonus,
    )  # fmt: skip
    return sums


def in_rows(part: Array) -> Array:
    """The array itself, or a copy where entries of a row do not lie side by side."""
    if part.strides[1] != part.itemsize or not part.flags.aligned:
        part = np.require(part, requirements=["C", "ALIGNED"])
    return part
