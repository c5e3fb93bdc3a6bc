"""Files and folders on disk: errors that name them, and removing what resists."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["close_to_others", "named", "remove", "write_new"]


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Name a file in errors of the system that do not: a full disk is noticed by calls that know only a descriptor."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_new(path: Path, text: str, like: Iterable[Path]) -> None:
    """Write a file of text that nobody may read or write who may not read or write all of `like`; an error names it."""
    mode, like = 0o666, list(like)
    for each in like:
        mode &= each.stat().st_mode
    with named(path):
        path.unlink(missing_ok=True)
        new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode | 0o600)  # through no link
        with open(new, "w", encoding="utf-8", errors="backslashreplace") as file:
            close_to_others(path, like)
            file.write(text)


def close_to_others(path: Path, like: Iterable[Path]) -> None:
    """Give a new file or folder, of no more mode than `like`, their group too; else its group may not use it.

    Nor may it where one of them has an access list: there the mode says what the list allows at most.
    """
    info, groups = path.stat(), {each.stat().st_gid for each in like}
    listed = any(_has_list(each) for each in like)
    if groups != {info.st_gid} and len(groups) == 1 and not listed:
        with contextlib.suppress(OSError):
            os.chown(path, -1, *groups)
            return
    if listed or not groups <= {info.st_gid}:
        path.chmod(info.st_mode & 0o707)


def _has_list(path: Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except (OSError, AttributeError):  # not there, as on macOS
        return False


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it.

    Raises
    ------
    OSError
        If something stays.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        # Folders may be copies of some that nobody may write to. From above, so that each can be looked into.
        _let_in(path)
        for folder, names, _ in os.walk(path):
            for name in names:
                _let_in(Path(folder, name))
        try:
            shutil.rmtree(path)
        except OSError as error:  # it names the last part of the path alone
            text = f"{error.strerror}, at {os.path.basename(error.filename or '')!r} in it"
            raise OSError(error.errno, text, str(path)) from error


def _let_in(folder: Path) -> None:
    # what it points to is not ours; and what cannot be changed shows when it cannot be removed
    with contextlib.suppress(OSError):
        if not folder.is_symlink():
            folder.chmod(0o700)
