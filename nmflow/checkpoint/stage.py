"""A destination that appears whole or not at all: built beside its place, synced, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from nmflow.checkpoint.source import Source
from nmflow.errors import CheckpointError, DestinationExistsError, InputValueError

__all__ = ["check_destination", "copy_others", "staged"]


def check_destination(source: Source, dst: Path, overwrite: bool) -> None:
    """Raise unless `dst` may be written.

    Raises
    ------
    InputValueError
        If it is the source, inside it or around it, or its parent is not a folder.
    DestinationExistsError
        If it exists and `overwrite` is false, or it is not a checkpoint of the same kind.
    """
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
    if not os.path.lexists(dst):
        return
    if not overwrite:
        raise DestinationExistsError(
            f"dst must not exist, and {dst} does; choose another, or say overwrite=True (--overwrite)"
        )
    if dst.is_dir() and not dst.is_symlink():
        # A slip of the keyboard must not cost somebody a folder that is no checkpoint.
        if not source.is_folder or (any(dst.iterdir()) and not any(dst.glob("*.safetensors"))):
            raise DestinationExistsError(
                f"dst must be a checkpoint to be overwritten, and {dst} is another folder; remove it yourself"
            )
    elif source.is_folder and not dst.is_symlink():
        raise DestinationExistsError(f"dst must be a folder as src is, and {dst} is a file; remove it yourself")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def staged(dst: Path, overwrite: bool) -> Iterator[Path]:
    """Give a path to build at; when the block ends well what is there becomes `dst`, otherwise nothing remains.

    Yields
    ------
    Path
        A path that does not exist, on the file system of `dst`.
    """
    stage = dst.parent / f".{dst.name}.nmflow-{secrets.token_hex(4)}"
    new, old = stage / "new", stage / "old"
    try:
        stage.mkdir(0o700)  # within the try: an interrupt right after it finds the clean-up in place
        yield new
        _sync(new)
        if os.path.lexists(dst) and not overwrite:
            raise DestinationExistsError(f"dst must not exist, and {dst} appeared meanwhile; choose another")
        try:
            # A file replaces a file or a link in one step; a folder has to make room first.
            if os.path.lexists(dst) and (new.is_dir() or (dst.is_dir() and not dst.is_symlink())):
                os.rename(dst, old)
            os.replace(new, dst)
        except BaseException:
            if os.path.lexists(old) and not os.path.lexists(dst):
                os.rename(old, dst)
            raise
        _sync_folder(dst.parent)
    finally:
        # If even moving the old one back failed, it is kept where it is.
        if os.path.lexists(dst) or not os.path.lexists(old):
            shutil.rmtree(stage, ignore_errors=True)


def _sync(path: Path) -> None:
    """Bring files and folders to the disk, so that a rename never outlives what it names."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
        _sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_others(source: Source, target: Path) -> None:
    """Copy the files of a folder that hold no planned tensor; links become files."""
    for relative in source.others:
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy(source.path / relative, place)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source.path} must not change while it is read: {error}") from error
