"""Results in a JSON file that is whole at any moment: rows are added one by one, and a run can go on later."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from nmflow.bench.machine import digest_of, machine, source_digest, versions

__all__ = ["INTERRUPTED", "SCHEMA", "Store", "aside", "earlier", "load", "moved_to", "now", "origin", "save", "setting"]

SCHEMA = 1
INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell reports it."""
Row = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is not a file of results.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} must exist; `make bench` writes it, or `make gpu` that of a card")
    if path.is_dir():
        raise ValueError(f"{path} must be a file of results, and is a folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a file of results in JSON, and it is not: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("rows"), list):
        raise ValueError(f"{path} must be a file of results with schema {SCHEMA}; move it away to begin a new one")
    return found


class Store:
    """Rows by their key.

    Parameters
    ----------
    path : Path
    options : dict
        Of the run; kept in the file.
    also : dict, optional
        What beside source, machine, versions and options must be the same to go on; kept in the file.
    resume : bool
        Keep the rows that are there, if they come from the same source, machine, versions and options; a library that
        was not there, or is not now, makes no difference. In any other case an existing file is moved aside, to
        ``*.previous.json`` or the first such name that is free, and not lost.

    Attributes
    ----------
    resumed : int
        Rows that were there already.
    moved : Path or None
        Where an existing file went.
    """

    def __init__(
        self, path: Path, options: dict[str, Any], *, resume: bool = True, also: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self.moved: Path | None = None
        head = {"schema": SCHEMA, "machine": machine(), "source": source_digest(), "options": options}
        head |= also or {}
        self.head = {**head, "versions": versions(), "complete": False, "started": now()}
        if path.exists():
            found = load(path)
            both = _together(found.get("versions") or {}, self.head["versions"])
            if resume and both is not None and all(found.get(name) == value for name, value in head.items()):
                self.rows = {row["key"]: row for row in found["rows"]}
                self.head |= {"versions": both, "started": found.get("started", self.head["started"])}
            else:
                self.moved = aside(path)
        self.resumed = len(self.rows)

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def has(self, key: str, *statuses: str) -> bool:
        """Whether a row is there that ended in one of these ways."""
        return key in self.rows and self.rows[key]["status"] in statuses

    def add(self, key: str, row: Row) -> None:
        """Add a row, and write the file."""
        self.rows[key] = {"key": key, **row}
        self.write()

    def finish(self) -> None:
        """Say in the file that nothing is missing."""
        self.head |= {"complete": True, "finished": now()}
        self.write()

    def write(self) -> None:
        """Write all rows."""
        save(self.path, {**self.head, "rows": list(self.rows.values())})


def save(path: Path, found: dict[str, Any]) -> None:
    """Write a file of results; a reader, or a crash, sees the file before or after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(new, path)


def moved_to(path: Path, fresh: bool) -> str:
    """What is said of earlier results that were moved to this file."""
    why = "--fresh was given" if fresh else "other code, options, versions or machine"
    return f"earlier results are in {path} now: {why}"


def setting() -> dict[str, Any]:
    """What all results of a run were measured on, and of."""
    return {"machine": machine(), "versions": versions(), "source": source_digest()}


def origin(*folders: Path) -> dict[str, Any]:
    """Where rows come from, to be among the options of a run: machine, nmflow's source, and these folders."""
    files = [path for folder in folders for path in folder.glob("*.*")]
    return {"machine": machine(), "source": source_digest(), "code": digest_of(folders[0].parent, files)}


def earlier(path: Path, options: dict[str, Any], fresh: bool) -> list[Row] | None:
    """Rows of a file that a run with the same options can go on from; None if they are of another run, or unwanted."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    rows: list[Row] = found["rows"]
    return None if fresh or found.get("options") != options else rows


def aside(path: Path) -> Path:
    """Move a file of another run to a name beside it, which is returned: it is not lost."""
    moved = _free(path)
    os.replace(path, moved)
    return moved


def _together(old: dict[str, str | None], new: dict[str, str | None]) -> dict[str, str | None] | None:
    """Versions of the libraries of two runs; None if one changed."""
    both = {name: new.get(name) or old.get(name) for name in {**old, **new}}
    return None if any(old.get(name) not in (None, held) for name, held in both.items()) else both


def _free(path: Path) -> Path:
    """A name beside a file for what it held."""
    names = (path.with_suffix(f".previous{number}.json") for number in itertools.chain([""], itertools.count(2)))
    return next(name for name in names if not name.exists())


def now() -> str:
    """The time, as results have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
