"""Compiling kernels: eager, nogil, cached on disk where that is possible, never reordered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

__all__ = ["compiled", "fingerprint"]


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


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    """Compile `function` for one signature, with a disk cache if one can be written."""
    try:
        return numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # read-only install and unwritable home: no place for a cache
        return numba.njit(signature, nogil=True, error_model="numpy")(function)
