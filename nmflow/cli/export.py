"""``nmflow export`` and ``nmflow inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nmflow.cli.options import CHECKPOINT, AsJson, Exclude, Include, Resume, Threads
from nmflow.cli.terminal import progress_of, say

__all__ = ["export", "inspect"]


def export(
    src: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT)],
    dst: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="dense, nibble or cutlass-24; see docs/formats.md.")
    ] = "dense",
    masks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Masks in safetensors (BOOL, or U8 of 0 and 1) by the names of the weights."),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    pad: Annotated[bool, typer.Option("--pad", help="Fill weights up to the format's multiples with zeros.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a checkpoint.")] = False,
    resume: Resume = False,
) -> None:
    """Store the weights of a pruned checkpoint compressed, W and its transpose, and the rest as it is.

    A weight's mask is its nonzero entries, which must keep to the pattern both ways; where zeros leave a choice, one
    is solved for, and said. Or masks are given.
    """
    from nmflow.checkpoint import export_checkpoint
    from nmflow.cli import show_packed

    with progress_of("exporting") as progress:
        report = export_checkpoint(
            src,
            dst,
            format,
            masks=masks,
            include=include or (),
            exclude=exclude or (),
            pad=pad,
            threads=threads,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    say(report, as_json, show_packed.report)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=f"{CHECKPOINT} Or what export wrote.")],
    as_json: AsJson = False,
) -> None:
    """Show what a file holds: format, tensors, dtypes, shapes, sizes. Headers are read, no data."""
    from nmflow.checkpoint import inspect_path
    from nmflow.cli import show_packed

    found = inspect_path(path)
    say(found, as_json, show_packed.inspection)
