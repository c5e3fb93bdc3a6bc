"""How many rounds blocks ascend, by their longer side; and other tables by it."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

__all__ = ["NONE", "Rounds", "by_side", "rounds_for"]

Entry = TypeVar("Entry")


class Rounds(NamedTuple):
    """Rounds for all blocks, for those then open, and for all blocks from the duals of an earlier mask.

    most_open : how many blocks of 64 may then be open: where more are, what is left begins from nothing. few_open,
    many_open : how many blocks of a group of 32 that are then open take a third of these rounds from those that follow,
    and how many add one. All 0 where blocks are small, which always begin from nothing: they are settled in less time
    than old duals save.
    """

    first: int
    again: int
    warm: int
    most_open: int
    few_open: int
    many_open: int


NONE = Rounds(0, 0, 0, 0, 0, 0)
ROUNDS = {
    4: Rounds(4, 3, 0, 0, 0, 0),
    8: Rounds(5, 6, 0, 0, 0, 0),
    16: Rounds(7, 6, 4, 12, 1, 4),
    32: Rounds(10, 7, 7, 40, 3, 8),
    64: Rounds(12, 12, 11, 64, 3, 10),
}
"""By the longer side of a block; measured on Gaussian scores: more of the first cost more than they settle, and more of
the second cost more than augmenting paths."""


def rounds_for(side: int) -> Rounds:
    """Rounds for a block whose longer side is `side`."""
    return by_side(ROUNDS, side)


def by_side(table: dict[int, Entry], side: int) -> Entry:
    """The entry of a table for the longer side of a block."""
    return next(entry for most, entry in table.items() if side <= most)
