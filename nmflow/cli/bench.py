"""``nmflow bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nmflow.cli.options import AsJson, Fill, Threads
from nmflow.cli.terminal import check_interrupts, on_output, print_json, progress_of
from nmflow.errors import InputValueError

__all__ = ["bench"]


def bench(
    path: Annotated[Path | None, typer.Argument(metavar="PATH", help="A .npy file, or a checkpoint.")] = None,
    pattern: Annotated[
        list[str] | None, typer.Option("--pattern", metavar="N:M", help="Repeatable; default 2:4, 4:8, 8:16.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLS", help="Without PATH: size of a random matrix; default: 2048x2048.")
    ] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Weights of the checkpoint; default: the largest. Repeatable."),
    ] = None,
    solver: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Name of a solver; default: all. Repeatable.")
    ] = None,
    fill: Annotated[Fill, typer.Option(help="Exactly N in each group, or at most N.")] = Fill.exact,
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="A solver that takes longer is measured on its first blocks.")
    ] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Time every solver on a matrix of yours, a weight of your checkpoint, or a random matrix.

    Times are also given as a multiple of "stream": reading the matrix and writing a byte for each entry.
    """
    from nmflow.bench.quick import matrices, parse_shape, quick
    from nmflow.cli import show
    from nmflow.cli.pattern import pattern_of

    wanted = [pattern_of(text, None, None, fill.value, False) for text in pattern or ("2:4", "4:8", "8:16")]
    matrix = path is None or path.suffix == ".npy"
    if path is not None and shape is not None:
        raise InputValueError(f"--shape must be left out for {path}, which has its own")
    if matrix and tensor:
        raise InputValueError("--tensor must be left out where there is no checkpoint to take it from")
    size = parse_shape(shape or "2048x2048")
    weights: dict[str, Any] = {}
    for each in wanted[:1] if matrix else wanted:
        weights |= matrices(path, size, tensor or (), each)
    rows: list[dict[str, Any]] = []
    complete = False
    try:
        with progress_of("measuring") as progress:
            for row in quick(
                weights, wanted, solvers=solver or (), threads=threads, seconds=seconds, progress=progress
            ):
                rows.append(row)
                check_interrupts()
        complete = True
    finally:  # what is finished is printed, whatever ends the rest
        if as_json:
            from nmflow.bench.machine import machine, versions

            found = {"complete": complete, "machine": machine(), "versions": versions(), "rows": rows}
            with on_output():
                print_json(found)
        elif rows:
            with on_output():
                show.bench(rows)
