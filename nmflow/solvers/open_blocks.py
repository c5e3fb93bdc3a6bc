"""What the dual solver works on: the blocks that are still open, in memory that a thread keeps."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.duals import Duals
from nmflow.reading import work_dtype

__all__ = ["LONG_ENTRIES", "OpenBlocks", "held", "room_for_duals", "workspace"]

LONG_ENTRIES = 1 << 19
"""Entries of a chunk for which it pays to wake threads."""
MOST_FREE = 64
"""Most workspaces that wait for a thread, of some MB each."""


class OpenBlocks:
    """The blocks of a chunk that are still open, with their duals, and room for all of them.

    Attributes
    ----------
    count : int
        How many they are; below 0 if a score was not finite.
    dense : pair of ndarray, shapes (h, block columns) and (block rows, w), or None
        Where the duals of all blocks are written.
    kept_at, addresses : int, three of them
        Where a float64 adds up to what the other blocks keep; and where their numbers lie, their row duals and their
        column duals, in the work dtype. Arrays are made of that where they are asked for: most often no block is open.
    """

    def __init__(self, chunk: Chunk) -> None:
        rows, cols = chunk.pattern.block_shape
        self._n_blocks, self._dtype = chunk.n_blocks, np.dtype(work_dtype(chunk.kind))
        self._shapes = rows, cols
        sizes = 8, 8 * self._n_blocks, self._n_blocks * rows * self._dtype.itemsize
        self._ends = sizes[0], sizes[0] + sizes[1], sum(sizes)
        self._room, start = held("open blocks", self._ends[2] + self._n_blocks * cols * self._dtype.itemsize)
        self.kept_at, self.addresses = start, tuple(start + end for end in self._ends)
        self._kept = self._room[:8].view(np.float64)
        self._kept[0] = 0.0
        self.count = 0
        self.dense = chunk.duals
        if self.dense is None and chunk.state is not None:
            self.dense = chunk.room_for_duals()

    @property
    def kept(self) -> float:
        """What the blocks keep that are not open."""
        return float(self._kept[0])

    @property
    def blocks(self) -> npt.NDArray[np.int64]:
        """Numbers of the open blocks."""
        return self._room[self._ends[0] :][: 8 * self.count].view(np.int64)

    @property
    def sides(self) -> tuple[Array, Array]:
        """Their duals, of rows and of columns."""
        item = self._dtype.itemsize
        u, v = (
            self._room[end:][: self.count * size * item].view(self._dtype).reshape(self.count, size)
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


_free: list[dict[str, tuple[Array, int]]] = []
"""Workspaces of threads that have ended: fresh memory costs as much as the ascent at small m."""
_kept = threading.local()


class _Lease:
    """A workspace for as long as its thread lives."""

    def __init__(self) -> None:
        try:
            self.buffers = _free.pop()
        except IndexError:
            self.buffers = {}

    def __del__(self, free: list[dict[str, tuple[Array, int]]] = _free, most: int = MOST_FREE) -> None:
        # named here, since a module's names are gone when the interpreter ends
        if len(free) < most:
            free.append(self.buffers)


def held(name: str, size: int) -> tuple[Array, int]:
    """Bytes that the thread keeps from chunk to chunk, `size` or more; and their address, which takes NumPy longer."""
    try:
        buffers: dict[str, tuple[Array, int]] = _kept.lease.buffers
    except AttributeError:
        _kept.lease = _Lease()
        buffers = _kept.lease.buffers
    found = buffers.get(name)
    if found is None or found[0].size < size:
        fresh = np.empty(size, np.uint8)
        buffers[name] = found = fresh, fresh.ctypes.data
    return found


def workspace(name: str, count: int, dtype: npt.DTypeLike) -> Array:
    """An array of such memory."""
    size = count * np.dtype(dtype).itemsize
    return held(name, size)[0][:size].view(dtype)


def room_for_duals(chunk: Chunk) -> tuple[Array, Array]:
    """Room that the thread keeps for the duals of all blocks, until it asks for another."""
    (tall, wide), (high, across), dtype = chunk.grid, chunk.mask.shape, work_dtype(chunk.kind)
    row, col = workspace("dense row", high * wide, dtype), workspace("dense col", tall * across, dtype)
    return row.reshape(high, wide), col.reshape(tall, across)
