"""Every option of a command reaches the function that the command calls; and what a terminal is shown meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from command import run
from safetensors_files import write

from nmflow.cli import terminal
from nmflow.errors import NmflowError
from nmflow.pattern import Pattern

SRC, DST = Path("in"), Path("out")
NONE = {"include": (), "exclude": ()}
GLOBS = {"include": ["a*", "b*"], "exclude": ["c*"]}
GLOB_OPTIONS = ("--include", "a*", "--include", "b*", "--exclude", "c*")
PRUNE = "nmflow.checkpoint.prune_checkpoint"
EXPORT = "nmflow.checkpoint.export_checkpoint"
VERIFY = "nmflow.checkpoint.verify_checkpoint"
DIFF = "nmflow.checkpoint.diff_checkpoints"
REPORT = "nmflow.checkpoint.report_html.write_reports"


def call_of(monkeypatch: pytest.MonkeyPatch, function: str, *args: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a command gives a function, which then ends it."""
    calls = []

    def ended(*given: Any, **options: Any) -> None:
        calls.append((given, options))
        raise NmflowError("ended here")

    monkeypatch.setattr(function, ended)
    result = run(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "nmflow: ended here\n")
    ((given, options),) = calls
    # where no terminal is, it only raises what a signal raised where Python dropped it
    assert options.pop("progress", terminal.check_interrupts) is terminal.check_interrupts
    return given, options


@pytest.mark.parametrize(
    ("function", "args", "given", "options"),
    [
        (
            PRUNE, ("prune", SRC, DST, "--pattern", "2:4"), (SRC, DST, Pattern(2, 4)),
            {
                **NONE, "solver": "dual", "certify": False, "keep_from": None, "threads": None, "overwrite": False,
                "resume": False, "on_nonfinite": "error", "executor": None,
            },
        ),
        (
            PRUNE,
            (
                *("prune", SRC, DST, "--pattern", "2:4", "--fill", "at-most", "--rows-only", *GLOB_OPTIONS),
                *("--solver", "greedy", "--certify", "--keep-from", "m", "--threads", "3", "--overwrite", "--resume"),
                *("--on-nonfinite", "skip"),
            ),
            (SRC, DST, Pattern(2, 4, fill="at-most", transposable=False)),
            {
                **GLOBS, "solver": "greedy", "certify": True, "keep_from": Path("m"), "threads": 3, "overwrite": True,
                "resume": True, "on_nonfinite": "skip", "executor": None,
            },
        ),
        (
            EXPORT, ("export", SRC, DST), (SRC, DST, "dense"),
            {**NONE, "masks": None, "pad": False, "threads": None, "overwrite": False, "resume": False},
        ),
        (
            EXPORT,
            (
                *("export", SRC, DST, "--format", "nibble", "--masks", "m", *GLOB_OPTIONS, "--pad", "--threads", "3"),
                *("--overwrite", "--resume"),
            ),
            (SRC, DST, "nibble"),
            {**GLOBS, "masks": Path("m"), "pad": True, "threads": 3, "overwrite": True, "resume": True},
        ),
        (
            VERIFY, ("verify", SRC, "--row", "2:4", "--col", "1:4", *GLOB_OPTIONS, "--threads", "3"),
            (SRC, Pattern(row="2:4", col="1:4", fill="at-most")), {**GLOBS, "threads": 3},
        ),
        (VERIFY, ("verify", SRC, "--pattern", "2:4"), (SRC, Pattern(2, 4)), {**NONE, "threads": None}),
        (DIFF, ("diff", SRC, DST, "--threads", "3"), (SRC, DST), {"threads": 3}),
        (REPORT, ("report", DST), (DST,), {"source": None, "tensor": None, "block": (0, 0)}),
        (
            REPORT, ("report", DST, "--source", SRC, "--tensor", "w", "--block", "1,2,3"),
            (DST,), {"source": SRC, "tensor": "w", "block": (1, 2, 3)},
        ),
    ],
)  # fmt: skip
def test_options_reach_the_function(
    monkeypatch: pytest.MonkeyPatch, function: str, args: tuple[object, ...], given: object, options: object
) -> None:
    assert call_of(monkeypatch, function, *args) == (given, options)


def test_a_dry_run_asks_what_a_run_would(monkeypatch: pytest.MonkeyPatch) -> None:
    dry = ("prune", SRC, DST, "--pattern", "2:4", "--dry-run", *GLOB_OPTIONS)
    with monkeypatch.context() as patch:
        assert call_of(patch, "nmflow.checkpoint.make_plan", *dry) == ((SRC, Pattern(2, 4)), GLOBS)
    monkeypatch.setattr("nmflow.checkpoint.make_plan", lambda *args, **options: "plan")
    monkeypatch.setattr("nmflow.cli.show.plan", lambda plan: None)
    options = ("--solver", "greedy", "--certify", "--keep-from", "m", "--threads", "3", "--overwrite", "--resume")
    assert call_of(monkeypatch, "nmflow.checkpoint.prune.check_prune", *dry, *options) == (
        ("plan", DST),
        {
            "solver": "greedy", "certify": True, "keep_from": Path("m"), "threads": 3, "overwrite": True, "resume": True
        },
    )  # fmt: skip


def test_options_reach_a_method_that_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    asked = ("prune", SRC, DST, "--pattern", "2:4", "--method", "alps", "--calibration", "text", *GLOB_OPTIONS)
    options = ("--solver", "greedy", "--damping", "0.2", "--threads", "3", "--overwrite", "--resume")
    assert call_of(monkeypatch, "nmflow.torch.model_folder.prune_folder", *asked, *options) == (
        (SRC, DST, Pattern(2, 4), "alps", Path("text")),
        {**GLOBS, "solver": "greedy", "damping": 0.2, "threads": 3, "overwrite": True, "resume": True},
    )


def test_a_cluster_reaches_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def executor(address: str) -> Iterator[str]:
        yield f"workers of {address}"

    monkeypatch.setattr("nmflow.checkpoint.cluster.dask_executor", executor)
    asked = ("prune", SRC, DST, "--pattern", "2:4", "--engine", "dask", "--scheduler", "tcp://x:1")
    assert call_of(monkeypatch, PRUNE, *asked)[1]["executor"] == "workers of tcp://x:1"


def test_json_is_all_that_prune_prints_beside_its_pages(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmflow.checkpoint.report_plots.check_library", lambda: None)
    monkeypatch.setattr(REPORT, lambda dst, report: (dst / "page", dst / "card"))
    asked = ("prune", model, tmp_path / "out", "--pattern", "2:4", "--report", "--overwrite")
    assert json.loads(run(*asked, "--json").stdout)["proven"]
    assert run(*asked).stdout.endswith(f"wrote {tmp_path / 'out' / 'page'}\nwrote {tmp_path / 'out' / 'card'}\n")


def test_threads_reach_the_verification_of_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.checkpoint.exported_format", lambda path: "nibble")
    asked = ("verify", SRC, "--threads", "3")
    assert call_of(monkeypatch, "nmflow.checkpoint.verify_packed", *asked) == ((SRC,), {"threads": 3})
    for option in ("--include", "--exclude"):
        assert "no option but --json and --threads must be given for in" in run(*asked, option, "a*").stderr


@pytest.mark.parametrize(
    ("options", "patterns", "shape", "asked"),
    [
        ((), ("2:4", "4:8", "8:16"), (2048, 2048), {"solvers": (), "threads": None, "seconds": 0.5}),
        (
            (
                *("--pattern", "1:4", "--fill", "at-most", "--shape", "8x12", "--solver", "dual", "--threads", "3"),
                *("--seconds", "0.25"),
            ),
            ("1:4 at-most",), (8, 12), {"solvers": ["dual"], "threads": 3, "seconds": 0.25},
        ),
    ],
)  # fmt: skip
def test_options_reach_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], patterns: tuple[str, ...], shape: object, asked: object
) -> None:
    found: list[Any] = []

    def matrices(path: object, size: object, tensors: object, pattern: Pattern) -> dict[str, Any]:
        found.extend((path, size, tensors, str(pattern)))
        return {"w": 1}

    monkeypatch.setattr("nmflow.bench.quick.matrices", matrices)
    (weights, wanted), rest = call_of(monkeypatch, "nmflow.bench.quick.quick", "bench", *options)
    assert found == [None, shape, (), patterns[0]]  # the matrix is the same for all
    assert (weights, tuple(map(str, wanted)), rest) == ({"w": 1}, patterns, asked)


def test_the_benchmark_takes_the_largest_weight_of_each_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"small.weight": np.ones((8, 16), "f4"), "low.weight": np.ones((4, 64), "f4")}
    path = write(tmp_path / "x.safetensors", values)
    asked = ("bench", path, "--pattern", "4:8", "--pattern", "2:4")
    (weights, _), _ = call_of(monkeypatch, "nmflow.bench.quick.quick", *asked)
    assert list(weights) == ["small.weight", "low.weight"]


def test_a_benchmark_ends_after_the_row_in_which_an_interrupt_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts: list[int] = []
    monkeypatch.setattr(terminal, "_interrupts", interrupts)

    def quick(*args: object, **options: object) -> Iterator[dict[str, str]]:
        yield {"solver": "dual"}
        interrupts.append(signal.SIGTERM)  # as of one that a callback dropped
        yield {"solver": "greedy"}
        yield {"solver": "lp"}

    monkeypatch.setattr("nmflow.bench.quick.quick", quick)
    result = run("bench", "--shape", "4x4", "--json")
    assert (result.exit_code, result.stderr) == (128 + signal.SIGTERM, "nmflow: interrupted\n")
    made = json.loads(result.stdout)
    assert (made["complete"], made["rows"]) == (False, [{"solver": "dual"}, {"solver": "greedy"}])


class Screen(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_how_far_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(terminal, "_interrupts", [])
    with terminal.progress_of("pruning") as update:
        update("a[b]\x07.weight", 1, 4)
    shown = screen.getvalue()
    assert "pruning" in shown
    assert "25%" in shown
    assert r"a[b]\x07.weight" in shown
    terminal._interrupts.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), terminal.progress_of("pruning") as update:
        update("b.weight", 2, 4)


def test_without_a_command_all_are_listed() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.output


def test_json_never_holds_what_is_no_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        terminal.print_json({"loss": float("nan")})


def test_of_several_signals_the_last_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_interrupts", [signal.SIGINT, signal.SIGTERM])
    with pytest.raises(typer.Exit) as ended, terminal.one_line_errors():
        terminal.check_interrupts()
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "nmflow: interrupted\n"


def test_an_interrupt_that_a_callback_lost_is_kept_and_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr(sys, "__unraisablehook__", reported.append)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(terminal, "_interrupts", interrupts := [])
    terminal.catch_signals()
    kept, other = (SimpleNamespace(exc_value=error) for error in (KeyboardInterrupt(), ValueError()))
    for lost in (kept, other):
        sys.unraisablehook(lost)  # type: ignore[arg-type]
    assert reported == [kept, other]  # no signal came that could be raised again
    interrupts.append(signal.SIGINT)
    for lost in (kept, other):
        sys.unraisablehook(lost)  # type: ignore[arg-type]
    assert reported[2:] == [other]
