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

from nmflow.network.flow import FlowNetwork
from nmflow.network.formulate import build

__all__ = ["FlowNetwork", "build"]
