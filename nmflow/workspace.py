"""Memory that a thread keeps from call to call: fresh memory costs as much as the ascent at small m."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array

__all__ = ["held", "kept_for", "with_own_workspace", "workspace"]

Made = TypeVar("Made")
Given = ParamSpec("Given")

MOST_FREE = 64
"""Most workspaces that wait for a thread, of some MB each."""

_free: list[dict[Hashable, Any]] = []
"""Workspaces of threads that have ended."""
_kept = threading.local()


class _Lease:
    """A workspace for as long as its thread lives, or a call that began within another."""

    def __init__(self) -> None:
        self.busy = False
        try:
            self.buffers = _free.pop()
        except IndexError:
            self.buffers = {}

    def __del__(self, free: list[dict[Hashable, Any]] = _free, most: int = MOST_FREE) -> None:
        # named here, since a module's names are gone when the interpreter ends
        if len(free) < most:
            free.append(self.buffers)


def _lease() -> _Lease:
    """What the thread works in."""
    lease: _Lease | None = getattr(_kept, "lease", None)
    if lease is None:
        lease = _kept.lease = _Lease()
    return lease


def with_own_workspace(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Decorate what works in such memory: a call that begins within another, on its thread, gets memory of its own.

    A signal's handler, or what the garbage collector runs, can make one at almost any moment.
    """

    @wraps(function)
    def run(*args: Given.args, **options: Given.kwargs) -> Made:
        outer = _lease()
        if not outer.busy:
            try:
                outer.busy = True
                return function(*args, **options)
            finally:
                outer.busy = False
        try:
            _kept.lease = _Lease()
            _kept.lease.busy = True
            return function(*args, **options)
        finally:
            _kept.lease = outer

    return run


def _buffers() -> dict[Hashable, Any]:
    """What the thread keeps, by its names."""
    return _lease().buffers


def kept_for(name: Hashable, make: Callable[[], Made]) -> Made:
    """What `make` made when the thread first asked for it by this name."""
    buffers = _buffers()
    made: Made | None = buffers.get(name)
    if made is None:
        made = buffers[name] = make()
    return made


def held(name: str, size: int) -> tuple[Array, int]:
    """Bytes that the thread keeps from chunk to chunk, `size` or more; and their address, which takes NumPy longer."""
    buffers = _buffers()
    found: tuple[Array, int] | None = buffers.get(name)
    if found is None or found[0].size < size:
        fresh = np.empty(size, np.uint8)
        buffers[name] = found = fresh, fresh.ctypes.data
    return found


def workspace(name: str, count: int, dtype: npt.DTypeLike) -> Array:
    """An array of such memory."""
    size = count * np.dtype(dtype).itemsize
    return held(name, size)[0][:size].view(dtype)
