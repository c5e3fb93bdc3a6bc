"""Where things lie in the workspace of a group: 32 blocks that are settled side by side."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from nmflow.kernels.ahead import WORDS
from nmflow.kernels.lanes import words_in_row
from nmflow.kernels.scores import KINDS
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import LANES

__all__ = ["Room"]


class Room(NamedTuple):
    """Where things lie in the workspace of a group: bytes from its start, a multiple of 64, where its lanes are.

    rows_at, cols_at : the duals of the lines, in lanes. row_floors, col_floors : how far these may fall. words : the
    mask, as bits. faults : lanes whose mask breaks a budget. marks : see `nmflow.kernels.surplus`. scales : what a step
    of each block is worth. grains : see `nmflow.kernels.grains`. scores, masks : those of the blocks, side by side.
    u, v : their duals as floats, (rows, 32) and (32, cols). proof_u, proof_v : those that prove the mask. flags,
    names : a byte and an int64 for each. ahead : see `nmflow.kernels.ahead`. size : of all.
    """

    rows_at: int
    cols_at: int
    row_floors: int
    col_floors: int
    words: int
    faults: int
    marks: int
    scales: int
    grains: int
    scores: int
    u: int
    v: int
    proof_u: int
    proof_v: int
    masks: int
    flags: int
    names: int
    ahead: int
    size: int

    @classmethod
    def of(cls, kind_name: str, rows: int, cols: int) -> Room:
        """The room of one kind of scores and one shape of blocks."""
        kind = KINDS[kind_name]
        row, col, block = rows * VECTOR, cols * VECTOR, rows * cols * LANES
        u, v = LANES * rows * kind.work_size, LANES * cols * kind.work_size
        sizes = (
            block * 2, row, col, row, col, rows * words_in_row(cols) * VECTOR, VECTOR,
            (words_in_row(rows) + words_in_row(cols)) * VECTOR, LANES * 8, LANES * 8, block * kind.itemsize, u, v, u, v,
            block, LANES, LANES * 8, WORDS * 8,
        )  # fmt: skip
        return cls(*accumulate(sizes))
