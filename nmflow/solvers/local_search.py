"""Local search: swaps on top of any mask, until none improves it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from nmflow.asked import whole
from nmflow.solvers.approximate import Approximate, Blocks
from nmflow.solvers.greedy import Greedy

__all__ = ["LocalSearch", "improve"]


@dataclass(frozen=True)
class LocalSearch(Approximate):
    """Swap kept entries while that gains, from greedy's mask or from ``solve(..., start=mask)``.

    Parameters
    ----------
    sweeps : int
        Most passes over all pairs of rows of a block; usually two or three are enough.

    Notes
    -----
    *Guarantee*: never worse than its start, if that keeps to the pattern and scores are float64 numbers (integers
    beyond 2**53 are rounded). By more than 2**-46 of the block's largest score, no single swap of two entries improves
    the result, and under exact fill each pair of rows is optimal by itself, unless `sweeps` ends it first. From
    greedy's mask it also keeps greedy's guarantee of one half; from a start of yours there is none, since fixed entries
    can leave no swap where three would gain. A start that breaks the pattern is made to keep to it first: its entries
    by falling score while lines have room, then the others.

    A pass takes O(m^3) a block. Swaps are made between pairs of rows in turn, the best one of a pair first; ties go to
    the column that comes first.
    """

    sweeps: int = 100
    name = "local-search"
    guarantee = (
        "never worse than its start; from its own it keeps at least half of the best score, for scores that are not "
        "negative; no swap improves it by more than 2^-46 of the largest score"
    )
    improves = True
    kept_ratio = 0.5

    def __post_init__(self) -> None:
        whole(self.sweeps, "sweeps", 1)

    def choose(self, blocks: Blocks) -> dict[str, int]:
        """Greedy, or the start; then swaps."""
        if not blocks.start.size:
            Greedy().choose(blocks)
        else:
            from nmflow.kernels.choose import ROUNDED

            blocks.choose_by(ROUNDED)
        return {"swaps": improve(blocks, self.sweeps)}


def improve(blocks: Blocks, sweeps: int) -> int:
    """Improve masks that keep to the pattern; how many swaps there were."""
    from nmflow.kernels.swaps import swaps_kernel

    full, free = blocks.fills
    sweeps = min(sweeps, sys.maxsize)
    return int(
        swaps_kernel()(
            blocks.values, blocks.state, *blocks.budgets, not full, free or not full, sweeps, blocks.mask, blocks.left
        )
    )
