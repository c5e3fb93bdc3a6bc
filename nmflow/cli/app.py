"""The commands and their options. What they need is imported when they run, so that ``--help`` stays quick."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nmflow.errors import NmflowError

if TYPE_CHECKING:
    from nmflow.checkpoint import Progress

__all__ = ["app", "main"]

OK, VIOLATION, ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses; 130 is what a shell reports for Ctrl-C."""

app = typer.Typer(
    name="nmflow",
    help="Exact transposable N:M sparsity masks for checkpoints in safetensors, each with a proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich is not loaded to print it
    pretty_exceptions_enable=False,
)


class Fill(StrEnum):
    """How groups are filled."""

    exact = "exact"
    at_most = "at-most"


CHECKPOINT = "A .safetensors file, or a folder with a checkpoint in safetensors."
PatternOption = Annotated[str, typer.Option("--pattern", metavar="N:M", help="N kept of M consecutive, e.g. 2:4.")]
RowsOnly = Annotated[bool, typer.Option("--rows-only", help="Constrain rows only; columns are left free.")]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Also take weights of this name that the defaults leave alone. Repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave weights of this name alone; wins over --include. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from nmflow import __version__

        typer.echo(f"nmflow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def prune(
    src: Annotated[Path, typer.Argument(metavar="SRC", help=CHECKPOINT)],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The file or folder to write.")],
    pattern: PatternOption,
    fill: Annotated[
        Fill, typer.Option(help="Keep exactly N in each group, or at most N, which can keep more score.")
    ] = Fill.exact,
    rows_only: RowsOnly = False,
    solver: Annotated[str, typer.Option(help="Name of the solver.")] = "dual",
    include: Include = None,
    exclude: Exclude = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores it may use.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done with each tensor.")] = False,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is a checkpoint.")] = False,
) -> None:
    """Prune the weights of linear and convolution layers with the best N:M masks.

    Embeddings, norms, biases and output heads are left alone; --dry-run shows the rules and what they mean for SRC.
    """
    with _one_line_errors():
        from nmflow.checkpoint import make_plan, prune_checkpoint
        from nmflow.checkpoint.plan import as_pattern
        from nmflow.cli import show

        if dry_run:
            wanted = as_pattern(pattern, fill.value, not rows_only)
            plan = make_plan(src, wanted, include=include or (), exclude=exclude or ())
            if as_json:
                _print_json(plan.to_dict())
            else:
                show.plan(plan)
            plan.check()
            return
        with _progress("pruning") as progress:
            report = prune_checkpoint(
                src,
                dst,
                pattern,
                fill=fill.value,
                transposable=not rows_only,
                solver=solver,
                include=include or (),
                exclude=exclude or (),
                threads=threads,
                overwrite=overwrite,
                progress=progress,
            )
        if as_json:
            _print_json(report.to_dict())
        else:
            show.report(report)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=CHECKPOINT)],
    pattern: PatternOption,
    rows_only: RowsOnly = False,
    include: Include = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> None:
    """Check each weight against the pattern, along rows and along columns.

    The exit status is 0 if all keep to it, 1 if one does not, 2 if that could not be found out.
    """
    with _one_line_errors():
        from nmflow.checkpoint import verify_checkpoint
        from nmflow.cli import show

        with _progress("verifying") as progress:
            found = verify_checkpoint(
                path,
                pattern,
                transposable=not rows_only,
                include=include or (),
                exclude=exclude or (),
                progress=progress,
            )
        if as_json:
            _print_json(found.to_dict())
        else:
            show.verification(found)
        if not found.ok:
            raise typer.Exit(VIOLATION)


def main() -> None:
    """Run the command line; the ``nmflow`` command."""
    # A polite kill takes the same way out as Ctrl-C, so that what was staged is removed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    app()


_interrupts: list[int] = []


def _interrupt(number: int, frame: object) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _check_interrupts(*args: object) -> None:
    """Raise again what was lost: Python drops an exception that a signal raises inside a destructor or a callback."""
    if _interrupts:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn errors that a user can act on into one line and an exit status; others are defects and keep their trace."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        # Python would flush standard output once more as it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ERROR) from None
    except (NmflowError, OSError) as error:
        text = " ".join(str(error).split())
        typer.echo(f"nmflow: {text}", err=True)
        raise typer.Exit(ERROR) from None
    except KeyboardInterrupt:
        typer.echo("nmflow: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Progress]:
    """What is called before each tensor: a progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield _check_interrupts
        return
    from nmflow.cli import show

    with show.progress_bar(verb) as update:

        def update_or_stop(name: str, done: int, total: int) -> None:
            _check_interrupts()
            update(name, done, total)

        yield update_or_stop


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
