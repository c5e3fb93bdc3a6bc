"""Levelling duals: what rows and columns of a block share is moved so that neither has negative ones."""

from __future__ import annotations

from typing import Any

from numba import types

from nmflow.kernels.compile import compiled, once

__all__ = ["level_kernel"]


@once
def level_kernel() -> Any:
    """Compile the kernel: it takes any pattern.

    Returns
    -------
    function (u, v, good) -> None
        u : (k, R), v : (k, C) float64: a number is added to all u of a block and taken from all v, so that the least of
        both are alike, and what is below 0 then is cut off. good : (k,) uint8, output: 1 where every u + v is what it
        was, without rounding.
    """

    def level(u, v, good):  # type: ignore[no-untyped-def]
        for k in range(len(u)):
            least_u, least_v, same = u[k, 0], v[k, 0], True
            for i in range(u.shape[1]):
                least_u = min(least_u, u[k, i])
            for j in range(v.shape[1]):
                least_v = min(least_v, v[k, j])
            share = 0.5 * (least_v - least_u)
            for i in range(u.shape[1]):
                moved = u[k, i] + share
                same &= moved - share == u[k, i] and moved - u[k, i] == share and moved >= 0.0
                u[k, i] = max(moved, 0.0)
            for j in range(v.shape[1]):
                moved = v[k, j] - share
                same &= moved + share == v[k, j] and v[k, j] - moved == share and moved >= 0.0
                v[k, j] = max(moved, 0.0)
            good[k] = same

    sides = types.float64[:, ::1]
    return compiled(level, types.none(sides, sides, types.uint8[::1]))
