"""Progress of a long run over a model: a bar on standard error if that is a terminal, or a function of the user's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from nmflow.asked import check_flags

__all__ = ["OnStep", "watching"]

OnStep: TypeAlias = Callable[[str, int, int], None]
"""Called with what comes next ("" at the end), how many steps are done, and how many there are (0: unknown)."""


@contextlib.contextmanager
def watching(verb: str, progress: OnStep | bool | None) -> Iterator[OnStep]:
    """Yield what is called at each step.

    Parameters
    ----------
    verb : str
    progress : callable, bool, optional
        A function of the user's; True for a bar, False for none; default: a bar if standard error is a terminal.
    """
    if callable(progress):
        yield progress
        return
    if progress is not None:
        check_flags(progress=progress)
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda name, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[name]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None, name="")
        yield lambda name, done, total: bar.update(task, completed=done, total=total or None, name=escape(name))
