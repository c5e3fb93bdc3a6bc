"""What else could be used: each peer called as its own documentation would, without nmflow around it.

A peer gets the most favourable treatment that is still correct: a network is built once where its costs can be changed,
else it holds many blocks, arrays are handed over in bulk where the library can take them, and setting up is not timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from benchmarks.library_peers import Assignment, Highs, Networkx, OptimalTransport, OrTools
from benchmarks.peer import Array, Peer
from nmflow.bench.contest import Contestant
from nmflow.pattern import Pattern

__all__ = ["PEERS", "peers"]


class BruteForce(Peer):
    """All 90 masks of a 4x4 block, by one matrix product for many blocks, as training code does at 2:4."""

    name = "torch, 90 patterns"
    library, package = "torch", "torch==2.13.0"
    step = 1 << 14
    """Blocks at a time: 16384 * 90 float32 sums are 6 MB."""

    def unable(self, pattern: Pattern) -> str:
        limit = "" if (pattern.n, pattern.m) == (2, 4) else f"{self.name} does 2:4, not {pattern}"
        return super().unable(pattern) or limit

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        import torch

        rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
        squares = itertools.product(rows, repeat=4)
        masks = [mask for mask in squares if all(sum(col) == 2 for col in zip(*mask, strict=True))]
        table = torch.tensor(masks, dtype=torch.float32).reshape(-1, 16)
        kept = table.bool()

        def run(weights: Array) -> Array:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                given = torch.from_numpy(np.ascontiguousarray(weights, np.float32))
                tall, wide = given.shape[0] // 4, given.shape[1] // 4
                given = given[: tall * 4, : wide * 4]
                blocks = given.abs().reshape(tall, 4, wide, 4).transpose(1, 2).reshape(-1, 16)
                best = torch.cat([(part @ table.T).argmax(1) for part in blocks.split(self.step)])
                mask = kept[best].reshape(tall, wide, 4, 4).transpose(1, 2).reshape(tall * 4, wide * 4)
            finally:
                torch.set_num_threads(before)
            out = np.zeros(weights.shape, np.bool_)
            out[: tall * 4, : wide * 4] = mask.numpy()
            return out

        return run


class Greedy(Peer):
    """The plain greedy, written the obvious way in Numba: sort the block, take while row and column have room.

    Its masks may keep fewer than n in a line.
    """

    name = "plain greedy (Numba)"

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        kernel = _greedy_kernel()

        def run(weights: Array) -> Array:
            mask = np.zeros(weights.shape, np.bool_)
            tall = weights.shape[0] // m
            threads = max(1, min(self.threads, tall))
            cuts = [tall * k // threads * m for k in range(threads + 1)]
            values = np.ascontiguousarray(weights, np.float32)
            with ThreadPoolExecutor(threads) as pool:
                parts = [pool.submit(kernel, values[a:b], n, m, mask[a:b]) for a, b in itertools.pairwise(cuts)]
                for part in parts:
                    part.result()
            return mask

        return run


@cache
def _greedy_kernel() -> Callable[..., None]:
    from numba import njit, types

    matrix, whole = types.Array(types.float32, 2, "C", readonly=True), types.int64

    @njit(types.void(matrix, whole, whole, types.Array(types.boolean, 2, "C")), nogil=True)
    def greedy(weights, n, m, mask):  # type: ignore[no-untyped-def]
        block = np.empty(m * m, np.float32)
        rows, cols = np.empty(m, np.int64), np.empty(m, np.int64)
        for top in range(0, weights.shape[0] - m + 1, m):
            for left in range(0, weights.shape[1] - m + 1, m):
                for i in range(m):
                    for j in range(m):
                        block[i * m + j] = -abs(weights[top + i, left + j])
                rows[:], cols[:] = 0, 0
                for place in np.argsort(block):
                    i, j = place // m, place % m
                    if rows[i] < n and cols[j] < n:
                        rows[i] += 1
                        cols[j] += 1
                        mask[top + i, left + j] = True

    return greedy


PEERS: tuple[type[Peer], ...] = (OrTools, Highs, Networkx, OptimalTransport, Assignment, BruteForce, Greedy)


def peers(threads: int) -> list[Contestant]:
    """Every peer, installed or not: one that is not says so in its rows."""
    return [peer(threads) for peer in PEERS]
