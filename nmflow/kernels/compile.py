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


def _own_name(function: Callable[..., Any]) -> None:
    """Give each function of a factory a name of its own, from what it closes over.

    Numba keeps one index of cached code for each name. Processes that compile several functions of one name at a time
    write over each other's entries, so that a later one can load the code of another function; with one function to a
    name they can only write the same.
    """
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    plain = [x if isinstance(x, int | float | str) else getattr(x, "__qualname__", repr(type(x))) for x in held]
    digest = hashlib.sha256(repr((function.__code__.co_freevars, plain)).encode())
    function.__qualname__ += f"_{digest.hexdigest()[:16]}"


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    """Compile `function` for one signature, with a disk cache if one can be written.

    It must return a number or nothing: a returned array carries a constant that Numba looks up by the function's name,
    and functions of one factory that come from the caches of several processes can share a name.
    """
    _own_name(function)
    try:
        return numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # read-only install and unwritable home: no place for a cache
        return numba.njit(signature, nogil=True, error_model="numpy")(function)
