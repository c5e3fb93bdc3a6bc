"""Compiling kernels: eager, nogil, cached on disk where that is possible, never reordered."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numba

__all__ = ["compiled", "fingerprint", "once"]

_lock = threading.RLock()


@cache
def fingerprint() -> int:
    """A number that changes with any kernel source.

    Numba's cache looks only at the file of the function itself; kernels here are put together from several files,
    so each closes over this number, which is part of the cache's key.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:6], "little")


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what `make` returned for the same arguments; threads that ask at the same time wait for one of them."""
    made: dict[Any, Any] = {}

    @wraps(make)
    def get(*arguments: Any) -> Any:
        kernel = made.get(arguments)
        if kernel is None:
            with _lock:
                kernel = made.get(arguments)
                if kernel is None:
                    kernel = made[arguments] = make(*arguments)
        return kernel

    return get


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    """Compile `function` for one signature, with a disk cache if one can be written.

    It must return a number or nothing: a returned array carries a constant that Numba looks up by the function's name,
    and functions of one factory that come from the caches of several processes can share a name.
    """
    try:
        return numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # read-only install and unwritable home: no place for a cache
        return numba.njit(signature, nogil=True, error_model="numpy")(function)
