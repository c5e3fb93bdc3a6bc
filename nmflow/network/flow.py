"""A minimum-cost flow for one block: masks and flows, duals and potentials, networkx and DIMACS, there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.errors import InputValueError, MissingLibraryError
from nmflow.given import as_mask
from nmflow.network import dimacs
from nmflow.network.given import as_duals, as_flow, as_numbers, of_mapping
from nmflow.pattern import Pattern

if TYPE_CHECKING:
    import networkx

__all__ = ["FlowNetwork"]


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

    def is_feasible(self, flow: npt.ArrayLike) -> bool:
        """Whether a flow keeps to capacities and supplies."""
        flow = as_flow(flow, self.n_arcs)
        net = np.zeros(self.n_nodes, np.int64)
        np.add.at(net, self.tail, flow)
        np.subtract.at(net, self.head, flow)
        return bool((flow >= 0).all() and (flow <= self.capacity).all() and (net == self.supply).all())

    def cost(self, flow: npt.ArrayLike) -> int:
        """Cost of a flow in units of 2**exponent."""
        return int((self.unit_cost * as_flow(flow, self.n_arcs).astype(object)).sum())

    def mask_of(self, flow: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Turn a feasible flow into its mask.

        Parameters
        ----------
        flow : array of integers, shape (n_arcs,)

        Returns
        -------
        ndarray of bool, shape (R, C)

        Raises
        ------
        InputTypeError, InputValueError
            If the flow is not of whole numbers, not of that shape, or breaks a capacity or a supply.
        """
        flow = as_flow(flow, self.n_arcs)
        if not self.is_feasible(flow):
            raise InputValueError("flow must meet every capacity and supply of the network, not break one")
        mask = self.kept.copy()
        mask.ravel()[self.entry] = flow[: self.entry.size] == 1
        return mask

    def flow_of(self, mask: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Turn a mask into its flow: the inverse of `mask_of`.

        Raises
        ------
        InputTypeError, InputValueError
            If the mask is not boolean, not of a block's shape, or breaks the pattern or a kept or dropped entry.
        """
        mask = as_mask(mask, self.pattern.block_shape, "mask")
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

    def potentials(self, flow: npt.ArrayLike) -> Array | None:
        """Find optimal potentials for a flow, or None if the flow is not optimal.

        With reduced_cost = unit_cost - potential[tail] + potential[head], a flow is optimal exactly when every
        residual arc has a reduced cost of at least 0.

        Parameters
        ----------
        flow : array of integers, shape (n_arcs,)
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
        for amount, (tail, head, capacity, cost) in zip(as_flow(flow, self.n_arcs).tolist(), self.arcs(), strict=True):
            if amount < capacity:
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

    def duals_of(self, potentials: npt.ArrayLike) -> tuple[Array, Array]:
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
        potentials = as_numbers(potentials, self.n_nodes, "potentials", "nodes")
        base = 0 if self.slack is None else potentials[self.slack]
        u, v = base - potentials[:rows], potentials[rows : rows + cols] - base
        return u, (v if self.pattern.transposable else v * 0)

    def potentials_of(self, u: npt.ArrayLike, v: npt.ArrayLike) -> Array:
        """Turn duals into node potentials: the inverse of `duals_of`, with the slack node at 0."""
        u, v = as_duals(u, v, self.pattern.block_shape)
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
        for tail, head, capacity, cost in self.arcs():
            graph.add_edge(tail, head, capacity=capacity, weight=cost)
        return graph

    def flow_from_networkx(self, flow: Mapping[int, Mapping[int, int]]) -> npt.NDArray[np.int64]:
        """Turn the flow dictionary of a networkx algorithm into a flow by arc."""
        return of_mapping(flow, self.arcs())

    def to_dimacs(self) -> str:
        """Write the network in the DIMACS format for minimum-cost flow, ``.min``.

        Nodes count from 1. Costs are whole and may exceed 64 bits; a comment gives the exponent.
        """
        title = f"nmflow {self.pattern}, one block; cost = COST * 2**({self.exponent})"
        return dimacs.write(title, self.names, self.supply.tolist(), self.arcs())

    def flow_from_dimacs(self, text: str) -> npt.NDArray[np.int64]:
        """Read the ``f TAIL HEAD FLOW`` lines of a DIMACS solution into a flow by arc; arcs not named carry 0.

        Raises
        ------
        InputValueError
            If such a line is not three whole numbers, or names an arc that this network has not.
        """
        return dimacs.read(text, self.arcs())

    def arcs(self) -> list[dimacs.Arc]:
        """Tail, head, capacity and unit cost of each arc, as Python integers."""
        parts = self.tail, self.head, self.capacity, self.unit_cost
        tail, head, capacity, cost = (part.tolist() for part in parts)
        return list(zip(tail, head, capacity, cost, strict=True))
