"""Checkpoints and exported folders, seen from outside: what they hold, as headers and the side file say it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nmflow.asked import as_path
from nmflow.checkpoint.header import Header, read_header
from nmflow.checkpoint.source import Source, open_source
from nmflow.errors import FormatError, InputValueError, SourceNotFoundError
from nmflow.formats import Format, get
from nmflow.formats.dense import Dense
from nmflow.formats.side_file import NAME, SideFile, read_side_file

__all__ = [
    "MARK",
    "Held",
    "Inspection",
    "check_unpacked",
    "export_of",
    "exported_format",
    "inspect_path",
    "open_export",
]

MARK = "nmflow_format"
"""Where the metadata of an exported file says its format and version."""


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


def export_of(path: str | os.PathLike[str]) -> tuple[Path, SideFile] | None:
    """The folder that export wrote and its record, if `path` is that, the record or a file it names; else None."""
    path = as_path(path, "path")
    folder = path.parent if path.is_file() else path
    if not (folder / NAME).is_file():
        return None
    side = read_side_file(folder)
    return (folder, side) if path == folder or path.name in (NAME, *side.named) else None


def exported_format(path: str | os.PathLike[str]) -> str | None:
    """Name of the format in which export wrote the folder `path`, or a file in it; None if it did not."""
    found = export_of(path)
    return None if found is None else found[1].format


def inspect_path(path: str | os.PathLike[str]) -> Inspection:
    """List what a .safetensors file, a checkpoint or an exported folder holds.

    Raises
    ------
    CheckpointError, FormatError, SourceNotFoundError, UnknownFormatError
        If it is none of these, or a header or the side file is not valid.

    Notes
    -----
    A file of an export means all of it: what is stored in it the side file says, which is beside it.
    """
    path, found = as_path(path, "path"), export_of(path)
    if found is None:
        shards = open_source(path).shards
        return Inspection(str(path), None, None, None, tuple(_plain(shards, frozenset())))
    path, side = found
    _, headers = open_export(path, side)
    named = {file: header.by_name() for file, header in headers.items()}
    held = []
    for name, tensor in side.tensors.items():
        entries = named[tensor.file]
        names = tuple(array.name for array in tensor.arrays.values())
        size = sum(entries[part].n_bytes for part in names if part in entries)
        held.append(Held(name, tensor.file, tensor.dtype, tensor.shape, tensor.pattern, names, size))
    packed = frozenset(part for tensor in held for part in tensor.stored)
    others = _plain(tuple(headers.values()), packed)
    return Inspection(str(path), side.format, side.version, side.writer, (*held, *others))


def check_unpacked(source: Source) -> None:
    """Raise InputValueError if it is of an export with packed weights: these are nothing without the record of them."""
    marks = (shard.metadata.get(MARK, "").partition(" ")[0] for shard in source.shards)
    found = exported_format(source.path) or next(filter(None, marks), None)  # the record may be lost, the mark stays
    if found not in (None, Dense.name):
        raise InputValueError(
            f"{source.path} must not be {'' if source.is_folder else 'of '}an export as {found}, whose weights are "
            f"packed; take the checkpoint that was exported, or export it as dense"
        )


def open_export(path: Path, side: SideFile) -> tuple[Format, dict[str, Header]]:
    """Find the format of an exported folder, and read the headers of its files.

    Raises
    ------
    CheckpointError, FormatError, SourceNotFoundError, UnknownFormatError
        If one of them is missing or not valid, or the format is of another version.
    """
    chosen = get(side.format)
    if side.version != chosen.version:
        raise FormatError(
            f"{path / NAME}: version of {side.format} must be {chosen.version}, not {side.version}; update nmflow"
        )
    return chosen, {shard.path.name: shard for shard in _shards(path, side)}


def _shards(path: Path, side: SideFile) -> list[Header]:
    missing = sorted(file for file in side.named if not (path / file).exists())
    if missing:
        raise SourceNotFoundError(
            f"{path / missing[0]} must exist, as {NAME} names it; copy it there again, or export again"
        )
    return [read_header(path / file) for file in side.shards(path)]


def _plain(shards: tuple[Header, ...], packed: frozenset[str]) -> list[Held]:
    return [
        Held(entry.name, shard.path.name, entry.dtype, entry.shape, None, (), entry.n_bytes)
        for shard in shards
        for entry in shard.entries
        if entry.name not in packed
    ]
