"""Counting what groups of consecutive entries keep."""

from __future__ import annotations

import numpy as np

from nmflow.arrays import Array

__all__ = ["group_counts"]


def group_counts(lines: Array, m: int) -> Array:
    """Count the true entries of each group of m along each line; the last group may be shorter.

    Parameters
    ----------
    lines : ndarray of bool, shape (R, C)
    m : int
        At most 64.

    Returns
    -------
    ndarray of uint8, shape (R, ceil(C / m))
    """
    shape = (lines.shape[0], -(-lines.shape[1] // m))
    # Whole slices are added, in the memory order of `lines`: an axis of m entries would be too short to be fast.
    counts = np.zeros(shape, np.uint8, order="C" if lines.flags.c_contiguous else "F")
    for place in range(min(m, lines.shape[1])):
        part = lines[:, place::m]
        counts[:, : part.shape[1]] += part
    return counts
