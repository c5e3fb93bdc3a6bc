"""``nmflow report``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from nmflow.cli.options import AsJson
from nmflow.cli.terminal import on_output, print_json
from nmflow.cli.text import printable

__all__ = ["report", "say_written"]


def report(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The folder that nmflow prune wrote.")],
    source: Annotated[
        Path | None,
        typer.Option(metavar="SRC", help="The checkpoint before pruning; default: where it was then, if still there."),
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Weight whose mask is shown; default: the largest.")
    ] = None,
    block: Annotated[
        str, typer.Option(metavar="[MATRIX,]ROW,COL", help="Block of it that is shown, counted in blocks.")
    ] = "0,0",
    as_json: AsJson = False,
) -> None:
    """Write a page with plots, and a section for the model card, into a pruned checkpoint.

    nmflow-report.html needs nothing but itself; nmflow-report.md is Markdown. --report on prune does the same.
    """
    from nmflow.checkpoint.report_html import parse_block, write_reports

    written = write_reports(dst, source=source, tensor=tensor, block=parse_block(block))
    say_written(written, as_json)
    if as_json:
        with on_output():
            print_json({"page": str(written[0]), "model_card": str(written[1])})


def say_written(paths: Iterable[Path], as_json: bool) -> None:
    """Name what was written, unless JSON is all that may be printed."""
    with on_output():
        for path in () if as_json else paths:
            typer.echo(f"wrote {printable(str(path))}")
