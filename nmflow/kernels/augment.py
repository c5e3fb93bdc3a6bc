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
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, fingerprint
from nmflow.kernels.scores import KINDS, read_scores
from nmflow.kernels.simd import F64, I8, I64, Emitter, copy_bytes, literal, loop, vector

__all__ = ["EXACT", "FAILED", "FIXED_IN", "FIXED_OUT", "FLOAT", "LOOSE", "WIDE", "augment_block", "augment_kernel"]

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
    """Send what nodes have to where it lacks along shortest paths. Returns False if there is no path."""
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
    arc : (R, C) uint8; modified: FIXED_IN or FIXED_OUT where an entry must be kept or dropped, else OUT; on return
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
    return paths(
        scores, u, v, arc, row_exact, col_exact, np.zeros(total, scores.dtype), nodes[0], nodes[1], nodes[2], nodes[3]
    )


@intrinsic(prefer_literal=True)
def line_gap(typing, scores, duals, arcs, out, count):  # type: ignore[no-untyped-def]
    """Between what the arcs of a row that are out and those that are in leave for its dual: writes both ends."""
    count_ = literal(count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        low, high = _ends(emit, args[0], args[1], args[2], count_)
        emit.store(emit.fold(high, "<"), emit.at(args[3], 8))
        emit.store(emit.fold(low, ">"), args[3])
        return context.get_dummy_value()

    return types.none(scores, duals, arcs, out, count), codegen


@intrinsic(prefer_literal=True)
def cross_gaps(typing, scores, duals, arcs, low, high, rows, cols):  # type: ignore[no-untyped-def]
    """The same for all columns at once: `duals` are the rows'; low, high : cols float64 each."""
    rows_, cols_ = literal(rows), literal(cols)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, duals, arcs, low_at, high_at = args[:5]
        infinity = emit.splat(F64, cols_, float("inf"))
        low, high = emit.variable(emit.splat(F64, cols_, float("-inf"))), emit.variable(infinity)
        at, dual, arc = emit.variable(scores), emit.variable(duals), emit.variable(arcs)
        with loop(builder, rows_):
            number = emit.broadcast(emit.load(builder.load(dual), F64), cols_)
            below, above = _ends(emit, builder.load(at), number, builder.load(arc), cols_)
            builder.store(emit.better(below, builder.load(low), ">"), low)
            builder.store(emit.better(above, builder.load(high), "<"), high)
            for place, step in ((at, 8 * cols_), (dual, 8), (arc, cols_)):
                builder.store(emit.at(builder.load(place), step), place)
        emit.store(builder.load(low), low_at)
        emit.store(builder.load(high), high_at)
        return context.get_dummy_value()

    return types.none(scores, duals, arcs, low, high, rows, cols), codegen


def _ends(emit: Emitter, scores: Any, duals: Any, arcs: Any, count: int) -> tuple[Any, Any]:
    """Scores less duals (a vector, or its address): where the arc is out, else -inf; where it is in, else inf."""
    builder = emit.builder
    if duals.type == I64:
        duals = emit.load(duals, vector(F64, count))
    value = builder.fsub(emit.load(scores, vector(F64, count)), duals)
    state = emit.load(arcs, vector(I8, count))
    is_out = builder.icmp_unsigned("==", state, emit.splat(I8, count, OUT))
    is_in = builder.icmp_unsigned("==", state, emit.splat(I8, count, IN))
    return (
        builder.select(is_out, value, emit.splat(F64, count, float("-inf"))),
        builder.select(is_in, value, emit.splat(F64, count, float("inf"))),
    )


@njit(nogil=True, error_model="numpy")
def _middle(low, high, exact, full, dual):  # type: ignore[no-untyped-def]
    """Middle of what a line's arcs leave for its dual; the dual as it is where they leave it open."""
    if not exact:
        if not full:
            return dual  # it is 0, and has to be
        low = max(low, 0.0)
    return low + (high - low) * 0.5 if high - low < np.inf else dual


_start = njit(nogil=True, error_model="numpy")(start)
_paths = njit(nogil=True, error_model="numpy")(paths)


@njit(nogil=True, error_model="numpy")
def _finite(value):  # type: ignore[no-untyped-def]
    """The value as float64, or 0 where it overflowed: duals to start from may be anything."""
    return np.float64(value) if abs(value) < np.inf else 0.0


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
def augment_kernel(kind_name: str, rows: int, cols: int, absolute: bool) -> Any:
    """Compile `augment_block` over the open blocks of a chunk, for one kind of scores and shape of block.

    Returns
    -------
    function (scores, stride, blocks, row, col, u, v, mask, mask_stride, state, r, c, row_exact, col_exact, integers)
    -> array of uint8
        scores, mask : addresses, with `stride` and `mask_stride` bytes between rows. blocks : (k,) int64, numbers of
        the blocks to solve. row : (h, block columns), col : (block rows, w), work dtype: duals to start from; the
        new ones, rounded, on return. u : (k, R), v : (k, C) float64: the new ones. state : (h, w) int8, or of size 0
        for none. integers : whether to work in 64-bit integers rather than float64. The result says how each
        block ended: FAILED, EXACT, FLOAT, WIDE, or LOOSE if its scores do not fit integers (nothing is written then).
    """
    kind = KINDS[kind_name]
    code, item, magnitude = kind.code, kind.itemsize, int(absolute)
    version = fingerprint()

    def augment(scores, stride, blocks, row, col, u, v, mask, mask_stride, state, r, c, re, ce, integers):  # type: ignore[no-untyped-def]
        ended = np.zeros(len(blocks), np.uint8)
        grid_cols = row.shape[1]
        values = np.empty((rows, cols), np.float64)
        numbers = np.empty((rows, cols), np.int64)
        arc = np.zeros((rows, cols), np.uint8)
        iu, iv, fu, fv = np.empty(rows, np.int64), np.empty(cols, np.int64), np.empty(rows), np.empty(cols)
        idist, fdist = np.empty(rows + cols + 1, np.int64), np.empty(rows + cols + 1, np.float64)
        need, loose, previous, mark = np.empty((4, rows + cols + 1), np.int64)
        low, high = np.empty((2, max(2, cols)))
        values_at, arc_at, fu_at, fv_at = values.ctypes.data, arc.ctypes.data, fu.ctypes.data, fv.ctypes.data
        low_at, high_at = low.ctypes.data, high.ctypes.data
        for k in range(len(blocks)):
            if version == 0:
                break
            stripe = blocks[k] // grid_cols
            place = blocks[k] - stripe * grid_cols
            top, left = stripe * rows, place * cols
            for i in range(rows):
                read_scores(scores + (top + i) * stride + left * item, values_at + i * cols * 8, code, cols, magnitude)
                fu[i] = _finite(row[top + i, place])
                if state.size:
                    for j in range(cols):
                        fixed = state[top + i, left + j]
                        arc[i, j] = OUT if fixed == 0 else FIXED_IN if fixed > 0 else FIXED_OUT
            if not state.size:
                arc[:] = OUT
            for j in range(cols):
                fv[j] = _finite(col[stripe, left + j])
            if integers:
                e = _scale_of(values)
                if e == -2000:
                    ended[k] = LOOSE
                    continue
                up, down = _power(e), _power(-e)
                for i in range(rows):
                    iu[i] = np.int64(min(max(fu[i] * up, -9e15), 9e15))
                    for j in range(cols):
                        numbers[i, j] = np.int64(values[i, j] * up)
                for j in range(cols):
                    iv[j] = np.int64(min(max(fv[j] * up, -9e15), 9e15))
                if not _start(numbers, iu, iv, arc, r, c, re, ce, need, loose):
                    continue
                if not _paths(numbers, iu, iv, arc, re, ce, idist, need, loose, previous, mark):
                    continue
                ended[k] = EXACT
                for i in range(rows):
                    fu[i] = np.float64(iu[i]) * down
                    if np.int64(np.float64(iu[i])) != iu[i]:
                        ended[k] = WIDE
                for j in range(cols):
                    fv[j] = np.float64(iv[j]) * down
                    if np.int64(np.float64(iv[j])) != iv[j]:
                        ended[k] = WIDE
            else:
                if not _start(values, fu, fv, arc, r, c, re, ce, need, loose):
                    continue
                if not _paths(values, fu, fv, arc, re, ce, fdist, need, loose, previous, mark):
                    continue
                ended[k] = FLOAT
            if ended[k] != EXACT:
                # to the middle of what the mask leaves open, away from rounding errors
                cross_gaps(values_at, fu_at, arc_at, low_at, high_at, rows, cols)
                for j in range(cols):
                    fv[j] = _middle(low[j], high[j], ce, loose[rows + j] == 0, fv[j])
                for i in range(rows):
                    line_gap(values_at + i * cols * 8, fv_at, arc_at + i * cols, low_at, cols)
                    fu[i] = _middle(low[0], low[1], re, loose[i] == 0, fu[i])
            for i in range(rows):
                u[k, i] = row[top + i, place] = fu[i]
                for j in range(cols):
                    arc[i, j] &= 1
                copy_bytes(arc_at + i * cols, mask + (top + i) * mask_stride + left, cols)
            for j in range(cols):
                v[k, j] = col[stripe, left + j] = fv[j]
        return ended

    i8, flag, matrix = types.int64, types.boolean, types.float64[:, ::1]
    work = (types.float64 if kind.work_size == 8 else types.float32)[:, ::1]
    return compiled(
        augment,
        types.uint8[::1](
            i8, i8, types.int64[::1], work, work, matrix, matrix, i8, i8, types.int8[:, :], i8, i8, flag, flag, flag
        ),
    )
