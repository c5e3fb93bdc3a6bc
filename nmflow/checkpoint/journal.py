"""The journal of a run: what it was asked for, and a line for each unit of work that is done.

It lies beside the staged files, one JSON object a line, each with a checksum of itself. A line that was cut off by a
kill, or changed, counts for nothing, nor does what follows it. Lines are not synced one by one: what a power failure
takes away is done again, and checksums tell whether the bytes that a line speaks of are there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from nmflow.checkpoint.disk import named
from nmflow.checkpoint.header import Header
from nmflow.checkpoint.source import Source
from nmflow.checkpoint.unit import Done
from nmflow.errors import CheckpointError

__all__ = ["Journal", "difference", "fingerprint", "identity", "version"]

VERSION = 4

SUM = "sum"
"""Where a line has its checksum."""
_NEW = re.compile(r"new-[0-9a-f]+")


class Journal:
    """An open journal.

    Parameters
    ----------
    path : Path
    asked : mapping
        What the run was asked for, as JSON holds it: with anything else its results would not fit.
    resume : bool
        Go on with the journal that is there, if one is.

    Attributes
    ----------
    done : dict from (shard, name) to Done
        Units that the journal says are done.
    published : tuple of int or None
        Device and inode of what was about to become the destination.
    new : str
        Name of what the run builds. No two runs have the same, but for one that resumes another: a worker that is late
        finds nothing of a later one.
    elsewhere : list
        What the work of other processes on that depends on beside `asked`, of each run that had them do some: they may
        be at it still.

    Raises
    ------
    CheckpointError
        If the journal is of a run that was asked for something else.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
        self.done: dict[tuple[str, str], Done] = {}
        self.published: tuple[int, int] | None = None
        self.elsewhere: list[Any] = []
        asked = json.loads(json.dumps({"journal": VERSION, **asked}))
        lines, length = _read_lines(path) if resume else ([], 0)
        name = lines[0].pop("new", None) if lines else None
        self.new: str = name if isinstance(name, str) and _NEW.fullmatch(name) else self.fresh()
        if lines and lines[0] != asked:
            raise CheckpointError(
                f"resume must be asked for what the unfinished run was asked for, and {difference(lines[0], asked)}; "
                f"ask for the same, or leave resume (--resume) out to begin anew"
            )
        for line in lines[1:]:
            if "published" in line:
                self.published = (line["published"][0], line["published"][1])
            elif "elsewhere" in line:
                self.elsewhere.append(line["elsewhere"])
            elif _NEW.fullmatch(str(line.get("new"))):
                self.new, self.elsewhere = line["new"], []
            else:
                done = Done(**line)
                self.done[done.shard, done.name] = done
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            with named(path):
                os.ftruncate(self._file, length)  # the line that a kill cut off
            if not lines:
                self._write({**asked, "new": self.new})
        except BaseException:
            os.close(self._file)
            raise

    @staticmethod
    def fresh() -> str:
        """A name that nothing else has."""
        return f"new-{secrets.token_hex(8)}"

    def add(self, done: Done) -> None:
        """Note that a unit is done."""
        self._write(asdict(done))
        self.done[done.shard, done.name] = done

    def lend(self, state: Any) -> None:
        """Note that other processes are about to work on `new`, and what their work depends on."""
        if state not in self.elsewhere:
            self._write({"elsewhere": state})
            self.elsewhere.append(state)

    def move(self, new: str) -> None:
        """Note that the run builds this now, which nobody else knows."""
        self._write({"new": new})
        self.new, self.elsewhere = new, []

    def publish(self, path: Path) -> None:
        """Note which file or folder is about to become the destination; synced before this returns."""
        info = path.lstat()
        self.published = (info.st_dev, info.st_ino)
        self._write({"published": self.published})
        with named(self._path):
            os.fsync(self._file)

    def _write(self, value: Mapping[str, Any]) -> None:
        line = json.dumps({**value, SUM: _sum(value)}, separators=(",", ":")).encode() + b"\n"
        length = os.fstat(self._file).st_size
        with named(self._path):
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError:
                os.ftruncate(self._file, length)  # what follows half a line would be lost with it
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a journal, and the bytes that they take; none if there is no journal.

    Of the first the checksum is not looked at: it is compared with what is asked for, and what differs is said.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    lines: list[dict[str, Any]] = []
    length = 0
    for line in raw.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        found = value.pop(SUM, None)
        if lines and found != _sum(value):
            break
        lines.append(value)
        length += len(line)
    return lines, length


def _sum(value: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value).encode())


NOTHING = "nothing"
"""What a run was asked for of which another knows nothing."""


def difference(old: Any, new: Any, key: str = "") -> str:
    """Say in words the first thing in which two runs differ: of what is long, the part that does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        name = next(name for name in {**old, **new} if old.get(name, NOTHING) != new.get(name, NOTHING))
        return difference(old.get(name, NOTHING), new.get(name, NOTHING), f"{key} {name}".lstrip())
    if key in ("pruned", "packed") and isinstance(old, list) and isinstance(new, list):
        old, new = list(map(str, old)), list(map(str, new))
        then, now = set(old), set(new)
        for name in (*old, *new):
            if (name in then) != (name in now):
                return f"{name!r} was {f'{key}, and is not' if name in then else f'not {key}, and is'} now"
    return f"{key} was {_short(old)}, not {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if isinstance(value, str) or len(text) <= 80 else text[:77] + "..."


def version() -> str:
    """Version of nmflow: another may solve in another way."""
    from nmflow import __version__

    return __version__


def identity(source: Source) -> dict[str, Any]:
    """What says that a source is the same: its path, and size and header of each shard."""
    return {
        "path": os.path.realpath(source.path),
        "shards": {shard.path.name: fingerprint(shard) for shard in source.shards},
    }


def fingerprint(shard: Header) -> list[Any]:
    """Size and header of a shard, as JSON holds them."""
    return [shard.file_size, xxhash.xxh3_128_hexdigest(shard.read_head())]
