"""Weights of checkpoints: their dtypes, mapped from a file, and their sums."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from nmflow.arrays import Array, Layout, Matrix
from nmflow.checkpoint.header import Entry
from nmflow.pattern import Budget

__all__ = ["FLOATS", "map_tensor", "row_sums"]

FLOATS: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
"""Dtypes that are pruned, by their names in the format; integers, booleans, 8-bit floats and packed numbers are not."""


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


def row_sums(weights: Array, layout: Layout | None, budget: Budget) -> tuple[float, float]:
    """Sums of the magnitudes of all entries, and of those that the best rows-only mask keeps.

    Parameters
    ----------
    weights : ndarray of a dtype of `FLOATS`, C-contiguous
    layout : {None, "conv", "batch"}
    budget : Budget
        n of m along a row; the last group of a row may be shorter than m.

    Returns
    -------
    float, float
        In float64; infinite where it cannot hold them.
    """
    from nmflow.kernels.rows import comparators, rows_kernel

    kernel, network, sums = rows_kernel(weights.dtype.name), comparators(budget.n, budget.m), np.zeros(2)
    for array in weights if layout == "batch" else (weights,):
        matrix = np.ascontiguousarray(Matrix(array).rows(0, len(array)))
        kernel(matrix.view(f"u{matrix.itemsize}"), network, budget.n, budget.m, sums)
    return float(sums[0]), float(sums[1])
