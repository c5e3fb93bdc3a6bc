"""A copy of a checkpoint with the data of some tensors replaced: same names, dtypes, shapes and headers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmflow.checkpoint.header import Entry
from nmflow.checkpoint.inspection import check_unpacked
from nmflow.checkpoint.place import check_place
from nmflow.checkpoint.report import RECORDS
from nmflow.checkpoint.source import Source
from nmflow.checkpoint.stage import staged, start_folder, start_shard
from nmflow.checkpoint.stamp import check_unchanged
from nmflow.errors import InputValueError

__all__ = ["replace_tensors"]


def replace_tensors(
    source: Source,
    dst: str | os.PathLike[str],
    values: Mapping[str, bytes],
    asked: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint that differs in some tensors only.

    Parameters
    ----------
    source : Source
        As `open_source` gives it; only read.
    dst : path
        Appears whole or not at all.
    values : mapping of str to bytes
        New data by tensor name, as the file holds it: in C order, little-endian, in the dtype of the file.
    asked : mapping
        What the work is called while it is staged, as plain values.
    overwrite : bool
        As for `prune_checkpoint`.

    Raises
    ------
    InputValueError
        If `source` is an export with packed weights, a name is in no shard, or its data has another size.
    CheckpointError, DestinationBusyError, DestinationExistsError
        As `prune_checkpoint`.
    """
    dst = Path(dst)
    check_unpacked(source)
    check_place(source, dst, overwrite=overwrite)
    entries: dict[str, Entry] = {entry.name: entry for shard in source.shards for entry in shard.entries}
    for name, data in values.items():
        if name not in entries:
            raise InputValueError(f"values must be named like tensors of {source.path}, not {name!r}")
        if len(data) != entries[name].n_bytes:
            raise InputValueError(f"{name!r} must have {entries[name].n_bytes} bytes, not {len(data)}")
    with staged(dst, asked, is_folder=source.is_folder, overwrite=overwrite) as stage:
        if source.is_folder:
            start_folder(source, [path for path in source.others if str(path) not in RECORDS], stage.new)
        for shard in source.shards:
            target = stage.new / source.relative(shard)
            start_shard(shard, target)
            shutil.copyfile(shard.path, target)
            with target.open("r+b") as new:
                for entry in shard.entries:
                    if entry.name in values:
                        new.seek(entry.start)
                        new.write(values[entry.name])
        check_unchanged(source.shards)
