"""Changing a selection network at random, as long as it still selects: see `benchmarks.networks`.

A network is an int16 array of comparators, (comparators, 2), of which the first wire keeps the larger. Cases are bits:
64 of them to a word, WORDS words tried together.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["LONGEST", "WORDS", "evolve", "first_wrong", "live", "whole"]

WORDS = 8
LONGEST = 800
"""Comparators of a network while it is changed."""


@njit
def _run(net, state):  # type: ignore[no-untyped-def]
    for t in range(len(net)):
        i, j = net[t]
        for word in range(WORDS):
            a, b = state[i, word], state[j, word]
            state[i, word], state[j, word] = a | b, a & b


@njit
def _fails(state, kinds, wanted):  # type: ignore[no-untyped-def]
    """Whether the two wanted wires hold other than as many ones as they should."""
    bad = np.uint64(0)
    for word in range(WORDS):
        a, b = state[wanted - 1, word], state[wanted, word]
        bad |= (kinds[0, word] & (a | b)) | (kinds[1, word] & ~(a ^ b)) | (kinds[2, word] & ~(a & b))
    return bad != 0


@njit
def first_wrong(net, first, data, kinds, wanted, state):  # type: ignore[no-untyped-def]
    for chunk in range(len(data)):
        for i in range(len(first)):
            state[i] = ~np.uint64(0) if first[i] else np.uint64(0)
        state[len(first) :] = data[chunk]
        _run(net, state)
        if _fails(state, kinds[chunk], wanted):
            return chunk
    return -1


@njit
def _selects(net, data, kinds, order, wanted, state):  # type: ignore[no-untyped-def]
    """Whether all cases come out right; what shows the contrary is tried earlier from now on."""
    for x in range(len(order)):
        chunk = order[x]
        state[:] = data[chunk]
        _run(net, state)
        if _fails(state, kinds[chunk], wanted):
            order[x], order[x // 2] = order[x // 2], chunk
            return False
    return True


@njit
def live(net, wanted, count, flags):  # type: ignore[no-untyped-def]
    """Flag the comparators that are needed; the operations that these take."""
    read = np.zeros(count, np.uint8)
    read[wanted - 1] = read[wanted] = 1
    operations, last = 0, True
    for t in range(len(net) - 1, -1, -1):
        i, j = net[t]
        flags[t] = read[i] | read[j]
        if last and flags[t] and i == wanted - 1 and j == wanted:
            flags[t] = 0  # it only puts the wanted ones in order
        elif flags[t]:
            last = last and not (wanted - 1 <= i <= wanted or wanted - 1 <= j <= wanted)
            operations += read[i] + read[j]
            read[i] = read[j] = 1
    return operations


@njit
def _change(net, length, count, rng):  # type: ignore[no-untyped-def]
    """Change a network in one place, or a few; its new length."""
    changes = 1
    while changes < 5 and rng.random() < 0.45:
        changes += 1
    for _ in range(changes):
        kind, x, y = rng.random(), rng.integers(0, length), rng.integers(0, length)
        i, j = rng.integers(0, count), rng.integers(0, count)
        if kind < 0.12 and length > 1:  # take one out
            net[x : length - 1] = net[x + 1 : length].copy()
            length -= 1
        elif kind < 0.3:  # another one in its place
            net[x] = i, j
        elif kind < 0.42 and length < LONGEST:  # put one in
            net[x + 1 : length + 1] = net[x:length].copy()
            net[x] = i, j
            length += 1
        elif kind < 0.56:  # move one
            moved = net[x].copy()
            if x < y:
                net[x:y] = net[x + 1 : y + 1].copy()
            else:
                net[y + 1 : x + 1] = net[y:x].copy()
            net[y] = moved
        elif kind < 0.74:  # another end
            net[x, i % 2] = j
        elif kind < 0.88:  # exchange ends of two
            net[x, i % 2], net[y, j % 2] = net[y, j % 2], net[x, i % 2]
        else:  # exchange two wires from one on
            for t in range(x, length):
                for end in range(2):
                    net[t, end] = j if net[t, end] == i else i if net[t, end] == j else net[t, end]
    for t in range(length):
        net[t] = min(net[t, 0], net[t, 1]), max(net[t, 0], net[t, 1])
    return length


@njit
def whole(cube, net, length, count, mirrored, out):  # type: ignore[no-untyped-def]
    """The cubes and what follows, each with its mirror image where it has one; how many."""
    n = len(cube)
    out[:n] = cube
    for t in range(length):
        i, j = net[t]
        if i != j:
            out[n] = i, j
            n += 1
            if mirrored and i + j != count - 1:
                out[n] = count - 1 - j, count - 1 - i
                n += 1
    return n


@njit
def evolve(cube, net, length, data, kinds, order, wanted, count, mirrored, changes, best, rng):  # type: ignore[no-untyped-def]
    """Change a network many times; its length. best : the best one met, out, with its length and operations."""
    state = np.empty((count, WORDS), np.uint64)
    every, flags = np.empty((2 * LONGEST + len(cube), 2), np.int16), np.empty(2 * LONGEST + len(cube), np.uint8)
    n = whole(cube, net, length, count, mirrored, every)
    least = now = live(every[:n], wanted, count, flags)
    best[:length], best_length = net[:length], length
    other = net.copy()
    for _ in range(changes):
        other[:length] = net[:length]
        other_length = _change(other, length, count, rng)
        n = whole(cube, other, other_length, count, mirrored, every)
        operations = live(every[:n], wanted, count, flags)
        # seldom a few operations more, to leave where no single change helps
        if operations > now and (operations > least + 4 or rng.random() > 0.01):
            continue
        kept = len(cube)
        for t in range(kept, n):
            if flags[t]:
                every[kept] = every[t]
                kept += 1
        if not _selects(every[len(cube) : kept], data, kinds, order, wanted, state):
            continue
        length, at = 0, len(cube)
        for t in range(other_length):
            i, j = other[t]
            if i != j:
                pair = 1 + (mirrored and i + j != count - 1)
                if flags[at : at + pair].any():
                    net[length] = i, j
                    length += 1
                at += pair
        now = operations
        if now < least:
            least, best_length = now, length
            best[:length] = net[:length]
    return length, best_length, least
