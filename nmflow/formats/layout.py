"""What a format asks of a matrix, and how it says which arrays it stores and where a part of a matrix lies in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from nmflow.errors import FormatError

__all__ = ["PART", "Area", "Place", "Requirement", "Spec", "check_arrays"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a format asks of a matrix of one dtype.

    Attributes
    ----------
    pattern : str or None
        "n:m": at most n kept in every aligned group of m, along rows, and along columns if the format is two-way;
        None: any mask.
    rows, cols : int
        What the numbers of rows and of columns must be multiples of.
    """

    pattern: str | None
    rows: int
    cols: int

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The smallest shape of full multiples that holds `shape`."""
        if (self.rows, self.cols) == (1, 1):
            return shape
        rows, cols = shape
        return math.ceil(rows / self.rows) * self.rows, math.ceil(cols / self.cols) * self.cols


@dataclass(frozen=True, slots=True)
class Spec:
    """Dtype and shape of a stored array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its entries."""
        return math.prod(self.shape) * self.dtype.itemsize


PART = 128
"""What a part of a matrix begins at multiples of: then its stored arrays are parts of those of the whole, for every
format."""

Area: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part lies in a stored array: a shape of as many entries to see it in, and a slice of each axis."""

    shape: tuple[int, ...]
    area: Area


def check_arrays(format: str, given: Mapping[str, Spec], expected: Mapping[str, Spec]) -> None:
    """Raise FormatError, naming the array, unless stored arrays are the expected ones."""
    if given.keys() != expected.keys():
        raise FormatError(
            f"{format}: arrays must be {', '.join(expected)}, not {', '.join(sorted(map(str, given))) or 'none'}"
        )
    for name, spec in expected.items():
        if given[name] != spec:
            raise FormatError(
                f"{format}: array {name!r} must be {spec.dtype} of shape {spec.shape}, "
                f"not {given[name].dtype} of shape {given[name].shape}"
            )
