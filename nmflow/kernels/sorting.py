"""Entries of a block in the order that greedy methods take them."""

from __future__ import annotations

from nmflow.kernels.compile import part

__all__ = ["sort"]

RUN = 8
"""Entries that are sorted by insertion before runs are merged."""


@part
def sort(keys, values, order, other):  # type: ignore[no-untyped-def]
    """Write to `order` the entries of a block by falling key; ties by falling value, then in C order (merge sort)."""
    size = keys.size
    for low in range(0, size, RUN):
        for k in range(low, min(low + RUN, size)):
            place = k
            while place > low:
                before = order[place - 1]
                if not (keys[k] > keys[before] or (keys[k] == keys[before] and values[k] > values[before])):
                    break
                order[place] = before
                place -= 1
            order[place] = k
    width = RUN
    while width < size:
        for low in range(0, size, 2 * width):
            middle, high = min(low + width, size), min(low + 2 * width, size)
            a, b = low, middle
            for place in range(low, high):
                take = b >= high
                if not take and a < middle:
                    x, y = order[a], order[b]
                    take = not (keys[y] > keys[x] or (keys[y] == keys[x] and values[y] > values[x]))
                if take:
                    other[place] = order[a]
                    a += 1
                else:
                    other[place] = order[b]
                    b += 1
        for k in range(size):  # not order[:] = other: Numba takes seconds to compile what that says of shapes
            order[k] = other[k]
        width *= 2
