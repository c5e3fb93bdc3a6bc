"""Greedy: heaviest first while row and column have room, then filled to exactly n without losing the guarantee."""

from __future__ import annotations

from dataclasses import dataclass

from nmflow.solvers.approximate import Approximate, Blocks

__all__ = ["Greedy"]


@dataclass(frozen=True)
class Greedy(Approximate):
    """Keep entries by falling score while their row and column have room; then fill what is short.

    Notes
    -----
    *Guarantee*, for scores that are not negative: at least half of the best kept score, in every block.

    Before any repair this is the bound of greedy on the intersection of two matroids. An entry of the best mask O that
    greedy refused had a full row or column, whose kept entries are all at least as heavy, and at least as many of them
    are not in O as O has refused ones there. So the refused ones are paid for by kept ones, each of which pays at most
    twice, for its row and for its column: S(O) <= 2 S(greedy).

    Greedy leaves lines short (one in six blocks at 2:4, more than half at 4:8). Each repair lets a short row i and a
    short column j take (i, b) and (a, j) for a kept (a, b), at the least loss. That can cost more than half (one
    entry can hold all the score), so a block that was repaired is checked against an upper bound on its best mask: the
    least of twice what greedy kept, the r heaviest of each row, and the c heaviest of each column. The few
    blocks that keep less than half of that, or that cannot be repaired so, are solved exactly
    (`stats["left_to_exact"]`). Hence kept >= bound / 2 >= best / 2 in every case.

    Under ``fill="at-most"`` nothing is repaired and only positive scores are kept; where columns are free the mask is
    optimal. Negative scores are ordered like others, and nothing is promised for them.

    Time: O(m^2 log m) a block, O(m^4) more for each entry that a repair adds. Ties: the entry that comes first in C
    order.

    References
    ----------
    B. Korte, D. Hausmann, "An analysis of the greedy heuristic for independence systems", Ann. Discrete Math. 2,
    1978 (two matroids: one half).
    """

    name = "greedy"
    guarantee = "keeps at least half of the best score, for scores that are not negative"
    kept_ratio = 0.5

    def choose(self, blocks: Blocks) -> dict[str, int]:
        """Fill by falling score, repair, check."""
        from nmflow.kernels.choose import GREEDY

        blocks.choose_by(GREEDY)
        return {}
