"""Exported folders, read: whether what they hold decodes to one matrix from both of its sides."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmflow.checkpoint.arrays import DTYPES, NAMES
from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.header import Entry, Header
from nmflow.checkpoint.inspection import open_export
from nmflow.checkpoint.pack import Stored, named, sha256_of
from nmflow.checkpoint.pool import Pool, thread_count
from nmflow.checkpoint.tiles import Tile, inside, is_whole
from nmflow.errors import CheckpointError, FormatError, InputValueError, NmflowError
from nmflow.formats import Format, Spec
from nmflow.formats.side_file import StoredTensor

__all__ = ["PackedCheck", "PackedVerification", "verify_packed"]


@dataclass(frozen=True, slots=True)
class PackedCheck:
    """One packed tensor: entries, entries kept, and what is wrong with it (empty if nothing)."""

    name: str
    shape: tuple[int, ...]
    entries: int
    kept: int
    fault: str


@dataclass(frozen=True, slots=True)
class PackedVerification:
    """What verifying an exported folder found."""

    path: str
    format: str
    tensors: tuple[PackedCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor is sound."""
        return not any(tensor.fault for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The verification for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify_packed(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> PackedVerification:
    """Check an exported folder: digests, dtypes, shapes, and that both sides decode to one matrix and mask.

    Raises
    ------
    CheckpointError, FormatError, SourceNotFoundError, UnknownFormatError
        If a file is truncated or the side file is not valid. A fault of a tensor is no error but a result.

    Notes
    -----
    Arrays are read in rectangles: memory does not grow with them.
    """
    path = Path(path)
    side, chosen, headers = open_export(path)
    checks = []
    with Pool(thread_count(threads)) as pool:
        for number, (name, tensor) in enumerate(side.tensors.items()):
            if progress:
                progress(name, number, len(side.tensors))
            kept, fault = 0, ""
            try:
                kept = _check(headers[tensor.file], tensor, chosen, pool)
            except NmflowError as error:
                fault = str(error)
            checks.append(PackedCheck(name, tensor.shape, int(np.prod(tensor.shape, dtype=object)), kept, fault))
    if progress:
        progress("", len(checks), len(checks))
    return PackedVerification(str(path), side.format, tuple(checks))


def _check(header: Header, tensor: StoredTensor, format: Format, pool: Pool) -> int:
    """Check one tensor and return how many entries it keeps."""
    arrays = _arrays(header, tensor)
    source = format.check_specs({key: Spec(DTYPES[entry.dtype], entry.shape) for key, entry in arrays.items()})
    if (source.dtype.name, source.shape) != (tensor.dtype, tensor.stored_shape):
        raise FormatError(
            f"arrays must be of {tensor.dtype} {tensor.stored_shape}, not {source.dtype} {source.shape}; export again"
        )
    need = format.requirement(source.dtype)
    if need.pattern != tensor.pattern:
        raise FormatError(f"pattern of {tensor.dtype} must be {need.pattern}, not {tensor.pattern}; export again")
    if len(tensor.shape) != len(source.shape) or need.padded(tensor.shape) != source.shape:
        raise FormatError(f"shape must be one that is padded to {source.shape}, not {tensor.shape}; export again")
    starts = tuple((key, entry.start) for key, entry in arrays.items())
    stored = Stored(format, NAMES[source.dtype.name], tensor.shape, starts)
    file = os.open(header.path, os.O_RDONLY | os.O_CLOEXEC)

    def same(key: str) -> bool:
        return sha256_of(file, arrays[key].start, arrays[key].n_bytes) == tensor.arrays[key].sha256

    def kept(tile: Tile) -> int:
        real = tuple(axis.stop - axis.start for axis in inside(tile, stored.plain))
        try:
            _, mask = format.decode(stored.read(file, tile), shape=real, threads=1)
        except FormatError as error:
            place = "" if is_whole(tile, stored.whole) else f" (counted within {named(tile)})"
            raise FormatError(f"{error}{place}") from error
        return int(np.count_nonzero(mask))

    try:
        for key, good in zip(arrays, pool.map(same, arrays), strict=True):
            if not good:
                raise FormatError(
                    f"array {tensor.arrays[key].name!r} must have the digest of the side file; it was changed"
                )
        return sum(pool.map(kept, stored.tiles()))
    except EOFError as error:
        raise CheckpointError(f"{header.path} must not change while it is read, and it became shorter") from error
    finally:
        os.close(file)


def _arrays(header: Header, tensor: StoredTensor) -> dict[str, Entry]:
    """Where the arrays of a tensor lie."""
    entries = {entry.name: entry for entry in header.entries}
    arrays = {}
    for key, array in tensor.arrays.items():
        if array.name not in entries:
            raise CheckpointError(f"{header.path} must hold {array.name!r}; export again")
        if entries[array.name].dtype not in DTYPES:
            raise InputValueError(f"array {array.name!r} must not be {entries[array.name].dtype}; export again")
        arrays[key] = entries[array.name]
    return arrays
