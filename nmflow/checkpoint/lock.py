"""One process at a time for a destination."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nmflow.errors import DestinationBusyError, DestinationExistsError, InputValueError

with contextlib.suppress(ImportError):  # on Windows, where `open_source` says that there is no way
    import fcntl

__all__ = ["locked"]

NAME = "lock"
OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems say that have no locks, as Lustre without its option: there nothing is held."""
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
"""What they say where a folder cannot be made, ever."""


@contextlib.contextmanager
def locked(folder: Path, dst: Path) -> Iterator[None]:
    """Make `folder` and hold it alone; at the end it is removed if nothing but the lock is left in it.

    Raises
    ------
    DestinationBusyError
        If another process holds it. The system releases the lock of a process that ends, however it ends.
    DestinationExistsError
        If something that is no folder has its name, or a folder of another user.
    InputValueError
        If it cannot be made.
    """
    path, file = folder / NAME, None
    try:
        while True:
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                _check_owner(folder)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                raise InputValueError(
                    f"dst must lie in a folder that can be written to, and {dst.parent} cannot: {error.strerror}"
                ) from error
            try:
                _check_kind(folder)
                file = os.open(path, OPEN, 0o600)
            except FileNotFoundError:  # another process has just removed the folder
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DestinationBusyError(
                    f"dst must be written by one process at a time, and another is at work on {dst}; "
                    f"wait until it is done"
                ) from None
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            # Another process may have finished and removed the file between opening and locking: it locks nothing then.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    break
            os.close(file)
            file = None
        yield
    finally:
        _leave(folder, path, file)


def _check_kind(folder: Path) -> None:
    """Raise DestinationExistsError unless `folder` is one, and no link: what a stage holds is removed."""
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise DestinationExistsError(
            f"{folder} must be a folder, in which nmflow builds its output, not a link or a file; remove it"
        ) from None


def _check_owner(folder: Path) -> None:
    """Raise DestinationExistsError if `folder` is another user's, who could put links where we write.

    That of its parent may own it: he can move everything in there, and on some mounts one user owns all.
    """
    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
        owner = folder.lstat().st_uid
        if owner not in (os.geteuid(), folder.parent.stat().st_uid):
            raise DestinationExistsError(
                f"{folder} must be your own, as nmflow builds its output in it, and it is user {owner}'s, who could "
                f"change what is written; let it be removed, or choose another dst"
            )


def _leave(folder: Path, path: Path, file: int | None) -> None:
    """Remove the folder if nothing but our lock is left in it, whenever we were interrupted; close the lock."""
    # an OSError: who comes after the lock is gone makes one of its own, and keeps the folder
    with contextlib.suppress(OSError):
        _check_kind(folder)
        if file is None:  # interrupted before we had it, or while nobody did
            with contextlib.suppress(OSError):
                folder.rmdir()  # which only succeeds if it is empty
            file = os.open(path, OPEN & ~os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours already, unless we were interrupted or it is busy
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        # not the lock of who came after the one that kept us out
        if os.path.samestat(os.fstat(file), path.stat()) and os.listdir(folder) == [NAME]:
            path.unlink()  # while it is held: who opened it meanwhile finds out above
            folder.rmdir()
    if file is not None:
        with contextlib.suppress(OSError):
            os.close(file)
