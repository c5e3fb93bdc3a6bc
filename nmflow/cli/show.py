"""What the commands print: plans, reports and verifications as tables for people."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from nmflow.checkpoint import EXCLUDED, WEIGHTS
from nmflow.cli.table import print_table
from nmflow.cli.text import printable

if TYPE_CHECKING:
    from nmflow.checkpoint import Plan, PlannedTensor, Report, TensorReport, Verification
    from nmflow.checkpoint import Progress as OnTensor

__all__ = ["bench", "plan", "progress_bar", "report", "verification"]

WIDTH = 140
"""Columns of a table where there is no terminal to ask, as in a log."""


class _Console(Console):
    """A console that tells when its reader went away; rich would end with 1, which here means a violation."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console() -> Console:
    console = _Console(highlight=False, emoji=False)  # names may hold :words:
    return console if console.is_terminal else _Console(highlight=False, emoji=False, width=WIDTH)


@contextlib.contextmanager
def progress_bar(verb: str) -> Iterator[OnTensor]:
    """Show a bar on standard error; yields what updates it."""
    columns = (
        TextColumn(verb),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}"),
    )
    with Progress(*columns, console=Console(stderr=True, emoji=False), transient=True) as bar:
        task = bar.add_task(verb, total=None, name="")

        def update(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, name=escape(printable(name)))

        yield update


def plan(found: Plan) -> None:
    """Print what would be done with each tensor, and the default exclusions."""
    console = _console()
    table = Table(title=f"{_text(str(found.source.path))} at {found.pattern}", title_justify="left")
    for name, right in (("tensor", False), ("dtype", False), ("shape", True), ("what happens", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for tensor in found.tensors:
        what = _prune(tensor) if tensor.pruned else f"copy: {tensor.reason}"
        table.add_row(_text(tensor.entry.name), _text(tensor.entry.dtype), _shape(tensor.entry.shape), _text(what))
    print_table(console, table)
    console.print(f"{len(found.pruned)} of {len(found.tensors)} tensors would be pruned.")
    if found.source.others:
        console.print(f"Copied files: {_text(', '.join(str(path) for path in found.source.others))}", soft_wrap=True)
    for path in found.source.links_out:
        place = os.path.realpath(found.source.path / path)
        console.print(f"From outside of the folder: {_text(str(path))} is a link to {_text(place)}", soft_wrap=True)
    globs: dict[str, list[str]] = {}
    for glob, reason in EXCLUDED:
        globs.setdefault(reason, []).append(glob)
    console.print(f"Taken by name: {_text(' '.join(WEIGHTS))}; others where --include matches.")
    console.print("Left alone by default, unless --include matches:")
    for reason, names in globs.items():
        console.print(f"  {reason}: {_text(' '.join(names))}")


def report(done: Report) -> None:
    """Print what was kept, proven and written."""
    console = _console()
    table = Table(title=f"{_text(done.source)} pruned at {done.pattern}", title_justify="left")
    table.add_column("tensor", overflow="fold")
    for name in ("shape", "kept %", "loss against\nrows-only %", "gap", "proven", "seconds"):
        table.add_column(name, justify="right")
    for tensor in done.tensors:
        table.add_row(_text(tensor.name), _shape(tensor.shape), *_numbers(tensor))
    table.add_section()
    total = done.total
    table.add_row(_weights(len(done.tensors)), f"{total.shape[0]:,} entries", *_numbers(total))
    if done.tensors:
        print_table(console, table)
    reasons = Counter(reason for _, reason in done.skipped)
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        console.print(f"copied as it is: {count} x {_text(reason)}", soft_wrap=True)
    if done.copied_files:
        console.print(f"copied files: {len(done.copied_files)}")
    for path in done.unpruned_files:
        console.print(f"not pruned: {_text(path)} may hold weights too, and is copied as it is", soft_wrap=True)
    if not done.tensors:  # each was skipped for a reason that is above
        console.print(f"nothing was pruned; wrote {_text(done.destination)}", soft_wrap=True)
        return
    if total.gap is None:
        console.print(
            f"not certified: {_text(done.solver)} is not exact; wrote {_text(done.destination)}", soft_wrap=True
        )
        return
    proof = "every block proven optimal" if done.proven else f"{total.n_proven:,} of {total.n_blocks:,} blocks proven"
    console.print(f"{proof}; wrote {_text(done.destination)}", soft_wrap=True)


def verification(found: Verification) -> None:
    """Print whether every weight keeps to the pattern, and the first place of each that does not."""
    console = _console()
    bad = [tensor for tensor in found.tensors if tensor.first]
    for tensor in bad:
        console.print(_text(f"{tensor.first}; {tensor.bad_groups:,} groups of this tensor are over"), soft_wrap=True)
    entries = sum(tensor.entries for tensor in found.tensors)
    nonzero = sum(tensor.nonzero for tensor in found.tensors)
    weights = _weights(len(found.tensors))
    verdict = f"{len(bad)} of {weights} not at {found.pattern}" if bad else f"{weights} at {found.pattern}, none over"
    console.print(
        _text(f"{found.path}: {verdict}; {nonzero:,} of {entries:,} entries are nonzero"),
        soft_wrap=True,
    )
    for path in found.unchecked_files:
        console.print(f"not checked: {_text(path)} may hold weights too", soft_wrap=True)


def bench(rows: list[dict[str, Any]]) -> None:
    """Print rows of measurements, a table for each matrix and pattern."""
    console = _console()
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        title = f"{row['family']} {row['rows']}x{row['cols']} {row['dtype']} at {row['pattern']}"
        tables.setdefault(title, []).append(row)
    for title, found in tables.items():
        table = Table(title=_text(title), title_justify="left")
        table.add_column("solver")
        for name in ("threads", "ns per entry", "x stream", "loss %", "gap", "proven"):
            table.add_column(name, justify="right")
        table.add_column("note", overflow="fold")
        for row in found:
            table.add_row(*_bench_cells(row))
        print_table(console, table)


def _bench_cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = _text(row["solver"])
    if row["status"] != "ok":
        return (name, *("",) * 6, _text(f"{row['status']}: {row['note']}"))

    def number(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "-" if value is None else f"{value * scale:.{digits}g}"

    return (
        name,
        str(row["threads"]),
        number(row["ns_per_entry"], 3),
        number(row["times_stream"], 3),
        number(row["loss"], 3, 100.0),
        number(row["gap"], 3),
        f"{row['proven']:,} of {row['blocks_measured']:,}",
        _text(row["note"]),
    )


def _prune(tensor: PlannedTensor) -> str:
    """What is taken for granted is said where it could be wrong: a matrix is a matrix."""
    return f"prune as {tensor.assumption}" if tensor.layout else "prune"


def _numbers(tensor: TensorReport) -> tuple[str, ...]:
    proven = "all" if tensor.n_proven == tensor.n_blocks else f"{tensor.n_proven:,}"
    return (
        f"{tensor.kept_percent:.3f}",
        f"{tensor.loss_percent:.3f}",
        "-" if tensor.gap is None else f"{tensor.gap:.3g}",
        "-" if tensor.gap is None else f"{proven} of {tensor.n_blocks:,}",
        f"{tensor.seconds:.3f}",
    )


def _weights(count: int) -> str:
    return f"{count} weight" if count == 1 else f"{count} weights"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape)


def _text(text: str) -> str:
    return escape(printable(text))
