"""Peers that call a solver of another library: flows, linear programs, transport, assignment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.peer import Array, BlockPeer, ManyBlocksPeer, grid
from nmflow.errors import SolverLimitError
from nmflow.pattern import Pattern

__all__ = ["Assignment", "Highs", "Networkx", "OptimalTransport", "OrTools"]


class OrTools(ManyBlocksPeer):
    """OR-Tools' flow solver. Its costs cannot be changed, so a network holds many blocks to be worth building."""

    name = "OR-Tools SimpleMinCostFlow"
    library, package = "ortools", "ortools"
    entries = 1 << 13
    """Entries of the blocks of a network: one block each took two to three times as long."""

    def many(self, n: int, m: int, most: int) -> Callable[[Array], Array]:
        from ortools.graph.python import min_cost_flow

        tail, head = np.divmod(np.arange(m * m), m)
        first = np.arange(most)[:, None] * 2 * m
        tails, heads = (tail + first).ravel(), (head + m + first).ravel()
        capacity = np.ones(most * m * m, np.int64)
        nodes, supply = np.arange(most * 2 * m), np.tile(np.repeat([n, -n], m), most)

        def solve(scores: Array) -> Array:
            arcs, ends = scores.size, len(scores) * 2 * m
            solver = min_cost_flow.SimpleMinCostFlow()
            added = solver.add_arcs_with_capacity_and_unit_cost(
                tails[:arcs], heads[:arcs], capacity[:arcs], -grid(scores).ravel()
            )
            solver.set_nodes_supplies(nodes[:ends], supply[:ends])
            if solver.solve() != solver.OPTIMAL:
                raise SolverLimitError("OR-Tools did not end with an optimum")
            kept: Array = np.asarray(solver.flows(added)).reshape(scores.shape) > 0
            return kept

        return solve


class Highs(ManyBlocksPeer):
    """HiGHS, through SciPy: one linear program holds many blocks, since to set one up takes milliseconds.

    Vertices of these programs are whole, and HiGHS ends at one.
    """

    name = "SciPy linprog (HiGHS)"
    library, package = "scipy", "scipy"
    entries = 1 << 12

    def many(self, n: int, m: int, most: int) -> Callable[[Array], Array]:
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix

        entry = np.arange(most * m * m)
        block, row, col = entry // (m * m), entry // m % m, entry % m
        lines = np.concatenate([block * 2 * m + row, block * 2 * m + m + col])
        ones, twice = np.ones(2 * entry.size), np.concatenate([entry, entry])
        budgets = csr_matrix((ones, (lines, twice)), shape=(most * 2 * m, entry.size))

        def solve(scores: Array) -> Array:
            ends, size = len(scores) * 2 * m, scores.size
            found = linprog(
                -scores.ravel(), A_eq=budgets[:ends, :size], b_eq=np.full(ends, n), bounds=(0, 1), method="highs"
            )
            if not found.success:
                raise SolverLimitError(f"HiGHS did not end with an optimum: {found.message}")
            kept: Array = found.x.reshape(scores.shape) > 0.5
            return kept

        return solve


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
            for k, cost in enumerate(grid(scores.ravel()).tolist()):
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
