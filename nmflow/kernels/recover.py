"""From a mask that is nearly the best to the best one and the duals that prove it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from nmflow.kernels.compile import compiled, fingerprint, once

__all__ = ["recover_kernel"]


def recover(scores, u, v, arc, sweeps, via_row, via_col, seen):  # type: ignore[no-untyped-def]
    """From a full mask to duals that prove it, or to a better mask: exact fill, no fixed entries; float64 only.

    A column's dual is raised until no row would rather have it: row i needs u_i <= S - v at all it keeps and
    u_i >= S - v at all it does not. This is Bellman-Ford on the columns, from any v; where the steps that raised them
    close a cycle, exchanging along it gains, and that is done at once.

    Returns
    -------
    bool
        Whether it ended within `sweeps` sweeps.

    References
    ----------
    R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 5.5 (cycles in the predecessor graph) and 9.6 (cycle
    cancelling).
    """
    rows, cols = scores.shape
    for _ in range(sweeps):
        for j in range(cols):
            via_row[j] = -1
        changed = False
        for i in range(rows):
            least, at = np.inf, -1
            for j in range(cols):
                if arc[i, j]:
                    value = scores[i, j] - v[j]
                    if value < least:
                        least, at = value, j
            u[i] = least
            for j in range(cols):
                if arc[i, j] == 0 and scores[i, j] - least > v[j]:
                    v[j] = scores[i, j] - least
                    via_row[j], via_col[j] = i, at
                    changed = True
        if not changed:
            return True
        # a cycle among the steps of this sweep; `seen` tells the walk that met a column
        for j in range(cols):
            seen[j] = -1
        for first in range(cols):
            j = first
            while j >= 0 and seen[j] < 0 and via_row[j] >= 0:
                seen[j] = first
                j = via_col[j]
            if j >= 0 and via_row[j] >= 0 and seen[j] == first:
                end = j
                sound = True
                while True:
                    i, k = via_row[j], via_col[j]
                    sound = sound and arc[i, j] == 0 and arc[i, k] == 1
                    j = k
                    if j == end:
                        break
                while sound:
                    i, k = via_row[j], via_col[j]
                    arc[i, j], arc[i, k] = 1, 0
                    via_row[j] = -1
                    j = k
                    if j == end:
                        break
    return False


_recover = njit(nogil=True, error_model="numpy")(recover)


@once
def recover_kernel() -> Any:
    """Compile `recover` over many blocks.

    Returns
    -------
    function (values, u, v, arcs, sweeps, done) -> None
        values : (k, R, C) float64. u : (k, R), output, v : (k, C) float64, modified. arcs : (k, R, C) uint8, full
        masks, modified. done : (k,) bool, output: for which blocks u and v prove the mask, but for rounding.
    """
    version = fingerprint()

    def recover_all(values, u, v, arcs, sweeps, done):  # type: ignore[no-untyped-def]
        via_row, via_col, seen = np.empty((3, values.shape[2]), np.int64)
        for k in range(len(values) if version else 0):
            done[k] = _recover(values[k], u[k], v[k], arcs[k], sweeps, via_row, via_col, seen)

    matrix = types.float64[:, ::1]
    signature = types.none(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :, ::1], types.int64, types.boolean[::1]
    )
    return compiled(recover_all, signature)
