"""The workspace of `nmflow.kernels.untie`."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from nmflow.kernels.ahead import WORDS
from nmflow.kernels.lanes import words_in_row
from nmflow.kernels.mend import mend_room
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import LANES
from nmflow.kernels.tied import Width

__all__ = ["Room"]


class Room(NamedTuple):
    """Where things lie in the workspace of a group: bytes from its start, a multiple of 64, where its numbers are.

    moved : the numbers moved, as 16-bit lanes hold them. rows_at, cols_at : the duals of these. u, v, slack : those of
    the numbers, and of the slack node; saved : these three from before they were magnified, or loosened. words, ties :
    the masks, and what lies on the duals, as bits. grains, faults, inexact, lows, shifts, scales, units : see
    `nmflow.kernels.numbers` and `nmflow.kernels.tied`. zero, limits, floors, short : see `nmflow.kernels.slack`.
    mending : see `nmflow.kernels.mend`. ahead : see `nmflow.kernels.ahead`. masks, scores : those of the blocks, side
    by side. size : bytes of all, which alone depends on the kind of scores.
    """

    moved: int
    rows_at: int
    cols_at: int
    u: int
    v: int
    slack: int
    saved: int
    words: int
    ties: int
    grains: int
    faults: int
    inexact: int
    lows: int
    shifts: int
    scales: int
    units: int
    zero: int
    limits: int
    floors: int
    short: int
    mending: int
    ahead: int
    masks: int
    scores: int
    size: int

    @classmethod
    def of(cls, rows: int, cols: int, wide: bool, item: int = 0) -> Room:
        """The room of one shape of blocks and one width of lanes; item : bytes of a score."""
        lane = Width(wide).size
        entries, parts = rows * cols, words_in_row(cols)
        words, room = rows * parts * VECTOR, mend_room()
        errand = WORDS * 8 - (room + WORDS * 8) % -VECTOR  # what comes after it begins at a line
        sizes = (
            entries * lane, entries * VECTOR, rows * VECTOR, cols * VECTOR, rows * lane, cols * lane, lane,
            (rows + cols + 1) * lane, words, words, lane, VECTOR, 3 * lane, lane, lane, LANES * 8, LANES * 8,
            lane, rows * lane, (rows + cols) * VECTOR, (rows + parts) * VECTOR,
            room, errand, LANES * entries, LANES * entries * item,
        )  # fmt: skip
        return cls(*accumulate(sizes))
