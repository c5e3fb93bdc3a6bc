"""Export a pruned checkpoint: packed tensors in safetensors, and a side file that says what is what."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nmflow.asked import as_globs, as_path, check_flags, check_functions
from nmflow.checkpoint.arrays import DTYPES
from nmflow.checkpoint.disk import write_new
from nmflow.checkpoint.engine import Executor, Progress, check_executor, run
from nmflow.checkpoint.export_choice import reasons_of
from nmflow.checkpoint.export_layout import Layout, array_name, check_names, known_metadata, lay_out_shard, write_index
from nmflow.checkpoint.export_report import ExportedTensor, ExportReport
from nmflow.checkpoint.finished import check_finished
from nmflow.checkpoint.header import Header
from nmflow.checkpoint.inspection import check_unpacked
from nmflow.checkpoint.journal import identity, version
from nmflow.checkpoint.keep import KeepMask, given_masks
from nmflow.checkpoint.pack import DenseUnit, PackUnit
from nmflow.checkpoint.place import check_place
from nmflow.checkpoint.plan import counted
from nmflow.checkpoint.source import Source, open_source
from nmflow.checkpoint.stage import staged, start_file, start_folder
from nmflow.checkpoint.stamp import check_unchanged, stamps_of
from nmflow.checkpoint.unit import Done, Unit
from nmflow.errors import CheckpointError
from nmflow.formats import Format, get
from nmflow.formats.dense import Dense
from nmflow.formats.side_file import NAME, SideFile, StoredArray, StoredFile, StoredTensor

__all__ = ["export_checkpoint"]


def export_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    format: str = Dense.name,
    *,
    masks: str | os.PathLike[str] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    pad: bool = False,
    threads: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    resume: bool = False,
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
        Name in the table of formats. Default: the matrices themselves, with exact zeros.
    masks : path, optional
        A safetensors file or folder with a tensor for each weight to be packed, under the weight's name and of its
        shape: BOOL, or U8 of 0 and 1; 1 = kept. Default: the mask is the two-way support of each weight that
        prune_checkpoint would prune (see `nmflow.checkpoint.support`).
    include, exclude : iterable of str
        Globs over names of weights, as in make_plan; not with `masks`, which names the weights itself.
    pad : bool
        Fill weights up to the multiples of the format with dropped zeros.
    threads : int, optional
    executor : Executor, optional
    overwrite, resume : bool
    progress : callable, optional
        All as for prune_checkpoint.

    Raises
    ------
    UnknownFormatError
    CheckpointError, SourceNotFoundError
        If a file is not sound, or a weight cannot be stored: wrong dtype, rank, multiple, or not of the pattern. The
        message names the tensor.
    DestinationExistsError, InputValueError
        If `dst` cannot be written to, options contradict each other, or `src` is an export with packed weights.

    Notes
    -----
    Weights are read and written in rectangles: memory does not grow with them.
    """
    check_flags(pad=pad, overwrite=overwrite, resume=resume)
    check_functions(progress=progress)
    check_executor(executor)
    chosen, dst = get(format), as_path(dst, "dst")
    marks = None if masks is None else as_path(masks, "masks")
    include, exclude = as_globs(include, "include"), as_globs(exclude, "exclude")
    source = open_source(src)
    check_unpacked(source)
    check_place(source, dst, [marks], overwrite=overwrite)
    given = None if marks is None else given_masks(marks, source, include + exclude)
    reasons = reasons_of(source, chosen, given, include, exclude)
    if not any(reason == "" for reason in reasons.values()):
        raise CheckpointError(
            f"{source.path} must hold a weight to be stored as {chosen.name}, and all {len(reasons)} tensors are left "
            f"alone ({counted(reasons.values())}); masks (--masks) name those that dtypes or names leave alone"
        )
    # all checked, none written
    layouts = {shard.path: lay_out_shard(shard, chosen, reasons, pad, given is not None) for shard in source.shards}
    check_names(layouts)
    known = known_metadata(source)
    left = {name: reason for name, reason in reasons.items() if reason}
    asked = {
        "command": "export",
        "version": version(),
        "source": identity(source),
        "format": [chosen.name, chosen.version, bool(pad)],
        "masks": None if marks is None else os.path.realpath(marks),
        "packed": [name for name, reason in reasons.items() if not reason],
        "digests": "of every tensor",  # which unfinished runs of before did not take
    }
    state = stamps_of([*source.shards, *(given or {}).values()])
    with staged(
        dst, asked, is_folder=True, overwrite=overwrite, resume=resume, state=state, elsewhere=executor is not None
    ) as stage:
        place = dst.absolute() if stage.finished else stage.new
        units = _units(source, place, chosen, given, reasons, layouts, threads)
        if stage.finished:
            results = [stage.journal.done[unit.source.name, unit.entry.name] for unit in units]
            check_finished(dst, units, results, {Path(NAME): None}, threads)
        else:
            start_folder(source, [path for path in source.others if str(path) not in (source.index, NAME)], stage.new)
            for shard in source.shards:
                head, places = layouts[shard.path]
                size = max((entry.stop for entry in places.values()), default=len(head))
                start_file(stage.new / shard.path.name, shard, head, size)
            results = run(
                units, stage.journal.done, stage.journal.add, executor=executor, threads=threads, progress=progress
            )
            check_unchanged([*source.shards, *(given or {}).values()])
            index = write_index(source, layouts, known, stage.new)
            stored = {done.name: _stored(done, chosen) for done in results if done.name not in left}
            files = {shard.path.name: _file(layouts[shard.path][0], shard, results, left) for shard in source.shards}
            others = tuple(path.as_posix() for path in source.others if str(path) != NAME)  # with the index
            side = SideFile(chosen.name, chosen.version, f"nmflow {version()}", stored, left, files, others, index)
            write_new(stage.new / NAME, side.to_json(), [shard.path for shard in source.shards])
        if progress:
            total = sum(unit.entry.n_bytes for unit in units)
            progress("", total, total)
    return ExportReport(
        str(source.path),
        str(dst),
        chosen.name,
        None if masks is None else str(masks),
        tuple(ExportedTensor.from_dict(_row(done)["report"]) for done in results if done.name not in left),
        tuple(left.items()),
    )


def _units(
    source: Source,
    new: Path,
    format: Format,
    masks: Mapping[str, KeepMask] | None,
    reasons: Mapping[str, str],
    layouts: Mapping[Path, Layout],
    threads: int | None,
) -> list[Unit]:
    """A unit of work for each tensor."""
    units: list[Unit] = []
    for shard in source.shards:
        places = layouts[shard.path][1]
        for entry in shard.entries:
            what: dict[str, Any] = {
                "source": shard.path.absolute(),
                "target": new / shard.path.name,
                "stamp": shard.stamp,
                "entry": entry,
            }
            if reasons[entry.name]:
                units.append(DenseUnit(**what, start=places[entry.name].start, threads=threads))
                continue
            dtype = DTYPES[entry.dtype]
            specs = format.specs(format.requirement(dtype).padded(entry.shape), dtype)
            starts = tuple((key, places[array_name(entry.name, key, format)].start) for key in specs)
            mask = None if masks is None else masks[entry.name]
            units.append(
                PackUnit(**what, start=starts[0][1], starts=starts, format=format.name, mask=mask, threads=threads)
            )
    return units


def _stored(done: Done, format: Format) -> StoredTensor:
    """What the side file says of a tensor."""
    report = ExportedTensor.from_dict(_row(done)["report"])
    arrays = {
        key: StoredArray(array_name(done.name, key, format), digest) for key, digest in _row(done)["sha256"].items()
    }
    return StoredTensor(report.shard, report.dtype, report.shape, report.stored_shape, report.pattern, arrays)


def _file(head: bytes, shard: Header, results: Iterable[Done], left: Mapping[str, str]) -> StoredFile:
    """What the side file says of a file: digests of its header and of the tensors in it that are left dense."""
    here = (done for done in results if done.shard == shard.path.name and done.name in left)
    return StoredFile(hashlib.sha256(head).hexdigest(), {done.name: _row(done)["sha256"] for done in here})


def _row(done: Done) -> Mapping[str, Any]:
    assert done.row is not None  # each unit of an export gives one
    return done.row
