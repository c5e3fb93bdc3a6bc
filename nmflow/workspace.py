"""Memory that a thread keeps from call to call: fresh memory costs as much as the ascent at small m."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array

__all__ = ["held", "workspace"]

MOST_FREE = 64
"""Most workspaces that wait for a thread, of some MB each."""

_free: list[dict[str, tuple[Array, int]]] = []
"""Workspaces of threads that have ended."""
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
