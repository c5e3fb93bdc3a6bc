"""What the solvers that go through a flow network share: block to network, flow to mask, exact duals."""

from __future__ import annotations

import abc

import numpy as np

from nmflow import network
from nmflow.arrays import Array
from nmflow.blocks import DROP, KEEP
from nmflow.errors import InfeasibleError
from nmflow.network import FlowNetwork
from nmflow.pattern import Pattern
from nmflow.solvers.base import BlockDuals, BlockSolver

__all__ = ["FlowSolver", "contradiction", "exact_duals", "network_of"]


class FlowSolver(BlockSolver):
    """A reference solver that solves the flow network of a block."""

    @abc.abstractmethod
    def solve_network(self, net: FlowNetwork) -> tuple[Array, BlockDuals | None]:
        """Solve one network.

        Returns
        -------
        flow : ndarray of int64, shape (n_arcs,)
        duals : BlockDuals or None
            Duals of the solver's own, used only where the flow is not exactly optimal.

        Raises
        ------
        InfeasibleError
            If the network has no feasible flow.
        SolverLimitError
            If the network cannot be solved without more loss than the options allow.
        """

    def solve_block(
        self, numbers: Array, exponent: int, pattern: Pattern, state: Array | None
    ) -> tuple[Array, BlockDuals | None]:
        """Build the network, solve it, and prove its flow if it is optimal."""
        net = network_of(numbers, exponent, pattern, state)
        # where all entries are fixed nothing is left to solve, and not every library takes that
        flow, duals = self.solve_network(net) if net.n_arcs else (np.zeros(0, np.int64), None)
        return net.mask_of(flow), exact_duals(net, flow) or duals


def network_of(numbers: Array, exponent: int, pattern: Pattern, state: Array | None) -> FlowNetwork:
    """The network of a block as a BlockSolver gets it."""
    if state is None:
        return network.build(numbers, pattern, exponent=exponent)
    return network.build(numbers, pattern, state == KEEP, state == DROP, exponent=exponent)


def exact_duals(net: FlowNetwork, flow: Array) -> BlockDuals | None:
    """Duals that prove a flow optimal, from exact potentials; None if it is not optimal."""
    potentials = net.potentials(flow)
    return None if potentials is None else BlockDuals(*net.duals_of(potentials), net.exponent)


def contradiction(pattern: Pattern) -> InfeasibleError:
    """The error for a block that has no mask."""
    return InfeasibleError(
        f"keep and drop must leave room for a mask of {pattern}, not contradict it together; mark fewer entries"
    )
