"""Masks in safetensors, by the name of the tensor that they belong to: of entries that must be kept, or that are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nmflow.arrays import Array
from nmflow.checkpoint.disk import named
from nmflow.checkpoint.header import Entry, Header, read_header
from nmflow.checkpoint.plan import Plan
from nmflow.checkpoint.source import Source, open_source
from nmflow.checkpoint.stamp import Stamp, as_long
from nmflow.checkpoint.tiles import Tile, read_tile
from nmflow.errors import CheckpointError, InputValueError

__all__ = ["KeepMask", "given_masks", "keep_masks"]

DTYPES = ("BOOL", "U8")
"""Of masks; U8 of 0 and 1."""


@dataclass(frozen=True, slots=True)
class KeepMask:
    """Where the mask of one tensor lies: a path and numbers, which any worker can read."""

    path: Path
    entry: Entry
    stamp: Stamp

    @classmethod
    def of(cls, shard: Header, entry: Entry) -> KeepMask:
        """The mask in an entry of a file."""
        return cls(shard.path.absolute(), entry, shard.stamp)

    def read(self, file: int, shape: tuple[int, ...], tile: Tile) -> Array:
        """A piece of the mask, seen in some shape, as bytes of 0 and 1."""
        with as_long(f"{self.path}: mask {self.entry.name!r}"), named(self.path):
            mask = read_tile(file, self.entry.start, shape, tile, np.dtype(np.uint8))
        if mask.size and mask.max() > 1:
            raise CheckpointError(f"{self.path}: mask {self.entry.name!r} must hold 0 and 1 only, not {mask.max()}")
        return mask


def keep_masks(path: Path, plan: Plan) -> dict[str, KeepMask]:
    """Find the masks of a file and check that each fits a tensor that is pruned.

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If `path` is not a sound safetensors file.
    InputValueError
        If a mask is neither BOOL nor U8, or belongs to no tensor that is pruned, or to one of another shape.
    """
    shapes = {tensor.entry.name: tensor.entry.shape for tensor in plan.pruned}
    found, header = {}, read_header(path)
    for entry in header.entries:
        where = f"{path}: mask {entry.name!r}"
        if entry.dtype not in DTYPES:
            raise InputValueError(f"{where} must be of dtype BOOL or U8, not {entry.dtype}; save mask != 0")
        if entry.name not in shapes:
            raise InputValueError(f"{where} must have the name of a tensor that is pruned; a dry run lists them")
        if entry.shape != shapes[entry.name]:
            raise InputValueError(f"{where} must have the shape of its tensor, {shapes[entry.name]}, not {entry.shape}")
        found[entry.name] = KeepMask.of(header, entry)
    return found


def given_masks(path: Path, source: Source, globs: tuple[str, ...]) -> dict[str, KeepMask]:
    """Find the masks for an export by name, and check that each is one of a tensor of the source.

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If `path` is not a sound checkpoint, or a mask in it is of no tensor, or of another dtype or shape.
    InputValueError
        If `globs` are given too.
    """
    if globs:
        raise InputValueError("include and exclude must not be given with masks, which name the weights themselves")
    held = {entry.name: entry for shard in source.shards for entry in shard.entries}
    found: dict[str, KeepMask] = {}
    for shard in open_source(path).shards:
        for entry in shard.entries:
            if entry.name not in held:
                raise CheckpointError(f"{path}: mask {entry.name!r} must have the name of a tensor of {source.path}")
            if entry.dtype not in DTYPES:
                raise CheckpointError(f"{path}: mask {entry.name!r} must be BOOL or U8, not {entry.dtype}")
            if entry.shape != held[entry.name].shape:
                raise CheckpointError(
                    f"{path}: mask {entry.name!r} must have the shape of the tensor, {held[entry.name].shape}, "
                    f"not {entry.shape}"
                )
            found[entry.name] = KeepMask.of(shard, entry)
    return found
