"""A destination that appears whole or not at all: built beside its place, synced, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmflow.checkpoint.header import Header
from nmflow.checkpoint.journal import Journal
from nmflow.checkpoint.lock import NAME as LOCK
from nmflow.checkpoint.lock import locked
from nmflow.checkpoint.publish import put_in_place, restore, sync, sync_folder
from nmflow.checkpoint.source import Source
from nmflow.errors import CheckpointError, DestinationExistsError, InputValueError, NmflowError, SourceNotFoundError

__all__ = ["Stage", "check_place", "copy_others", "stage_of", "staged", "start_file", "start_shard"]

JOURNAL = "journal"
PASSING = (DestinationExistsError, SourceNotFoundError)
"""Errors of ours after which what was done is kept, as after any error that is not ours: they speak of the disk, or of
one worker. What is wrong with the input stays wrong."""


def check_place(source: Source, dst: Path) -> None:
    """Raise InputValueError if `dst` is the source, inside it or around it, or its parent is not a folder."""
    if dst.name in ("", "..") or not dst.parent.is_dir():
        raise InputValueError(f"dst must lie in a folder that exists, not at {dst}; make {dst.parent} first")
    # The parent is resolved and not dst itself: a link there would be replaced, not followed.
    place, origin = _real(dst.parent) / dst.name, _real(source.path)
    inputs = {origin, *(_real(shard.path) for shard in source.shards)}
    if place == origin or _real(dst) in inputs:
        raise InputValueError(f"dst must not be src, {source.path}; the source is never written")
    if source.is_folder and origin in place.parents:
        raise InputValueError(f"dst must not lie inside src, as {dst} does; choose a place beside {source.path}")
    if any(place in path.parents for path in inputs):
        raise InputValueError(f"dst must not hold src, as {dst} does; choose another place")


def _check_free(dst: Path, is_folder: bool, overwrite: bool) -> None:
    """Raise DestinationExistsError if `dst` exists and `overwrite` is false, or it is no checkpoint of this kind."""
    if not os.path.lexists(dst):
        return
    if not overwrite:
        raise DestinationExistsError(
            f"dst must not exist, and {dst} does; choose another, or say overwrite=True (--overwrite)"
        )
    if dst.is_dir() and not dst.is_symlink():
        # A slip of the keyboard must not cost somebody a folder that is no checkpoint.
        if not is_folder or (any(dst.iterdir()) and not any(dst.glob("*.safetensors"))):
            raise DestinationExistsError(
                f"dst must be a checkpoint to be overwritten, and {dst} is another folder; remove it yourself"
            )
    elif is_folder and not dst.is_symlink():
        raise DestinationExistsError(f"dst must be a folder as src is, and {dst} is a file; remove it yourself")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def stage_of(dst: Path) -> Path:
    """The folder beside `dst` in which it is built."""
    return dst.parent / f".{dst.name}.nmflow"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a destination is built.

    Attributes
    ----------
    new : Path
        The file or folder to build. It may hold what an unfinished run left.
    journal : Journal
    finished : bool
        Whether the unfinished run got as far as putting it in place: nothing is left to do.
    """

    new: Path
    journal: Journal
    finished: bool


@contextlib.contextmanager
def staged(
    dst: Path, asked: Mapping[str, Any], *, is_folder: bool, overwrite: bool = False, resume: bool = False
) -> Iterator[Stage]:
    """Give a place to build at; when the block ends well what is there becomes `dst`.

    When it ends with an error of ours nothing remains; after anything else, as an interrupt or a full disk, what was
    done remains for a run that resumes, and the error says so.

    Raises
    ------
    DestinationBusyError
        If another process builds the same destination.
    DestinationExistsError
        If `dst` may not be replaced.
    CheckpointError
        If the unfinished run was asked for something else.
    """
    dst = dst.absolute()
    folder = stage_of(dst)
    new, old = folder / "new", folder / "old"
    with locked(folder, dst):
        restore(dst, old)
        if not resume:
            _check_free(dst, is_folder, overwrite)
            _clear(folder)
        begun = clearing = False
        try:
            with Journal(folder / JOURNAL, asked, resume=resume) as journal:
                try:
                    begun = True
                    finished = journal.published is not None and journal.published == _identity(dst)
                    if not finished:
                        _check_free(dst, is_folder, overwrite)
                    yield Stage(new, journal, finished)
                    if not finished:
                        sync(new)
                        journal.publish(new)
                        put_in_place(new, dst, old, overwrite)
                        sync_folder(dst.parent)
                except BaseException as error:
                    if not journal.done or (isinstance(error, NmflowError) and not isinstance(error, PASSING)):
                        clearing = True
                        _clear(folder)
                    else:
                        error.add_note(
                            f"{len(journal.done)} tensors are done and kept in {folder}; the same with resume=True "
                            f"(--resume) goes on from there"
                        )
                    raise
        except BaseException:
            if clearing or not (begun or resume):  # interrupted while the journal was made, or removed
                _clear(folder)
            raise
        _clear(folder)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _clear(folder: Path) -> None:
    """Remove everything in a stage but the lock that is held; the journal goes last, for what it knows of the rest."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == JOURNAL):
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def start_shard(shard: Header, target: Path) -> None:
    """Begin the copy of a shard with its header as it is."""
    with shard.path.open("rb") as source:
        head = source.read(shard.size)
    if len(head) < shard.size:
        raise CheckpointError(f"{shard.path} must not change while it is read, and it became shorter")
    start_file(target, head, shard.file_size)


def start_file(path: Path, head: bytes, size: int) -> None:
    """Write the beginning of a file and make room for the rest; what is there of the rest stays."""
    path.touch()
    with path.open("r+b") as file:
        file.truncate(size)
        file.write(head)


def copy_others(source: Source, others: Iterable[Path], target: Path) -> None:
    """Copy files of a folder; links become files, and what is there already is replaced."""
    for relative in others:
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # what an unfinished run copied may be read-only
        try:
            shutil.copy(source.path / relative, place)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source.path} must not change while it is read: {error}") from error
