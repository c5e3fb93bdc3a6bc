"""``nmflow prune``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmflow.cli.options import (
    CHECKPOINT,
    AsJson,
    ColOption,
    Engine,
    Exclude,
    Fill,
    Include,
    Method,
    OnNonFinite,
    PatternOption,
    Resume,
    RowOption,
    RowsOnly,
    Threads,
)
from nmflow.cli.report import say_written
from nmflow.cli.terminal import on_output, print_json, progress_of, say
from nmflow.errors import InputValueError

if TYPE_CHECKING:
    from nmflow.checkpoint import Executor

__all__ = ["prune"]


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
    solver: Annotated[str, typer.Option(metavar="NAME", help="Name of the solver.")] = "dual",
    certify: Annotated[
        bool, typer.Option("--certify", help="Prove gaps for a solver that is not exact too; exact ones always do.")
    ] = False,
    keep_from: Annotated[
        Path | None,
        typer.Option(metavar="MASKS", help="A .safetensors file of masks (BOOL, or U8 of 0 and 1): entries to keep."),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    threads: Threads = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done with each tensor, and what would stop the run.")
    ] = False,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is a checkpoint or empty.")] = False,
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
    damping: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="For sparsegpt, adaprune and alps: what pulls new weights to the old ones. Default: each layer's "
            "own, by cross-validation.",
        ),
    ] = None,
) -> None:
    """Prune the weights of linear and convolution layers with the best N:M masks.

    Embeddings, norms, biases and output heads are left alone; --dry-run shows the rules and what they mean for SRC.
    """
    from nmflow.checkpoint import make_plan, prune_checkpoint
    from nmflow.checkpoint.prune import check_prune
    from nmflow.cli import show
    from nmflow.cli.methods import check_by, check_options, prune_by
    from nmflow.cli.pattern import pattern_of

    wanted = pattern_of(pattern, row, col, fill.value, rows_only)
    others = {
        "--keep-from": keep_from is not None,
        "--certify": certify,
        "--report": with_report,
        "--engine": engine is not Engine.local,
        "--scheduler": scheduler is not None,
        "--on-nonfinite": on_nonfinite is not OnNonFinite.error,
    }
    check_options(method.value, calibration, damping, others)
    if (engine is Engine.dask) != (scheduler is not None):
        raise InputValueError(
            "--engine dask and --scheduler must be given together: --engine dask --scheduler tcp://host:8786"
        )
    if dry_run:
        plan = make_plan(src, wanted, include=include or (), exclude=exclude or ())
        say(plan, as_json, show.plan)
        check_prune(
            plan, dst, solver=solver, certify=certify, keep_from=keep_from, threads=threads, overwrite=overwrite,
            resume=resume,
        )  # fmt: skip
        if calibration is not None:
            check_by(method.value, plan, calibration)
        return
    if calibration is not None:
        with progress_of("pruning") as progress:
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
                damping=damping,
                threads=threads,
                overwrite=overwrite,
                resume=resume,
            )
        with on_output():
            if as_json:
                print_json(values)
            else:
                typer.echo(text)
        return
    if with_report:
        from nmflow.checkpoint.report_plots import check_library

        check_library()  # before hours of work
    with _executor(scheduler) as executor, progress_of("pruning") as progress:
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
    say(report, as_json, show.report)
    if with_report and report.tensors:  # else there is nothing to picture, which was said
        from nmflow.checkpoint.report_html import write_reports

        say_written(write_reports(dst, report=report), as_json)


@contextlib.contextmanager
def _executor(scheduler: str | None) -> Iterator[Executor | None]:
    """What does units of work; None for the threads of this process."""
    if scheduler is None:
        yield None
        return
    from nmflow.checkpoint.cluster import dask_executor

    with dask_executor(scheduler) as executor:
        yield executor
