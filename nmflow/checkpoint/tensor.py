"""Weights of checkpoints: their dtypes, mapped from a file, and their scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from nmflow.checkpoint.header import Entry
from nmflow.problem import Array

__all__ = ["FLOATS", "map_tensor", "score"]

FLOATS: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
"""Dtypes that are pruned, by their names in the format."""

SUM_ENTRIES = 1 << 18
"""Entries that are widened at a time for a sum."""


def map_tensor(path: os.PathLike[str], entry: Entry) -> Array:
    """Map a float tensor read-only; no byte is read before it is used.

    Returns
    -------
    ndarray, shape of the entry, C-contiguous
        A map of the file, or a copy where its data is not aligned in the file.
    """
    raw = np.memmap(path, np.uint8, "r", entry.start, (entry.n_bytes,))
    array = np.asarray(raw).view(FLOATS[entry.dtype]).reshape(entry.shape)
    return array if array.flags.aligned else array.copy()


def score(part: Array) -> float:
    """Sum of the magnitudes of a C-contiguous array, in float64."""
    flat, sums = part.reshape(-1), []
    for start in range(0, flat.size, SUM_ENTRIES):
        values = flat[start : start + SUM_ENTRIES]
        if values.itemsize < 4:
            values = values.astype(np.float32)
        with np.errstate(over="ignore"):  # float64 can add up to more than it holds
            sums.append(np.abs(values).sum(dtype=np.float64))
    with np.errstate(over="ignore"):
        return float(np.sum(sums))
