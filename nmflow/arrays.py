"""Arrays as all rooms see them: their type, and a matrix that is read a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Layout", "Matrix", "follow_one_another", "is_bfloat16"]

Array: TypeAlias = npt.NDArray[Any]
Layout = Literal["conv", "batch"]


@cache
def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is ml_dtypes' bfloat16, without importing ml_dtypes."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a problem, read a few rows at a time so that no layout needs a copy of the whole.

    `array` is (R, C), or (R, in, *kernel) seen as R x (kernel . in) when it has more than two axes.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = self.array.shape
        return (shape[0], shape[1]) if len(shape) == 2 else (shape[0], self.array.size // shape[0])

    def rows(self, start: int, stop: int) -> Array:
        """Rows start to stop as a two-dimensional array: a view if the layout allows it."""
        part = self.array[start:stop]
        return part if part.ndim == 2 else np.moveaxis(part, 1, -1).reshape(len(part), -1)

    def part(self, rows: slice, cols: slice) -> Array:
        """A rectangle as a two-dimensional array: a view if the layout allows it, else a copy of about its size."""
        if self.array.ndim == 2:
            return self.array[rows, cols]
        if 2 * (cols.stop - cols.start) >= self.shape[1]:
            return self.rows(rows.start, rows.stop)[:, cols]
        # A narrow edge of a convolution: gathered, because rows() would copy the whole width for it.
        moved = np.moveaxis(self.array[rows], 1, -1)
        entry = np.unravel_index(np.arange(cols.start, cols.stop), moved.shape[1:])
        index: tuple[Any, ...] = (slice(None), *entry)
        gathered: Array = moved[index]
        return gathered


def follow_one_another(array: Array) -> bool:
    """Whether the matrices of a batch follow one another in memory as the rows of each do."""
    shape, strides = array.shape[:-1], array.strides[:-1]
    return all(
        here == following * length for here, following, length in zip(strides, strides[1:], shape[1:], strict=False)
    )
