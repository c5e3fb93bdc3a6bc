"""Where a destination may lie, and what it may take the place of: nobody loses a file by a slip of the keyboard."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from nmflow.checkpoint.header import read_header
from nmflow.checkpoint.report import RECORDS, REPORT
from nmflow.checkpoint.report_file import read_record, run_of
from nmflow.checkpoint.source import Source, open_source
from nmflow.errors import CheckpointError, DestinationExistsError, InputValueError, NmflowError
from nmflow.formats.side_file import NAME as SIDE_FILE
from nmflow.formats.side_file import read_side_file

__all__ = ["check_free", "check_ours", "check_place", "stage_of"]

_STAGED = re.compile(r"lock|journal|old|new-[0-9a-f]+")
"""Names in a stage: see `nmflow.checkpoint.stage`."""

_Key: TypeAlias = tuple[int | str, ...]
"""What tells files and folders apart. Paths do not: a mount gives another path to what is there already."""


def stage_of(dst: Path) -> Path:
    """The folder beside `dst` in which it is built."""
    return dst.parent / f".{dst.name}.nmflow"


def check_place(
    source: Source, dst: Path, also: Iterable[str | os.PathLike[str] | None] = (), *, overwrite: bool = False
) -> None:
    """Raise InputValueError if writing `dst` would write to what is read, or its parent is not a folder.

    DestinationExistsError if the stage beside it is somebody else's folder, CheckpointError if a folder of the source
    has the name of a record.

    Parameters
    ----------
    source : Source
    dst : Path
    also : iterable of path or None
        Other files and folders that are read.
    overwrite : bool
        Whether what is at `dst` may be removed.
    """
    if dst.name in ("", ".."):
        raise InputValueError(f"dst must be a name in a folder, as it appears whole, not {dst}; such as ../pruned")
    if not dst.parent.is_dir():
        advice = f"{dst.parent} is a file" if dst.parent.exists() else f"make {dst.parent} first"
        raise InputValueError(f"dst must lie in a folder that exists, not at {dst}; {advice}")
    # The parent is resolved and not dst itself: a link there would be replaced, not followed.
    place = _real(dst.parent) / dst.name
    src = f"src, {source.path}"
    read = [shard.path for shard in source.shards] + [source.path / path for path in source.others]
    inputs = [(source.path, src), *((path, src) for path in read)]
    inputs += [(Path(path), f"{os.fspath(path)}, which is read") for path in also if path is not None]
    found = [(place_of, what) for path, what in inputs for place_of in (_real(path.parent) / path.name, _real(path))]
    taken = _keys(place) | _keys(_real(dst))
    for path, what in found:
        if taken & _keys(path):
            raise InputValueError(f"dst must not be {what}; what is read is never written")
    if source.is_folder:
        record = next((path for path in source.others if len(path.parts) > 1 and path.parts[0] in RECORDS), None)
        if record is not None:
            raise CheckpointError(
                f"{source.path} must not hold a folder {record.parts[0]}: nmflow calls a file by that name; rename it"
            )
        inside = {key for path in (_real(source.path), *_folders_of(source)) for key in _keys(path)}
        if any(inside & _keys(parent) for parent in place.parents):
            raise InputValueError(f"dst must not lie inside src, as {dst} does; choose a place beside {source.path}")
    for folder, removed in ((place, overwrite), (stage_of(place), True)):
        held = {key for below in _below(folder, removed) for key in _keys(below)}
        for path, what in found if held else ():
            if any(held & _keys(parent) for parent in (path, *path.parents)):
                raise InputValueError(f"dst must not hold {what}, as {folder} does; choose another place")
    check_ours(stage_of(place), _STAGED)


def check_ours(folder: Path, names: re.Pattern[str]) -> None:
    """Raise DestinationExistsError if a folder that will be cleared holds what has none of `names`."""
    held: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # another process may just have removed it
        held = os.listdir(folder)
    others = sorted(name for name in held if not names.fullmatch(name))
    if others:
        raise DestinationExistsError(
            f"{folder} must hold nothing but what nmflow puts there while it builds its output, and it holds "
            f"{others[0]!r}; move it, or choose another dst"
        )


def check_free(dst: Path, is_folder: bool, overwrite: bool, *, resume: bool = False) -> None:
    """Raise DestinationExistsError if `dst` exists and `overwrite` is false, or it is no checkpoint of this kind.

    resume : whether an unfinished run was looked for, and not found.
    """
    if not os.path.lexists(dst):
        return
    if not overwrite:
        advice = "choose another, or say overwrite=True (--overwrite)"
        if resume:
            raise DestinationExistsError(
                f"resume must find an unfinished run, and there is none of {dst}, which exists; if one finished it, "
                f"nothing is left to do, else {advice}"
            )
        raise DestinationExistsError(f"dst must not exist, and {dst} does; {advice}")
    if dst.is_symlink():  # only the link is replaced
        return
    if is_folder and not dst.is_dir():
        raise DestinationExistsError(f"dst must be a folder, and {dst} is a file; remove it yourself")
    if os.path.ismount(dst):
        raise DestinationExistsError(f"dst must be something that can be renamed, and {dst} is a mount; choose another")
    if dst.is_dir() and not os.access(dst, os.W_OK):  # it is moved to another folder, which asks for that
        raise DestinationExistsError(f"dst must be writable to be replaced, and {dst} is not; chmod u+w it first")
    fault = _fault(dst, is_folder)
    if fault:
        raise DestinationExistsError(
            f"dst must be a checkpoint to be overwritten, and {dst} is another {'folder' if dst.is_dir() else 'file'}; "
            f"remove it yourself ({fault})"
        )


def _fault(path: Path, is_folder: bool) -> str:
    """Why a file or folder is no checkpoint; nothing if it is one, or empty."""
    try:
        if not is_folder:
            read_header(path)
        elif any(path.iterdir()):
            return _stranger(path)
    except (NmflowError, OSError) as error:
        return str(error)
    return ""


def _stranger(folder: Path) -> str:
    """What a checkpoint holds that would be lost with it and is no part of it, as far as one can tell.

    Of what nmflow wrote all is known, but of exports of earlier versions, which have copies of any file. Beside other
    weights any file may belong to them, but no folder that holds files.
    """
    files = {path.relative_to(folder) for path in _files_in(folder)}
    ours = {Path(name) for name in RECORDS}
    side = read_side_file(folder) if (folder / SIDE_FILE).is_file() else None
    if side is not None and side.others is not None:
        ours |= {Path(name) for name in (*side.named, *side.others)}
    elif (folder / REPORT).is_file():
        report, record = read_record(folder)
        ours |= {Path(name) for name in (*report.copied_files, *run_of(folder, record)[1])}
    elif side is not None:
        ours |= {path for path in files if path.parent == Path() or ".git" not in path.parts}
    else:
        open_source(folder)
        ours |= {path for path in files if path.parent == Path()}
    others = sorted(files - ours)
    return f"it holds {others[0]}, which is no part of one" if others else ""


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder, and links to folders; OSError where one cannot be looked into."""

    def fail(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(folder, onerror=fail):
        links = (name for name in folders if os.path.islink(os.path.join(here, name)))
        yield from (Path(here, name) for name in (*files, *links))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _keys(path: Path) -> set[_Key]:
    """What a file or folder and its place have in common with whatever is the same, by any path."""
    keys: set[_Key] = set()
    try:
        parent = path.parent.stat()
        keys.add((parent.st_dev, parent.st_ino, path.name))
        info = path.lstat()
    except OSError:  # nothing is there
        return keys
    # Other names of one file are no harm: a name is replaced, and the file stays.
    if stat.S_ISDIR(info.st_mode) or info.st_nlink == 1:
        keys.add((info.st_dev, info.st_ino))
    return keys


def _folders_of(source: Source) -> set[Path]:
    """The folders below that of a source that hold files."""
    return {source.path / parent for path in source.others for parent in path.parents}


def _below(folder: Path, deep: bool) -> Iterator[Path]:
    """A folder, and all folders in it if it may be removed: one may be a mount of an input. What is a link stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    yield folder
    for here, names, _ in os.walk(folder) if deep else ():
        yield from (Path(here, name) for name in names if not os.path.islink(os.path.join(here, name)))
