"""Runs that are finished already: what such a run left is looked at again before anybody is told so."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nmflow.asked import thread_count
from nmflow.checkpoint.header import read_header
from nmflow.checkpoint.journal import difference, fingerprint
from nmflow.checkpoint.lock import locked
from nmflow.checkpoint.place import stage_of
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.report import REPORT, Report
from nmflow.checkpoint.report_file import read_record
from nmflow.checkpoint.stage import JOURNAL
from nmflow.checkpoint.unit import Done, Unit, check
from nmflow.errors import CheckpointError, DestinationExistsError, NmflowError

__all__ = ["check_finished", "finished_report", "sums_of"]


def sums_of(results: Iterable[Done]) -> list[list[str]]:
    """What a report holds of each tensor, so that `finished_report` can look at it again."""
    return [[done.shard, done.name, done.read, done.written, done.reason] for done in results]


def finished_report(
    dst: Path, asked: Mapping[str, Any], units: Sequence[Unit], others: Mapping[Path, Path], threads: int | None
) -> Report | None:
    """The report of a folder that an earlier run, asked for the same, finished; a kill may have come right after.

    Parameters
    ----------
    dst : Path
    asked : mapping
    units : sequence of Unit
        The work, with `dst` as their target.
    others : mapping from Path to Path
        Other files that belong there, and what each is a copy of.
    threads : int or None

    Returns
    -------
    Report or None
        None if there is an unfinished run, or what is there is somebody else's.

    Raises
    ------
    CheckpointError
        As `check_finished`.
    DestinationExistsError
        If that run was asked for something else.
    """
    stage = stage_of(dst.absolute())
    if (stage / JOURNAL).exists() or not (dst / REPORT).is_file():
        return None
    try:
        report, found = read_record(dst)
        before, rows = found["asked"], found["sums"]
        sums = {
            (shard, name): Done(shard, name, read, written, reason=reason)
            for shard, name, read, written, reason in rows
        }
    except (KeyError, TypeError, ValueError, NmflowError):
        return None
    if not isinstance(before, Mapping):
        return None
    skipped = any(done.reason for done in sums.values())
    if not skipped:  # then it made no difference
        before = {**before, "on_nonfinite": asked["on_nonfinite"]}
    if before != asked:
        raise DestinationExistsError(
            f"resume must be asked for what the run that finished {dst} was asked for, and "
            f"{difference(before, asked)}; choose another dst, or say overwrite=True (--overwrite) to prune again"
        )
    names = [(unit.source.name, unit.entry.name) for unit in units]
    if not sums.keys() >= set(names):
        return None
    with locked(stage, dst.absolute()):  # which removes what is left of the stage
        check_finished(dst, units, [sums[name] for name in names], others, threads)
        for name, expected in asked["source"]["shards"].items():
            if fingerprint(read_header(dst / name)) != expected:
                raise _changed(dst, f"the header of {dst / name} is another")
        return report


def check_finished(
    dst: Path, units: Sequence[Unit], results: Sequence[Done], others: Mapping[Path, Path | None], threads: int | None
) -> None:
    """Read a finished destination and its source once more.

    Parameters
    ----------
    units : sequence of Unit
        The work, with `dst` as their target.
    results : sequence of Done
        What it came to, in the same order.
    others : mapping from Path to Path or None
        Other files that belong there, and what each is a copy of.

    Raises
    ------
    CheckpointError
        If the checksums of one of them, or the files, are not what they were.
    """
    missing = next((dst / path for path in others if not (dst / path).is_file()), None)
    missing = missing or next((unit.target for unit in units if not unit.target.is_file()), None)
    if missing:
        raise _changed(dst, f"{missing} is gone")
    for path, original in others.items():
        if original is not None and not filecmp.cmp(original, dst / path, shallow=False):
            raise _changed(dst, f"{dst / path} is not what {original} is")
    with Pool(thread_count(threads)) as pool:
        for unit, done in zip(units, results, strict=True):
            try:
                source, target = check(unit, done, pool)
            except EOFError:
                source, target = True, False
            if not source:
                raise _changed(dst, f"{unit.where} is not what was read", "the source of it")
            if not target:
                raise _changed(dst, f"{unit.target}: tensor {unit.entry.name!r} is not what was written")


def _changed(dst: Path, fault: str, what: str = "it") -> CheckpointError:
    return CheckpointError(
        f"resume must find {dst} as it was finished, and {what} was changed since: {fault}; "
        f"say overwrite=True (--overwrite) to prune again"
    )
