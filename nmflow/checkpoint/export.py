"""Export a pruned checkpoint: packed tensors in safetensors, and a side file that says what is what."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nmflow.checkpoint.arrays import DTYPES, NAMES, lay_out, map_array
from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.export_report import ExportedTensor, ExportReport
from nmflow.checkpoint.header import Entry, Header
from nmflow.checkpoint.plan import make_plan
from nmflow.checkpoint.source import INDEX, Source, open_source
from nmflow.checkpoint.stage import check_place, copy_others, staged
from nmflow.checkpoint.support import Support, find_support
from nmflow.checkpoint.tiles import TILE_BYTES as STRIPE_BYTES
from nmflow.errors import CheckpointError, InputValueError, NmflowError
from nmflow.formats import Format, get
from nmflow.formats.side_file import NAME, SideFile, StoredArray, StoredTensor
from nmflow.problem import Array

__all__ = ["export_checkpoint"]


def export_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    format: str,
    *,
    masks: str | os.PathLike[str] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    pad: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Store the weights of a pruned checkpoint in a format, and everything else as it is.

    Parameters
    ----------
    src : path
        A .safetensors file or a folder, as for prune_checkpoint. It is only read.
    dst : path
        A folder to write: a safetensors file for each of `src`, ``nmflow.json``, and the other files of a folder.
        It appears whole or not at all.
    format : str
        Name in the table of formats.
    masks : path, optional
        A safetensors file or folder with a tensor for each weight to be packed, under the weight's name and of its
        shape: BOOL, or U8 of 0 and 1; 1 = kept. Default: the mask is the two-way support of each weight that
        prune_checkpoint would prune (see `nmflow.checkpoint.support`).
    include, exclude : iterable of str
        Globs over names of weights, as in make_plan; not with `masks`, which names the weights itself.
    pad : bool
        Fill weights up to the multiples of the format with dropped zeros.
    threads : int, optional
    overwrite : bool
    progress : callable, optional

    Raises
    ------
    UnknownFormatError
    CheckpointError, SourceNotFoundError
        If a file is not sound, or a weight cannot be stored: wrong dtype, rank, multiple, or not of the pattern. The
        message names the tensor.
    DestinationExistsError, InputValueError
        If `dst` cannot be written to, or options contradict each other.
    """
    chosen, dst = get(format), Path(dst)
    source = open_source(Path(src))
    check_place(replace(source, is_folder=True), dst)
    given = None if masks is None else _open_masks(Path(masks), source, tuple(include) + tuple(exclude))
    reasons = _reasons(source, chosen, given, include, exclude)
    if not any(reason == "" for reason in reasons.values()):
        raise CheckpointError(f"{source.path} must hold a weight to be stored as {chosen.name}, and it holds none")
    layouts = {shard.path: _layout(shard, chosen, reasons, pad) for shard in source.shards}  # all checked, none written
    with staged(dst, {}, is_folder=True, overwrite=overwrite) as stage:
        new = stage.new
        new.mkdir()
        if source.is_folder:
            copy_others(source, [o for o in source.others if str(o) not in (INDEX, NAME)], new)
        job = _Job(source, chosen, given, reasons, pad, threads, progress)
        tensors = [tensor for shard in source.shards for tensor in job.write(shard, new, *layouts[shard.path])]
        _write_index(source, layouts, new)
        left = {name: reason for name, reason in reasons.items() if reason}
        side = SideFile(chosen.name, chosen.version, _writer(), job.stored, left)
        (new / NAME).write_text(side.to_json(), encoding="utf-8")
        if progress:
            progress("", job.total, job.total)
    return ExportReport(
        str(source.path),
        str(dst),
        chosen.name,
        None if masks is None else str(masks),
        tuple(tensors),
        tuple(left.items()),
    )


def _writer() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"nmflow {version('nmflow')}"
    except PackageNotFoundError:
        return "nmflow"


def _open_masks(path: Path, source: Source, globs: tuple[str, ...]) -> dict[str, tuple[Header, Entry]]:
    """Find the masks by name, and check that each is one of a tensor of the source."""
    if globs:
        raise InputValueError("include and exclude must not be given with masks, which name the weights themselves")
    held = {entry.name: entry for shard in source.shards for entry in shard.entries}
    found: dict[str, tuple[Header, Entry]] = {}
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
            found[entry.name] = shard, entry
    return found


def _reasons(
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
    # The two patterns that formats know; a plan asks a pattern only for its block, to leave smaller weights alone.
    plans = {
        pattern: make_plan(source, pattern, include=tuple(include), exclude=tuple(exclude))
        for pattern in ("1:2", "2:4")
    }
    reasons = {}
    for pattern, plan in plans.items():
        for tensor in plan.tensors:
            dtype = DTYPES.get(tensor.entry.dtype)
            need = None if dtype is None else format.requirements.get(dtype.name)
            if pattern == (need.pattern if need and need.pattern else "2:4"):
                stacked = tensor.layout is not None and format.two_way
                reasons[tensor.entry.name] = tensor.reason or ("not a matrix" if stacked else "")
    return {name: reasons[name] for name in names}


def _layout(shard: Header, format: Format, reasons: Mapping[str, str], pad: bool) -> tuple[bytes, dict[str, Entry]]:
    """Lay out the file for a shard; every dtype, shape and name is checked here."""
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
                raise CheckpointError(
                    f"{shard.path}: tensor {entry.name!r}: {error}; or leave it alone with exclude (--exclude)"
                ) from error
            parts = {
                _array_name(entry.name, key, format): (
                    NAMES[spec.dtype.name], spec.shape, int(np.prod(spec.shape, dtype=object)) * spec.dtype.itemsize
                )
                for key, spec in specs.items()
            }  # fmt: skip
        for name, part in parts.items():
            if name in tensors:
                raise CheckpointError(f"{shard.path}: two tensors would be named {name!r}; rename one of them")
            tensors[name] = part
    return lay_out(tensors, {**shard.metadata, "nmflow_format": f"{format.name} {format.version}"}, shard.path)


def _array_name(tensor: str, key: str, format: Format) -> str:
    return tensor if format.name == "dense" else f"{tensor}.{key}"


@dataclass
class _Job:
    """Writing the shards of one export."""

    source: Source
    format: Format
    masks: Mapping[str, tuple[Header, Entry]] | None
    reasons: Mapping[str, str]
    pad: bool
    threads: int | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self.stored: dict[str, StoredTensor] = {}
        self.done, self.total = 0, sum(e.n_bytes for shard in self.source.shards for e in shard.entries)

    def write(self, shard: Header, folder: Path, head: bytes, places: Mapping[str, Entry]) -> list[ExportedTensor]:
        """Write one shard, a tensor at a time."""
        reports = []
        with (folder / shard.path.name).open("xb") as file, shard.path.open("rb") as source:
            file.write(head)
            for entry in shard.entries:
                if self.progress:
                    self.progress(entry.name, self.done, self.total)
                if self.reasons[entry.name]:
                    _copy(source, entry, file, places[entry.name].start)
                else:
                    reports.append(self._pack(shard, entry, file, places))
                self.done += entry.n_bytes
        return reports

    def _pack(self, shard: Header, entry: Entry, file: BinaryIO, places: Mapping[str, Entry]) -> ExportedTensor:
        started = time.perf_counter()
        weight = map_array(shard.path, entry)
        need = self.format.requirement(weight.dtype)
        where = f"{shard.path}: tensor {entry.name!r}"
        try:
            support = self._mask(weight, entry.name, need.pattern)
            arrays = self.format.encode(weight, support.mask, pad=self.pad, threads=self.threads)
        except NmflowError as error:
            raise CheckpointError(f"{where}: {error}") from error
        stored = {}
        for key, array in arrays.items():
            name = _array_name(entry.name, key, self.format)
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            file.seek(places[name].start)
            file.write(raw)
            stored[key] = StoredArray(name, hashlib.sha256(raw).hexdigest())
        shape = need.padded(weight.shape)
        self.stored[entry.name] = StoredTensor(
            shard.path.name, weight.dtype.name, entry.shape, shape, need.pattern, stored
        )
        return ExportedTensor(
            entry.name, shard.path.name, weight.dtype.name, entry.shape, shape, need.pattern,
            int(np.count_nonzero(support.mask)), support.n_blocks, support.completed, support.unfilled,
            entry.n_bytes, sum(array.nbytes for array in arrays.values()), time.perf_counter() - started,
        )  # fmt: skip

    def _mask(self, weight: Array, name: str, pattern: str | None) -> Support:
        if self.masks is None:
            if pattern is None:
                return Support(weight != 0, 0, 0, 0)
            return find_support(weight, pattern, self.threads)
        shard, entry = self.masks[name]
        mask = map_array(shard.path, entry).view(np.uint8)
        if mask.size and mask.max() > 1:
            raise CheckpointError(f"mask in {shard.path} must hold 0 and 1 only, not {mask.max()}")
        return Support(mask.view(np.bool_), 0, 0, 0)


def _copy(source: BinaryIO, entry: Entry, target: BinaryIO, start: int) -> None:
    """Copy the bytes of a tensor to another place."""
    source.seek(entry.start)
    target.seek(start)
    left = entry.n_bytes
    while left:
        part = source.read(min(left, STRIPE_BYTES))
        if not part:
            raise CheckpointError(f"{source.name} must not change while it is read, and it became shorter")
        target.write(part)
        left -= len(part)


def _write_index(source: Source, layouts: Mapping[Path, tuple[bytes, dict[str, Entry]]], folder: Path) -> None:
    """An index of the new names where there was one of the old."""
    if not source.is_folder or Path(INDEX) not in source.others:
        return
    weight_map = {name: path.name for path, (_, entries) in layouts.items() for name in entries}
    total = sum(entry.n_bytes for _, entries in layouts.values() for entry in entries.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
