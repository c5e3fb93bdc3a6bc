"""Weights of checkpoints: their dtypes, and their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nmflow.arrays import Array, Layout, Matrix
from nmflow.checkpoint.arrays import DTYPES
from nmflow.pattern import Budget

__all__ = ["FLOATS", "row_sums"]

FLOATS: Mapping[str, np.dtype[Any]] = {name: DTYPES[name] for name in ("F16", "BF16", "F32", "F64")}
"""Dtypes that are pruned, by their names in the format; integers, booleans, 8-bit floats and packed numbers are not."""


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
