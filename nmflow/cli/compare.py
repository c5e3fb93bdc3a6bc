"""``nmflow diff`` and ``nmflow diversity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nmflow.cli.options import CHECKPOINT, AsJson, Threads
from nmflow.cli.terminal import VIOLATION, on_output, print_json, progress_of, say

__all__ = ["diff", "diversity"]


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help=CHECKPOINT)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, for example A after pruning or training.")],
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints: which weights changed, and in how many entries their masks differ (SAD, flip rate).

    The exit status is 0 if all bytes of all tensors are the same, 1 if not, 2 if that could not be found out.
    """
    from nmflow.checkpoint import diff_checkpoints
    from nmflow.cli import show_diff

    with progress_of("comparing") as progress:
        found = diff_checkpoints(a, b, threads=threads, progress=progress)
    say(found, as_json, show_diff.difference)
    if not found.same:
        raise typer.Exit(VIOLATION)


def diversity(
    pattern: Annotated[str, typer.Argument(metavar="N:M", help="N kept of M consecutive, e.g. 4:8.")],
    shape: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLS", help="Shape of the tensor; default: one block.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the masks that a tensor admits at a pattern: unstructured, along rows only, and in both directions."""
    from nmflow.cli.counts import diversity_rows, print_diversity

    rows = diversity_rows(pattern, shape)
    with on_output():
        if as_json:
            print_json({"pattern": pattern, "rows": rows})
        else:
            print_diversity(rows)
