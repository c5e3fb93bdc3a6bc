"""Where encoding and decoding write: arrays that a caller passes, checked before anything is written, or new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError
from nmflow.formats.layout import Spec

__all__ = ["new", "room"]

LINE = 64
"""Bytes of a cache line. Kernels write whole lines past the caches, so a new array begins at one; NumPy's need not."""


def new(spec: Spec) -> Array:
    """An array that begins at a multiple of `LINE`; what is in it is left to chance."""
    raw = np.empty(spec.n_bytes + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    array: Array = raw[start : start + spec.n_bytes].view(spec.dtype).reshape(spec.shape)
    return array


def room(specs: Mapping[str, Spec], out: object, sources: Iterable[Array]) -> dict[str, Array]:
    """The arrays to write, in the order of `specs`: those of `out` if it is not None.

    Raises
    ------
    InputTypeError
        If out is no mapping, or holds something that is no array, or one of another dtype.
    InputValueError
        If its names or shapes are not those of `specs`, or an array is not C-contiguous, aligned and writable, or
        shares memory with one of the sources or of the other arrays.
    """
    if out is None:
        return {name: new(spec) for name, spec in specs.items()}
    if not isinstance(out, Mapping):
        raise InputTypeError(f"out must be a mapping of names to arrays, not {type(out).__name__}; {_ADVICE}")
    if out.keys() != specs.keys():
        raise InputValueError(
            f"out must hold {', '.join(specs)}, not {', '.join(map(str, out)) or 'nothing'}; {_ADVICE}"
        )
    taken, arrays = [("what is read", source) for source in sources], {}
    for name, spec in specs.items():
        given = out[name]
        if not isinstance(given, np.ndarray):
            raise InputTypeError(f"out[{name!r}] must be a NumPy array, not {type(given).__name__}; {_ADVICE}")
        array = arrays[name] = np.asarray(given)  # not what a subclass says of itself
        if array.dtype != spec.dtype:
            raise InputTypeError(f"out[{name!r}] must be {spec.dtype}, not {array.dtype}; {_ADVICE}")
        if array.shape != spec.shape:
            raise InputValueError(f"out[{name!r}] must have shape {spec.shape}, not {array.shape}; {_ADVICE}")
        if not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
            lacking = [word for word, flag in _FLAGS.items() if not getattr(array.flags, flag)]
            raise InputValueError(
                f"out[{name!r}] must be C-contiguous, aligned and writable, not an array that is not "
                f"{' or '.join(lacking)}; {_ADVICE}"
            )
        for what, other in taken:
            if np.may_share_memory(array, other):
                raise InputValueError(f"out[{name!r}] must have memory of its own, not that of {what}; {_ADVICE}")
        taken.append((f"out[{name!r}]", array))
    return arrays


_ADVICE = "pass what an earlier call returned for a matrix of this dtype and shape, or leave out away"
_FLAGS = {"C-contiguous": "c_contiguous", "aligned": "aligned", "writable": "writeable"}
