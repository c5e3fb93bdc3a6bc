"""The unit of work: one tensor of one shard, described by paths and numbers, done by any process that sees the files.

A unit reads its tensor in pieces, and writes each to its own place in a file that is there already. Nothing but the
description goes to a worker and nothing but numbers comes back. Done twice, or by two workers at once, it writes the
same bytes to the same place, as long as options and sources stay what they are (see `nmflow.checkpoint.stage`).
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nmflow.arrays import Array
from nmflow.asked import thread_count
from nmflow.checkpoint.disk import named
from nmflow.checkpoint.header import Entry
from nmflow.checkpoint.keep import KeepMask
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.stamp import Stamp, as_long
from nmflow.checkpoint.tiles import Tile, combine, cut_bytes, digest, read_tile, write_tile
from nmflow.errors import SourceNotFoundError

__all__ = ["CopyUnit", "Done", "Unit", "check", "check_copy", "copy", "flushed", "opened", "read", "work"]

Piece = TypeVar("Piece")
FLUSH_BYTES = 64 << 20
"""Bytes after which a unit waits for the disk, while its next pieces are being solved: at the end little is left."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a unit did: numbers that JSON can hold.

    Attributes
    ----------
    shard, name : str
        Name of the file and of the tensor.
    read, written : str
        Checksums of what was read (source and masks) and of what was written.
    row : mapping or None
        What the report says of the tensor; None if it was copied.
    reason : str
        Why it was copied although it was to be changed; empty otherwise.
    """

    shard: str
    name: str
    read: str
    written: str
    row: Mapping[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(ABC):
    """One tensor of one shard.

    Attributes
    ----------
    source, target : Path
        The shard, and the file of its full size that the result goes into. Both absolute.
    stamp : Stamp
        What the source was when its header was read.
    entry : Entry
        The tensor in the source.
    start : int
        First byte of its place in the target.
    threads : int or None
        Threads where the unit is done alone; None: the cores of the process.
    """

    source: Path
    target: Path
    stamp: Stamp
    entry: Entry
    start: int
    threads: int | None = field(default=None, compare=False)

    @property
    def where(self) -> str:
        """Which tensor it is, for messages."""
        return f"{self.source}: tensor {self.entry.name!r}"

    @abstractmethod
    def do(self, pool: Pool) -> Done:
        """Read, solve and write the tensor."""

    @abstractmethod
    def check(self, done: Done, pool: Pool) -> tuple[bool, bool]:
        """Whether the source still is what was read, and whether the target holds what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyUnit(Unit):
    """A tensor that is copied, byte for byte."""

    def do(self, pool: Pool) -> Done:
        """Copy the bytes."""
        return copy(self, pool)

    def check(self, done: Done, pool: Pool) -> tuple[bool, bool]:
        """Compare checksums of the bytes on both sides."""
        return check_copy(self, done, pool)


def work(unit: Unit, pool: Pool | None = None) -> Done:
    """Do a unit of work.

    Parameters
    ----------
    unit : Unit
    pool : Pool, optional
        Threads to share with other units of this process; default: threads of its own.

    Returns
    -------
    Done

    Raises
    ------
    CheckpointError, NonFiniteError
        If the tensor cannot be used; the message names file and tensor.
    OSError
        If a file cannot be read or written; the message names the tensor.
    """
    with _pool_of(unit, pool) as threads:
        return unit.do(threads)


def check(unit: Unit, done: Done, pool: Pool | None = None) -> tuple[bool, bool]:
    """Find out whether a unit that was done need not be done again.

    Returns
    -------
    source, target : bool
        Whether the source still is what was read, and whether the target holds what was written.

    Raises
    ------
    CheckpointError, OSError
        As `work`.
    """
    with _pool_of(unit, pool) as threads:
        return unit.check(done, threads)


def _pool_of(unit: Unit, pool: Pool | None) -> contextlib.AbstractContextManager[Pool]:
    if pool is not None:
        return contextlib.nullcontext(pool)
    return Pool(thread_count(unit.threads))


@contextlib.contextmanager
def opened(unit: Unit, *, write: bool, also: KeepMask | None = None) -> Iterator[tuple[int, int, int]]:
    """Open the files of a unit, if what is read is what it was; what goes wrong with them names the tensor.

    Yields
    ------
    (int, int, int)
        File descriptors of the source, of the target, and of `also` (-1 without it).
    """
    files: list[int] = []
    try:
        files.append(os.open(unit.source, os.O_RDONLY | os.O_CLOEXEC))
        unit.stamp.check(unit.source, os.fstat(files[0]), here=False)
        # Never to read as well: a client of network storage would then fetch pages that a neighbour is writing, and
        # could write them back whole.
        files.append(os.open(unit.target, (os.O_WRONLY if write else os.O_RDONLY) | os.O_CLOEXEC))
        if also is not None:
            files.append(os.open(also.path, os.O_RDONLY | os.O_CLOEXEC))
            also.stamp.check(also.path, os.fstat(files[2]), here=False)
        yield files[0], files[1], files[2] if also is not None else -1
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"{error.filename} must be there for every process that works on it; put it back, or use storage that "
            f"all of them share"
        ) from error
    except OSError as error:
        text = f"{error.strerror}, at tensor {unit.entry.name!r}"
        raise OSError(error.errno, text, error.filename or str(unit.target)) from error
    finally:
        for file in files:
            os.close(file)


def read(unit: Unit, file: int, shape: tuple[int, ...], tile: Tile, dtype: np.dtype[Any]) -> Array:
    """Read a piece of the unit's tensor, seen in some shape, from its source."""
    with as_long(unit.where), named(unit.source):
        return read_tile(file, unit.entry.start, shape, tile, dtype)


def flushed(file: int, pieces: Iterable[tuple[int, Piece]]) -> list[Piece]:
    """Pieces as they are written, with the bytes of each: the disk gets them while more are being made."""
    out, waiting = [], 0
    for n_bytes, piece in pieces:
        out.append(piece)
        waiting += n_bytes
        if waiting >= FLUSH_BYTES:
            getattr(os, "fdatasync", os.fsync)(file)  # macOS has the second alone
            waiting = 0
    return out


_BYTE = np.dtype(np.uint8)


def copy(unit: Unit, pool: Pool, reason: str = "") -> Done:
    """Copy the bytes of a unit's tensor, whatever the unit was to do with it."""
    shape = (unit.entry.n_bytes,)
    with opened(unit, write=True) as (source, target, _):

        def piece(tile: Tile) -> tuple[int, bytes]:
            part = read(unit, source, shape, tile, _BYTE)
            write_tile(target, unit.start, shape, tile, part)
            return part.nbytes, digest(part)

        checksum = combine(flushed(target, pool.map(piece, cut_bytes(unit.entry.n_bytes))))
    return Done(unit.source.name, unit.entry.name, checksum, checksum, reason=reason)


def check_copy(unit: Unit, done: Done, pool: Pool) -> tuple[bool, bool]:
    """Compare what `copy` did with both files."""
    shape = (unit.entry.n_bytes,)
    with opened(unit, write=False) as (source, target, _):

        def piece(tile: Tile) -> tuple[bytes, bytes]:
            written = read_tile(target, unit.start, shape, tile, _BYTE)
            return digest(read(unit, source, shape, tile, _BYTE)), digest(written)

        pairs = list(pool.map(piece, cut_bytes(unit.entry.n_bytes)))
    return combine(each for each, _ in pairs) == done.read, combine(each for _, each in pairs) == done.written
