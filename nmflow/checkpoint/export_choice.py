"""Which weights of a checkpoint are packed, with which masks, and why the others are left dense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nmflow.checkpoint.arrays import DTYPES
from nmflow.checkpoint.keep import KeepMask
from nmflow.checkpoint.plan import make_plan
from nmflow.checkpoint.source import Source, open_source
from nmflow.errors import CheckpointError, InputValueError
from nmflow.formats import Format

__all__ = ["open_masks", "reasons_of"]

USUAL = "2:4"
"""The pattern of weights in a format that takes any."""


def open_masks(path: Path, source: Source, globs: tuple[str, ...]) -> dict[str, KeepMask]:
    """Find the masks by name, and check that each is one of a tensor of the source."""
    if globs:
        raise InputValueError("include and exclude must not be given with masks, which name the weights themselves")
    held = {entry.name: entry for shard in source.shards for entry in shard.entries}
    found: dict[str, KeepMask] = {}
    for shard in open_source(path).shards:
        for entry in shard.entries:
            if entry.name not in held:
                raise CheckpointError(f"{path}: mask {entry.name!r} must have the name of a tensor of {source.path}")
            if entry.dtype not in ("BOOL", "U8"):
                raise CheckpointError(f"{path}: mask {entry.name!r} must be BOOL or U8, not {entry.dtype}")
            if entry.shape != held[entry.name].shape:
                raise CheckpointError(
                    f"{path}: mask {entry.name!r} must have the shape of the tensor, {held[entry.name].shape}, "
                    f"not {entry.shape}"
                )
            found[entry.name] = KeepMask(shard.path.absolute(), entry)
    return found


def reasons_of(
    source: Source,
    format: Format,
    masks: Mapping[str, Any] | None,
    include: Iterable[str],
    exclude: Iterable[str],
) -> dict[str, str]:
    """Why each tensor is left dense; empty if it is packed."""
    names = [entry.name for shard in source.shards for entry in shard.entries]
    if masks is not None:
        return {name: "" if name in masks else "no mask" for name in names}
    # a plan asks a pattern only for its block, to leave smaller weights alone
    known = {USUAL, *(need.pattern for need in format.requirements.values() if need.pattern)}
    plans = {
        pattern: make_plan(source, pattern, include=tuple(include), exclude=tuple(exclude)) for pattern in sorted(known)
    }
    reasons = {}
    for pattern, plan in plans.items():
        for tensor in plan.tensors:
            dtype = DTYPES.get(tensor.entry.dtype)
            need = None if dtype is None else format.requirements.get(dtype.name)
            if pattern == (need.pattern if need and need.pattern else USUAL):
                stacked = tensor.layout is not None and format.two_way
                reasons[tensor.entry.name] = tensor.reason or ("not a matrix" if stacked else "")
    return {name: reasons[name] for name in names}
