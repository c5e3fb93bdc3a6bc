"""What the dual solver works on: the blocks that are still open, in memory that a thread keeps."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.duals import Duals
from nmflow.reading import work_dtype

__all__ = ["LONG_ENTRIES", "OpenBlocks", "address", "room_for_duals", "workspace"]

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
    blocks : ndarray of int64, shape (n_blocks,)
        Their numbers; those from `count` on are room.
    u, v : ndarray of the work dtype, shapes (n_blocks, R) and (n_blocks, C)
        Their duals.
    sums : ndarray of float64
        Adds up to what the other blocks keep: numbers for each part that a thread can take.
    dense : pair of ndarray, shapes (h, block columns) and (block rows, w), or None
        Where the duals of all blocks are written.
    """

    def __init__(self, chunk: Chunk) -> None:
        from nmflow.kernels.share import MOST_PARTS, SUMS

        rows, cols = chunk.pattern.block_shape
        dtype = work_dtype(chunk.kind)
        n_blocks = chunk.n_blocks
        self.count = 0
        self.blocks = workspace("blocks", n_blocks, np.int64)
        self.u = workspace("block row", n_blocks * rows, dtype).reshape(n_blocks, rows)
        self.v = workspace("block col", n_blocks * cols, dtype).reshape(n_blocks, cols)
        self.sums = np.zeros(SUMS * max(MOST_PARTS, chunk.shares[0]))
        self.dense = chunk.duals
        if self.dense is None and chunk.state is not None:
            self.dense = chunk.room_for_duals()
        self.dense_addresses = (0, 0) if self.dense is None else tuple(side.ctypes.data for side in self.dense)
        self.addresses = tuple(address(name) for name in ("blocks", "block row", "block col"))

    def add_all(self) -> None:
        """Open all blocks; their duals are any."""
        self.count = len(self.blocks)
        self.blocks[:] = np.arange(self.count)

    def duals(self) -> Duals:
        """What is known of all duals; a copy, but for the dense ones."""
        row, col = self.dense or (None, None)
        if not self.count:
            return Duals(row, col)
        u, v = (side[: self.count].astype(np.float64) for side in (self.u, self.v))
        return Duals(row, col, self.blocks[: self.count].copy(), u, v)


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


def workspace(name: str, count: int, dtype: npt.DTypeLike) -> Array:
    """An array that the thread keeps from chunk to chunk."""
    if not hasattr(_kept, "lease"):
        _kept.lease = _Lease()
    buffers: dict[str, tuple[Array, int]] = _kept.lease.buffers
    size = count * np.dtype(dtype).itemsize
    if name not in buffers or buffers[name][0].size < size:
        fresh = np.empty(size, np.uint8)
        buffers[name] = fresh, fresh.ctypes.data
    return buffers[name][0][:size].view(dtype)


def room_for_duals(chunk: Chunk) -> tuple[Array, Array]:
    """Room that the thread keeps for the duals of all blocks, until it asks for another."""
    (tall, wide), (high, across), dtype = chunk.grid, chunk.mask.shape, work_dtype(chunk.kind)
    row, col = workspace("dense row", high * wide, dtype), workspace("dense col", tall * across, dtype)
    return row.reshape(high, wide), col.reshape(tall, across)


def address(name: str) -> int:
    """Where the array of that name begins; to ask NumPy takes 2 microseconds, more than what some calls do there."""
    return int(_kept.lease.buffers[name][1])
