"""The header of a safetensors file, read and checked before a byte of data is used.

A file is 8 bytes (little-endian length of the header), the header in JSON, then the data of the tensors without a
hole between them. We read it ourselves because the reference reader accepts a header that names a tensor twice.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from nmflow.asked import as_path
from nmflow.checkpoint.stamp import Stamp
from nmflow.checkpoint.strict_json import load_json, short
from nmflow.errors import CheckpointError, SourceNotFoundError
from nmflow.formats.side_file import MAX_AXES

__all__ = ["DTYPE_BITS", "MAX_HEADER", "Entry", "Header", "read_header"]

MAX_HEADER = 100_000_000
"""Longest header in bytes: the limit of the reference reader. Headers of the largest models take a few megabytes."""

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of an entry of each dtype of safetensors 0.8; others are copied and their size is not checked."""


OTHERS = (
    (b"version ", "a pointer of Git LFS; run git lfs pull"),
    (b"GGUF", "GGUF, which is made of one: prune that, and convert again"),
    (b"PK\3\4", "a ZIP archive, as torch.save and numpy.savez write; save what it holds as safetensors"),
    (b"\x93NUMPY", "one array of NumPy; give it to nmflow.solve, or save it as safetensors"),
    (b"\x89HDF", "HDF5; save what it holds as safetensors"),
)
"""What files begin with that are taken for safetensors, what they are, and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes
    ----------
    name, dtype : str
    shape : tuple of int
    start, stop : int
        First byte of its data and the one after its last, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds.

    Attributes
    ----------
    path : Path
    size : int
        Bytes before the data: the length, and the JSON with its padding.
    file_size : int
    entries : tuple of Entry
        In the order of their data.
    stamp : Stamp
        What the file was when it was read.
    metadata : mapping of str to str
    """

    path: Path
    size: int
    file_size: int
    entries: tuple[Entry, ...]
    stamp: Stamp
    metadata: Mapping[str, str] = field(default_factory=dict)

    def by_name(self) -> dict[str, Entry]:
        """Entries by their names, made anew each time."""
        return {entry.name: entry for entry in self.entries}

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The file to read from, if it is what it was; else CheckpointError is raised."""
        file = os.open(self.path, os.O_RDONLY)
        try:
            self.stamp.check(self.path, os.fstat(file))
            yield file
        finally:
            os.close(file)

    def read_head(self) -> bytes:
        """The bytes before the data, if the file is what it was; else CheckpointError is raised."""
        with self.path.open("rb") as file:
            self.stamp.check(self.path, os.fstat(file.fileno()))
            return file.read(self.size)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file.

    Raises
    ------
    SourceNotFoundError
        If there is no such file.
    CheckpointError
        If it is not a regular file, is truncated, or its header is not one: each message names the file, and the
        tensor where there is one.
    """
    path = as_path(path, "path")
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFoundError(f"{path} must exist; check the path") from None
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "a device or pipe"
        raise CheckpointError(f"{path} must be a safetensors file, not {kind}")
    with path.open("rb") as file:
        info = os.fstat(file.fileno())  # another may have its name by now
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path} must be a safetensors file of 8 bytes or more, not {len(prefix)}")
        length = int.from_bytes(prefix, "little")
        # Checked before the read: a hostile length must not become an allocation.
        if length > MAX_HEADER:
            other = next((name for magic, name in OTHERS if prefix.startswith(magic)), None)
            if other is not None:
                raise CheckpointError(f"{path} must be a safetensors file, not {other}")
            raise CheckpointError(
                f"{path}: header length must be at most {MAX_HEADER} bytes, not {length}; "
                f"the file is probably not in the safetensors format"
            )
        if 8 + length > info.st_size:
            raise CheckpointError(
                f"{path}: header must end within the file, not at byte {8 + length} of {info.st_size}; "
                f"the file is truncated, fetch it again"
            )
        raw = file.read(length)
    return _parse(path, raw, 8 + length, Stamp.of(info))


def _parse(path: Path, raw: bytes, size: int, stamp: Stamp) -> Header:
    found = load_json(path, raw, "header")
    metadata = found.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map text to text, not {short(metadata)}")
    entries = sorted((_entry(path, name, info, size) for name, info in found.items()), key=_place)
    _check_cover(path, entries, size, stamp.size)
    return Header(path, size, stamp.size, tuple(entries), stamp, metadata)


def _place(entry: Entry) -> tuple[int, int]:
    """Order of data; an empty tensor comes before the one that starts where it does."""
    return entry.start, entry.stop


def _entry(path: Path, name: str, info: object, size: int) -> Entry:
    where = f"{path}: tensor {short(name)}"
    if not isinstance(info, dict):
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets, not {short(info)}")
    dtype, shape, offsets = (info.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise CheckpointError(f"{where}: dtype must be text, not {short(dtype)}")
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise CheckpointError(
            f"{where}: shape must be a list of at most {MAX_AXES} whole numbers from 0 to 2**63 - 1, not {short(shape)}"
        )
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be two ascending whole numbers, not {short(offsets)}")
    bits = DTYPE_BITS.get(dtype)
    if bits is not None:
        needed, given = math.prod(shape) * bits, 8 * (offsets[1] - offsets[0])
        if needed != given:
            raise CheckpointError(
                f"{where}: data_offsets must span the {short(needed)} bits of {dtype} of shape {short(shape)}, "
                f"not {given}"
            )
    return Entry(name, dtype, tuple(shape), size + offsets[0], size + offsets[1])


def _check_cover(path: Path, entries: list[Entry], size: int, file_size: int) -> None:
    """Raise unless the tensors cover the data exactly: no overlap, no hole, no end beyond the file or before it."""
    reached = size
    for entry in entries:
        where = f"{path}: tensor {short(entry.name)}"
        if entry.stop > file_size:
            raise CheckpointError(
                f"{where} must end within the file, not at byte {entry.stop} of {file_size}; "
                f"the file is truncated, fetch it again"
            )
        if entry.start != reached:
            fault = "overlap the tensor before it" if entry.start < reached else "leave a hole before it"
            raise CheckpointError(
                f"{where} must start at data offset {reached - size}, not {entry.start - size}: it would {fault}"
            )
        reached = entry.stop
    if reached != file_size:
        raise CheckpointError(
            f"{path} must end with its last tensor at byte {reached}, not at byte {file_size}; "
            f"bytes after the data belong to no tensor"
        )


def _naturals(value: object) -> TypeGuard[list[int]]:
    """Whether `value` is a list of whole numbers that 63 bits hold; JSON's true and 2.0 are not."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
