"""Shortest augmenting paths on many blocks, one after another, in float64 or in 64-bit integers.

What happens in a block is said in `nmflow.kernels.transport`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once, part
from nmflow.kernels.transport import centre, paths_compiled, start_compiled

__all__ = ["EXACT", "FAILED", "LOOSE", "WIDE", "augment_kernel"]

FAILED, EXACT, FLOAT, WIDE, LOOSE = 0, 1, 2, 3, 4
"""How a block ended: infeasible; exact duals that float64 holds; float64 duals; exact duals that it cannot hold; scores
that do not fit integers."""

SCALED_BITS = 54
"""Scores are scaled to below 2**54: path sums over the 2 * 64 + 1 nodes of the largest block stay below 2**62."""


@part
def _power(exponent):  # type: ignore[no-untyped-def]
    """2.0**exponent, exactly, for -1022 <= exponent <= 1023."""
    value, base, left = 1.0, 2.0 if exponent >= 0 else 0.5, abs(exponent)
    while left:
        if left & 1:
            value *= base
        base *= base
        left >>= 1
    return value


@part
def _scale_of(scores):  # type: ignore[no-untyped-def]
    """Exponent e so that every score * 2**e is a whole number below 2**SCALED_BITS; -2000 if there is none."""
    top = 0.0
    for value in scores.flat:
        top = max(top, abs(value))
    if top == 0.0:
        return 0
    exponent = SCALED_BITS - math.frexp(top)[1]
    if not -1000 < exponent < 1000:
        return -2000
    scale = _power(exponent)
    for value in scores.flat:
        scaled = value * scale
        if scaled != math.floor(scaled) or (scaled == 0.0 and value != 0.0):
            return -2000
    return exponent


@once
def augment_kernel(integers: bool) -> Any:
    """Compile `augment_block` over many blocks, in float64 or in 64-bit integers.

    Returns
    -------
    function (values, u, v, arcs, r, c, row_exact, col_exact, ended) -> None
        values : (k, R, C) float64, scores. u : (k, R), v : (k, C) float64: duals to start from; optimal ones on return.
        arcs : (k, R, C) uint8, as for `augment_block`. ended : (k,) uint8, output: FAILED or FLOAT
        in float64; FAILED, EXACT, WIDE or LOOSE in integers.
    """

    def augment_floats(values, u, v, arcs, r, c, re, ce, ended):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        ended[:] = FAILED
        dist = np.empty(rows + cols + 1, np.float64)
        need, loose, previous, mark = np.empty((4, rows + cols + 1), np.int64)
        low, high = np.empty((2, max(rows, cols)))
        for k in range(count):
            if not start_compiled(values[k], u[k], v[k], arcs[k], r, c, re, ce, need, loose):
                continue
            if paths_compiled(values[k], u[k], v[k], arcs[k], re, ce, dist, need, loose, previous, mark):
                centre(values[k], u[k], v[k], arcs[k], re, ce, loose, low, high)
                ended[k] = FLOAT

    def augment_integers(values, u, v, arcs, r, c, re, ce, ended):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        ended[:] = FAILED
        dist = np.empty(rows + cols + 1, np.int64)
        need, loose, previous, mark = np.empty((4, rows + cols + 1), np.int64)
        numbers = np.empty((rows, cols), np.int64)
        iu, iv = np.empty(rows, np.int64), np.empty(cols, np.int64)
        for k in range(count):
            e = _scale_of(values[k])
            if e == -2000:
                ended[k] = LOOSE
                continue
            up, down = _power(e), _power(-e)
            for i in range(rows):
                iu[i] = np.int64(min(max(u[k, i] * up, -9e15), 9e15))
                for j in range(cols):
                    numbers[i, j] = np.int64(values[k, i, j] * up)
            for j in range(cols):
                iv[j] = np.int64(min(max(v[k, j] * up, -9e15), 9e15))
            if not start_compiled(numbers, iu, iv, arcs[k], r, c, re, ce, need, loose):
                continue
            if not paths_compiled(numbers, iu, iv, arcs[k], re, ce, dist, need, loose, previous, mark):
                continue
            ended[k] = EXACT
            for i in range(rows):
                u[k, i] = np.float64(iu[i]) * down
                if np.int64(np.float64(iu[i])) != iu[i] or not abs(u[k, i]) < np.inf:
                    ended[k] = WIDE
            for j in range(cols):
                v[k, j] = np.float64(iv[j]) * down
                if np.int64(np.float64(iv[j])) != iv[j] or not abs(v[k, j]) < np.inf:
                    ended[k] = WIDE

    i8, flag, matrix = types.int64, types.boolean, types.float64[:, ::1]
    signature = types.none(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :, ::1], i8, i8, flag, flag, types.uint8[::1]
    )  # fmt: skip
    return compiled(augment_integers if integers else augment_floats, signature)
