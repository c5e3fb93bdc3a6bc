"""The data of one tensor: mapped from its file, read and written a stripe of rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt

from nmflow.checkpoint.header import Entry
from nmflow.errors import CheckpointError
from nmflow.pattern import Budget
from nmflow.problem import Array

__all__ = ["best_by_rows", "copy_bytes", "map_tensor", "score", "stripes", "write_pruned"]

STRIPE_BYTES = 4 << 20
"""Bytes of a stripe: far above the cost of a call, far below the size of a large tensor."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


def map_tensor(path: os.PathLike[str], entry: Entry) -> Array:
    """Map a float tensor read-only; no byte is read before it is used.

    Returns
    -------
    ndarray, shape of the entry, C-contiguous
        A map of the file, or a copy where its data is not aligned in the file.
    """
    raw = np.memmap(path, np.uint8, "r", entry.start, (entry.n_bytes,))
    array = np.asarray(raw).view(_DTYPES[entry.dtype]).reshape(entry.shape)
    return array if array.flags.aligned else array.copy()


def stripes(shape: tuple[int, ...], itemsize: int, multiple: int = 1) -> Iterator[slice]:
    """Cut the first axis into slices of a fixed size, each a multiple of `multiple` but the last."""
    row = itemsize
    for length in shape[1:]:
        row *= length
    step = max(1, STRIPE_BYTES // (row * multiple)) * multiple
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def score(part: Array) -> float:
    """Sum of absolute values in float64."""
    return float(np.abs(part.astype(np.float64)).sum())


def best_by_rows(part: Array, budget: Budget) -> float:
    """Kept score of the best rows-only mask: the n largest of each m along the rows of a matrix.

    Parameters
    ----------
    part : ndarray, shape (R, C)
        Finite values.
    budget : Budget
        n of m; the last group of a row may be shorter than m.
    """
    rows, cols = part.shape
    magnitude = np.abs(part.astype(np.float64))
    short = -cols % budget.m
    if short:  # zeros change no sum
        magnitude = np.concatenate([magnitude, np.zeros((rows, short))], axis=1)
    groups = magnitude.reshape(-1, budget.m)
    if budget.n < budget.m:
        dropped = budget.m - budget.n
        groups = np.partition(groups, dropped, axis=1)[:, dropped:]
    return float(groups.sum())


def write_pruned(file: BinaryIO, entry: Entry, weights: Array, mask: npt.NDArray[np.bool_]) -> None:
    """Write a tensor with +0 where the mask drops, at its place in `file`; the bits of kept entries are not touched."""
    # Unsigned integers of the same width: no float instruction sees the values, so no NaN or zero can change its bits.
    bits = weights.view(f"u{weights.itemsize}")
    file.seek(entry.start)
    for rows in stripes(weights.shape, weights.itemsize):
        part = np.zeros(bits[rows].shape, bits.dtype)
        np.copyto(part, bits[rows], where=mask[rows])
        file.write(part.data)


def copy_bytes(source: BinaryIO, target: BinaryIO, start: int, stop: int) -> None:
    """Copy the bytes from start to stop to the same place of another file."""
    source.seek(start)
    target.seek(start)
    left = stop - start
    while left:
        part = source.read(min(left, STRIPE_BYTES))
        if not part:
            raise CheckpointError(f"{source.name} must not change while it is read, and it became shorter")
        target.write(part)
        left -= len(part)
