"""What a caller gave, brought into the form that encoding reads, and the first place where a mask is wrong."""

from __future__ import annotations

import operator

import numpy as np

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError
from nmflow.pattern import Budget

__all__ = ["bits_of", "check_mask", "first_violation", "listed", "padded_to", "plain", "shape_of"]


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


def check_mask(mask: Array, shape: tuple[int, ...]) -> None:
    """Raise InputTypeError or InputValueError unless a mask is boolean and of the weight's shape."""
    if mask.dtype != np.bool_:
        raise InputTypeError(f"mask must be boolean, not {mask.dtype}; write mask != 0 if that is meant")
    if mask.shape != shape:
        raise InputValueError(f"mask must have the shape of weight, {shape}, not {mask.shape}")


def plain(array: Array) -> Array:
    """C-contiguous and aligned: the array itself if it is so already."""
    return np.require(array, requirements=("C", "A"))


def padded_to(array: Array, shape: tuple[int, ...]) -> Array:
    """A copy with zeros below and to the right."""
    out = np.zeros(shape, array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


def shape_of(given: object, axes: int) -> tuple[int, ...]:
    """A shape before padding; raise InputTypeError or InputValueError unless it is so many whole numbers."""
    advice = "pass the shape of the matrix before padding, or leave shape away"
    try:
        shape = tuple(operator.index(length) for length in given)  # type: ignore[attr-defined]
    except TypeError:
        raise InputTypeError(f"shape must be a tuple of whole numbers, not {given!r}; {advice}") from None
    if len(shape) != axes:
        raise InputValueError(f"shape must have {axes} axes, not {len(shape)}; {advice}")
    return shape


def listed(names: tuple[str, ...]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
