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

import numpy as np

from nmflow.kernels.compile import part

__all__ = ["FIXED_IN", "FIXED_OUT", "IN", "OUT", "augment_block", "centre", "paths_compiled", "start_compiled"]

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


@part
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


start_compiled = part(start)
paths_compiled = part(paths)
