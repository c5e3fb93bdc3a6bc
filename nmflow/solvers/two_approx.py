"""The 2-approximation of Hubara et al. 2021: lightest first, pruned if row or column must still lose entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nmflow.pattern import Fill
from nmflow.solvers.approximate import Approximate, Blocks

__all__ = ["TwoApprox", "refilled"]


@dataclass(frozen=True)
class TwoApprox(Approximate):
    """Prune entries by rising score where their row or column must still lose some.

    Parameters
    ----------
    refill : bool
        False: Algorithm 1 as published. It prunes more than it must (at 4:8 it keeps .41 of the entries, not .5), so
        its masks keep *at most* n and ``fill="at-most"`` has to be said. True: then entries are added, heaviest first,
        while both lines have room, and short lines are repaired as in `greedy`; the solver's name is then
        "two-approx-refill". The refill is ours, not the paper's.

    Notes
    -----
    *Guarantee*, for scores that are not negative: the pruned score is at most twice the least possible, in every
    block; 2 is reached. While a line must still lose entries each of its entries that comes up is pruned, so what is
    pruned is exactly the R rows' lightest C - r entries together with the C columns' lightest R - c (the mask is what
    both the best rows-only mask and the best columns-only mask keep). Either sum is at most what any mask prunes.

    What the raw form keeps greedy keeps too, but for entries of score 0 under at-most fill, and refilling goes on as
    greedy does: before repairs and checks both have the same mask, with both guarantees. A repair can break either, so
    each solver checks the one that it gives.

    Refilling prunes no more, but a repair may; a block that was repaired is checked against the same two sums, and
    solved exactly where it does not pass (`stats["left_to_exact"]`).

    Time: O(m^2 log m) a block, linear in the number of blocks. Ties: the entry that comes last in C order is pruned
    first.

    References
    ----------
    I. Hubara et al., "Accelerated sparse neural training: a provable and efficient method to find N:M transposable
    masks", NeurIPS 2021, Algorithm 1.
    """

    refill: bool = False
    name = "two-approx"
    guarantee = "prunes at most twice the least score, for scores that are not negative; lines can keep less than n"
    fills: ClassVar[tuple[Fill, ...]] = ("at-most",)
    pruned_ratio = 2.0

    def __post_init__(self) -> None:
        if self.refill:
            object.__setattr__(self, "name", "two-approx-refill")
            object.__setattr__(self, "fills", ("exact", "at-most"))
            object.__setattr__(
                self, "guarantee", "prunes at most twice the least score, for scores that are not negative"
            )

    def choose(self, blocks: Blocks) -> dict[str, int]:
        """Prune by rising score; then refill, repair, check."""
        from nmflow.kernels.choose import LIGHTEST, REFILLED

        blocks.choose_by(REFILLED if self.refill else LIGHTEST)
        return {}


def refilled() -> TwoApprox:
    """The refilled form, for the table of solvers."""
    return TwoApprox(refill=True)
