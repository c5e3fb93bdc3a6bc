"""Duals of scores near a lattice, from those of the whole numbers that stand for them (`nmflow.solvers.levels`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once

__all__ = ["lattice_duals_kernel"]


@once
def lattice_duals_kernel() -> Any:
    """Compile the kernel: it takes any lattice.

    Returns
    -------
    function (duals, step, high, low, fine, lost) -> None
        duals : (k, lines) float64, changed in place: step * a + x becomes (high + low) * a + fine * x, with whole a and
        the least |x|; products with `high` and `low` must be exact. lost : (k,) uint8: set to 1 where a sum was
        rounded (two sums by Knuth's algorithm, which says what is lost).
    """

    def convert(duals, step, high, low, fine, lost):  # type: ignore[no-untyped-def]
        back = 1.0 / step
        for k in range(duals.shape[0]):
            rounded = False
            for t in range(duals.shape[1]):
                whole = np.rint(duals[k, t] * back)
                a, b = whole * low, (duals[k, t] - whole * step) * fine
                both = a + b
                part = both - a
                rounded |= (a - (both - part)) + (b - part) != 0.0
                a = whole * high
                total = a + both
                part = total - a
                rounded |= (a - (total - part)) + (both - part) != 0.0
                duals[k, t] = total
            if rounded:
                lost[k] = 1

    number = types.float64
    return compiled(convert, types.none(number[:, ::1], number, number, number, number, types.uint8[::1]))
