"""Exported folders, read: what they hold, and whether it decodes to one matrix from both of its sides."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmflow.checkpoint.arrays import DTYPES, NAMES
from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.header import Entry, Header, read_header
from nmflow.checkpoint.pack import Stored, named, sha256_of
from nmflow.checkpoint.pool import Pool, thread_count
from nmflow.checkpoint.source import open_source
from nmflow.checkpoint.tiles import Tile, inside, is_whole
from nmflow.errors import CheckpointError, FormatError, InputValueError, NmflowError
from nmflow.formats import Format, Spec, get
from nmflow.formats.side_file import NAME, SideFile, StoredTensor, read_side_file

__all__ = [
    "Held",
    "Inspection",
    "PackedCheck",
    "PackedVerification",
    "exported_format",
    "inspect_path",
    "verify_packed",
]


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of a checkpoint: `stored` names its arrays if it is packed, else it is empty."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    pattern: str | None
    stored: tuple[str, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint or an exported folder holds, from headers alone; format and version of an export."""

    path: str
    format: str | None
    version: int | None
    writer: str | None
    tensors: tuple[Held, ...]

    def to_dict(self) -> dict[str, Any]:
        """The inspection for JSON."""
        return asdict(self)


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


def exported_format(path: str | os.PathLike[str]) -> str | None:
    """Name of the format in which export wrote the folder `path`; None if it did not."""
    return read_side_file(path).format if (Path(path) / NAME).is_file() else None


def inspect_path(path: str | os.PathLike[str]) -> Inspection:
    """List what a .safetensors file, a checkpoint or an exported folder holds.

    Raises
    ------
    CheckpointError, FormatError, SourceNotFoundError, UnknownFormatError
        If it is none of these, or a header or the side file is not valid.
    """
    path = Path(path)
    if not (path / NAME).is_file():
        shards = open_source(path).shards
        return Inspection(str(path), None, None, None, tuple(_plain(shards, frozenset())))
    side, _, headers = _open(path)
    held = []
    for name, tensor in side.tensors.items():
        entries = {entry.name: entry for entry in headers[tensor.file].entries}
        names = tuple(array.name for array in tensor.arrays.values())
        size = sum(entries[part].n_bytes for part in names if part in entries)
        held.append(Held(name, tensor.file, tensor.dtype, tensor.shape, tensor.pattern, names, size))
    packed = frozenset(part for tensor in held for part in tensor.stored)
    others = _plain(tuple(headers.values()), packed)
    return Inspection(str(path), side.format, side.version, side.writer, (*held, *others))


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
    side, chosen, headers = _open(path)
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


def _plain(shards: tuple[Header, ...], packed: frozenset[str]) -> list[Held]:
    return [
        Held(entry.name, shard.path.name, entry.dtype, entry.shape, None, (), entry.n_bytes)
        for shard in shards
        for entry in shard.entries
        if entry.name not in packed
    ]


def _open(path: Path) -> tuple[SideFile, Format, dict[str, Header]]:
    """The side file, its format and the headers of its files."""
    side = read_side_file(path)
    chosen = get(side.format)
    if side.version != chosen.version:
        raise FormatError(
            f"{path / NAME}: version of {side.format} must be {chosen.version}, not {side.version}; update nmflow"
        )
    return side, chosen, {shard.path.name: shard for shard in _shards(path, side)}


def _shards(path: Path, side: SideFile) -> list[Header]:
    files = {tensor.file for tensor in side.tensors.values()} | {file.name for file in path.glob("*.safetensors")}
    return [read_header(path / file) for file in sorted(files)]


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
        header.stamp.check(header.path, os.fstat(file))
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
