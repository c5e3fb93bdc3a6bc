"""Rows that are measured one by one into a file of results: an interrupted run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.progress import showing, tell
from benchmarks.store import INTERRUPTED, Store, moved_to

__all__ = ["measure_rows"]


def measure_rows(
    path: Path,
    options: dict[str, Any],
    cases: Mapping[str, Callable[[], dict[str, Any]]],
    *,
    also: dict[str, Any],
    fresh: bool,
    verb: str,
) -> int:
    """Measure the cases that are not in the file yet, by their keys; the exit status.

    `options` and `also` are those of `Store`: with others, earlier rows are moved aside, as with `fresh`.
    """
    try:
        store = Store(path, options, resume=not fresh, also=also)
    except ValueError as error:
        tell(str(error))
        return 2
    if store.moved:
        tell(moved_to(store.moved, fresh))
    left = [key for key in cases if key not in store]
    try:
        with showing(verb, len(left)) as report:
            for number, key in enumerate(left):
                report(key, number)
                store.add(key, cases[key]())
    except KeyboardInterrupt:
        tell(f"interrupted; {len(store.rows)} finished rows are in {path}: the same command goes on from there")
        return INTERRUPTED
    store.finish()
    return 0
