"""Progress of a long run on standard error: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Report", "counted", "positive", "showing", "tell"]

Report = Callable[[str, int], None]
LINE_SECONDS = 10.0
"""Without a terminal: a line no more often than this."""


def counted(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text!r}")
    return value


def tell(text: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True, highlight=False).print(escape(text), soft_wrap=True)


@contextlib.contextmanager
def showing(verb: str, total: int) -> Iterator[Report]:
    """Yield what is called with the name of a piece of work and how many are done."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        last = [-LINE_SECONDS]

        def line(name: str, done: int) -> None:
            now = time.monotonic()
            if now - last[0] >= LINE_SECONDS:
                last[0] = now
                tell(f"{verb} {done}/{total} {name}")

        yield line
        return
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[name]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(verb, total=total, name="")
        yield lambda name, done: bar.update(task, completed=done, name=escape(name))
