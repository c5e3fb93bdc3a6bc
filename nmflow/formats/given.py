"""What a caller gave, brought into the form that encoding reads, and the first place where a mask is wrong."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError
from nmflow.formats.layout import Requirement
from nmflow.pattern import Budget

__all__ = [
    "as_dtype",
    "bits_of",
    "first_violation",
    "listed",
    "padded_to",
    "plain",
    "shape_of",
    "stored_shape",
]


def bits_of(array: Array) -> Array:
    """The entries of an array as unsigned integers, without touching their bits."""
    return array.view(np.dtype(f"u{array.itemsize}"))


def first_violation(mask: Array, pattern: str) -> str:
    """Say where a mask first keeps too many: along rows first, then along columns.

    Parameters
    ----------
    mask : ndarray of bool, shape (R, C)
        R and C multiples of m.
    pattern : str
        "n:m".
    """
    budget = Budget.parse(pattern)
    for direction, across, lines in (("row", "columns", mask), ("column", "rows", mask.T)):
        counts = lines.reshape(lines.shape[0], -1, budget.m).sum(axis=2)
        if (counts > budget.n).any():
            line, group = (int(index) for index in np.argwhere(counts > budget.n)[0])
            first = group * budget.m
            return (
                f"mask must keep at most {budget.n} of {budget.m} along rows and along columns, not "
                f"{counts[line, group]} in {direction} {line}, {across} {first} to {first + budget.m - 1}"
            )
    return ""


def plain(array: Array) -> Array:
    """C-contiguous and aligned: the array itself if it is so already."""
    return np.require(array, requirements=("C", "A"))


def padded_to(array: Array, shape: tuple[int, ...]) -> Array:
    """A copy with zeros below and to the right."""
    out = np.zeros(shape, array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


def as_dtype(given: npt.DTypeLike) -> np.dtype[Any]:
    """A dtype, given as one or by its name; raise InputTypeError of anything else, None too."""
    if isinstance(given, np.dtype):  # an array's own: what a signal's handler raises would be taken for an error of it
        return given
    try:
        if given is None:  # NumPy takes it for float64
            raise TypeError
        return np.dtype(given)
    except Exception:
        raise InputTypeError(
            f"dtype must be one of NumPy's, or its name, not {given!r}; import ml_dtypes for the names of its own"
        ) from None


def shape_of(given: object, axes: int | None = None) -> tuple[int, ...]:
    """A shape, or one before padding, of so many axes; raise InputTypeError or InputValueError of anything else."""
    advice = "" if axes is None else "; pass the shape of the matrix before padding, or leave shape away"
    try:
        shape = tuple(operator.index(length) for length in given)  # type: ignore[attr-defined]
    except TypeError:
        raise InputTypeError(f"shape must be a tuple of whole numbers, not {given!r}{advice}") from None
    if axes is not None and len(shape) != axes:
        raise InputValueError(f"shape must have {axes} axes, not {len(shape)}{advice}")
    return shape


def stored_shape(
    shape: tuple[int, ...], need: Requirement, name: str, dtype: np.dtype[Any], pad: bool
) -> tuple[int, ...]:
    """The shape in which the format of this name stores a matrix; raise InputValueError where it does not fit."""
    if need.pattern is None:
        return shape
    if len(shape) != 2:
        raise InputValueError(f"weight must have 2 axes, not {len(shape)}; format {name} stores matrices")
    if min(shape) < 1:
        raise InputValueError(f"weight must not be empty, not of shape {shape}")
    padded = need.padded(shape)
    if padded != shape and not pad:
        side = "rows" if padded[0] != shape[0] else "columns"
        axis, multiple = (0, need.rows) if side == "rows" else (1, need.cols)
        raise InputValueError(
            f"weight must have a multiple of {multiple} {side} for {name} in {dtype}, not {shape[axis]}; "
            f"pad=True (--pad) stores it as {padded[0]} x {padded[1]}, filled with zeros"
        )
    return padded


def listed(names: tuple[str, ...]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
