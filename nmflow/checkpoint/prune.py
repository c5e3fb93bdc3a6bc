"""Prune a checkpoint on disk: same names, dtypes and shapes, +0 where a mask drops, every other byte as it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nmflow.checkpoint.header import Header
from nmflow.checkpoint.keep import KeepMask, keep_masks
from nmflow.checkpoint.plan import Plan, PlannedTensor, as_pattern, make_plan
from nmflow.checkpoint.report import Report, TensorReport
from nmflow.checkpoint.stage import check_destination, copy_others, staged
from nmflow.checkpoint.tensor import best_by_rows, copy_bytes, map_tensor, score, stripes, write_pruned
from nmflow.errors import CheckpointError, NmflowError, NonFiniteError
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.problem import Array, Layout, Matrix

__all__ = ["Progress", "prune_checkpoint"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the tensor that comes next ("" at the end), the bytes done and the bytes in all."""


def prune_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    pattern: str | Pattern,
    *,
    fill: str = "exact",
    transposable: bool = True,
    solver: str = "dual",
    certify: bool = False,
    keep_from: str | os.PathLike[str] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    threads: int | None = None,
    overwrite: bool = False,
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
        A .safetensors file of boolean masks by the name of the tensor; what they mark is kept.
    include, exclude : iterable of str
        Globs over tensor names, as in make_plan.
    threads : int, optional
    overwrite : bool
        Replace `dst` if it is a checkpoint; the old one is removed when the new one is in place.
    progress : callable, optional
        Called before each tensor and at the end.

    Returns
    -------
    Report

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If `src` is not a sound checkpoint in safetensors.
    DestinationExistsError, InputValueError
        If `dst` cannot be written to, a glob matches nothing, an option is not valid, or a mask of `keep_from` fits no
        tensor that is pruned.
    PatternError
        If `pattern` is not one, or no tensor can take it.
    NonFiniteError
        If a weight holds NaN or infinity; it names the tensor.

    Notes
    -----
    One tensor is in memory at a time: its map, its mask (a byte per entry) and a stripe of a few megabytes.
    """
    started = time.perf_counter()
    dst = Path(dst)
    plan = make_plan(src, as_pattern(pattern, fill, transposable), include=include, exclude=exclude)
    plan.check()
    check_destination(plan.source, dst, overwrite)
    options: dict[str, Any] = {"solver": solver, "threads": threads, "certify": certify}
    keep = {} if keep_from is None else keep_masks(Path(keep_from), plan)
    # One empty block first: a wrong option is an error before anything is written, and what a solver prepares on its
    # first call is not counted as the time of the first tensor.
    solve(np.zeros(plan.pattern.block_shape, np.float32), pattern=plan.pattern, **options)
    with staged(dst, overwrite) as new:
        tensors = _write(plan, new, options, keep, progress)
    return Report(
        source=str(plan.source.path),
        destination=str(dst),
        pattern=str(plan.pattern),
        solver=solver,
        tensors=tuple(tensors),
        skipped=tuple((tensor.entry.name, tensor.reason) for tensor in plan.skipped),
        copied_files=tuple(str(path) for path in plan.source.others),
        unpruned_files=tuple(str(path) for path in plan.source.other_weights),
        seconds=time.perf_counter() - started,
    )


def _write(
    plan: Plan, new: Path, options: dict[str, Any], keep: Mapping[str, KeepMask], progress: Progress | None
) -> list[TensorReport]:
    """Build the whole checkpoint at `new`."""
    source = plan.source
    if source.is_folder:
        new.mkdir()
        copy_others(source, new)
    targets = {shard.path: new / source.relative(shard) if source.is_folder else new for shard in source.shards}
    for shard in source.shards:
        _start_shard(shard, targets[shard.path])
    done, total = 0, sum(tensor.entry.n_bytes for tensor in plan.tensors)
    reports = []
    for tensor in plan.tensors:
        if progress:
            progress(tensor.entry.name, done, total)
        report = prune_tensor(tensor, targets[tensor.shard.path], plan.pattern, options, keep.get(tensor.entry.name))
        if report is not None:
            reports.append(report)
        done += tensor.entry.n_bytes
    if progress:
        progress("", done, total)
    return reports


def _start_shard(shard: Header, target: Path) -> None:
    """Write the header as it is, and make room for the data."""
    with shard.path.open("rb") as source, target.open("xb") as file:
        copy_bytes(source, file, 0, shard.size)
        file.truncate(shard.file_size)


def prune_tensor(
    tensor: PlannedTensor, target: Path, pattern: Pattern, options: dict[str, Any], keep: KeepMask | None = None
) -> TensorReport | None:
    """Write one tensor of a shard to its place in `target`, pruned or as it is: the unit of work.

    It needs no more than paths and numbers, so that it can be done by any worker that sees both files.
    """
    entry = tensor.entry
    with target.open("r+b") as file:
        if not tensor.pruned:
            with tensor.shard.path.open("rb") as source:
                copy_bytes(source, file, entry.start, entry.stop)
            return None
        started = time.perf_counter()
        where = f"{tensor.shard.path}: tensor {entry.name!r}"
        weights = map_tensor(tensor.shard.path, entry)
        try:
            kept = None if keep is None else keep.read()
            solution = solve(weights, pattern=pattern, layout=tensor.layout, keep=kept, **options)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{where} must be finite, not NaN or infinite at {error.count} of {weights.size} entries, the first at "
                f"{error.first}; repair it, or leave it alone with exclude",
                error.count,
                error.first,
            ) from error
        except NmflowError as error:
            raise CheckpointError(f"{where}: {error}") from error
        write_pruned(file, entry, weights, solution.mask)
    dense, rows_only = _dense_and_rows_only(weights, tensor.layout, pattern)
    return TensorReport(
        name=entry.name,
        shard=tensor.shard.path.name,
        dtype=entry.dtype,
        shape=entry.shape,
        layout=tensor.layout,
        dense=dense,
        kept=solution.objective,
        rows_only=rows_only if pattern.transposable else solution.objective,
        gap=None if solution.certificate is None else solution.gap,
        n_blocks=solution.stats["blocks"],
        n_proven=0 if solution.certificate is None else solution.certificate.n_proven,
        seconds=time.perf_counter() - started,
    )


def _dense_and_rows_only(weights: Array, layout: Layout | None, pattern: Pattern) -> tuple[float, float]:
    """Score of a whole tensor, and of its best rows-only mask, a stripe at a time."""
    dense = rows_only = 0.0
    matrices = weights if layout == "batch" else (weights,)
    for array in matrices:
        matrix = Matrix(array)
        for rows in stripes(array.shape, array.itemsize):
            part = matrix.rows(rows.start, rows.stop)
            dense += score(part)
            if pattern.transposable:
                rows_only += best_by_rows(part, pattern.row)
    return dense, rows_only
