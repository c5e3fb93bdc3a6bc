"""Shortest augmenting paths on one block: from any duals to an optimal mask and optimal duals.

The block is a transportation network: row i has a supply of r units, column j a demand of c, and the arc from row i to
column j carries at most one unit at unit cost -S[i, j]; under at-most fill a slack node Z takes what a line does
not keep, at no cost. Given duals u, v, an arc is filled if its reduced cost S - u - v is positive and left empty if it is
negative; what supplies and demands then lack is sent along shortest paths in the residual network (Dijkstra on reduced
costs, from every node with an excess to the nearest with a deficit), and the distances update the duals.

One text serves three arithmetics: 64-bit integers (exact), float64, and Python integers in arrays of dtype object.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 9.7 (successive shortest paths).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types

from nmflow.kernels.compile import compiled, fingerprint
from nmflow.kernels.scores import KINDS, read_score
from nmflow.kernels.simd import write_byte

__all__ = ["EXACT", "FAILED", "FLOAT", "WIDE", "augment_block", "augment_kernel"]

FAILED, EXACT, FLOAT, WIDE = 0, 1, 2, 3
"""How a block ended: infeasible; exact duals that float64 holds; float64 duals; exact duals that it cannot hold."""

SCALED_BITS = 54
"""Scores are scaled to below 2**54: path sums over the 2 * 64 + 1 nodes of the largest block stay below 2**62."""


def augment_block(scores, u, v, mask, state, r, c, row_exact, col_exact, dist, nodes):  # type: ignore[no-untyped-def]
    """Solve one block from the duals given.

    Parameters
    ----------
    scores : (R, C) numbers
    u : (R,) and v : (C,), numbers of the same kind; modified: optimal on return
    mask : (R, C) uint8, output
    state : (R, C) int8; 0 free, 1 kept, -1 dropped
    r, c : budgets of a row and of a column
    row_exact, col_exact : whether lines are filled exactly
    dist : (R + C + 1,) numbers, workspace
    nodes : (4, R + C + 1) int64, workspace

    Returns
    -------
    bool
        False if no mask satisfies the constraints.
    """
    rows, cols = scores.shape
    slack = rows + cols
    total = slack + 1
    # need: units a node has too many (positive) or lacks (negative); loose: units on the arc with the slack node
    need, loose, previous, mark = nodes[0], nodes[1], nodes[2], nodes[3]
    zero = scores[0, 0] - scores[0, 0]
    if not row_exact:
        for i in range(rows):
            if u[i] < 0:
                u[i] = zero
    if not col_exact:
        for j in range(cols):
            if v[j] < 0:
                v[j] = zero
    for i in range(rows):
        need[i] = r
    for j in range(cols):
        need[rows + j] = -c
    for i in range(rows):
        for j in range(cols):
            chosen = state[i, j] > 0 or (state[i, j] == 0 and scores[i, j] - u[i] - v[j] > 0)
            mask[i, j] = chosen
            if chosen:
                need[i] -= 1
                need[rows + j] += 1
    # entries on the threshold cost nothing either way: fill what still has room on both sides
    for i in range(rows):
        if need[i] <= 0:
            continue
        for j in range(cols):
            if (
                need[i] > 0
                and need[rows + j] < 0
                and mask[i, j] == 0
                and state[i, j] == 0
                and scores[i, j] - u[i] - v[j] == 0
                and (row_exact or col_exact or u[i] > 0 or v[j] > 0)
            ):
                mask[i, j] = 1
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
    has_slack = not (row_exact and col_exact)
    if rest != 0 and not has_slack:
        return False
    while True:
        # Dijkstra; mark: 0 unseen, 1 reached, 2 settled
        reached = False
        for node in range(total):
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
            best = -1
            for node in range(total):
                if mark[node] == 1 and (best < 0 or dist[node] < dist[best]):
                    best = node
            if best < 0:
                return False
            mark[best] = 2
            if need[best] < 0:
                end = best
                break
            base = dist[best]
            if best < rows:
                ui = u[best]
                for j in range(cols):
                    node = rows + j
                    if mark[node] < 2 and mask[best, j] == 0 and state[best, j] == 0:
                        cost = ui + v[j] - scores[best, j]
                        length = base + cost if cost > 0 else base
                        if mark[node] == 0 or length < dist[node]:
                            mark[node], dist[node], previous[node] = 1, length, best
                if not row_exact and mark[slack] < 2:
                    length = base + ui if ui > 0 else base
                    if mark[slack] == 0 or length < dist[slack]:
                        mark[slack], dist[slack], previous[slack] = 1, length, best
            elif best < slack:
                vj = v[best - rows]
                for node in range(rows):
                    if mark[node] < 2 and mask[node, best - rows] != 0 and state[node, best - rows] == 0:
                        cost = scores[node, best - rows] - u[node] - vj
                        length = base + cost if cost > 0 else base
                        if mark[node] == 0 or length < dist[node]:
                            mark[node], dist[node], previous[node] = 1, length, best
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
        if mark[slack] == 2:
            shift = dist[slack] - final
        for i in range(rows):
            u[i] = u[i] + (dist[i] - final if mark[i] == 2 else zero) - shift
        for j in range(cols):
            v[j] = v[j] - (dist[rows + j] - final if mark[rows + j] == 2 else zero) + shift
        # push one unit back along the path
        need[end] += 1
        node = end
        while previous[node] >= 0:
            tail = previous[node]
            if tail < rows and node < slack:
                mask[tail, node - rows] = 1
            elif node < rows and tail < slack:
                mask[node, tail - rows] = 0
            elif node == slack:
                loose[tail] += 1 if tail < rows else -1
            else:
                loose[node] += -1 if node < rows else 1
            node = tail
        need[node] -= 1


def _centre(scores, u, v, mask, state, r, c, row_exact, col_exact):  # type: ignore[no-untyped-def]
    """Move each dual to the middle of the interval that its line's mask allows, away from rounding errors."""
    rows, cols = scores.shape
    for line in range(rows + cols):
        is_row = line < rows
        low, high, has_low, has_high, kept = 0.0, 0.0, False, False, 0
        for k in range(cols if is_row else rows):
            i, j = (line, k) if is_row else (k, line - rows)
            kept += mask[i, j]
            if state[i, j] != 0:
                continue
            value = scores[i, j] - (v[j] if is_row else u[i])
            if mask[i, j] != 0:
                if not has_high or value < high:
                    high, has_high = value, True
            elif not has_low or value > low:
                low, has_low = value, True
        full = kept == (r if is_row else c)
        if not (row_exact if is_row else col_exact):
            if not full:
                continue  # its dual is 0
            low, has_low = (max(low, 0.0) if has_low else 0.0), True
        if has_low and has_high:
            value = low + (high - low) * 0.5
            if is_row:
                u[line] = value
            else:
                v[line - rows] = value


_solve = njit(nogil=True, error_model="numpy")(augment_block)
_centre_block = njit(nogil=True, error_model="numpy")(_centre)


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
        if scaled != math.floor(scaled):
            return -2000
    return exponent


@cache
def augment_kernel(kind_name: str) -> Any:
    """Compile `augment_block` over the open blocks of a chunk, for one kind of scores.

    Returns
    -------
    function (scores, stride, grid_cols, absolute, exact, blocks, u, v, mask, mask_stride, state, r, c, row_exact,
    col_exact) -> array of uint8
        scores, mask : addresses, with `stride` and `mask_stride` bytes between rows; `exact` is 0 where scores were
        rounded. blocks : (k,) int64, numbers of the blocks to solve. u : (k, R), v : (k, C) float64, duals to start
        from, optimal on return. state : (h, w) int8, or of size 0 for none. The result says how each block ended:
        FAILED, EXACT, FLOAT or WIDE.
    """
    kind = KINDS[kind_name]
    code, item = kind.code, kind.itemsize
    version = fingerprint()

    def augment(scores, stride, grid_cols, absolute, exact, blocks, u, v, mask, mask_stride, state, r, c, re, ce):  # type: ignore[no-untyped-def]
        rows, cols = u.shape[1], v.shape[1]
        ended = np.zeros(len(blocks), np.uint8)
        values = np.empty((rows, cols), np.float64)
        numbers = np.empty((rows, cols), np.int64)
        chosen = np.empty((rows, cols), np.uint8)
        fixed = np.zeros((rows, cols), np.int8)
        iu, iv = np.empty(rows, np.int64), np.empty(cols, np.int64)
        idist, fdist = np.empty(rows + cols + 1, np.int64), np.empty(rows + cols + 1, np.float64)
        nodes = np.empty((4, rows + cols + 1), np.int64)
        for k in range(len(blocks)):
            if version == 0:
                break
            top = blocks[k] // grid_cols * rows
            left = (blocks[k] - blocks[k] // grid_cols * grid_cols) * cols
            for i in range(rows):
                for j in range(cols):
                    values[i, j] = read_score(scores + (top + i) * stride + (left + j) * item, code)
                    if absolute:
                        values[i, j] = abs(values[i, j])
                    if state.size:
                        fixed[i, j] = state[top + i, left + j]
            e = _scale_of(values) if exact else -2000
            if e > -2000:
                up, down = _power(e), _power(-e)
                for i in range(rows):
                    iu[i] = np.int64(min(max(u[k, i] * up, -9e15), 9e15))
                    for j in range(cols):
                        numbers[i, j] = np.int64(values[i, j] * up)
                for j in range(cols):
                    iv[j] = np.int64(min(max(v[k, j] * up, -9e15), 9e15))
                if not _solve(numbers, iu, iv, chosen, fixed, r, c, re, ce, idist, nodes):
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
            else:
                if not _solve(values, u[k], v[k], chosen, fixed, r, c, re, ce, fdist, nodes):
                    continue
                ended[k] = FLOAT
            if ended[k] != EXACT:
                for _ in range(2):
                    _centre_block(values, u[k], v[k], chosen, fixed, r, c, re, ce)
            for i in range(rows):
                for j in range(cols):
                    write_byte(mask + (top + i) * mask_stride + left + j, chosen[i, j])
        return ended

    i8, flag, matrix = types.int64, types.boolean, types.float64[:, ::1]
    return compiled(
        augment,
        types.uint8[::1](
            i8, i8, i8, flag, flag, types.int64[::1], matrix, matrix, i8, i8, types.int8[:, :], i8, i8, flag, flag
        ),
    )
