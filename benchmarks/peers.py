"""What else could be used: each peer called as its own documentation would, without nmflow around it.

A peer gets the most favourable treatment that is still correct: a network is built once where its costs can be changed,
else it holds many blocks, arrays are handed over in bulk where the library can take them, and setting up is not timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from nmflow.bench.contest import Contestant, missing
from nmflow.errors import SolverLimitError
from nmflow.pattern import Pattern

__all__ = ["PEERS", "peers"]

Array = np.ndarray[Any, np.dtype[Any]]
GRID_BITS = 30
"""Integer costs are scores as multiples of 2**-30 of the largest: far below float32's own precision of 24 bits."""


class Peer(Contestant):
    """A contestant of another library."""

    peer = True
    library = ""
    package = ""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def unable(self, pattern: Pattern) -> str:
        """Why it cannot do a pattern; empty if it can."""
        square = pattern.transposable and pattern.row == pattern.col and pattern.fill == "exact"
        return "" if square else f"{self.name} is set up for square patterns with exact fill, not {pattern}"

    def prepare(self, pattern: Pattern) -> Callable[[Array], Array]:
        reason = self.unable(pattern)
        if reason:
            raise SolverLimitError(reason)
        if self.library and find_spec(self.library) is None:
            raise missing(self.name, self.library, self.package)
        return self.ready(pattern.n, pattern.m)

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        raise NotImplementedError


class BlockPeer(Peer):
    """A peer that takes one block at a time, on one thread."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__(1)

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        one = self.one(n, m)

        def run(weights: Array) -> Array:
            mask = np.zeros(weights.shape, np.bool_)
            for i in range(0, weights.shape[0] - m + 1, m):
                for j in range(0, weights.shape[1] - m + 1, m):
                    mask[i : i + m, j : j + m] = one(np.abs(weights[i : i + m, j : j + m].astype(np.float64)))
            return mask

        return run

    def one(self, n: int, m: int) -> Callable[[Array], Array]:
        """From the scores of one block, float64, to its mask."""
        raise NotImplementedError


class OrTools(Peer):
    """OR-Tools' flow solver. Its costs cannot be changed, so a network holds many blocks to be worth building."""

    name = "OR-Tools SimpleMinCostFlow"
    library, package = "ortools", "ortools"
    entries = 1 << 13
    """Entries of the blocks of a network: one block each took two to three times as long."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__(1)

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        from ortools.graph.python import min_cost_flow

        most = max(1, self.entries // (m * m))
        tail, head = np.divmod(np.arange(m * m), m)
        first = np.arange(most)[:, None] * 2 * m
        tails, heads = (tail + first).ravel(), (head + m + first).ravel()
        capacity = np.ones(most * m * m, np.int64)
        nodes, supply = np.arange(most * 2 * m), np.tile(np.repeat([n, -n], m), most)

        def solve(scores: Array) -> Array:
            arcs, ends = scores.size, len(scores) * 2 * m
            solver = min_cost_flow.SimpleMinCostFlow()
            added = solver.add_arcs_with_capacity_and_unit_cost(
                tails[:arcs], heads[:arcs], capacity[:arcs], -_grid(scores).ravel()
            )
            solver.set_nodes_supplies(nodes[:ends], supply[:ends])
            if solver.solve() != solver.OPTIMAL:
                raise SolverLimitError("OR-Tools did not end with an optimum")
            kept: Array = np.asarray(solver.flows(added)).reshape(scores.shape) > 0
            return kept

        def run(weights: Array) -> Array:
            tall, wide = weights.shape[0] // m, weights.shape[1] // m
            whole = np.abs(weights[: tall * m, : wide * m].astype(np.float64))
            blocks = whole.reshape(tall, m, wide, m).transpose(0, 2, 1, 3).reshape(-1, m * m)
            kept = np.concatenate([solve(blocks[k : k + most]) for k in range(0, len(blocks), most)])
            mask = np.zeros(weights.shape, np.bool_)
            mask[: tall * m, : wide * m] = kept.reshape(tall, wide, m, m).transpose(0, 2, 1, 3).reshape(tall * m, -1)
            return mask

        return run


class Networkx(BlockPeer):
    name = "networkx network_simplex"
    library, package = "networkx", "networkx"

    def one(self, n: int, m: int) -> Callable[[Array], Array]:
        import networkx

        graph = networkx.DiGraph()
        for i in range(m):
            graph.add_node(i, demand=-n)
            graph.add_node(m + i, demand=n)

        def solve(scores: Array) -> Array:
            # integers: with float costs network_simplex can loop forever or end at a wrong flow
            for k, cost in enumerate(_grid(scores.ravel()).tolist()):
                graph.add_edge(k // m, m + k % m, capacity=1, weight=-cost)
            _, flow = networkx.network_simplex(graph)
            return np.array([[flow[i][m + j] > 0 for j in range(m)] for i in range(m)])

        return solve


class OptimalTransport(BlockPeer):
    """POT's exact transport solver.

    Each entry of the block is a source of one unit, which goes to its column at cost -score (kept) or to its row at no
    cost (pruned); a column takes n units, a row m - n. For n = 1 rows and columns of the block do directly.
    """

    name = "POT ot.emd"
    library, package = "ot", "POT"

    def one(self, n: int, m: int) -> Callable[[Array], Array]:
        import ot

        if n == 1:
            ones = np.ones(m)
            return lambda scores: ot.emd(ones, ones, -scores, numItermax=1_000_000) > 0.5
        if n == m:
            return lambda scores: np.ones((m, m), np.bool_)
        entry = np.arange(m * m)
        row, col = np.divmod(entry, m)
        supply = np.ones(m * m)
        demand = np.repeat([float(m - n), float(n)], m)

        def solve(scores: Array) -> Array:
            largest = scores.max() or 1.0
            # an entry must not go to another's line: dearer than any path of moves could gain
            cost = np.full((m * m, 2 * m), 4.0 * m)
            cost[entry, row] = 0.0
            cost[entry, m + col] = -scores.ravel() / largest
            plan = ot.emd(supply, demand, cost, numItermax=10_000_000)
            return plan[entry, m + col].reshape(m, m) > 0.5

        return solve


class Assignment(BlockPeer):
    name = "SciPy linear_sum_assignment"
    library, package = "scipy", "scipy"

    def unable(self, pattern: Pattern) -> str:
        limit = "" if pattern.n == 1 else f"{self.name} keeps one of a line, not {pattern.n}"
        return super().unable(pattern) or limit

    def one(self, n: int, m: int) -> Callable[[Array], Array]:
        from scipy.optimize import linear_sum_assignment

        def solve(scores: Array) -> Array:
            mask = np.zeros((m, m), np.bool_)
            mask[linear_sum_assignment(scores, maximize=True)] = True
            return mask

        return solve


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


def _grid(scores: Array) -> Array:
    """Scores of each block as multiples of 2**-30 of its largest."""
    largest = scores.max(axis=-1, keepdims=True)
    return np.rint(scores * (2.0**GRID_BITS / np.where(largest > 0, largest, 1.0))).astype(np.int64)


PEERS: tuple[type[Peer], ...] = (OrTools, Networkx, OptimalTransport, Assignment, BruteForce, Greedy)


def peers(threads: int) -> list[Contestant]:
    """Every peer, installed or not: one that is not says so in its rows."""
    return [peer(threads) for peer in PEERS]
