"""How the files of an export are laid out: names and places of what is stored, header by header, and their index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from nmflow.checkpoint.arrays import DTYPES, NAMES, lay_out
from nmflow.checkpoint.disk import write_new
from nmflow.checkpoint.header import Entry, Header
from nmflow.checkpoint.inspection import MARK
from nmflow.checkpoint.source import Source
from nmflow.checkpoint.strict_json import load_json
from nmflow.errors import CheckpointError, NmflowError
from nmflow.formats import Format

__all__ = ["Layout", "array_name", "check_names", "known_metadata", "lay_out_shard", "write_index"]

Layout: TypeAlias = tuple[bytes, dict[str, Entry]]
"""The header of a file, and by the name of each array where it lies."""


def lay_out_shard(shard: Header, format: Format, reasons: Mapping[str, str], pad: bool, masked: bool) -> Layout:
    """Lay out the file for a shard; every dtype, shape and name is checked here. masked : whether masks were given."""
    advice = "take it out of the masks (--masks)" if masked else "leave it alone with exclude (--exclude)"
    tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for entry in shard.entries:
        parts = {entry.name: (entry.dtype, entry.shape, entry.n_bytes)}
        if not reasons[entry.name]:
            dtype = DTYPES.get(entry.dtype)
            try:
                if dtype is None:
                    raise CheckpointError(f"dtype {entry.dtype} cannot be stored as {format.name}")
                specs = format.specs(format.check_shape(entry.shape, dtype, pad=pad), dtype)
            except NmflowError as error:
                raise CheckpointError(f"{shard.path}: tensor {entry.name!r}: {error}; or {advice}") from error
            parts = {
                array_name(entry.name, key, format): (NAMES[spec.dtype.name], spec.shape, spec.n_bytes)
                for key, spec in specs.items()
            }
        for name, part in parts.items():
            if name in tensors:
                raise CheckpointError(f"{shard.path}: two tensors would be named {name!r}; rename one of them")
            tensors[name] = part
    return lay_out(tensors, {**shard.metadata, MARK: f"{format.name} {format.version}"})


def check_names(layouts: Mapping[Path, Layout]) -> None:
    """Raise CheckpointError if tensors of two files would have one name."""
    places: dict[str, Path] = {}
    for path, (_, entries) in layouts.items():
        for name in entries:
            if places.setdefault(name, path) != path:
                raise CheckpointError(
                    f"{path} and {places[name]}: two tensors would be named {name!r}; rename one of them"
                )


def array_name(tensor: str, key: str, format: Format) -> str:
    """The name of a stored array: of its tensor, and which of its arrays it is."""
    return tensor if format.name == "dense" else f"{tensor}.{key}"


def known_metadata(source: Source) -> dict[str, Any]:
    """What the index of a source says beside where tensors are, read before any work."""
    if source.index is None:
        return {}
    path = source.path / source.index
    known = load_json(path, path.read_bytes(), "index").get("metadata")
    return known if isinstance(known, dict) else {}


def write_index(
    source: Source, layouts: Mapping[Path, Layout], known: Mapping[str, Any], folder: Path
) -> dict[str, str]:
    """An index of the new names where there was one of the old, with what that says beside; its digest by its name."""
    if source.index is None:
        return {}
    weight_map = {name: path.name for path, (_, entries) in layouts.items() for name in entries}
    total = sum(entry.n_bytes for _, entries in layouts.values() for entry in entries.values())
    metadata = {**known, "total_size": total}
    text = json.dumps({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    write_new(folder / source.index, text + "\n", [source.path / source.index])
    return {source.index: hashlib.sha256((folder / source.index).read_bytes()).hexdigest()}
