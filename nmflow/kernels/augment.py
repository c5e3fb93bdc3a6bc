"""Shortest augmenting paths on one block: from any duals to an optimal mask and optimal duals.

The block is a transportation network: row i has a supply of r units, column j a demand of c, and the arc from row i to
column j carries at most one unit at unit cost -S[i, j]; under at-most fill a slack node Z takes what a line does
not keep, at no cost. Given duals u, v, an arc is filled if its reduced cost S - u - v is positive and left empty if it
is negative; what supplies and demands then lack is sent along shortest paths in the residual network (Dijkstra on
reduced costs, from every node with an excess to the nearest with a deficit), and the distances update the duals.

One text serves three arithmetics: 64-bit integers (exact), float64, and Python integers in arrays of dtype object.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 9.7 (successive shortest paths).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

from nmflow.kernels.compile import compiled, fingerprint, once

__all__ = [
    "EXACT",
    "FAILED",
    "FIXED_IN",
    "FIXED_OUT",
    "LOOSE",
    "WIDE",
    "augment_block",
    "augment_kernel",
    "centre_compiled",
]

FAILED, EXACT, FLOAT, WIDE, LOOSE = 0, 1, 2, 3, 4
"""How a block ended: infeasible; exact duals that float64 holds; float64 duals; exact duals that it cannot hold; scores
that do not fit integers."""

SCALED_BITS = 54
"""Scores are scaled to below 2**54: path sums over the 2 * 64 + 1 nodes of the largest block stay below 2**62."""


OUT, IN, FIXED_OUT, FIXED_IN = 0, 1, 2, 3
"""State of an arc: whether it carries a unit is its last bit; one that is fixed never changes."""


def start(scores, u, v, arc, r, c, row_exact, col_exact, need, loose):  # type: ignore[no-untyped-def]
    """Fill every arc of positive reduced cost, and of those at zero what fits; what nodes then have or lack.

    Returns False if supplies and demands cannot balance.
    """
    rows, cols = scores.shape
    slack = rows + cols
    zero = scores[0, 0] - scores[0, 0]
    if not row_exact:
        for i in range(rows):
            if u[i] < 0:
                u[i] = zero
    if not col_exact:
        for j in range(cols):
            if v[j] < 0:
                v[j] = zero
    for j in range(cols):
        need[rows + j] = -c
    ties = 0
    for i in range(rows):
        ui, kept = u[i], 0
        for j in range(cols):
            reduced = scores[i, j] - ui - v[j]
            if arc[i, j] < 2:
                arc[i, j] = reduced > 0
                ties += reduced == 0
            carried = arc[i, j] & 1
            kept += carried
            need[rows + j] += carried
        need[i] = r - kept
    if ties:
        # entries on the threshold cost nothing either way: fill what still has room on both sides
        for i in range(rows):
            if need[i] <= 0:
                continue
            for j in range(cols):
                if (
                    need[i] > 0
                    and need[rows + j] < 0
                    and arc[i, j] == OUT
                    and scores[i, j] - u[i] - v[j] == 0
                    and (row_exact or col_exact or u[i] > 0 or v[j] > 0)
                ):
                    arc[i, j] = IN
                    need[i] -= 1
                    need[rows + j] += 1
    rest = 0
    for node in range(slack):
        loose[node] = 0
        if node < rows:
            if not row_exact and need[node] > 0 and u[node] == 0:
                loose[node], need[node] = need[node], 0
        elif not col_exact and need[node] < 0 and v[node - rows] == 0:
            loose[node], need[node] = -need[node], 0
        rest += need[node]
    need[slack] = -rest
    loose[slack] = 0
    return rest == 0 or not (row_exact and col_exact)


def paths(scores, u, v, arc, row_exact, col_exact, dist, need, loose, previous, mark):  # type: ignore[no-untyped-def]
    """Send what nodes have to where it lacks along shortest paths, a unit each. Returns False if there is none."""
    rows, cols = scores.shape
    slack = rows + cols
    total = slack if row_exact and col_exact else slack + 1
    zero = scores[0, 0] - scores[0, 0]
    while True:
        # Dijkstra; mark: 0 unseen, 1 reached, 2 settled
        reached = False
        for node in range(slack + 1):
            mark[node] = 0
            if need[node] > 0:
                mark[node] = 1
                dist[node] = zero
                previous[node] = -1
                reached = True
        if not reached:
            return True
        end = -1
        while True:
            best, base = -1, zero
            for node in range(total):
                if mark[node] == 1 and (best < 0 or dist[node] < base):
                    best, base = node, dist[node]
            if best < 0:
                return False
            mark[best] = 2
            if need[best] < 0:
                end = best
                break
            if best < rows:
                ui = u[best]
                for j in range(cols):
                    node = rows + j
                    if arc[best, j] == OUT and mark[node] < 2:
                        cost = ui + v[j] - scores[best, j]
                        length = base + cost if cost > 0 else base
                        if mark[node] == 0 or length < dist[node]:
                            mark[node] = 1
                            dist[node] = length
                            previous[node] = best
                if not row_exact and mark[slack] < 2:
                    length = base + ui if ui > 0 else base
                    if mark[slack] == 0 or length < dist[slack]:
                        mark[slack], dist[slack], previous[slack] = 1, length, best
            elif best < slack:
                vj = v[best - rows]
                for node in range(rows):
                    if arc[node, best - rows] == IN and mark[node] < 2:
                        cost = scores[node, best - rows] - u[node] - vj
                        length = base + cost if cost > 0 else base
                        if mark[node] == 0 or length < dist[node]:
                            mark[node] = 1
                            dist[node] = length
                            previous[node] = best
                if loose[best] > 0 and mark[slack] < 2 and (mark[slack] == 0 or base < dist[slack]):
                    mark[slack], dist[slack], previous[slack] = 1, base, best
            else:
                for node in range(rows):
                    if loose[node] > 0 and mark[node] < 2 and (mark[node] == 0 or base < dist[node]):
                        mark[node], dist[node], previous[node] = 1, base, slack
                if not col_exact:
                    for j in range(cols):
                        node = rows + j
                        if mark[node] < 2:
                            length = base + v[j] if v[j] > 0 else base
                            if mark[node] == 0 or length < dist[node]:
                                mark[node], dist[node], previous[node] = 1, length, slack
        # settled nodes move by how much nearer than the end they are; the slack node's dual stays 0
        final = dist[end]
        shift = zero
        if total > slack and mark[slack] == 2:
            shift = dist[slack] - final
        for i in range(rows):
            if mark[i] == 2:
                u[i] += dist[i] - final
            u[i] -= shift
        for j in range(cols):
            if mark[rows + j] == 2:
                v[j] -= dist[rows + j] - final
            v[j] += shift
        # push one unit back along the path
        need[end] += 1
        node = end
        while previous[node] >= 0:
            tail = previous[node]
            if tail < rows and node < slack:
                arc[tail, node - rows] = IN
            elif node < rows and tail < slack:
                arc[node, tail - rows] = OUT
            elif node == slack:
                loose[tail] += 1 if tail < rows else -1
            else:
                loose[node] += -1 if node < rows else 1
            node = tail
        need[node] -= 1


def augment_block(scores, u, v, arc, r, c, row_exact, col_exact):  # type: ignore[no-untyped-def]
    """Solve one block from the duals given, in any arithmetic.

    Parameters
    ----------
    scores : (R, C) numbers
    u : (R,) and v : (C,), numbers of the same kind; modified: optimal on return
    arc : (R, C) integers; modified: FIXED_IN or FIXED_OUT where an entry must be kept or dropped, else OUT; on return
        the last bit is the mask
    r, c : budgets of a row and of a column
    row_exact, col_exact : whether lines are filled exactly

    Returns
    -------
    bool
        False if no mask satisfies the constraints.
    """
    total = scores.shape[0] + scores.shape[1] + 1
    nodes = np.zeros((4, total), np.int64)
    if not start(scores, u, v, arc, r, c, row_exact, col_exact, nodes[0], nodes[1]):
        return False
    return paths(scores, u, v, arc, row_exact, col_exact, np.zeros(total, scores.dtype), *nodes)


def centre(scores, u, v, arc, row_exact, col_exact, loose, low, high):  # type: ignore[no-untyped-def]
    """Move each dual to the middle of what the mask leaves open for it, away from rounding errors; float64 only.

    `low` and `high` : (max(R, C),) float64, workspace.
    """
    rows, cols = scores.shape
    for sweep in range(3):
        if sweep != 1:
            low[:cols], high[:cols] = -np.inf, np.inf
            for i in range(rows):
                for j in range(cols):
                    value, kind = scores[i, j] - u[i], arc[i, j]
                    low[j] = value if (kind == OUT) & (value > low[j]) else low[j]
                    high[j] = value if (kind == IN) & (value < high[j]) else high[j]
            for j in range(cols):
                if col_exact or loose[rows + j] == 0:
                    below = low[j] if col_exact else max(low[j], 0.0)
                    if high[j] - below < np.inf:
                        v[j] = below + (high[j] - below) * 0.5
        else:
            for i in range(rows):
                below, above = -np.inf, np.inf
                for j in range(cols):
                    value = scores[i, j] - v[j]
                    below = max(below, value if arc[i, j] == OUT else -np.inf)
                    above = min(above, value if arc[i, j] == IN else np.inf)
                if row_exact or loose[i] == 0:
                    below = below if row_exact else max(below, 0.0)
                    if above - below < np.inf:
                        u[i] = below + (above - below) * 0.5


start_compiled = njit(nogil=True, error_model="numpy")(start)
paths_compiled = njit(nogil=True, error_model="numpy")(paths)
centre_compiled = njit(nogil=True, error_model="numpy")(centre)


@njit(nogil=True, error_model="numpy")
def _power(exponent):  # type: ignore[no-untyped-def]
    """2.0**exponent, exactly, for -1022 <= exponent <= 1023."""
    value, base, left = 1.0, 2.0 if exponent >= 0 else 0.5, abs(exponent)
    while left:
        if left & 1:
            value *= base
        base *= base
        left >>= 1
    return value


@njit(nogil=True, error_model="numpy")
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
    version = fingerprint()

    def augment_floats(values, u, v, arcs, r, c, re, ce, ended):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        ended[:] = FAILED
        dist = np.empty(rows + cols + 1, np.float64)
        need, loose, previous, mark = np.empty((4, rows + cols + 1), np.int64)
        low, high = np.empty((2, max(rows, cols)))
        for k in range(count if version else 0):
            if not start_compiled(values[k], u[k], v[k], arcs[k], r, c, re, ce, need, loose):
                continue
            if paths_compiled(values[k], u[k], v[k], arcs[k], re, ce, dist, need, loose, previous, mark):
                centre_compiled(values[k], u[k], v[k], arcs[k], re, ce, loose, low, high)
                ended[k] = FLOAT

    def augment_integers(values, u, v, arcs, r, c, re, ce, ended):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        ended[:] = FAILED
        dist = np.empty(rows + cols + 1, np.int64)
        need, loose, previous, mark = np.empty((4, rows + cols + 1), np.int64)
        numbers = np.empty((rows, cols), np.int64)
        iu, iv = np.empty(rows, np.int64), np.empty(cols, np.int64)
        for k in range(count if version else 0):
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
                if np.int64(np.float64(iu[i])) != iu[i]:
                    ended[k] = WIDE
            for j in range(cols):
                v[k, j] = np.float64(iv[j]) * down
                if np.int64(np.float64(iv[j])) != iv[j]:
                    ended[k] = WIDE

    i8, flag, matrix = types.int64, types.boolean, types.float64[:, ::1]
    signature = types.none(
        types.float64[:, :, ::1], matrix, matrix, types.uint8[:, :, ::1], i8, i8, flag, flag, types.uint8[::1]
    )  # fmt: skip
    return compiled(augment_integers if integers else augment_floats, signature)
