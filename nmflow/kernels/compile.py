"""Compiling kernels: eager, nogil, cached on disk where that is possible, never reordered.

A kernel is called from Python. An *operation* is called by kernels, through its address: what differs from pattern to
pattern is compiled alone, and the loops around it once for all.
"""

from __future__ import annotations

import hashlib
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.resources import files
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from nmflow.kernels.garbage import uncollected

__all__ = ["call", "call_address", "compiled", "lasting", "once", "operation", "part"]

if getattr(numba.config, "DISABLE_JIT", False):
    raise ImportError("nmflow's kernels must be compiled, and NUMBA_DISABLE_JIT forbids it; unset it")

_lock = threading.RLock()


def _lock_all() -> None:
    _lock.acquire()
    global_compiler_lock.acquire()


def _unlock_all() -> None:
    global_compiler_lock.release()
    _lock.release()


if hasattr(os, "register_at_fork"):  # else a child that is forked while another thread compiles waits for it for ever
    os.register_at_fork(before=_lock_all, after_in_parent=_unlock_all, after_in_child=_unlock_all)


@cache
def _fingerprint() -> str:
    """A name that changes with any kernel source: Numba's cache looks only at the file of the function itself."""
    digest = hashlib.sha256()
    sources = (file for file in files(__package__).iterdir() if file.name.endswith(".py"))  # in a ZIP, too
    for file in sorted(sources, key=lambda file: file.name):
        digest.update(file.read_bytes())
    return digest.hexdigest()


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
    """Give each function of a factory a name of its own, from what it closes over and from the kernels' sources.

    Numba keeps one index of cached code for each name. Processes that compile several functions of one name at a time
    write over each other's entries, so that a later one can load the code of another function; with one function to a
    name they can only write the same.
    """
    held = [_plain(cell.cell_contents) for cell in function.__closure__ or ()]
    digest = hashlib.sha256(repr((_fingerprint(), function.__code__.co_freevars, held)).encode())
    function.__qualname__ += f"_{digest.hexdigest()[:16]}"


def _plain(value: Any) -> Any:
    """What tells a value from all others that a kernel could close over, in every process."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.dtype.str, value.item()
    name = getattr(value, "__qualname__", None)  # functions and classes; what they hold is in the fingerprint
    if name is None:
        raise TypeError(f"kernels must close over numbers, words and functions, not {value!r}")
    return name


@uncollected()  # most of what a compiler makes lasts until it ends, and would be looked at each time
def _cached(decorate: Callable[..., Any], function: Callable[..., Any], signature: Any, **options: Any) -> Any:
    """Compile with a cache on the disk, if one can be written."""
    _own_name(function)
    options |= {"nogil": True, "error_model": "numpy"}
    for again in (False, True):
        try:
            if again:
                FunctionCache(function).flush()
            return decorate(signature, cache=True, **options)(function)
        except Exception as error:
            if not _is_of_the_cache(error):
                raise
            if isinstance(error, RuntimeError | OSError):  # read-only install and unwritable home: no place for a cache
                break
            # else a file there is damaged, as a power cut can leave it: Numba reads whatever it finds
    return decorate(signature, **options)(function)


def _is_of_the_cache(error: Exception) -> bool:
    """Whether an error is of Numba's cache, not of compiling, nor of a signal's handler, such as a timeout."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "numba.core.caching" not in names:
        return False
    if isinstance(error, OSError) and error.errno is not None:  # the system's
        return True
    return names[-1].partition(".")[0] in ("numba", "llvmlite", "importlib")


def compiled(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a kernel for one signature.

    It must return a number or nothing: a returned array carries a constant that Numba looks up by the function's name,
    and functions of one factory that come from the caches of several processes can share a name.
    """
    return _cached(numba.njit, function, signature, no_cfunc_wrapper=True)


_inner: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
part: Any = numba.njit(nogil=True, error_model="numpy", **_inner)
"""Decorator of what only kernels call: it is compiled into each of them, without what Python would need to call it."""

_operations: list[Any] = []
"""All that were made: their code lasts as long as these."""


def operation(function: Callable[..., Any], integers: int, floats: int = 0) -> int:
    """Compile an operation of so many int64 and then float64, which must not fail; its address, for `call`."""
    signature = types.int64(*[types.int64] * integers, *[types.float64] * floats)
    made = _cached(numba.cfunc, function, signature, nopython=True)
    _operations.append(made)
    return int(made.address)


_lasting: list[npt.NDArray[Any]] = []


def lasting(numbers: npt.NDArray[Any]) -> int:
    """Keep an array for as long as the process; its address.

    An address that outlives its caller must come from here: two threads that make the same thing at a time can each
    make it, and a cache keeps one of the two.
    """
    _lasting.append(numbers)
    return int(numbers.ctypes.data)


@intrinsic
def call(typing, address, arguments):  # type: ignore[no-untyped-def]
    """Call an operation of int64 and float64 that returns an int64; arguments: a tuple."""
    kinds = [x if x == types.float64 else types.int64 for x in arguments]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [
            context.cast(builder, builder.extract_value(args[1], k), given, kind)
            for k, (given, kind) in enumerate(zip(arguments, kinds, strict=True))
        ]
        return call_address(builder, args[0], values)

    return types.int64(types.int64, arguments), codegen


def call_address(builder: Any, address: Any, values: Sequence[Any]) -> Any:
    """Emit the call of an operation."""
    function = ir.FunctionType(ir.IntType(64), [value.type for value in values])
    return builder.call(builder.inttoptr(address, function.as_pointer()), values)
