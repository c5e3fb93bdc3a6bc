"""Search for selection networks of fewer minima and maxima: ``python -m benchmarks.networks 32 16 --minutes 10``.

Prints each better one that it finds as a line for `nmflow.kernels.found_networks`, and begins with what is there.

A network is changed at random, and the change is kept if it still selects and takes no more operations. By the 0-1
principle it is enough to try zeros and ones; of these, inputs with one 1 less than are wanted, as many, and one more,
since no output falls where an input rises. All networks begin with the edges of hypercubes on groups of wires, which
leave few outcomes: 168 for 16 wires. Where even these are too many to try each time, some are tried, and what a network
gets wrong in a trial of all of them joins these. Groups that are sorted at first (``--sorted``) leave 17 each, so that
a network for 64 wires is soon found; a search without it may go on from there.

References
----------
D. E. Knuth, "The Art of Computer Programming", volume 3, section 5.3.4 (the 0-1 principle; M. W. Green's network).
B. Dobbelaere, "SorterHunter" (such changes, on a mirrored network too; 46 comparators for the middle of 16, 128 of 32).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.evolve import LONGEST, WORDS, evolve, first_wrong, live, whole
from benchmarks.progress import counted, positive, tell
from nmflow.arrays import Array
from nmflow.kernels.found_networks import DIGITS, FOUND, comparators
from nmflow.kernels.networks import selection_network

__all__ = ["main"]

Pair = tuple[int, int]
SOME = 1 << 17
"""Cases that are tried each time, where there are many more."""
FEW = 64
"""Chunks of cases that join these at a time."""
GREEN = "123CDE7B485A69147D28BE24569ABD387C68AC35793456789ABC6789"
"""What is left of the sort of 16 after the cube, in 28 comparators."""
CHANGES = 40_000_000
"""Changed networks, times the square of their wires, between two trials of all cases."""


def hypercube(count: int, levels: int) -> list[Pair]:
    """The edges of cubes, each on 2**levels wires."""
    size = 1 << levels
    edges = [(i, i | 1 << level) for level in range(levels) for i in range(size) if not i >> level & 1]
    return [(group + i, group + j) for group in range(0, count, size) for i, j in edges]


def outcomes(levels: int) -> list[tuple[int, ...]]:
    """What a cube makes of zeros and ones: no wire holds less than one whose number has the same bits and more."""
    if not levels:
        return [(0,), (1,)]
    half = outcomes(levels - 1)
    return [a + b for a in half for b in half if all(x >= y for x, y in zip(a, b, strict=True))]


def joined(one: Array, groups: int) -> Array:
    """Outcomes of several groups, by those of one: shape (outcomes, wires)."""
    places = np.indices((len(one),) * groups).reshape(groups, len(one) ** groups)
    return np.concatenate([np.empty((places.shape[1], 0), np.uint8), *(one[place] for place in places)], axis=1)


def packed(cases: Array, kinds: Array) -> tuple[Array, Array]:
    """Cases as bits, (chunks, wires, WORDS) uint64, and whether each is of kind 0, 1 or 2: (chunks, 3, WORDS)."""
    chunks = -(-len(cases) // (64 * WORDS))
    again = np.resize(np.arange(len(cases)), chunks * 64 * WORDS)

    def bits(flags: Array) -> Array:
        inside = flags[again].reshape(chunks, WORDS, 64, flags.shape[1]).transpose(0, 3, 1, 2)
        return np.packbits(inside, axis=-1, bitorder="little").view(np.uint64)[..., 0]

    return bits(cases), bits((kinds[:, None] == np.arange(3)).astype(np.uint8))


class Cases:
    """All outcomes of the groups that matter: those of the first wires, each beside those of the others."""

    def __init__(self, count: int, wanted: int, one: Array) -> None:
        groups = count // one.shape[1]
        self._wanted, self._firsts, lasts = wanted, joined(one, groups // 2), joined(one, groups - groups // 2)
        ones = lasts.sum(axis=1, dtype=np.int64)
        self._lasts = [lasts[abs(ones + own - wanted) <= 1] for own in range(count + 1)]
        self._packed = [packed(some, self._kinds(some, own)) for own, some in enumerate(self._lasts)]

    def _kinds(self, cases: Array, own: int = 0) -> Array:
        return cases.sum(axis=1, dtype=np.int64) + (own - self._wanted + 1)

    def some(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """All of them where they are few, packed."""
        found: list[Array] = []
        for first in self._firsts[rng.permutation(len(self._firsts))]:
            lasts = self._lasts[int(first.sum())]
            found.append(np.concatenate([np.broadcast_to(first, (len(lasts), len(first))), lasts], axis=1))
            if sum(map(len, found)) > 16 * SOME:
                break
        cases = np.concatenate(found)
        cases = cases[rng.permutation(len(cases))[: SOME if len(cases) > 16 * SOME else None]]
        return packed(cases, self._kinds(cases))

    def wrong(self, net: Array, rng: np.random.Generator) -> tuple[Array, Array] | None:
        """Chunks of cases that a network gets wrong, some of them, if there are any."""
        count = self._firsts.shape[1] + self._lasts[0].shape[1]
        state = np.empty((count, WORDS), np.uint64)
        found: list[tuple[Array, Array]] = []
        for first in self._firsts[rng.permutation(len(self._firsts))]:
            data, kinds = self._packed[int(first.sum())]
            bad = first_wrong(net, first, data, kinds, self._wanted, state)
            if bad >= 0:
                ahead = np.where(first, ~np.uint64(0), np.uint64(0))[:, None].repeat(WORDS, axis=1)
                found.append((np.concatenate([ahead, data[bad]])[None], kinds[bad : bad + 1]))
                if len(found) == FEW:
                    break
        return tuple(np.concatenate(part) for part in zip(*found, strict=True)) if found else None  # type: ignore[return-value]


def written(net: Sequence[Pair]) -> str:
    """A network as `nmflow.kernels.found_networks` has it."""
    return "".join(DIGITS[i] + DIGITS[j] for i, j in net)


def search(count: int, wanted: int, levels: int, ordered: bool, mirrored: bool, minutes: float, seed: int) -> None:
    """Print better and better networks."""
    one = np.array(outcomes(levels), np.uint8)
    pairs = hypercube(count, levels)
    if ordered:
        one = np.tri(17, 16, -1, np.uint8)
        pairs += [(group + i, group + j) for group in range(0, count, 16) for i, j in comparators(GREEN)]
    cases, rng = Cases(count, wanted, one), np.random.default_rng(seed)
    data, kinds = cases.some(rng)
    cube = np.array(pairs, np.int16).reshape(-1, 2)
    start = comparators(FOUND.get((count, wanted), "")) or [
        (i, j) for i, j, *_ in selection_network(count, (wanted - 1, wanted), unordered=True)
    ]
    if start[: len(cube)] == [tuple(pair) for pair in cube.tolist()]:
        start = start[len(cube) :]
    net, best = np.zeros((2, LONGEST + 1, 2), np.int16)
    every = np.empty((2 * LONGEST + len(cube), 2), np.int16)
    net[: len(start)], length = start, len(start)
    if mirrored:  # half of what was found as pairs is all of it
        half = [(i, j) for i, j in start if i + j < count]
        net[: len(half)] = half
        if cases.wrong(every[len(cube) : whole(cube, net, len(half), count, True, every)], rng) is None:
            length = len(half)
        else:
            net[: len(start)] = start
    proven, proven_length, least, until = net.copy(), length, 1 << 30, time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        order = np.arange(len(data))
        length, best_length, found = evolve(
            cube, net, length, data, kinds, order, wanted, count, mirrored, CHANGES // count**2, best, rng
        )
        n = whole(cube, best, best_length, count, mirrored, every)
        if (wrong := cases.wrong(every[len(cube) : n], rng)) is not None:
            data, kinds = np.concatenate([data, wrong[0]]), np.concatenate([kinds, wrong[1]])
            net, length = proven.copy(), proven_length
            continue
        flags = np.empty(len(every), np.uint8)
        live(every[:n], wanted, count, flags)
        proven, proven_length = best.copy(), best_length
        if found < least:
            least = found
            kept = [tuple(pair) for t, pair in enumerate(every[:n].tolist()) if t < len(cube) or flags[t]]
            tell(f"{found} minima and maxima, {len(kept)} comparators")
            print(f'    ({count}, {wanted}): "{written(kept)}",', flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search for one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=counted, help="wires")
    parser.add_argument("wanted", type=counted, help="how many are kept: the least of them and the next are wanted")
    parser.add_argument("--levels", type=counted, help="of the cubes to begin with (default: the most, up to 4)")
    parser.add_argument("--sorted", action="store_true", help="begin with sorted groups of 16 wires")
    parser.add_argument("--mirrored", action="store_true", help="where half are kept: each comparator has its image")
    parser.add_argument("--minutes", type=positive, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    count, wanted = options.count, options.wanted
    levels = options.levels or min(4, (count & -count).bit_length() - 1)
    if not wanted < count or count % (1 << levels) or (options.mirrored and 2 * wanted != count):
        parser.error("wanted must be less than count, count a multiple of 2^levels, and half of it be kept if mirrored")
    if options.sorted and levels != 4:
        parser.error("--sorted is for multiples of 16 wires, and cubes of 4 levels")
    search(count, wanted, levels, options.sorted, options.mirrored, options.minutes, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
