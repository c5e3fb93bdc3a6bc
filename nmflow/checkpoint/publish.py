"""The last step: what was built takes the place of the destination, in one rename that either happened or did not."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from nmflow.checkpoint.disk import named
from nmflow.errors import DestinationExistsError

__all__ = ["put_in_place", "restore", "sync", "sync_folder"]

NO_REPLACE, EXCHANGE = 1, 2
"""Flags of renameat2(2)."""
_HERE = -100
"""AT_FDCWD."""
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
"""What kernels and file systems say that do not know a flag."""


def put_in_place(new: Path, dst: Path, old: Path, overwrite: bool) -> None:
    """Give `new` the name `dst`; what had it before is then at `new` or `old`.

    Raises
    ------
    DestinationExistsError
        If `dst` is there and `overwrite` is false.

    Notes
    -----
    Where something is replaced, the two change names in one step (renameat2 with RENAME_EXCHANGE). A file system that
    cannot do that, as NFS, takes two renames for a folder; if the process is killed between them, `restore` finds
    what was there at `old`.
    """
    if not overwrite:
        if _rename(new, dst, NO_REPLACE):
            return
        if os.path.lexists(dst):
            raise DestinationExistsError(f"dst must not exist, and {dst} appeared meanwhile; choose another")
        os.rename(new, dst)
        return
    if not os.path.lexists(dst):
        os.rename(new, dst)
        return
    if _rename(new, dst, EXCHANGE):
        return
    if not new.is_dir() and (dst.is_symlink() or not dst.is_dir()):
        os.replace(new, dst)  # a file replaces a file or a link in one step everywhere
        return
    try:
        os.rename(dst, old)
        os.rename(new, dst)
    except BaseException:  # an interrupt may come right after the first
        restore(dst, old)
        raise


def restore(dst: Path, old: Path) -> None:
    """Bring back what a kill between two renames left at `old`."""
    if os.path.lexists(old) and not os.path.lexists(dst):
        os.rename(old, dst)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Call renameat2(2); False if it is not to be had here."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    if code == errno.EEXIST:
        raise DestinationExistsError(f"dst must not exist, and {target} appeared meanwhile; choose another")
    raise OSError(code, os.strerror(code), str(target))


def sync(path: Path) -> None:
    """Bring files and folders to the disk, so that a rename never outlives what it names."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Bring one file, or the names in one folder, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with named(path):
            os.fsync(handle)
    finally:
        os.close(handle)
