"""What the dual solver works on: the blocks that are still open, in memory that a thread keeps."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.duals import Duals
from nmflow.reading import work_dtype
from nmflow.workspace import held, workspace

__all__ = ["LONG_ENTRIES", "OpenBlocks", "room_for_duals"]

KEPT = struct.Struct("dqd")
"""What comes first in that memory: what the blocks keep that are settled; how many more paths have proven; and what
these keep, apart, so that sums are the same whoever sends the paths."""
LONG_ENTRIES = 1 << 19
"""Entries of a chunk for which it pays to wake threads."""


class OpenBlocks:
    """The blocks of a chunk that are still open, with their duals, and room for all of them.

    Attributes
    ----------
    count : int
        How many they are; below 0 if a score was not finite.
    dense : pair of ndarray, shapes (h, block columns) and (block rows, w), or None
        Where the duals of all blocks are written.
    kept_at, addresses : int, three of them
        Where `KEPT` lies; and where the numbers of the open blocks lie, their row duals and their column duals, in the
        work dtype. Arrays are made of that where they are asked for: most often no block is open.
    """

    def __init__(self, chunk: Chunk) -> None:
        self._shapes, self._n_blocks = chunk.pattern.block_shape, chunk.n_blocks
        self._dtype = np.dtype(work_dtype(chunk.kind))
        (rows, cols), word, line = self._shapes, KEPT.size, self._n_blocks * self._dtype.itemsize
        self._ends = word, word + 8 * self._n_blocks, word + 8 * self._n_blocks + rows * line
        self._room, start = held("open blocks", self._ends[2] + cols * line)
        self.kept_at, self.addresses = start, (start + word, start + self._ends[1], start + self._ends[2])
        KEPT.pack_into(self._room.data, 0, 0.0, 0, 0.0)
        self.count = 0
        self.dense = chunk.duals
        if self.dense is None and chunk.state is not None:
            self.dense = chunk.fresh_duals()

    @property
    def kept(self) -> float:
        """What the blocks keep that are settled without paths."""
        return float(KEPT.unpack_from(self._room.data)[0])

    @property
    def augmented(self) -> int:
        """How many more the kernel that settles blocks has proven by paths."""
        return int(KEPT.unpack_from(self._room.data)[1])

    @property
    def augmented_kept(self) -> float:
        """What these keep."""
        return float(KEPT.unpack_from(self._room.data)[2])

    @property
    def blocks(self) -> npt.NDArray[np.int64]:
        """Numbers of the open blocks."""
        return self._room[self._ends[0] : self._ends[0] + 8 * self.count].view(np.int64)

    @property
    def sides(self) -> tuple[Array, Array]:
        """Their duals, of rows and of columns."""
        item = self._dtype.itemsize
        u, v = (
            self._room[end : end + self.count * size * item].view(self._dtype).reshape(self.count, size)
            for end, size in zip(self._ends[1:], self._shapes, strict=True)
        )
        return u, v

    def add_all(self) -> None:
        """Open all blocks, with duals of 0."""
        self.count = self._n_blocks
        self.blocks[:] = np.arange(self.count)
        for side in self.sides:
            side[:] = 0.0

    def duals(self) -> Duals:
        """What is known of all duals; a copy, but for the dense ones."""
        row, col = self.dense or (None, None)
        if not self.count:
            return Duals(row, col)
        u, v = (side.astype(np.float64) for side in self.sides)
        return Duals(row, col, self.blocks.copy(), u, v)


def room_for_duals(chunk: Chunk) -> tuple[Array, Array]:
    """Room that the thread keeps for the duals of all blocks, until it asks for another."""
    (row, col), dtype = chunk.dual_shapes, work_dtype(chunk.kind)
    u, v = workspace("dense row", math.prod(row), dtype), workspace("dense col", math.prod(col), dtype)
    return u.reshape(row), v.reshape(col)
