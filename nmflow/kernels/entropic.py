"""Entropy-regularised masks by Dykstra's algorithm, a few blocks side by side.

maximise  t sum S X - sum X (log X - 1)   with row sums r, column sums c, 0 <= X <= 1

where the sums may also be bounds. The solution is the projection, in Kullback-Leibler divergence, of exp(t S) onto the
intersection of three convex sets, and Dykstra's algorithm projects onto one after the other: rows are scaled to their
sum, columns likewise, and entries are cut off at 1. What a cut takes away is remembered and given back before the next
one (Q below); sums that are met exactly need no such memory.

References
----------
J.-D. Benamou et al., "Iterative Bregman projections for regularized transportation problems", SIAM J. Sci. Comput.
37, 2015, section 5.1 (Dykstra with a capacity). TSENOR, 2025 (its use for transposable masks).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once, part

__all__ = ["entropic_kernel"]

WIDTH = 8
"""Blocks side by side: 8 float64 fill an AVX-512 register, or two of AVX2."""
LOWEST, HIGHEST = -600.0, 300.0
"""Exponents are cut off here, so that products of float64 neither vanish nor overflow."""
LOG2_E, LN2 = 1.4426950408889634, 0.6931471805599453


@part
def _exp(x):  # type: ignore[no-untyped-def]
    """e**x to about 1e-10, by additions and products alone: the same bits on every machine, unlike libm's."""
    x = min(max(x, LOWEST), HIGHEST)
    power = math.floor(x * LOG2_E + 0.5)
    rest = x - power * LN2
    total = 1.0
    for k in range(9, 0, -1):
        total = 1.0 + total * rest / k
    return math.ldexp(total, int(power))


@once
def entropic_kernel() -> Any:
    """Compile the kernel: it takes any pattern.

    Returns
    -------
    function (values, r, c, full, free, temperature, iterations, keys) -> None
        values : (k, R, C) float64, finite, below 2**1000. r, c : budgets of a row and of a column. full : whether sums
        are met exactly. free : whether columns are free. temperature : t times the block's mean magnitude. keys :
        (k, R, C) float64, out: X, and above 1 what the last cut took away; they order entries as a rounding wants
        them.

    Notes
    -----
    O(R C) an iteration and block: three products, two additions and two comparisons an entry, in vectors of blocks.
    """

    def entropic(values, r, c, full, free, temperature, iterations, keys):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        x, q = np.empty((rows, cols, WIDTH)), np.empty((rows, cols, WIDTH))
        row_memory, col_memory = np.empty((rows, WIDTH)), np.empty((cols, WIDTH))
        sums = np.empty((cols, WIDTH))
        total = np.empty(WIDTH)
        for first in range(0, count, WIDTH):
            for lane in range(WIDTH):
                block = values[min(first + lane, count - 1)]
                mean = 0.0
                for value in block.flat:
                    mean += abs(value) / block.size
                scale = temperature / mean if mean > 0.0 else 0.0
                if not scale < np.inf:
                    scale = 0.0
                # Exactly met sums are free to scale rows and columns beforehand: largest exponent 0 everywhere.
                for i in range(rows):
                    top = block[i].max() if full else 0.0
                    for j in range(cols):
                        x[i, j, lane] = (block[i, j] - top) * scale
                for j in range(cols):
                    top = x[0, j, lane]
                    for i in range(rows):
                        top = max(top, x[i, j, lane])
                    if not full or free:
                        top = 0.0
                    for i in range(rows):
                        x[i, j, lane] = _exp(x[i, j, lane] - top)
            q[:] = 1.0
            row_memory[:] = 1.0
            col_memory[:] = 1.0
            for _ in range(iterations):
                sums[:] = 0.0
                for i in range(rows):
                    total[:] = 0.0
                    for j in range(cols):
                        for lane in range(WIDTH):
                            total[lane] += x[i, j, lane]
                    for lane in range(WIDTH):
                        if full:
                            total[lane] = r / total[lane]
                        else:  # a bound: give back what the last one took, and take what is too much
                            given = row_memory[i, lane]
                            factor = min(1.0, r / (given * total[lane]))
                            row_memory[i, lane] = 1.0 / factor
                            total[lane] = given * factor
                    for j in range(cols):
                        for lane in range(WIDTH):
                            x[i, j, lane] *= total[lane]
                            sums[j, lane] += x[i, j, lane]
                for j in range(cols):
                    for lane in range(WIDTH):
                        if free:
                            sums[j, lane] = 1.0
                        elif full:
                            sums[j, lane] = c / sums[j, lane]
                        else:
                            given = col_memory[j, lane]
                            factor = min(1.0, c / (given * sums[j, lane]))
                            col_memory[j, lane] = 1.0 / factor
                            sums[j, lane] = given * factor
                for i in range(rows):
                    for j in range(cols):
                        for lane in range(WIDTH):
                            y = x[i, j, lane] * sums[j, lane] * q[i, j, lane]
                            x[i, j, lane] = min(y, 1.0)
                            q[i, j, lane] = max(y, 1.0)
            for lane in range(min(WIDTH, count - first)):
                for i in range(rows):
                    for j in range(cols):
                        keys[first + lane, i, j] = x[i, j, lane] * q[i, j, lane]

    blocks, flag, whole = types.float64[:, :, ::1], types.boolean, types.int64
    return compiled(entropic, types.none(blocks, whole, whole, flag, flag, types.float64, whole, blocks))
