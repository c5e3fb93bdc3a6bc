"""The commands and their options. What they need is imported when they run, so that ``--help`` stays quick."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nmflow.errors import InputValueError, NmflowError

if TYPE_CHECKING:
    from nmflow.checkpoint import Executor, Progress

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
    pattern: PatternOption = None,
    row: RowOption = None,
    col: ColOption = None,
    fill: Annotated[
        Fill, typer.Option(help="Keep exactly N in each group, or at most N, which can keep more score.")
    ] = Fill.exact,
    rows_only: RowsOnly = False,
    solver: Annotated[str, typer.Option(help="Name of the solver.")] = "dual",
    certify: Annotated[
        bool, typer.Option("--certify", help="Prove gaps for a solver that is not exact too; exact ones always do.")
    ] = False,
    keep_from: Annotated[
        Path | None,
        typer.Option(metavar="MASKS", help="A .safetensors file of boolean masks by tensor name: entries to keep."),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores it may use.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done with each tensor.")] = False,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is a checkpoint.")] = False,
    resume: Resume = False,
    on_nonfinite: Annotated[
        OnNonFinite, typer.Option(help="Weights with NaN or infinity: an error, or copied as they are.")
    ] = OnNonFinite.error,
    engine: Annotated[Engine, typer.Option(help="Threads here, or the workers of a Dask cluster.")] = Engine.local,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of the Dask scheduler, as tcp://host:8786; for --engine dask."),
    ] = None,
    with_report: Annotated[
        bool, typer.Option("--report", help="Write a page with plots and a model card too, as nmflow report does.")
    ] = False,
    method: Annotated[
        Method, typer.Option(help="All but magnitude run a Hugging Face model, with transformers, on a text.")
    ] = Method.magnitude,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text for these methods: UTF-8, a sample a line.")
    ] = None,
) -> None:
    """Prune the weights of linear and convolution layers with the best N:M masks.

    Embeddings, norms, biases and output heads are left alone; --dry-run shows the rules and what they mean for SRC.
    """
    if pattern is row is col is None:
        raise typer.BadParameter("a pattern must be given, as --pattern 2:4 or as --row 2:4 --col 4:8")
    with _one_line_errors():
        from nmflow.checkpoint import make_plan, prune_checkpoint
        from nmflow.cli import show
        from nmflow.cli.methods import check_options, prune_by
        from nmflow.pipeline import as_pattern

        wanted = as_pattern(None, None, pattern, row=row, col=col, fill=fill.value, transposable=not rows_only)
        if dry_run:
            plan = make_plan(src, wanted, include=include or (), exclude=exclude or ())
            if as_json:
                _print_json(plan.to_dict())
            else:
                show.plan(plan)
            plan.check()
            return
        others = {
            "--keep-from": keep_from is not None,
            "--report": with_report,
            "--engine": engine is not Engine.local,
            "--on-nonfinite": on_nonfinite is not OnNonFinite.error,
        }
        check_options(method.value, calibration, others)
        if calibration is not None:
            with _progress("pruning") as progress:
                text, values = prune_by(
                    method.value,
                    src,
                    dst,
                    wanted,
                    calibration,
                    progress,
                    include=include or (),
                    exclude=exclude or (),
                    solver=solver,
                    threads=threads,
                    overwrite=overwrite,
                    resume=resume,
                )
            if as_json:
                _print_json(values)
            else:
                typer.echo(text)
            return
        if with_report:
            from nmflow.checkpoint.report_plots import check_library

            check_library()  # before hours of work
        with _executor(engine, scheduler) as executor, _progress("pruning") as progress:
            report = prune_checkpoint(
                src,
                dst,
                wanted,
                solver=solver,
                certify=certify,
                keep_from=keep_from,
                include=include or (),
                exclude=exclude or (),
                threads=threads,
                overwrite=overwrite,
                resume=resume,
                on_nonfinite=on_nonfinite.value,
                executor=executor,
                progress=progress,
            )
        if as_json:
            _print_json(report.to_dict())
        else:
            show.report(report)
        if with_report:
            from nmflow.checkpoint.report_html import write_reports

            _say_written(write_reports(dst, report=report), as_json)


@app.command()
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
    with _one_line_errors():
        from nmflow.checkpoint.report_html import parse_block, write_reports

        written = write_reports(dst, source=source, tensor=tensor, block=parse_block(block))
        _say_written(written, as_json)
        if as_json:
            _print_json({"page": str(written[0]), "model_card": str(written[1])})


def _say_written(paths: Iterable[Path], as_json: bool) -> None:
    for path in () if as_json else paths:
        typer.echo(f"wrote {path}")


@app.command()
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
    with _one_line_errors():
        from nmflow.checkpoint import exported_format, verify_checkpoint
        from nmflow.cli import show
        from nmflow.pipeline import as_pattern

        given = any(option is not None for option in (pattern, row, col))
        exported = exported_format(path)
        if exported is not None and (exported != "dense" or not given):
            _verify_export(path, threads, as_json, given or rows_only or bool(include) or bool(exclude))
            return
        if not given:
            raise InputValueError("--pattern must be given for a checkpoint, for example --pattern 2:4")
        wanted = as_pattern(None, None, pattern, row=row, col=col, fill="at-most", transposable=not rows_only)
        with _progress("verifying") as progress:
            found = verify_checkpoint(
                path,
                wanted,
                include=include or (),
                exclude=exclude or (),
                threads=threads,
                progress=progress,
            )
        if as_json:
            _print_json(found.to_dict())
        else:
            show.verification(found)
        if not found.ok:
            raise typer.Exit(VIOLATION)


@app.command()
def bench(
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="A .npy file, or a checkpoint.")] = None,
    pattern: Annotated[
        list[str] | None, typer.Option("--pattern", metavar="N:M", help="Repeatable; default 2:4, 4:8, 8:16.")
    ] = None,
    shape: Annotated[
        str, typer.Option(metavar="ROWSxCOLS", help="Without PATH: size of a random matrix.")
    ] = "2048x2048",
    tensor: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Weights of the checkpoint; default: the largest. Repeatable."),
    ] = None,
    solver: Annotated[list[str] | None, typer.Option(help="Name of a solver; default: all. Repeatable.")] = None,
    fill: Annotated[Fill, typer.Option(help="Exactly N in each group, or at most N.")] = Fill.exact,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores it may use.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="A solver that takes longer is measured on its first blocks.")
    ] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Time every solver on a matrix of yours, a weight of your checkpoint, or a random matrix.

    Times are also given as a multiple of "stream": reading the matrix and writing a byte for each entry.
    """
    with _one_line_errors():
        from nmflow.bench.quick import matrices, parse_shape, quick
        from nmflow.checkpoint.plan import as_pattern
        from nmflow.cli import show

        wanted = [as_pattern(text, fill.value) for text in pattern or ("2:4", "4:8", "8:16")]
        size = parse_shape(shape)
        weights: dict[str, Any] = {}
        for each in wanted if path is not None and path.suffix != ".npy" else wanted[:1]:
            weights |= matrices(path, size, tensor or (), each)
        rows: list[dict[str, Any]] = []
        complete = False
        try:
            with _progress("measuring") as progress:
                for row in quick(
                    weights, wanted, solvers=solver or (), threads=threads, seconds=seconds, progress=progress
                ):
                    rows.append(row)
                    _check_interrupts()
            complete = True
        finally:  # what is finished is printed, whatever ends the rest
            if as_json:
                from nmflow.bench.machine import machine, versions

                _print_json({"complete": complete, "machine": machine(), "versions": versions(), "rows": rows})
            elif rows:
                show.bench(rows)


@app.command()
def export(
    src: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT)],
    dst: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    format: Annotated[str, typer.Option("--format", help="dense, nibble or cutlass-24; see docs/formats.md.")],
    masks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Masks in safetensors (BOOL, or U8 of 0 and 1) by the names of the weights."),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    pad: Annotated[bool, typer.Option("--pad", help="Fill weights up to the format's multiples with zeros.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores it may use.")] = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a checkpoint.")] = False,
    resume: Resume = False,
) -> None:
    """Store the weights of a pruned checkpoint compressed, W and its transpose, and the rest as it is.

    A weight's mask is its nonzero entries, which must keep to the pattern both ways; where zeros leave a choice, one
    is solved for, and said. Or masks are given.
    """
    with _one_line_errors():
        from nmflow.checkpoint import export_checkpoint
        from nmflow.cli import show_packed

        with _progress("exporting") as progress:
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
        if as_json:
            _print_json(report.to_dict())
        else:
            show_packed.report(report)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help=f"{CHECKPOINT} Or what export wrote.")],
    as_json: AsJson = False,
) -> None:
    """Show what a file holds: format, tensors, dtypes, shapes, sizes. Headers are read, no data."""
    with _one_line_errors():
        from nmflow.checkpoint import inspect_path
        from nmflow.cli import show_packed

        found = inspect_path(path)
        if as_json:
            _print_json(found.to_dict())
        else:
            show_packed.inspection(found)


def _verify_export(path: Path, threads: int | None, as_json: bool, has_options: bool) -> None:
    from nmflow.checkpoint import verify_packed
    from nmflow.cli import show_packed

    if has_options:
        raise InputValueError(
            f"no option but --json and --threads must be given for {path}, an export, which knows its own pattern"
        )
    with _progress("verifying") as progress:
        found = verify_packed(path, threads=threads, progress=progress)
    if as_json:
        _print_json(found.to_dict())
    else:
        show_packed.verification(found)
    if not found.ok:
        raise typer.Exit(VIOLATION)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help=CHECKPOINT)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, for example A after pruning or training.")],
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints: which weights changed, and in how many entries their masks differ (SAD, flip rate).

    The exit status is 0 if all bytes of all tensors are the same, 1 if not, 2 if that could not be found out.
    """
    with _one_line_errors():
        from nmflow.checkpoint import diff_checkpoints
        from nmflow.cli import show_diff

        with _progress("comparing") as progress:
            found = diff_checkpoints(a, b, threads=threads, progress=progress)
        if as_json:
            _print_json(found.to_dict())
        else:
            show_diff.difference(found)
        if not found.same:
            raise typer.Exit(VIOLATION)


@app.command()
def diversity(
    pattern: Annotated[str, typer.Argument(metavar="N:M", help="N kept of M consecutive, e.g. 4:8.")],
    shape: Annotated[
        str | None, typer.Option(metavar="ROWSxCOLS", help="Shape of the tensor; default: one block.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the masks that a tensor admits at a pattern: unstructured, along rows only, and in both directions."""
    with _one_line_errors():
        from nmflow.cli.counts import diversity_rows, print_diversity

        rows = diversity_rows(pattern, shape)
        if as_json:
            _print_json({"pattern": pattern, "rows": rows})
        else:
            print_diversity(rows)


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
        typer.echo(f"nmflow: {text}{_notes(error)}", err=True)
        raise typer.Exit(ERROR) from None
    except KeyboardInterrupt as error:
        typer.echo(f"nmflow: interrupted{_notes(error)}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _notes(error: BaseException) -> str:
    """What was noted on an error on its way here: how to go on."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


@contextlib.contextmanager
def _executor(engine: Engine, scheduler: str | None) -> Iterator[Executor | None]:
    """What does units of work; None for the threads of this process."""
    if (engine is Engine.dask) != (scheduler is not None):
        raise InputValueError(
            "--engine dask and --scheduler must be given together: --engine dask --scheduler tcp://host:8786"
        )
    if scheduler is None:
        yield None
        return
    from nmflow.checkpoint.cluster import dask_executor

    with dask_executor(scheduler) as executor:
        yield executor


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
