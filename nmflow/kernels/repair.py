"""Repairing one block: what its duals do not settle is sent along paths, first those of no length.

The arcs that a block keeps are the bits of words, of each row and of each column. Among entries on the threshold paths
are found breadth first, a word operation for each node; where scores repeat that mends most. What is left needs paths
of some length, found by Dijkstra's method in lines of a dense block.

The same network as in `nmflow.kernels.transport`, which has other arithmetics and fixed entries. Nodes are rows, then
columns from the number of rows, padded to whole vectors, on; then the slack node of fills that are not exact.

References
----------
Ahuja, Magnanti, Orlin, "Network Flows", 1993: 6.5 (augmenting paths), 9.7 (successive shortest), 9.8 (primal-dual).
"""

from __future__ import annotations

import numpy as np

from nmflow.kernels.bits import WIDTH
from nmflow.kernels.compile import part
from nmflow.kernels.memory import count_ones, trailing_zeros
from nmflow.kernels.words import compare_line, move_line, nearest_nodes, relax_line

__all__ = ["fill_lines", "find_ties", "send_along_ties", "send_shortest"]


@part
def fill_lines(  # type: ignore[no-untyped-def]
    lines, turned, u, v, at_u, at_v, row_words, col_words, row_ties, col_ties, given, need, loose, r, c, rows, cols,
    row_exact, col_exact,
):  # fmt: skip
    """Keep what lies above the duals, and of what lies on them what is `given` and what fits; what nodes have or lack.

    lines, turned : addresses of the block's rows and of its columns, each padded to whole vectors. Words of what lines
    keep and of what lies on their thresholds, need, loose : output; loose : what lines that need not be full leave to
    the slack node. given : words of rows.
    """
    first = -(-rows // WIDTH) * WIDTH
    down, across = first // WIDTH, -(-cols // WIDTH)
    slack = first + across * WIDTH
    in_row = -1 if cols == 64 else (1 << cols) - 1
    in_col = -1 if rows == 64 else (1 << rows) - 1
    if not row_exact:
        for i in range(rows):
            u[i] = max(u[i], 0.0)
    if not col_exact:
        for j in range(cols):
            v[j] = max(v[j], 0.0)
    room, paid, some = 0, 0, 0
    for node in range(slack + 1):
        need[node], loose[node] = 0, 0
    for j in range(cols):
        above, on = compare_line(turned + j * (8 * WIDTH) * down, v[j], at_u, down, 0)
        col_words[j], col_ties[j] = above & in_col, on & in_col
        need[first + j] = count_ones(col_words[j]) - c
        if row_exact or col_exact or v[j] > 0:
            paid |= 1 << j
    for i in range(rows):
        above, on = compare_line(lines + i * (8 * WIDTH) * across, u[i], at_v, across, 1)
        row_words[i], row_ties[i] = above & in_row, on & in_row
        some |= row_ties[i]
        chosen = row_ties[i] & given[i]
        row_words[i] |= chosen
        need[i] = r - count_ones(row_words[i])
        while chosen != 0:
            j = trailing_zeros(chosen)
            chosen &= chosen - 1
            col_words[j] |= 1 << i
            need[first + j] += 1
    for j in range(cols):
        if need[first + j] < 0:
            room |= 1 << j
    for i in range(rows if some != 0 else 0):
        # entries on the threshold cost nothing either way: what still has room on both sides
        wanted = row_ties[i] & ~row_words[i] & room & (-1 if u[i] > 0 else paid)
        while need[i] > 0 and wanted != 0:
            j = trailing_zeros(wanted)
            wanted &= wanted - 1
            row_words[i] |= 1 << j
            col_words[j] |= 1 << i
            need[i] -= 1
            need[first + j] += 1
            if need[first + j] == 0:
                room &= ~(1 << j)
    rest = 0
    for i in range(rows):
        if not row_exact and need[i] > 0 and u[i] == 0:
            loose[i], need[i] = need[i], 0
        rest += need[i]
    for j in range(cols):
        node = first + j
        if not col_exact and need[node] < 0 and v[j] == 0:
            loose[node], need[node] = -need[node], 0
        rest += need[node]
    need[slack] = -rest


@part
def find_ties(lines, turned, u, v, at_u, at_v, row_ties, col_ties, rows, cols):  # type: ignore[no-untyped-def]
    """Words of what lies on the thresholds of each line."""
    down, across = -(-rows // WIDTH), -(-cols // WIDTH)
    in_row = -1 if cols == 64 else (1 << cols) - 1
    in_col = -1 if rows == 64 else (1 << rows) - 1
    for i in range(rows):
        _, on = compare_line(lines + i * (8 * WIDTH) * across, u[i], at_v, across, 1)
        row_ties[i] = on & in_row
    for j in range(cols):
        _, on = compare_line(turned + j * (8 * WIDTH) * down, v[j], at_u, down, 0)
        col_ties[j] = on & in_col


@part
def send_along_ties(row_words, col_words, row_ties, col_ties, need, previous, queue, rows, cols):  # type: ignore[no-untyped-def]
    """Send what rows and columns have to where it lacks along arcs of no cost; whether they have nothing left.

    Under at-most fill the slack node takes no part: what it has, or lacks, is left to `send_shortest`.
    Ties that a line keeps already, or not yet, are dropped from the words. previous, queue : workspace.
    """
    first = -(-rows // WIDTH) * WIDTH
    adds, drops = row_ties, col_ties  # the columns that a row may add at no cost, and the rows that a column may drop
    for i in range(rows):
        adds[i] &= ~row_words[i]
    for j in range(cols):
        drops[j] &= col_words[j]
    have_rows, have_cols, lack_rows, lack_cols = 0, 0, 0, 0
    for i in range(rows):
        have_rows |= (1 << i) if need[i] > 0 else 0
        lack_rows |= (1 << i) if need[i] < 0 else 0
    for j in range(cols):
        have_cols |= (1 << j) if need[first + j] > 0 else 0
        lack_cols |= (1 << j) if need[first + j] < 0 else 0
    while have_rows != 0 or have_cols != 0:
        tail = 0
        for have, base in ((have_rows, 0), (have_cols, first)):
            while have != 0:
                node = base + trailing_zeros(have)
                have &= have - 1
                queue[tail], previous[node] = node, -1
                tail += 1
        reached_rows, reached_cols = have_rows, have_cols
        head, end = 0, -1
        while head < tail:
            node = queue[head]
            head += 1
            if node < first:
                fresh, lack, base = adds[node] & ~reached_cols, lack_cols, first
                reached_cols |= fresh
            else:
                fresh, lack, base = drops[node - first] & ~reached_rows, lack_rows, 0
                reached_rows |= fresh
            if fresh & lack != 0:
                end = base + trailing_zeros(fresh & lack)
                previous[end] = node
                break
            while fresh != 0:
                other = base + trailing_zeros(fresh)
                fresh &= fresh - 1
                queue[tail], previous[other] = other, node
                tail += 1
        if end < 0:
            return False
        need[end] += 1
        node = end
        while previous[node] >= 0:
            before = previous[node]
            if before < first:
                i, j = before, node - first
                adds[i] &= ~(1 << j)
                drops[j] |= 1 << i
            else:
                i, j = node, before - first
                adds[i] |= 1 << j
                drops[j] &= ~(1 << i)
            row_words[i] ^= 1 << j
            col_words[j] ^= 1 << i
            node = before
        need[node] -= 1
        if need[node] == 0:
            if node < first:
                have_rows &= ~(1 << node)
            else:
                have_cols &= ~(1 << (node - first))
        if need[end] == 0:
            if end < first:
                lack_rows &= ~(1 << end)
            else:
                lack_cols &= ~(1 << (end - first))
    return True


@part
def send_shortest(  # type: ignore[no-untyped-def]
    lines, turned, u, v, at_u, at_v, row_words, col_words, need, loose, keys, dist, previous, at_keys, at_dist,
    at_previous, rows, cols, row_exact, col_exact,
):  # fmt: skip
    """Send a unit along a shortest path, and move the duals by the distances; False if none is found.

    There is one whenever something is left, unless distances are beyond float64. keys, dist, previous : workspace.
    """
    first = -(-rows // WIDTH) * WIDTH
    down, across = first // WIDTH, -(-cols // WIDTH)
    slack = first + across * WIDTH
    in_row = -1 if cols == 64 else (1 << cols) - 1
    for node in range(slack + 1):
        keys[node] = 0.0 if need[node] > 0 else np.inf
        previous[node] = -1
    row_done, col_done, slack_done = 0, 0, False
    length, row_next, col_next = 0.0, 0, 0  # nodes of this length that are not settled
    while True:
        if row_next == 0 and col_next == 0:
            length, row_next, col_next = nearest_nodes(at_keys, down, across)
            if keys[slack] < length:
                length, row_next, col_next = keys[slack], 0, 0
            elif not length < np.inf:
                return False
        if row_next != 0:
            node = trailing_zeros(row_next)
            row_next &= row_next - 1
        elif col_next != 0:
            node = first + trailing_zeros(col_next)
            col_next &= col_next - 1
        else:
            node = slack
        keys[node], dist[node] = np.inf, length
        if need[node] < 0:
            break
        if node < first:
            row_done |= 1 << node
            col_next |= relax_line(
                lines + node * (8 * WIDTH) * across, u[node], at_v, across, length, at_keys + 8 * first,
                at_previous + 8 * first, node, in_row & ~(row_words[node] | col_done), 1,
            )  # fmt: skip
            if not (row_exact or slack_done) and length + max(u[node], 0.0) < keys[slack]:
                keys[slack], previous[slack] = length + max(u[node], 0.0), node
        elif node < slack:
            j = node - first
            col_done |= 1 << j
            row_next |= relax_line(
                turned + j * (8 * WIDTH) * down, v[j], at_u, down, length, at_keys, at_previous, node,
                col_words[j] & ~row_done, 0,
            )  # fmt: skip
            if loose[node] > 0 and not slack_done and length < keys[slack]:
                keys[slack], previous[slack] = length, node
        else:
            slack_done = True
            for i in range(rows):
                if loose[i] > 0 and not (row_done >> i) & 1 and length < keys[i]:
                    keys[i], previous[i] = length, slack
            for j in range(0 if col_exact else cols):
                longer = length + max(v[j], 0.0)
                if not (col_done >> j) & 1 and longer < keys[first + j]:
                    keys[first + j], previous[first + j] = longer, slack
    # settled nodes move by how much nearer than the end they are; the slack node's dual stays 0
    move_line(at_u, at_dist, down, row_done, length, 1)
    move_line(at_v, at_dist + 8 * first, across, col_done, length, 0)
    if slack_done:
        shift = dist[slack] - length
        for i in range(rows):
            u[i] -= shift
        for j in range(cols):
            v[j] += shift
    need[node] += 1
    while previous[node] >= 0:
        before = previous[node]
        if node == slack:
            loose[before] += 1 if before < first else -1
        elif before == slack:
            loose[node] += -1 if node < first else 1
        else:
            i, j = (before, node - first) if before < first else (node, before - first)
            row_words[i] ^= 1 << j
            col_words[j] ^= 1 << i
        node = before
    need[node] -= 1
    return True
