"""Augmenting paths of no length: among entries on the threshold, by sets of nodes that are the bits of a word.

Where scores repeat, most of what a block lacks can be mended without any loss: along arcs whose reduced cost is 0.
Those paths are found breadth first, a word operation for each node. What is left needs paths of some length.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 6.5 (augmenting paths), section 9.8 (primal-dual).
"""

from __future__ import annotations

from numba import njit

from nmflow.kernels.simd import trailing_zeros

__all__ = ["mend_ties"]

OUT, IN = 0, 1


@njit(nogil=True, error_model="numpy")
def mend_ties(scores, u, v, arc, need, previous, queue, adds, drops):  # type: ignore[no-untyped-def]
    """Send what nodes have to where it lacks along arcs of no cost; whether nothing is left.

    As `nmflow.kernels.augment.paths`, for blocks of at most 64 x 64 under exact fill without fixed entries. queue :
    (R + C,) int64, adds : (R,) and drops : (C,) int64, workspace: the columns that a row may add at no cost, and the
    rows that a column may drop.
    """
    rows, cols = scores.shape
    left = 0
    for node in range(rows + cols):
        left += need[node] > 0
    if left == 0:
        return True
    drops[:] = 0
    for i in range(rows):
        adds[i] = 0
        for j in range(cols):
            if scores[i, j] - u[i] - v[j] == 0.0:
                if arc[i, j] == OUT:
                    adds[i] |= 1 << j
                else:
                    drops[j] |= 1 << i
    while True:
        reached_rows, reached_cols, tail, left = 0, 0, 0, 0
        for node in range(rows + cols):
            if need[node] > 0:
                left += 1
                queue[tail] = node
                tail += 1
                previous[node] = -1
                if node < rows:
                    reached_rows |= 1 << node
                else:
                    reached_cols |= 1 << (node - rows)
        if left == 0:
            return True
        head, end = 0, -1
        while head < tail and end < 0:
            node = queue[head]
            head += 1
            if node < rows:
                fresh, first = adds[node] & ~reached_cols, rows
                reached_cols |= fresh
            else:
                fresh, first = drops[node - rows] & ~reached_rows, 0
                reached_rows |= fresh
            while fresh != 0:
                other = first + trailing_zeros(fresh)
                fresh &= fresh - 1
                previous[other] = node
                if need[other] < 0:
                    end = other
                    break
                queue[tail] = other
                tail += 1
        if end < 0:
            return False
        need[end] += 1
        node = end
        while previous[node] >= 0:
            before = previous[node]
            if before < rows:
                i, j = before, node - rows
                arc[i, j] = IN
                adds[i] &= ~(1 << j)
                drops[j] |= 1 << i
            else:
                i, j = node, before - rows
                arc[i, j] = OUT
                adds[i] |= 1 << j
                drops[j] &= ~(1 << i)
            node = before
        need[node] -= 1
