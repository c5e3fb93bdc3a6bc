"""``nmflow verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nmflow.cli.options import CHECKPOINT, AsJson, ColOption, Exclude, Include, RowOption, RowsOnly, Threads
from nmflow.cli.terminal import VIOLATION, progress_of, say
from nmflow.errors import InputValueError

__all__ = ["verify"]


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=f"{CHECKPOINT} Or what export wrote.")],
    pattern: Annotated[
        str | None, typer.Option("--pattern", metavar="N:M", help="N kept of M consecutive; an export knows its own.")
    ] = None,
    row: RowOption = None,
    col: ColOption = None,
    rows_only: RowsOnly = False,
    include: Include = None,
    exclude: Exclude = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Check each weight against the pattern, along rows and along columns; decode an export both ways.

    The exit status is 0 if all keep to it, 1 if one does not, 2 if that could not be found out.
    """
    from nmflow.checkpoint import exported_format, open_source, verify_checkpoint
    from nmflow.cli import show
    from nmflow.cli.pattern import pattern_of

    given = any(option is not None for option in (pattern, row, col))
    has_options = given or rows_only or bool(include) or bool(exclude)
    exported = exported_format(path)
    if exported is not None and (exported != "dense" or not has_options):
        _verify_export(path, threads, as_json, has_options)
        return
    if not given:
        open_source(path)  # a path that leads to none is told first
        raise InputValueError("--pattern must be given for a checkpoint, for example --pattern 2:4")
    # how groups are filled is not verified; by rows and columns of other densities they cannot all be full
    wanted = pattern_of(pattern, row, col, "exact" if pattern else "at-most", rows_only)
    with progress_of("verifying") as progress:
        found = verify_checkpoint(
            path,
            wanted,
            include=include or (),
            exclude=exclude or (),
            threads=threads,
            progress=progress,
        )
    say(found, as_json, show.verification)
    if not found.ok:
        raise typer.Exit(VIOLATION)


def _verify_export(path: Path, threads: int | None, as_json: bool, has_options: bool) -> None:
    from nmflow.checkpoint import verify_packed
    from nmflow.cli import show_packed

    if has_options:
        raise InputValueError(
            f"no option but --json and --threads must be given for {path}, an export, which knows its own pattern"
        )
    with progress_of("verifying") as progress:
        found = verify_packed(path, threads=threads, progress=progress)
    say(found, as_json, show_packed.verification)
    if not found.ok:
        raise typer.Exit(VIOLATION)
