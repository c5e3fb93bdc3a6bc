"""One block as a minimum-cost flow: nodes, arcs, capacities, unit costs and supplies, and the way back to a mask.

::

    row i  --(capacity 1, cost -S[i,j])-->  column j       one arc for each free entry; flow 1 = kept
    row i  --(cost 0)-->  slack  --(cost 0)-->  column j   only on the sides that need not be full

A row supplies its budget and a column demands its own. An entry that must be kept takes its unit from both and has no
arc; an entry that must be dropped has no arc. The slack node carries what rows and columns leave unused, so at-most
fill, free columns and budgets of different totals are the same formulation.

References
----------
Ahuja, Magnanti, Orlin, Network Flows, 1993: chapter 9 (potentials, reduced costs, optimality), section 12.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nmflow.blocks import integers_of
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError, MissingLibraryError, NonFiniteError
from nmflow.pattern import Pattern
from nmflow.problem import Array, as_array, as_mask

if TYPE_CHECKING:
    import networkx

__all__ = ["FlowNetwork", "build"]


@dataclass(frozen=True, eq=False)
class FlowNetwork:
    """A minimum-cost flow whose optimal flows are the best masks of one block of R rows and C columns.

    Nodes are numbered: rows 0 to R-1, columns R to R+C-1, then the slack node where there is one. Arcs are those of
    entries, in C order, then those of slack. No two arcs have the same tail and head.

    Attributes
    ----------
    tail, head : ndarray of int64, shape (n_arcs,)
        Nodes that an arc leaves and enters.
    capacity : ndarray of int64, shape (n_arcs,)
        Most units of flow on an arc; the least is 0.
    unit_cost : ndarray of object (Python integers), shape (n_arcs,)
        Cost of a unit of flow, minimised: cost = unit_cost * 2**exponent, exactly. A score is a negative cost.
    exponent : int
    supply : ndarray of int64, shape (n_nodes,)
        Units that a node sends out, net; a demand is a negative supply.
    names : tuple of str
        Name of each node.
    entry : ndarray of int64, shape (n_entries,)
        Position in the block (C order) of the entry that each of the first arcs stands for.
    kept : ndarray of bool, shape (R, C)
        Entries that every mask keeps; they have no arc.
    kept_score : int
        Their score, in units of 2**exponent: score of a mask = kept_score - cost of its flow.
    pattern : Pattern
    """

    tail: npt.NDArray[np.int64] = field(repr=False)
    head: npt.NDArray[np.int64] = field(repr=False)
    capacity: npt.NDArray[np.int64] = field(repr=False)
    unit_cost: Array = field(repr=False)
    exponent: int
    supply: npt.NDArray[np.int64] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    entry: npt.NDArray[np.int64] = field(repr=False)
    kept: npt.NDArray[np.bool_] = field(repr=False)
    kept_score: int
    pattern: Pattern

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.supply.size

    @property
    def n_arcs(self) -> int:
        """Number of arcs."""
        return self.tail.size

    @property
    def slack(self) -> int | None:
        """The slack node, where there is one."""
        rows, cols = self.pattern.block_shape
        return rows + cols if self.n_nodes > rows + cols else None

    def is_feasible(self, flow: Array) -> bool:
        """Whether a flow keeps to capacities and supplies."""
        net = np.zeros(self.n_nodes, np.int64)
        np.add.at(net, self.tail, flow)
        np.subtract.at(net, self.head, flow)
        return bool((flow >= 0).all() and (flow <= self.capacity).all() and (net == self.supply).all())

    def cost(self, flow: Array) -> int:
        """Cost of a flow in units of 2**exponent."""
        return int((self.unit_cost * flow.astype(object)).sum())

    def mask_of(self, flow: Array) -> npt.NDArray[np.bool_]:
        """Turn a feasible flow into its mask.

        Parameters
        ----------
        flow : ndarray of integers, shape (n_arcs,)

        Returns
        -------
        ndarray of bool, shape (R, C)

        Raises
        ------
        InputValueError
            If the flow breaks a capacity or a supply.
        """
        if flow.shape != (self.n_arcs,) or not self.is_feasible(flow):
            raise InputValueError("flow must meet every capacity and supply of the network, not break one")
        mask = self.kept.copy()
        mask.ravel()[self.entry] = flow[: self.entry.size] == 1
        return mask

    def flow_of(self, mask: Array) -> npt.NDArray[np.int64]:
        """Turn a mask into its flow: the inverse of `mask_of`.

        Raises
        ------
        InputValueError
            If the mask breaks the pattern or a kept or dropped entry.
        """
        flow = np.zeros(self.n_arcs, np.int64)
        n = self.entry.size
        flow[:n] = mask.ravel()[self.entry]
        if self.slack is not None:  # what a row leaves, and what a column lacks, goes by the slack node
            sent = np.bincount(self.tail[:n], flow[:n], self.n_nodes) + np.bincount(
                self.head[:n], flow[:n], self.n_nodes
            )
            unused = np.abs(self.supply) - sent.astype(np.int64)
            ends = np.where(self.head[n:] == self.slack, self.tail[n:], self.head[n:])
            flow[n:] = unused[ends]
        if not self.is_feasible(flow) or (self.mask_of(flow) != mask).any():
            raise InputValueError("mask must keep to the pattern and to keep and drop, not break one")
        return flow

    def potentials(self, flow: Array) -> Array | None:
        """Find optimal potentials for a flow, or None if the flow is not optimal.

        With reduced_cost = unit_cost - potential[tail] + potential[head], a flow is optimal exactly when every
        residual arc has a reduced cost of at least 0.

        Parameters
        ----------
        flow : ndarray of integers, shape (n_arcs,)
            A feasible flow.

        Returns
        -------
        ndarray of object (Python integers), shape (n_nodes,), in units of 2**exponent; or None

        Notes
        -----
        Shortest distances in the residual network from a virtual node with an arc of cost 0 to every node, by Bellman
        and Ford in exact integers; the potential is the negative distance. Time O(nodes * arcs), usually a few sweeps.
        Nodes that still change after as many sweeps as there are nodes lie on a cycle of negative cost, which improves
        the flow (Ahuja et al. 1993, theorem 9.1).
        """
        residual: list[tuple[int, int, int]] = []
        for arc, amount in enumerate(flow.tolist()):
            tail, head, cost = int(self.tail[arc]), int(self.head[arc]), int(self.unit_cost[arc])
            if amount < self.capacity[arc]:
                residual.append((tail, head, cost))
            if amount > 0:
                residual.append((head, tail, -cost))
        distance = [0] * self.n_nodes
        for _ in range(self.n_nodes + 1):
            changed = False
            for tail, head, cost in residual:
                if distance[tail] + cost < distance[head]:
                    distance[head] = distance[tail] + cost
                    changed = True
            if not changed:
                return -np.array(distance, object)
        return None

    def duals_of(self, potentials: Array) -> tuple[Array, Array]:
        """Turn node potentials into row duals u and column duals v, in units of 2**exponent.

        u = potential[slack] - potential[row] and v = potential[column] - potential[slack], so that the reduced cost
        of an entry's arc is -(S - u - v). Without a slack node its potential counts as 0.

        Returns
        -------
        u : ndarray, shape (R,)
        v : ndarray, shape (C,)
            0 for free columns: a free column with v > 0 is full, and stays optimal with v = 0.
        """
        rows, cols = self.pattern.block_shape
        base = 0 if self.slack is None else potentials[self.slack]
        u, v = base - potentials[:rows], potentials[rows : rows + cols] - base
        return u, (v if self.pattern.transposable else v * 0)

    def potentials_of(self, u: Array, v: Array) -> Array:
        """Turn duals into node potentials: the inverse of `duals_of`, with the slack node at 0."""
        return np.concatenate([-u, v, np.zeros(self.n_nodes - u.size - v.size, u.dtype)])

    def to_networkx(self) -> networkx.DiGraph[int]:
        """Make a networkx.DiGraph for networkx's flow algorithms.

        Nodes are numbers with the attributes ``demand`` and ``name``; arcs have ``capacity`` and ``weight``. All
        amounts are Python integers: with float32 weights networkx.network_simplex loops or ends at a wrong flow.

        Raises
        ------
        MissingLibraryError
            If networkx is not installed.
        """
        try:
            import networkx
        except ImportError as error:
            raise MissingLibraryError('networkx is not installed; pip install "nmflow[reference]"') from error
        graph: networkx.DiGraph[int] = networkx.DiGraph()
        for node, name in enumerate(self.names):
            graph.add_node(node, demand=-int(self.supply[node]), name=name)
        for tail, head, capacity, cost in self._arcs():
            graph.add_edge(tail, head, capacity=capacity, weight=cost)
        return graph

    def flow_from_networkx(self, flow: Mapping[int, Mapping[int, int]]) -> npt.NDArray[np.int64]:
        """Turn the flow dictionary of a networkx algorithm into a flow by arc."""
        return np.array([flow[tail][head] for tail, head, _, _ in self._arcs()], np.int64)

    def to_dimacs(self) -> str:
        """Write the network in the DIMACS format for minimum-cost flow, ``.min``.

        Nodes count from 1. Costs are whole and may exceed 64 bits; a comment gives the exponent.

        References
        ----------
        First DIMACS Implementation Challenge, "The DIMACS challenge format: network flows", 1990/1991: problem line
        ``p min NODES ARCS``, ``n ID SUPPLY`` for nodes with supply, ``a TAIL HEAD LOW CAPACITY COST`` for arcs.
        """
        lines = [f"c nmflow {self.pattern}, one block; cost = COST * 2**({self.exponent})"]
        lines += [f"c node {node} = {name}" for node, name in enumerate(self.names, 1)]
        lines.append(f"p min {self.n_nodes} {self.n_arcs}")
        lines += [f"n {node} {supply}" for node, supply in enumerate(self.supply.tolist(), 1) if supply]
        lines += [f"a {tail + 1} {head + 1} 0 {capacity} {cost}" for tail, head, capacity, cost in self._arcs()]
        return "\n".join(lines) + "\n"

    def flow_from_dimacs(self, text: str) -> npt.NDArray[np.int64]:
        """Read the ``f TAIL HEAD FLOW`` lines of a DIMACS solution into a flow by arc; arcs not named carry 0."""
        number = {(tail + 1, head + 1): arc for arc, (tail, head, _, _) in enumerate(self._arcs())}
        flow = np.zeros(self.n_arcs, np.int64)
        for line in text.splitlines():
            if line.startswith("f "):
                _, tail, head, amount = line.split()
                flow[number[int(tail), int(head)]] = int(amount)
        return flow

    def _arcs(self) -> list[tuple[int, int, int, int]]:
        """Tail, head, capacity and unit cost of each arc, as Python integers."""
        return list(
            zip(
                self.tail.tolist(),
                self.head.tolist(),
                self.capacity.tolist(),
                (int(cost) for cost in self.unit_cost),
                strict=True,
            )
        )


def build(
    scores_block: object,
    pattern: Pattern,
    keep: object | None = None,
    drop: object | None = None,
    *,
    exponent: int = 0,
) -> FlowNetwork:
    """Formulate one block as a flow network.

    Parameters
    ----------
    scores_block : array of numbers, shape ``pattern.block_shape``
        Scores, signed, as given (no absolute value). An object array of Python integers is taken exactly.
    pattern : Pattern
    keep, drop : array of bool, shape ``pattern.block_shape``, optional
        Entries that must be kept, must be dropped.
    exponent : int
        The scores are ``scores_block * 2**exponent``.

    Returns
    -------
    FlowNetwork
        With R*C arcs for entries and up to R + C for slack.

    Raises
    ------
    InputTypeError
        If the scores have no usable dtype, or keep or drop is not boolean.
    InputValueError
        If a shape differs from the pattern's block.
    NonFiniteError
        If a score is NaN or infinite.
    InfeasibleError
        If keep and drop leave a row or a column no way to meet its budget. Contradictions that show only in several
        lines together are found by solving.

    Examples
    --------
    >>> net = build([[3.0, 1.0], [0.5, 2.0]], Pattern(1, 2))
    >>> net.tail, net.head
    (array([0, 0, 1, 1]), array([2, 3, 2, 3]))
    >>> [int(c) for c in net.unit_cost], net.exponent
    ([-6, -2, -1, -4], -1)
    >>> net.supply
    array([ 1,  1, -1, -1])
    """
    numbers, shift = _numbers(scores_block, pattern)
    rows, cols = pattern.block_shape
    kept, dropped = (
        np.zeros((rows, cols), np.bool_) if given is None else as_mask(given, (rows, cols), name)
        for given, name in ((keep, "keep"), (drop, "drop"))
    )
    both = np.argwhere(kept & dropped)
    if len(both):
        raise InfeasibleError(
            f"keep and drop must not mark the same entry, as they do at {tuple(both[0].tolist())} and at {len(both)} "
            f"in all"
        )
    free = ~kept & ~dropped
    row_need = _need("row", kept.sum(1), free.sum(1), pattern.row_budget, pattern.row_exact)
    col_need = _need("column", kept.sum(0), free.sum(0), pattern.col_budget, pattern.col_exact)

    row, col = np.nonzero(free)
    tails, heads, capacities = [row], [col + rows], [np.ones(row.size, np.int64)]
    slack = rows + cols
    # One more than a line can leave unused: never binding, so that a reduced cost of a slack arc is never
    # negative. That is what makes the duals of at-most lines nonnegative.
    if not pattern.row_exact:
        tails.append(np.arange(rows))
        heads.append(np.full(rows, slack))
        capacities.append(row_need + 1)
    if not pattern.col_exact:
        tails.append(np.full(cols, slack))
        heads.append(np.arange(rows, slack))
        capacities.append(col_need + 1)
    names = [f"row {i}" for i in range(rows)] + [f"column {j}" for j in range(cols)]
    supply = [row_need, -col_need]
    if len(tails) > 1:
        names.append("slack")
        supply.append(np.array([col_need.sum() - row_need.sum()]))
    unit_cost = np.zeros(sum(part.size for part in tails), object)
    unit_cost[: row.size] = -numbers[free]
    return FlowNetwork(
        tail=np.concatenate(tails),
        head=np.concatenate(heads),
        capacity=np.concatenate(capacities),
        unit_cost=unit_cost,
        exponent=exponent + shift,
        supply=np.concatenate(supply),
        names=tuple(names),
        entry=np.flatnonzero(free),
        kept=kept,
        kept_score=int(numbers[kept].sum()),
        pattern=pattern,
    )


def _numbers(scores_block: Any, pattern: Pattern) -> tuple[Array, int]:
    """The scores as Python integers and an exponent."""
    whole = isinstance(scores_block, np.ndarray) and scores_block.dtype == object
    scores = scores_block if whole else as_array(scores_block, "scores_block")
    if scores.shape != pattern.block_shape:
        raise InputValueError(f"scores_block must have the block shape {pattern.block_shape}, not {scores.shape}")
    if whole:
        if not all(isinstance(number, int) for number in scores.ravel()):
            raise InputTypeError("scores_block must hold Python integers if its dtype is object; else convert it")
        return scores, 0
    if scores.dtype.kind not in "iu":
        bad = np.argwhere(~np.isfinite(scores))
        if len(bad):
            first = tuple(bad[0].tolist())
            raise NonFiniteError(
                f"scores_block must be finite, not NaN or infinite at {len(bad)} entries, the first at {first}",
                len(bad),
                first,
            )
    return integers_of(scores)


def _need(line: str, kept: Array, free: Array, budget: int, full: bool) -> npt.NDArray[np.int64]:
    """Units that each line still takes beside its kept entries."""
    need: npt.NDArray[np.int64] = (budget - kept).astype(np.int64)
    if (need < 0).any():
        i = int(np.flatnonzero(need < 0)[0])
        raise InfeasibleError(f"keep must mark at most {budget} entries of a {line}, not {int(kept[i])} in {line} {i}")
    if full and (free < need).any():
        i = int(np.flatnonzero(free < need)[0])
        left = int(kept[i] + free[i])
        raise InfeasibleError(
            f'drop must leave {budget} entries of a {line} under fill="exact", not {left} in {line} {i}; '
            f'drop fewer, or use fill="at-most"'
        )
    return need
