"""Masks by order: heaviest first while lines have room, or lightest first while lines must lose; then repaired.

Kernels here work on blocks that are laid out as float64, shape (k, R, C), and leave to an exact solver the few blocks
that they cannot fill, or cannot show to keep what is promised.

Two facts carry the promises, for scores that are not negative. G is what greedy keeps before any repair, O any mask
that keeps at most the budgets.

*Greedy keeps half.* An entry of O that is not in G was refused because one of its lines was full, with entries of G
at least as heavy. Charge it to that line. A line of budget b holds b entries of G and at most b of O, so it has at
least as many entries of G that are not in O as it is charged for. Pay with those, one each: every entry of G pays
at most twice, once for its row and once for its column, and those that O has too never pay. So S(O) <= 2 S(G).

*Lightest first prunes at most twice the least.* While a line must still lose entries, each of its entries that comes
up is pruned; so its first C - r (rows) or R - c (columns) pruned entries are its lightest ones, and nothing else
is pruned. Their sum over all rows is at most what any mask prunes, and so is their sum over all columns.

A repair may take a heavy entry away, so it is followed by a check: the mask is compared with an upper bound on any
mask (twice S(G); the r heaviest of each row; the c heaviest of each column), or what it prunes with the sums above.
A block that does not pass is left to an exact solver. So the promise never rests on how good the repair is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from nmflow.kernels.compile import compiled, once, part
from nmflow.kernels.sorting import sort

__all__ = ["GREEDY", "LIGHTEST", "REFILLED", "ROUNDED", "choose_kernel"]

GREEDY, ROUNDED, LIGHTEST, REFILLED = 0, 1, 2, 3
"""Heaviest first, and half of the best promised; by other keys, and nothing promised; lightest first; then refilled."""

MARGIN = 1.0 + 1e-9
"""Far above the rounding of sums of 4096 float64, far below what a check could miss for its sake."""


@part
def _fill(order, wanted, values, fixed, mask, row_room, col_room, cols, full):  # type: ignore[no-untyped-def]
    """Keep entries in order while both their lines have room; with at-most fill those that add to the score.

    wanted : only these, if it is not empty.
    """
    for e in order:
        if mask[e] or fixed[e] or (wanted.size and not wanted[e]) or not (full or values[e] > 0.0):
            continue
        i = e // cols
        j = e - i * cols
        if row_room[i] > 0 and col_room[j] > 0:
            mask[e] = 1
            row_room[i] -= 1
            col_room[j] -= 1


@part
def _lighten(order, values, fixed, mask, row_room, col_room, cols, full):  # type: ignore[no-untyped-def]
    """Algorithm 1: from a full mask, lightest first, prune what its row or its column must still lose.

    row_room, col_room : minus the entries that the line must lose, on entry.
    """
    for k in range(order.size - 1, -1, -1):
        e = order[k]
        if not mask[e] or fixed[e]:
            continue
        i = e // cols
        j = e - i * cols
        if row_room[i] < 0 or col_room[j] < 0 or (not full and values[e] < 0.0):
            mask[e] = 0
            row_room[i] += 1
            col_room[j] += 1


@part
def _repair(values, fixed, mask, row_room, col_room):  # type: ignore[no-untyped-def]
    """Fill what rows and columns lack, each time at the least loss; False if some row cannot be filled like that.

    A row i and a column j that lack an entry take (i, j), or take (i, b) and (a, j) for a kept (a, b).
    """
    rows, cols = values.shape
    for i in range(rows):
        while row_room[i] > 0:
            best, best_j, best_a, best_b = -np.inf, -1, -1, -1
            for j in range(cols):
                if col_room[j] <= 0:
                    continue
                if not mask[i, j] and not fixed[i, j] and values[i, j] > best:
                    best, best_j, best_a, best_b = values[i, j], j, -1, -1
                for a in range(rows):
                    if mask[a, j] or fixed[a, j]:
                        continue
                    for b in range(cols):
                        if mask[a, b] and not fixed[a, b] and not mask[i, b] and not fixed[i, b]:
                            gain = values[i, b] + values[a, j] - values[a, b]
                            if gain > best:
                                best, best_j, best_a, best_b = gain, j, a, b
            if best_j < 0:
                return False
            if best_a < 0:
                mask[i, best_j] = 1
            else:
                mask[best_a, best_b] = 0
                mask[i, best_b] = mask[best_a, best_j] = 1
            row_room[i] -= 1
            col_room[best_j] -= 1
    return _none_below(col_room)


@part
def _none_below(numbers):  # type: ignore[no-untyped-def]
    """Whether no number is negative."""
    below = False
    for number in numbers:
        below |= number < 0
    return not below


@part
def _line_sums(order, values, r, c, rows, cols, row_count, col_count):  # type: ignore[no-untyped-def]
    """Sums of the first r entries of each row in order, and of the first c of each column."""
    row_count[:] = 0
    col_count[:] = 0
    by_rows = by_cols = 0.0
    for e in order:
        i = e // cols
        j = e - i * cols
        if row_count[i] < r:
            row_count[i] += 1
            by_rows += values[e]
        if col_count[j] < c:
            col_count[j] += 1
            by_cols += values[e]
    return by_rows, by_cols


@once
def choose_kernel() -> Any:
    """Compile the kernel: it takes any pattern.

    Returns
    -------
    function (values, keys, state, start, r, c, full, free, method, trusted, mask, left) -> None
        values, keys : (k, R, C) float64, C-contiguous, finite, below 2**1000; keys give the order (may be values).
        state : (k, R, C) int8, 1 keep, -1 drop, 0 free; or of size 0. start : (k, R, C) uint8, entries that go first;
        or of size 0. r, c : budgets of a row and a column. full : whether lines are filled exactly. free : whether
        columns are free. method : GREEDY, ROUNDED, LIGHTEST or REFILLED. trusted : whether values order entries as the
        true scores do. mask : (k, R, C) uint8, out. left : (k,) uint8, out: 1 for blocks left to an exact solver.

    Notes
    -----
    O(R C log(R C)) a block, and O(R^2 C^2) more for each entry that a repair adds.
    """

    def choose(  # type: ignore[no-untyped-def]
        values, keys, state, start, r, c, full, free, method, trusted, mask, left
    ):
        _, rows, cols = values.shape
        size = rows * cols
        order, other = np.empty(size, np.int64), np.empty(size, np.int64)
        row_room, col_room = np.empty(rows, np.int64), np.empty(cols, np.int64)
        row_count, col_count = np.empty(rows, np.int64), np.empty(cols, np.int64)
        fixed = np.zeros((rows, cols), np.uint8)
        fixed_flat, nothing = fixed.ravel(), np.empty(0, np.uint8)
        lightest = method >= LIGHTEST
        for k in range(len(values)):
            value, kept = values[k].ravel(), mask[k].ravel()
            left[k] = 1
            sort(keys[k].ravel(), value, order, other)
            row_room[:] = r - cols if lightest else r
            col_room[:] = c - rows if lightest else c
            kept[:] = 1 if lightest else 0
            if state.size:
                for i in range(rows):
                    for j in range(cols):
                        mark = state[k, i, j]
                        fixed[i, j] = mark != 0
                        if mark > 0 and not lightest:
                            mask[k, i, j] = 1
                            row_room[i] -= 1
                            col_room[j] -= 1
                        elif mark < 0 and lightest:
                            mask[k, i, j] = 0
                            row_room[i] += 1
                            col_room[j] += 1
            if lightest:
                _lighten(order, value, fixed_flat, kept, row_room, col_room, cols, full)
            if not (_none_below(row_room) and _none_below(col_room)):
                continue
            if method == REFILLED or not lightest:
                if start.size:
                    _fill(order, start[k].ravel(), value, fixed_flat, kept, row_room, col_room, cols, full)
                _fill(order, nothing, value, fixed_flat, kept, row_room, col_room, cols, full)
            before = 0.0
            for e in range(size):
                if kept[e]:
                    before += value[e]
            lacking = False
            for i in range(rows):
                lacking |= row_room[i] > 0
            repaired = full and method != LIGHTEST and lacking
            if repaired and not _repair(values[k], fixed, mask[k], row_room, col_room):
                continue
            if (repaired or not trusted) and method != ROUNDED and _none_below(value):
                after = lost = 0.0
                for e in range(size):
                    if kept[e]:
                        after += value[e]
                    else:
                        lost += value[e]
                by_rows, by_cols = _line_sums(
                    order[::-1] if lightest else order, value, cols - r if lightest else r, rows - c if lightest else c,
                    rows, cols, row_count, col_count,
                )  # fmt: skip
                if lightest:
                    if lost * MARGIN > by_rows + by_cols and lost > 0.0:
                        continue
                else:
                    bound = by_rows if free else min(by_rows, by_cols)
                    if trusted and not start.size:
                        bound = min(bound, 2.0 * before)
                    if 2.0 * after < bound * MARGIN:
                        continue
            left[k] = 0

    blocks, bytes_, flag, whole = types.float64[:, :, ::1], types.uint8[:, :, ::1], types.boolean, types.int64
    return compiled(
        choose,
        types.none(
            blocks,
            blocks,
            types.int8[:, :, ::1],
            bytes_,
            whole,
            whole,
            flag,
            flag,
            whole,
            flag,
            bytes_,
            types.uint8[::1],
        ),
    )
