"""Offsets by which the scores of a block are moved, so that equal ones differ: the same for all blocks."""

from __future__ import annotations

from functools import cache

import numpy as np

from nmflow.arrays import Array

__all__ = ["fine_offsets", "offsets_of"]


def offsets_of(rows: int, cols: int, bits: int) -> Array:
    """Whole numbers below 2**bits for the entries of a block, all different if there are as many; int64.

    They follow from an entry's place alone.
    """
    order = np.random.Generator(np.random.PCG64(rows * 64 + cols)).permutation(rows * cols).reshape(rows, cols)
    return (order << bits) // (rows * cols)


@cache
def fine_offsets(rows: int, cols: int) -> Array:
    """The same of 16 bits, as `nmflow.kernels.grains` reads them."""
    return offsets_of(rows, cols, 16).astype(np.uint16)
