"""A destination that appears whole or not at all: built beside its place, synced, then renamed into it."""

from __future__ import annotations

import contextlib
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmflow.checkpoint.disk import close_to_others, named, remove
from nmflow.checkpoint.header import Header
from nmflow.checkpoint.journal import Journal
from nmflow.checkpoint.lock import NAME as LOCK
from nmflow.checkpoint.lock import locked
from nmflow.checkpoint.place import check_free, stage_of
from nmflow.checkpoint.publish import put_in_place, restore, sync, sync_folder
from nmflow.checkpoint.source import Source
from nmflow.checkpoint.stamp import Stamp
from nmflow.errors import ChangedError, DestinationExistsError, NmflowError, NonFiniteError, SourceNotFoundError

__all__ = ["Stage", "copy_others", "staged", "start_file", "start_folder", "start_shard"]

JOURNAL, OLD = "journal", "old"
PASSING = (ChangedError, DestinationExistsError, NonFiniteError, SourceNotFoundError)
"""Errors of ours after which what was done is kept, as after any error that is not ours: they speak of the disk, or of
one worker, or of a file that may only have been touched, or be put back, or of one weight that can be repaired or
skipped; a run that resumes compares every byte. What else is wrong with the input stays wrong."""


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
    dst: Path, asked: Mapping[str, Any], *, is_folder: bool, overwrite: bool = False, resume: bool = False,
    state: list[Any] | None = None, elsewhere: bool = False,
) -> Iterator[Stage]:  # fmt: skip
    """Give a place to build at; when the block ends well what is there becomes `dst`.

    When it ends with an error of ours nothing remains, but for those of `PASSING`; after these and anything else, as an
    interrupt or a full disk, what was done remains for a run that resumes, and the error says so.

    state : what the bytes depend on beside `asked`, as JSON holds it: it may change before a run resumes. elsewhere :
    whether other processes do the work. They may go on when the run is over, and would write other bytes then than one
    that resumes in another state; so that one goes on with a copy.

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
    old = folder / OLD
    with locked(folder, dst):
        restore(dst, old)
        if not resume or not (folder / JOURNAL).exists():
            check_free(dst, is_folder, overwrite, resume=resume)
        if not resume:
            _clear(folder)
        begun = clearing = False
        try:
            with Journal(folder / JOURNAL, asked, resume=resume) as journal:
                try:
                    begun = True
                    new = folder / journal.new
                    finished = journal.published is not None and journal.published == _identity(dst)
                    _clear(folder, {JOURNAL, OLD, journal.new})
                    if not finished:
                        check_free(dst, is_folder, overwrite)
                        if any(before != state for before in journal.elsewhere):
                            new = _copied(folder, journal)
                        if elsewhere:
                            journal.lend(state)
                    yield Stage(new, journal, finished)
                    if not finished:
                        sync(new)
                        journal.publish(new)
                        if overwrite:  # hours have passed
                            check_free(dst, is_folder, overwrite)
                        put_in_place(new, dst, old, overwrite)
                        sync_folder(dst.parent)
                except BaseException as error:
                    if not journal.done or (isinstance(error, NmflowError) and not isinstance(error, PASSING)):
                        clearing = True
                        with contextlib.suppress(OSError):  # it is tried once more
                            _give_up(folder, dst, old)
                    else:
                        error.add_note(
                            f"{len(journal.done)} tensors are done and kept in {folder}; the same with resume=True "
                            f"(--resume) goes on from there"
                        )
                    raise
        except BaseException as error:
            if clearing or not (begun or resume):  # interrupted while the journal was made, or removed
                try:
                    _give_up(folder, dst, old)
                except OSError as left:
                    error.add_note(f"{folder} cannot be removed: {left}")
            raise
        try:
            _clear(folder)
        except OSError as error:
            error.add_note(f"{dst} is written, but {folder} beside it cannot be removed; remove it yourself")
            raise


def _copied(folder: Path, journal: Journal) -> Path:
    """What was built so far, where nobody writes who does not know of this run."""
    old, new = folder / journal.new, folder / journal.fresh()
    if old.is_dir():
        shutil.copytree(old, new)
    elif old.exists():
        shutil.copy2(old, new)
    journal.move(new.name)
    remove(old)
    return new


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _give_up(folder: Path, dst: Path, old: Path) -> None:
    """Remove what was built, once what was at `dst` is there again: it may lie in the stage, between two renames."""
    restore(dst, old)
    _clear(folder)


def _clear(folder: Path, but: Collection[str] = ()) -> None:
    """Remove everything in a stage but the lock that is held, and `but`.

    The journal goes last, for what it knows of the rest.

    Raises
    ------
    OSError
        If something stays.
    """
    for path in sorted(folder.iterdir(), key=lambda path: path.name == JOURNAL):
        if path.name != LOCK and path.name not in but:
            remove(path)


def start_shard(shard: Header, target: Path) -> None:
    """Begin the copy of a shard with its header as it is."""
    start_file(target, shard, shard.read_head(), shard.file_size)


def start_file(path: Path, shard: Header, head: bytes, size: int) -> None:
    """Write the beginning of a file made of a shard and make room for the rest; what is there of the rest stays.

    Who may not read the shard may not read the file; our user may write it.
    """
    path.touch(mode=shard.path.stat().st_mode & 0o777 | 0o200)
    close_to_others(path, [shard.path])
    with named(path), path.open("r+b") as file:
        file.truncate(size)
        file.write(head)


def start_folder(source: Source, others: Iterable[Path], target: Path) -> None:
    """Make a folder and copy files of a source to it, be it a folder; links become files.

    What an unfinished run left in it is removed, but for what it made of shards.
    """
    shards = {shard.path.name for shard in source.shards}
    _make_folder(target, source.path)
    for path in target.iterdir():
        if path.name not in shards:
            remove(path)
    copy_others(source, others, target)


def copy_others(source: Source, others: Iterable[Path], target: Path) -> None:
    """Copy files of a folder to one that does not hold them; links become files.

    Raises
    ------
    ChangedError
        If one changes while it is copied.
    """
    for relative in others:
        place = target / relative
        try:
            for parent in reversed(relative.parents[:-1]):
                _make_folder(target / parent, source.path / parent)
            seen = Stamp.of(info := (source.path / relative).stat())
            shutil.copyfile(source.path / relative, place)
            place.chmod(info.st_mode & 0o777)  # not what runs as its owner, as the copy belongs to somebody else
            close_to_others(place, [source.path / relative])
            seen.check(source.path / relative, (source.path / relative).stat())
        except FileNotFoundError as error:
            raise ChangedError(f"{source.path} must not change while it is read: {error}") from error


def _make_folder(folder: Path, like: Path) -> None:
    """Make a folder for nobody more than another, be that one, but our user writes to it."""
    info = like.stat()
    if stat.S_ISDIR(info.st_mode):
        folder.mkdir(mode=info.st_mode & 0o777 | 0o700, exist_ok=True)
        close_to_others(folder, [like])
    else:
        folder.mkdir(exist_ok=True)
