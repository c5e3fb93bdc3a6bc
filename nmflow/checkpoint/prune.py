"""Prune a checkpoint on disk: same names, dtypes and shapes, +0 where a mask drops, every other byte as it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nmflow.asked import as_path, check_choice, check_flags, check_functions
from nmflow.checkpoint.disk import write_new
from nmflow.checkpoint.engine import Executor, Progress, check_executor, run
from nmflow.checkpoint.finished import check_finished, finished_report, sums_of
from nmflow.checkpoint.journal import identity, version
from nmflow.checkpoint.keep import KeepMask, keep_masks
from nmflow.checkpoint.masked import OnNonFinite, PruneUnit
from nmflow.checkpoint.place import check_free, check_place
from nmflow.checkpoint.plan import Plan, make_plan
from nmflow.checkpoint.report import RECORDS, REPORT, Report, TensorReport
from nmflow.checkpoint.stage import staged, start_folder, start_shard
from nmflow.checkpoint.stamp import check_unchanged, stamps_of
from nmflow.checkpoint.tensor import FLOATS, row_sums
from nmflow.checkpoint.unit import CopyUnit, Unit
from nmflow.errors import CheckpointError
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import as_pattern, solve

__all__ = ["check_prune", "prune_checkpoint"]


def prune_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    pattern: str | Pattern,
    *,
    fill: Fill = "exact",
    transposable: bool = True,
    solver: str = "dual",
    certify: bool = False,
    keep_from: str | os.PathLike[str] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    on_nonfinite: OnNonFinite = "error",
    threads: int | None = None,
    executor: Executor | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Prune the weights of linear and convolution layers of a checkpoint.

    Parameters
    ----------
    src : path
        A .safetensors file, or a folder in the layout of Hugging Face with one or more. It is only read.
    dst : path
        What is written: a file for a file, a folder for a folder. It appears whole or not at all.
    pattern : str or Pattern
        "n:m", or a Pattern, which has its own `fill` and `transposable`.
    fill : {"exact", "at-most"}
    transposable : bool
        False prunes rows only.
    solver : str
    certify : bool
        Prove gaps for a solver that is not exact too.
    keep_from : path, optional
        A .safetensors file of masks (BOOL, or U8 of 0 and 1) by the name of the tensor; what they mark is kept.
    include, exclude : iterable of str
        Globs over tensor names, as in make_plan.
    on_nonfinite : {"error", "skip"}
        Whether a weight with NaN or infinity is an error, or copied as it is and named among the skipped.
    threads : int, optional
        Default: the cores that this process may use. No byte that is written depends on it.
    executor : Executor, optional
        Who does the units of work, instead of threads of this process: see `nmflow.checkpoint.engine`.
    overwrite : bool
        Replace `dst` if it is a checkpoint, was written by nmflow, or is an empty folder; the old one is removed when
        the new one is in place.
    resume : bool
        Go on where a run that was killed, stopped, or ended by NaN left off, if there was one; it must have been asked
        for the same, but for `on_nonfinite`.
    progress : callable, optional
        Called after each tensor and at the end, here and never from another thread.

    Returns
    -------
    Report

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If `src` is not a sound checkpoint in safetensors, it or the masks change meanwhile, or what these mark leaves a
        block without a mask; and on `resume`, if the unfinished run was asked for something else, or source or `dst`
        are not what a run left.
    DestinationBusyError
        If another process is writing `dst`.
    DestinationExistsError, InputValueError
        If `dst` cannot be written to, a glob matches nothing, an option is not valid, a mask of `keep_from` fits no
        tensor that is pruned, or `src` is an export with packed weights.
    PatternError
        If `pattern` is not one, or no tensor can take it.
    NonFiniteError
        If a weight holds NaN or infinity; it names the tensor.
    UnknownSolverError, MissingLibraryError, SolverLimitError
        If the solver is not there or cannot take the problem.

    Notes
    -----
    A few pieces of some megabytes are in memory at a time, whatever the size of a tensor or of the checkpoint. In a
    folder the report is written too, as ``nmflow-report.json``.
    """
    started = time.perf_counter()
    dst, masks = as_path(dst, "dst"), None if keep_from is None else as_path(keep_from, "keep_from")
    check_choice(on_nonfinite, ("error", "skip"), "on_nonfinite")
    check_flags(certify=certify, overwrite=overwrite, resume=resume)
    check_functions(progress=progress)
    check_executor(executor)
    plan = make_plan(
        src, as_pattern(None, None, pattern, fill=fill, transposable=transposable), include=include, exclude=exclude
    )
    source = plan.source
    keep = check_prune(
        plan, dst, solver=solver, certify=certify, keep_from=keep_from, threads=threads, overwrite=overwrite,
        resume=resume,
    )  # fmt: skip
    asked = {
        "command": "prune",
        "version": version(),
        "source": identity(source),
        "pattern": str(plan.pattern),
        "solver": solver,
        "certify": bool(certify),  # NumPy's too
        "on_nonfinite": on_nonfinite,
        "keep_from": None if masks is None else os.path.realpath(masks),
        "pruned": [tensor.entry.name for tensor in plan.pruned],
    }
    others = [path for path in source.others if str(path) not in RECORDS]  # they speak of another checkpoint
    copies = {path: source.path / path for path in others}
    options = {"solver": solver, "certify": certify, "on_nonfinite": on_nonfinite, "threads": threads}
    if resume and not overwrite and source.is_folder:
        finished = finished_report(dst, asked, _units(plan, dst.absolute(), keep, options), copies, threads)
        if finished is not None:
            return finished
    # Whether such weights are skipped may change on the way: units that are done look at it again.
    same = {key: value for key, value in asked.items() if key != "on_nonfinite"}
    state = [on_nonfinite, *stamps_of([*source.shards, *keep.values()])]
    with staged(
        dst, same, is_folder=source.is_folder, overwrite=overwrite, resume=resume, state=state,
        elsewhere=executor is not None,
    ) as stage:  # fmt: skip
        units = _units(plan, dst.absolute() if stage.finished else stage.new, keep, options)
        if stage.finished:
            results = [stage.journal.done[unit.source.name, unit.entry.name] for unit in units]
            if on_nonfinite == "error" and any(done.reason for done in results):
                raise CheckpointError(
                    f"{dst} was finished by a run that copied weights that are not finite as they are; resume with "
                    f'on_nonfinite="skip" (--on-nonfinite skip), or say overwrite=True (--overwrite) to prune again'
                )
            check_finished(dst, units, results, copies, threads)
        else:
            if source.is_folder:
                start_folder(source, others, stage.new)
            for shard in source.shards:
                start_shard(shard, stage.new / source.relative(shard))
            results = run(
                units, stage.journal.done, stage.journal.add, executor=executor, threads=threads, progress=progress
            )
            check_unchanged([*source.shards, *keep.values()])
        report = Report(
            source=str(source.path),
            destination=str(dst),
            pattern=str(plan.pattern),
            solver=solver,
            tensors=tuple(TensorReport.from_dict(done.row) for done in results if done.row is not None),
            skipped=tuple(
                (tensor.entry.name, tensor.reason or done.reason)
                for tensor, done in zip(plan.tensors, results, strict=True)
                if done.row is None
            ),
            copied_files=tuple(str(path) for path in others),
            unpruned_files=tuple(str(path) for path in source.other_weights),
            seconds=time.perf_counter() - started,
        )
        if source.is_folder and not stage.finished:
            values = {**report.to_dict(), "asked": asked, "sums": sums_of(results)}
            text = json.dumps(values, indent=1, allow_nan=False) + "\n"
            write_new(stage.new / REPORT, text, [shard.path for shard in source.shards])
        if progress:
            total = sum(unit.entry.n_bytes for unit in units)
            progress("", total, total)
    return report


def check_prune(
    plan: Plan, dst: Path, *, solver: str, certify: bool, keep_from: str | os.PathLike[str] | None,
    threads: int | None, overwrite: bool, resume: bool,
) -> Mapping[str, KeepMask]:  # fmt: skip
    """Raise what pruning by a plan would raise before it writes anything; else the masks to keep, by tensor."""
    plan.check()
    check_place(plan.source, dst, [keep_from], overwrite=overwrite)
    if not resume:
        check_free(dst, plan.source.is_folder, overwrite)
    keep = {} if keep_from is None else keep_masks(as_path(keep_from, "keep_from"), plan)
    # One empty block of each dtype first: a wrong option is an error before anything is written, and little of what is
    # compiled is counted as the time of a tensor.
    for dtype in sorted({tensor.entry.dtype for tensor in plan.pruned}):
        block = np.zeros(plan.pattern.block_shape, FLOATS[dtype])
        solve(block, pattern=plan.pattern, solver=solver, certify=certify, threads=threads)
        row_sums(block, None, plan.pattern.row)
    return keep


def _units(plan: Plan, new: Path, keep: Mapping[str, KeepMask], options: dict[str, Any]) -> list[Unit]:
    """A unit of work for each tensor, in the order of the plan."""
    units: list[Unit] = []
    for tensor in plan.tensors:
        place: dict[str, Any] = {
            "source": tensor.shard.path.absolute(),
            "target": new / plan.source.relative(tensor.shard),
            "stamp": tensor.shard.stamp,
            "entry": tensor.entry,
            "start": tensor.entry.start,
        }
        if tensor.pruned:
            mask = keep.get(tensor.entry.name)
            units.append(PruneUnit(**place, layout=tensor.layout, pattern=plan.pattern, keep=mask, **options))
        else:
            units.append(CopyUnit(**place))
    return units
