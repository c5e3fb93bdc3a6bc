"""The workspace of `nmflow.kernels.untie`."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from nmflow.kernels.ahead import WORDS
from nmflow.kernels.lanes import words_in_row
from nmflow.kernels.mend import mend_room
from nmflow.kernels.scores import KINDS
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
    scores, masks : those of the blocks, side by side. mending : see `nmflow.kernels.mend`.
    ahead : see `nmflow.kernels.ahead`. size : bytes of all.
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
    scores: int
    masks: int
    mending: int
    ahead: int
    size: int

    @classmethod
    def of(cls, kind_name: str, rows: int, cols: int, wide: bool) -> Room:
        """The room of one kind of scores, one shape of blocks and one width of lanes."""
        kind, lane = KINDS[kind_name], Width(wide).size
        entries, parts = rows * cols, words_in_row(cols)
        words = rows * parts * VECTOR
        sizes = (
            entries * lane, entries * VECTOR, rows * VECTOR, cols * VECTOR, rows * lane, cols * lane, lane,
            (rows + cols + 1) * lane, words, words, lane, VECTOR, 3 * lane, lane, lane, LANES * 8, LANES * 8,
            lane, rows * lane, (rows + cols) * VECTOR, (rows + parts) * VECTOR,
            LANES * entries * kind.itemsize, LANES * entries, mend_room(), WORDS * 8,
        )  # fmt: skip
        return cls(*accumulate(sizes))
