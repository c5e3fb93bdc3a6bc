"""The linear program of a block in HiGHS, through SciPy: float64 arithmetic, the duals that an LP solver gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nmflow.arrays import Array
from nmflow.errors import SolverLimitError
from nmflow.network import FlowNetwork
from nmflow.solvers.base import BlockDuals
from nmflow.solvers.flow import FlowSolver, contradiction

__all__ = ["LinearProgram"]

INFEASIBLE = 2
"""Status of scipy.optimize.linprog."""


@dataclass(frozen=True)
class LinearProgram(FlowSolver):
    """Solve the linear program of each block with HiGHS's dual simplex.

    minimise cost . flow, with net outflow = supply at every node and 0 <= flow <= capacity

    Notes
    -----
    The constraint matrix is the node-arc incidence matrix of a network: totally unimodular, so every vertex is
    integral; the one found is checked to be so. Costs are scaled by a power of two to at most 1 and rounded to float64;
    HiGHS then stops at reduced costs above -1e-7, and the largest is 1/2 or more: so a flow can lose 2e-7 of it for
    each unit that could move: almost always optimal, but not for entries that differ by less than that. Where the flow
    is exactly optimal, the duals are exact integers that prove it; elsewhere they are HiGHS's marginals, which bound
    the gap.
    About 3 ms for a block at 2:4, 8 ms at 16:32.

    References
    ----------
    Huangfu, Hall, "Parallelizing the dual revised simplex method", Math. Prog. Comp. 10, 2018 (HiGHS).
    """

    name = "lp"
    exact = False
    guarantee = "optimal up to the tolerance of HiGHS: loses at most 2e-7 of the largest score for each entry"
    tolerance = 2e-7
    library = "scipy"

    def solve_network(self, net: FlowNetwork) -> tuple[Array, BlockDuals | None]:
        """Solve the linear program; duals are the marginals."""
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        scale = max((int(abs(cost)).bit_length() for cost in net.unit_cost), default=0)
        # Python divides integers of any size with a single rounding; what is below 2**-1074 of the largest becomes 0.
        costs = np.array([int(cost) / (1 << scale) for cost in net.unit_cost])
        arcs = np.arange(net.n_arcs)
        incidence = csr_array(
            (np.repeat([1.0, -1.0], net.n_arcs), (np.concatenate([net.tail, net.head]), np.tile(arcs, 2))),
            shape=(net.n_nodes, net.n_arcs),
        )
        bounds = np.stack([np.zeros(net.n_arcs), net.capacity], axis=1)
        result = linprog(costs, A_eq=incidence, b_eq=net.supply, bounds=bounds, method="highs-ds")
        if result.status == INFEASIBLE:
            raise contradiction(net.pattern)
        if result.status != 0:
            raise SolverLimitError(f'HiGHS must end with an optimum, not "{result.message}"; use solver="dual"')
        flow = np.rint(result.x).astype(np.int64)
        if np.abs(result.x - flow).max(initial=0.0) > 1e-6 or not net.is_feasible(flow):
            raise SolverLimitError('HiGHS must end at an integral vertex, not at a fractional flow; use solver="dual"')
        # The marginal of a node's balance is its potential: reduced cost = cost - y[tail] + y[head].
        u, v = net.duals_of(np.asarray(result.eqlin.marginals, np.float64))
        if not net.pattern.row_exact:
            u = np.maximum(u, 0.0)
        if not net.pattern.col_exact:
            v = np.maximum(v, 0.0)
        return flow, BlockDuals(u, v, net.exponent + scale)
