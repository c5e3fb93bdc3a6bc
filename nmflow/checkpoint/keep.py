"""Masks of entries that must be kept, in a safetensors file, by the name of the tensor that they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nmflow.checkpoint.header import Entry, read_header
from nmflow.checkpoint.plan import Plan
from nmflow.errors import InputValueError

__all__ = ["KeepMask", "keep_masks"]


@dataclass(frozen=True, slots=True)
class KeepMask:
    """Where the mask of one tensor lies: a path and numbers, which any worker can read."""

    path: Path
    entry: Entry


def keep_masks(path: Path, plan: Plan) -> dict[str, KeepMask]:
    """Find the masks of a file and check that each fits a tensor that is pruned.

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If `path` is not a sound safetensors file.
    InputValueError
        If a mask is not boolean, or belongs to no tensor that is pruned, or to one of another shape.
    """
    shapes = {tensor.entry.name: tensor.entry.shape for tensor in plan.pruned}
    found = {}
    for entry in read_header(path).entries:
        where = f"{path}: mask {entry.name!r}"
        if entry.dtype != "BOOL":
            raise InputValueError(f"{where} must be of dtype BOOL, not {entry.dtype}; save mask != 0")
        if entry.name not in shapes:
            raise InputValueError(f"{where} must have the name of a tensor that is pruned; a dry run lists them")
        if entry.shape != shapes[entry.name]:
            raise InputValueError(f"{where} must have the shape of its tensor, {shapes[entry.name]}, not {entry.shape}")
        found[entry.name] = KeepMask(path.absolute(), entry)
    return found
