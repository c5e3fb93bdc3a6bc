"""Whether a file still is the one that was looked at: a header fits no other data than its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol

from nmflow.errors import ChangedError

__all__ = ["Stamp", "as_long", "check_unchanged", "stamps_of"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file has as long as nobody replaces it or writes to it.

    Attributes
    ----------
    size : int
        In bytes.
    modified : int
        When it was last written to, in nanoseconds.
    device, inode : int
        Other machines may number devices in another way.
    """

    size: int
    modified: int
    device: int
    inode: int

    @classmethod
    def of(cls, info: os.stat_result) -> Stamp:
        """The stamp of a file from what the system says of it."""
        return cls(info.st_size, info.st_mtime_ns, info.st_dev, info.st_ino)

    def check(self, path: Path, info: os.stat_result, *, here: bool = True) -> None:
        """Compare with the file as it is now.

        Parameters
        ----------
        path : Path
            Its name, for the message.
        info : os.stat_result
        here : bool
            Whether this is the machine that made the stamp.

        Raises
        ------
        ChangedError
            If it is another, or was written to.
        """
        now = Stamp.of(info)
        if (now if here else (now.size, now.modified)) != (self if here else (self.size, self.modified)):
            raise ChangedError(
                f"{path} must not change while it is read, and it was replaced or written to; wait until it is "
                f"complete, then run again"
            )


@contextlib.contextmanager
def as_long(what: str) -> Iterator[None]:
    """Raise ChangedError where a file ends before what is read of it does, which was within it."""
    try:
        yield
    except EOFError as error:
        raise ChangedError(f"{what} must not change while it is read, and its file became shorter") from error


def stamps_of(files: Iterable[_Stamped]) -> list[list[int]]:
    """Stamps as JSON holds them."""
    return [[*astuple(stamp)] for stamp in dict.fromkeys(file.stamp for file in files)]


class _Stamped(Protocol):
    @property
    def path(self) -> Path: ...

    @property
    def stamp(self) -> Stamp: ...


def check_unchanged(files: Iterable[_Stamped]) -> None:
    """Raise ChangedError if a file is not what it was; its name may lead to another by now."""
    for path, stamp in {file.path: file.stamp for file in files}.items():
        try:
            info = path.stat()
        except FileNotFoundError as error:
            raise ChangedError(
                f"{path} must not change while it is read, and it was removed; put it back, then run again"
            ) from error
        stamp.check(path, info)
