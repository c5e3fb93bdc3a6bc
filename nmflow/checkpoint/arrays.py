"""Arrays in safetensors files: mapped by the names of dtypes there, and new files laid out before they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from nmflow.arrays import Array
from nmflow.checkpoint.header import DTYPE_BITS, Entry
from nmflow.errors import CheckpointError

__all__ = ["DTYPES", "NAMES", "lay_out", "map_array"]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"<{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
}
"""Dtypes of safetensors that NumPy can hold, with ml_dtypes."""

NAMES = {dtype.name: name for name, dtype in DTYPES.items()}


def map_array(path: os.PathLike[str], entry: Entry) -> Array:
    """Map a tensor that is not empty read-only; a copy where its data is not aligned in the file.

    Raises
    ------
    CheckpointError
        If NumPy has no such dtype.
    """
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {entry.name!r} must have a dtype that NumPy holds, not {entry.dtype}")
    raw = np.memmap(path, np.uint8, "r", entry.start, (entry.n_bytes,))
    array = np.asarray(raw).view(dtype).reshape(entry.shape)
    return array if array.flags.aligned else array.copy()


def lay_out(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Entry]]:
    """Lay a safetensors file out.

    Parameters
    ----------
    tensors : mapping of str to (dtype, shape, bytes)
        By name, with the format's names of dtypes.
    metadata : mapping of str to str

    Returns
    -------
    head : bytes
        What precedes the data.
    entries : dict of str to Entry
        Where each tensor goes.
    """
    # Wide dtypes first, as the reference library writes: every tensor is then aligned.
    order = sorted(tensors, key=lambda name: (-DTYPE_BITS.get(tensors[name][0], 0), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    places, reached = {}, 0
    for name in order:
        dtype, shape, n_bytes = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, reached + n_bytes]}
        places[name] = reached
        reached += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    entries = {
        name: Entry(name, tensors[name][0], tensors[name][1], len(head) + start, len(head) + start + tensors[name][2])
        for name, start in places.items()
    }
    return head, entries
