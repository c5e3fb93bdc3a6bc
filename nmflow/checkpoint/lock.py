"""One process at a time for a destination."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from nmflow.errors import DestinationBusyError

__all__ = ["locked"]

NAME = "lock"
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems say that have no locks, as Lustre without its option: there nothing is held."""


@contextlib.contextmanager
def locked(folder: Path, dst: Path) -> Iterator[None]:
    """Make `folder` and hold it alone; at the end it is removed if nothing but the lock is left in it.

    Raises
    ------
    DestinationBusyError
        If another process holds it. The system releases the lock of a process that ends, however it ends.
    """
    path = folder / NAME
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # another process has just removed the folder
                continue
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which only succeeds if it is empty
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise DestinationBusyError(
                f"dst must be written by one process at a time, and another is at work on {dst}; wait until it is done"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(file)
                raise
        # Another process may have finished and removed the file between opening and locking: then it locks nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    try:
        yield
    finally:
        with contextlib.suppress(
            OSError
        ):  # who comes after the lock is gone makes one of its own, and keeps the folder
            if os.listdir(folder) == [NAME]:
                path.unlink()  # while it is held: who opened it meanwhile finds out above
                folder.rmdir()
        os.close(file)
