"""The ``nmflow`` command. What commands need is imported when they run, so that ``--help`` stays quick."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nmflow.cli.bench import bench
from nmflow.cli.compare import diff, diversity
from nmflow.cli.export import export, inspect
from nmflow.cli.prune import prune
from nmflow.cli.report import report
from nmflow.cli.terminal import catch_signals, empty_streams, one_line_errors, open_streams
from nmflow.cli.verify import verify

__all__ = ["app", "main"]

COMMANDS = (prune, report, verify, bench, export, inspect, diff, diversity)
"""In the order of ``--help``."""


class _Commands(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what a shell makes of a variable that is not set: an empty path would be the current folder."""
        if "" in args:
            ctx.fail('No argument must be empty. Is a variable not set? "." is the current folder.')
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Errors in one line and statuses of ours, with --help too; typer would say less, and end with others."""
        with one_line_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """The same of all that a command does, and of reading its options."""
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="nmflow",
    cls=_Commands,
    help="Exact transposable N:M sparsity masks for checkpoints in safetensors, each with a proof.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich is not loaded to print it
    pretty_exceptions_enable=False,
)
for _command in COMMANDS:
    # The whole of the first sentence: by itself, the list of commands would break it off after 45 letters.
    app.command(short_help=" ".join((_command.__doc__ or "").split("\n\n")[0].split()))(_command)


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


def main() -> None:
    """Run the command line; the ``nmflow`` command."""
    catch_signals()
    open_streams()
    try:
        with one_line_errors():  # also what comes before the commands are known
            app()
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    finally:
        empty_streams()
        exec("")  # an interrupt of text that Python runs, as it makes dataclasses, would make `-m` end as by SIGINT
