"""Exported folders, read: whether what they hold decodes to one matrix from both of its sides."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmflow.asked import as_path, check_functions, thread_count
from nmflow.checkpoint.arrays import DTYPES, NAMES
from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.header import Entry, Header
from nmflow.checkpoint.inspection import export_of, open_export
from nmflow.checkpoint.pack import Stored
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.stamp import as_long
from nmflow.checkpoint.tiles import Tile, in_words, inside, is_whole, sha256_of
from nmflow.errors import CheckpointError, FormatError, InputValueError, NmflowError
from nmflow.formats import Format, Spec
from nmflow.formats.side_file import NAME, SideFile, StoredFile, StoredTensor, read_side_file

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
    """What verifying an exported folder found.

    Attributes
    ----------
    path, format : str
    tensors : tuple of PackedCheck
    faults : tuple of str
        What is wrong with files as a whole, and with tensors that are left dense.
    left_dense : int
        How many of these there are.
    complete : bool
        Whether the side file holds digests of headers and of tensors left dense. Those of an earlier nmflow do not, and
        only names are compared.
    """

    path: str
    format: str
    tensors: tuple[PackedCheck, ...]
    faults: tuple[str, ...]
    left_dense: int
    complete: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults and not any(tensor.fault for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The verification for JSON."""
        return {**asdict(self), "ok": self.ok}


def verify_packed(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> PackedVerification:
    """Check an exported folder, or that of a file: it holds what was written, both sides decode to one matrix and mask.

    Raises
    ------
    CheckpointError, FormatError, SourceNotFoundError, UnknownFormatError
        If a file is missing or truncated, or the side file is not valid or was changed. Any other fault is no error but
        a result.

    Notes
    -----
    Arrays are read in rectangles: memory does not grow with them.
    """
    check_functions(progress=progress)
    path, side = export_of(path) or (as_path(path, "path"), read_side_file(path))
    chosen, headers = open_export(path, side)
    checks, faults = [], [*_name_faults(path, side, headers), *_index_faults(path, side)]
    named = {file: header.by_name() for file, header in headers.items()}
    total = len(side.tensors) + len(side.files)
    with Pool(thread_count(threads)) as pool:
        for number, (name, tensor) in enumerate(side.tensors.items()):
            if progress:
                progress(name, number, total)
            kept, fault = 0, ""
            try:
                kept = _check(headers[tensor.file], named[tensor.file], tensor, chosen, pool)
            except NmflowError as error:
                fault = str(error)
            checks.append(PackedCheck(name, tensor.shape, math.prod(tensor.shape), kept, fault))
        for number, (file, stored) in enumerate(side.files.items(), len(side.tensors)):
            if progress:
                progress(file, number, total)
            faults += _file_faults(headers[file], stored, pool)
    if progress:
        progress("", total, total)
    return PackedVerification(
        str(path), side.format, tuple(checks), tuple(faults), len(side.left_dense), bool(side.files)
    )


def _name_faults(path: Path, side: SideFile, headers: Mapping[str, Header]) -> list[str]:
    """Files and tensors left dense that are lost or without a digest; and tensors that the side file does not know."""
    held = {entry.name for header in headers.values() for entry in header.entries}
    faults = [
        f"{path / name} must be there, as {NAME} names it, and it is lost; copy it there again, or export again"
        for name in side.others or ()
        if name not in side.index and not (path / name).is_file()
    ]
    faults += [
        f"tensor {name!r} must be in a file beside {NAME}, which names it, and it is lost; export again"
        for name in side.left_dense
        if name not in held
    ]
    told = {name for file in side.files.values() for name in file.dense}
    faults += [
        f"tensor {name!r} must have a digest in {NAME}, as all that is left dense, and it has none; export again"
        for name in (side.left_dense if side.files else ())
        if name not in told
    ]
    known = {array.name for tensor in side.tensors.values() for array in tensor.arrays.values()} | set(side.left_dense)
    faults += [
        f"{headers[file].path}: tensor {entry.name!r} must be in {NAME}, and it is not; export again"
        for file in sorted(side.named)
        for entry in headers[file].entries
        if entry.name not in known
    ]
    return faults


def _index_faults(path: Path, side: SideFile) -> list[str]:
    """What is wrong with the index that export wrote, where there was one."""
    faults = []
    for name, expected in side.index.items():
        try:
            good = hashlib.sha256((path / name).read_bytes()).hexdigest() == expected
        except OSError:
            good = False
        if not good:
            faults.append(f"{path / name} must have the digest of {NAME}; it was changed or lost, export again")
    return faults


def _file_faults(header: Header, stored: StoredFile, pool: Pool) -> list[str]:
    """What is wrong with the header of a file, and with its tensors that are left dense."""
    parts = {f"{header.path}: header": (0, header.size, stored.header)}
    for entry in header.entries:
        if entry.name in stored.dense:
            parts[f"{header.path}: tensor {entry.name!r}"] = (entry.start, entry.n_bytes, stored.dense[entry.name])
    with as_long(f"what {header.path} holds"), header.opened() as file:
        same = list(pool.map(lambda part: sha256_of(file, part[0], part[1]) == part[2], parts.values()))
    return [
        f"{where} must have the digest of {NAME}; it was changed, export again"
        for where, good in zip(parts, same, strict=True)
        if not good
    ]


def _check(header: Header, entries: Mapping[str, Entry], tensor: StoredTensor, format: Format, pool: Pool) -> int:
    """Check one tensor and return how many entries it keeps. entries : of the header, by name."""
    arrays = _arrays(header, entries, tensor)
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

    def same(key: str) -> bool:
        return sha256_of(file, arrays[key].start, arrays[key].n_bytes) == tensor.arrays[key].sha256

    def kept(tile: Tile) -> int:
        real = tuple(axis.stop - axis.start for axis in inside(tile, stored.plain))
        try:
            _, mask = format.decode(stored.read(file, tile), shape=real, threads=1)
        except FormatError as error:
            place = "" if is_whole(tile, stored.whole) else f" (counted within {in_words(tile)})"
            raise FormatError(f"{error}{place}") from error
        return int(np.count_nonzero(mask))

    with as_long(f"what {header.path} holds"), header.opened() as file:
        for key, good in zip(arrays, pool.map(same, arrays), strict=True):
            if not good:
                raise FormatError(
                    f"array {tensor.arrays[key].name!r} must have the digest of the side file; it was changed"
                )
        return sum(pool.map(kept, stored.tiles()))


def _arrays(header: Header, entries: Mapping[str, Entry], tensor: StoredTensor) -> dict[str, Entry]:
    """Where the arrays of a tensor lie."""
    arrays = {}
    for key, array in tensor.arrays.items():
        if array.name not in entries:
            raise CheckpointError(f"{header.path} must hold {array.name!r}; export again")
        if entries[array.name].dtype not in DTYPES:
            raise InputValueError(f"array {array.name!r} must not be {entries[array.name].dtype}; export again")
        arrays[key] = entries[array.name]
    return arrays
