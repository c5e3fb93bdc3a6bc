"""Options that commands share, and their choices."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "CHECKPOINT",
    "AsJson",
    "ColOption",
    "Engine",
    "Exclude",
    "Fill",
    "Include",
    "Method",
    "OnNonFinite",
    "PatternOption",
    "Resume",
    "RowOption",
    "RowsOnly",
    "Threads",
]


class Engine(StrEnum):
    """Who does the work."""

    local = "local"
    dask = "dask"


class Method(StrEnum):
    """How weights are scored, and whether what stays is refitted."""

    magnitude = "magnitude"
    wanda = "wanda"
    sparsegpt = "sparsegpt"
    adaprune = "adaprune"
    alps = "alps"


class Fill(StrEnum):
    """How groups are filled."""

    exact = "exact"
    at_most = "at-most"


class OnNonFinite(StrEnum):
    """What to do with weights that are not finite."""

    error = "error"
    skip = "skip"


CHECKPOINT = "A .safetensors file, or a folder with a checkpoint in safetensors."
PatternOption = Annotated[
    str | None, typer.Option("--pattern", metavar="N:M", help="N kept of M consecutive, e.g. 2:4.")
]
RowOption = Annotated[
    str | None, typer.Option("--row", metavar="N:M", help="Instead of --pattern, with --col: N kept of M along a row.")
]
ColOption = Annotated[str | None, typer.Option("--col", metavar="N:M", help="N kept of M along a column.")]
RowsOnly = Annotated[bool, typer.Option("--rows-only", help="Constrain rows only; columns are left free.")]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Also take weights of this name that the defaults leave alone. Repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave weights of this name alone; wins over --include. Repeatable."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores it may use.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a run that was killed or stopped left off; else begin anew.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
