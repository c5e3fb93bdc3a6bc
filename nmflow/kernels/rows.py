"""Sums over rows: of all magnitudes, and of the largest n of each m, which is what the best rows-only mask keeps.

Groups stand side by side in vector lanes. Magnitudes are ordered as their bits are, so a selection network of unsigned
integers finds the largest; they are widened to float64 for the sums alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once
from nmflow.kernels.networks import selection_network
from nmflow.kernels.scores import KINDS

__all__ = ["comparators", "rows_kernel"]

LANES = 128
"""Groups side by side: enough for any vector unit, and 64 rows of them stay in the first cache."""


def comparators(n: int, m: int) -> Any:
    """The network that brings the n largest of m to the first n wires: shape (count, 2), int64."""
    pairs = [(i, j) for i, j, _, _ in selection_network(m, tuple(range(n)), unordered=True)]
    return np.array(pairs, np.int64).reshape(-1, 2)


@once
def rows_kernel(kind: str) -> Any:
    """Compile for one dtype, by its name.

    Returns
    -------
    function (values, network, n, m, sums) -> None
        values : (R, C) unsigned integers, the bits of the scores, C-contiguous, read-only. network : as `comparators`
        says. sums : (2,) float64: the magnitudes of all entries and of the n largest of each group of m along a row
        are added to it; the last group of a row may be shorter. Each lane is summed in order, in float64.
    """
    score = KINDS[kind]
    kinds: dict[int, Any] = {
        2: (np.uint16, np.uint32, np.float32),
        4: (np.uint32, np.uint32, np.float32),
        8: (np.uint64, np.uint64, np.float64),
    }
    raw, wide, real = kinds[score.itemsize]
    mask = raw(score.sign_mask)
    # The bits move to where a float32 has them; float16 then has another bias, which the product puts right, exactly.
    shift = wide({"bfloat16": 16, "float16": 13}.get(kind, 0))
    factor = 2.0**112 if kind == "float16" else 1.0

    def rows(values, network, n, m, sums):  # type: ignore[no-untyped-def]
        high, length = values.shape
        bits = np.zeros((m, LANES), raw)
        moved = np.zeros(LANES, wide)
        numbers = moved.view(real)
        every, best = np.zeros(LANES), np.zeros(LANES)
        groups = length // m
        for i in range(high):
            start = 0
            while start * m < length:
                if start < groups:
                    count = min(LANES, groups - start)
                    for k in range(m):
                        for lane in range(count):
                            bits[k, lane] = values[i, (start + lane) * m + k] & mask
                        for lane in range(count, LANES):
                            bits[k, lane] = 0
                else:  # the short group that ends a row
                    count = 1
                    bits[:] = 0
                    for k in range(length - groups * m):
                        bits[k, 0] = values[i, groups * m + k] & mask
                for k in range(m):
                    for lane in range(LANES):
                        moved[lane] = wide(bits[k, lane]) << shift
                    for lane in range(LANES):
                        every[lane] += np.float64(numbers[lane]) * factor
                for c in range(len(network)):
                    a, b = network[c]
                    for lane in range(LANES):
                        x, y = bits[a, lane], bits[b, lane]
                        bits[a, lane] = max(x, y)
                        bits[b, lane] = min(x, y)
                for k in range(n):
                    for lane in range(LANES):
                        moved[lane] = wide(bits[k, lane]) << shift
                    for lane in range(LANES):
                        best[lane] += np.float64(numbers[lane]) * factor
                start += count
        for lane in range(LANES):
            sums[0] += every[lane]
            sums[1] += best[lane]

    i8 = types.int64
    given = types.Array(getattr(types, np.dtype(raw).name), 2, "C", readonly=True)
    network = types.Array(i8, 2, "C", readonly=True)
    return compiled(rows, types.none(given, network, i8, i8, types.float64[::1]))
