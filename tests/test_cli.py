"""The command line: what it prints, where, and the exit status."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from rich.console import Console
from rich.table import Table
from safetensors_files import PRUNED, leftovers, most_nonzero, read, tensors, write
from typer.testing import Result

import nmflow
from nmflow.checkpoint import export_checkpoint, masked, prune_checkpoint, verify_checkpoint
from nmflow.cli import methods
from nmflow.cli.table import print_table
from nmflow.errors import InputValueError


def assert_one_line_error(result: Result, text: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("nmflow: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"nmflow {nmflow.__version__}\n"


def test_help_names_the_commands_and_options() -> None:
    assert {"prune", "verify"} <= set(run("--help").stdout.split())
    assert {"SRC", "DST", "--include", "--exclude", "--dry-run", "--overwrite"} <= set(
        run("prune", "--help").stdout.replace("{", " ").replace("}", " ").split()
    )
    assert "nmflow bench [OPTIONS] [PATH]" in run("bench", "--help").stdout


def test_the_list_of_commands_says_all_of_what_each_does() -> None:
    listed = " ".join(run("--help").stdout.split("Commands:")[1].split())
    assert "..." not in listed
    assert "which weights changed, and in how many entries their masks differ (SAD, flip rate)." in listed


def test_prune_then_verify(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = run("prune", model, out, "--pattern", "2:4")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    for name in PRUNED:
        assert name in result.stdout
    assert "every block proven optimal" in result.stdout
    assert "copied as it is: 1 x output head (lm_head.*)" in result.stdout
    result = run("verify", out, "--pattern", "2:4")
    assert result.exit_code == 0
    assert f"{len(PRUNED)} weights at 2:4, none over" in result.stdout


def test_options_reach_the_library(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = run(
        *("prune", model, out, "--pattern", "1:4", "--fill", "at-most", "--solver", "dual", "--threads", "1"),
        *("--include", "lm_head*", "--include", "*gamma", "--exclude", "*conv*", "--exclude", "*f16*", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["pattern"] == "1:4 at-most"
    assert {tensor["name"] for tensor in report["tensors"]} == {
        name for name in PRUNED if "conv" not in name and "f16" not in name
    } | {"lm_head.weight", "encoder.gamma"}
    assert max(most_nonzero(read(out)["lm_head.weight"], 4)) == 1


def test_rows_only(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("prune", model, out, "--pattern", "2:4", "--rows-only").exit_code == 0
    assert run("verify", out, "--pattern", "2:4", "--rows-only").exit_code == 0
    assert run("verify", out, "--pattern", "2:4").exit_code == 1


def test_violation(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"w.weight": np.eye(8, dtype="f4"), "v.weight": np.ones((4, 4), "f4")})
    result = run("verify", path, "--pattern", "2:4")
    assert result.exit_code == 1
    assert "tensor 'v.weight': row 0, group 0 (entries 0 to 3) has 4 nonzero, at most 2 may be" in result.stdout
    assert "1 of 2 weights not at 2:4" in result.stdout
    result = run("verify", path, "--pattern", "2:4", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["first_violation"]["tensor"] == "v.weight"
    assert run("verify", path, "--pattern", "2:4", "--exclude", "v.*").exit_code == 0


def test_dry_run_writes_nothing(tmp_path: Path, model: Path) -> None:
    result = run("prune", model, tmp_path / "out", "--pattern", "2:4", "--dry-run")
    assert result.exit_code == 0
    assert f"{len(PRUNED)} of {len(tensors())} tensors would be pruned." in result.stdout
    assert "groups=1" in result.stdout
    assert "output head: lm_head.*" in result.stdout
    assert "Taken by name: weight *.weight *_weight" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_dry_run_names_files_that_would_be_copied(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    write(tmp_path / "hf" / "model.safetensors")
    for name in ("b.txt", "config.json"):
        (tmp_path / "hf" / name).write_text("{}")
    result = run("prune", tmp_path / "hf", tmp_path / "out", "--pattern", "2:4", "--dry-run")
    assert "Copied files: b.txt, config.json" in result.stdout.splitlines()


def test_dry_run_as_json(tmp_path: Path, model: Path) -> None:
    result = run("prune", model, tmp_path / "out", "--pattern", "2:4", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert {tensor["name"] for tensor in plan["tensors"] if tensor["pruned"]} == set(PRUNED)
    assert plan["default_exclusions"]
    assert "*.weight" in plan["weights"]


def test_dry_run_of_a_pattern_that_nothing_can_take(tmp_path: Path, model: Path) -> None:
    result = run("prune", model, tmp_path / "out", "--pattern", "16:32", "--dry-run")
    assert result.exit_code == 2
    assert "smaller than a block of 32 x 32" in result.stdout
    assert "pattern must fit at least one weight" in result.stderr


def test_dry_run_says_what_would_stop_the_run(tmp_path: Path, model: Path) -> None:
    there = write(tmp_path / "there.safetensors", {"w": np.ones((8, 8), "f4")})
    dry = ("prune", model, tmp_path / "out", "--pattern", "2:4", "--dry-run")
    for result, said in (
        (run("prune", model, there, "--pattern", "2:4", "--dry-run"), "say overwrite=True (--overwrite)"),
        (run("prune", model, model, "--pattern", "2:4", "--dry-run", "--overwrite"), "dst must not be"),
        (run(*dry, "--solver", "best"), "best"),
        (run(*dry, "--keep-from", tmp_path / "none.safetensors"), "none.safetensors"),
        (run(*dry, "--method", "wanda"), "--calibration must be given"),
        (run(*dry, "--engine", "dask"), "--engine dask and --scheduler must be given together"),
        (run(*dry, "--scheduler", "tcp://x:1"), "--engine dask and --scheduler must be given together"),
    ):
        assert result.exit_code == 2
        assert said in result.stderr
    assert run("prune", model, there, "--pattern", "2:4", "--dry-run", "--overwrite").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "there.safetensors"]


def test_json_is_all_there_is_on_standard_output(tmp_path: Path, model: Path) -> None:
    result = run("prune", model, tmp_path / "out", "--pattern", "2:4", "--json")
    report = json.loads(result.stdout)
    assert report["proven"] is True
    assert report["total"]["n_blocks"] == report["total"]["n_proven"] > 0
    assert result.stderr == ""


def test_other_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    write(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"x")
    result = run("prune", tmp_path / "hf", tmp_path / "out", "--pattern", "2:4")
    assert "not pruned: pytorch_model.bin may hold weights too" in result.stdout


def test_overwrite(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    assert run("prune", model, out, "--pattern", "2:4").exit_code == 0
    assert_one_line_error(run("prune", model, out, "--pattern", "1:4"), "--overwrite")
    other = "--pattern", "1:4", "--fill", "at-most", "--solver", "greedy"  # whose kernels fit all patterns
    assert run("prune", model, out, *other, "--overwrite").exit_code == 0
    assert run("verify", out, "--pattern", "1:4").exit_code == 0


def test_errors_are_one_line(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 100)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    assert_one_line_error(run("prune", tmp_path / "none", out, "--pattern", "2:4"), "must exist")
    assert_one_line_error(run("verify", tmp_path / "none", "--pattern", "2:4"), "must exist")
    assert_one_line_error(run("prune", tmp_path / "bad.safetensors", out, "--pattern", "2:4"), "header must be JSON")
    assert_one_line_error(run("prune", tmp_path / "pytorch_model.bin", out, "--pattern", "2:4"), "pickle")
    assert_one_line_error(run("prune", model, out, "--pattern", "2/4"), 'pattern must be "n:m"')
    assert_one_line_error(run("prune", model, out, "--pattern", "3:2"), "n must be between 1 and m=2, not 3")
    assert_one_line_error(run("prune", model, out, "--pattern", "2:4", "--solver", "x"), "solver must be one of")
    assert_one_line_error(run("prune", model, out, "--pattern", "2:4", "--include", "x"), "include must match")
    assert_one_line_error(run("prune", model, model, "--pattern", "2:4", "--overwrite"), "dst must not be src")
    assert_one_line_error(run("prune", model, tmp_path / "no" / "out", "--pattern", "2:4"), "folder that exists")
    assert_one_line_error(run("verify", model, "--pattern", "16:32"), "pattern must fit at least one weight")
    assert not out.exists()


@pytest.mark.parametrize(
    "args",
    [
        ("prune",),
        ("prune", "a", "b", "--pattern", "2:4", "--fill", "half"),
        ("prune", "a", "b", "--pattern", "2:4", "--threads", "0"),
        ("verify", "a", "--pattern", "2:4", "--nope"),
        ("polish",),
    ],
)
def test_usage_errors(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "a pattern must be given as --pattern 2:4, as --row"),
        (("--row", "2:4"), "as --row 2:4 --col 4:8, or by rows only as --row 2:4 --rows-only"),
        (("--col", "2:4"), "a pattern must be given as"),
        (("--row", "2:4", "--col", "2:4", "--rows-only"), "a pattern must be given as"),
        (("--row", "2:4", "--col", "1:4"), "(--fill at-most)"),
        (("--pattern", "2:4", "--row", "2:4"), "--pattern must be given without --row and --col"),
        (("--pattern", "2:4", "--col", "2:4"), "--pattern must be given without --row and --col"),
        (("--pattern", "2:4 at-most", "--fill", "at-most"), "--fill and --rows-only must be left out with --pattern"),
        (("--pattern", "2:4 rows only", "--rows-only"), "--fill and --rows-only must be left out with --pattern"),
    ],
)
def test_patterns_are_refused_in_the_words_of_options(
    tmp_path: Path, model: Path, options: tuple[str, ...], text: str
) -> None:
    assert_one_line_error(run("prune", model, tmp_path / "out", *options), text)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [("--row", "1:4", "--col", "2:4"), ("--pattern", "1:4", "--rows-only")])
def test_a_pattern_is_read_as_it_is_written(tmp_path: Path, model: Path, options: tuple[str, ...]) -> None:
    result = run("prune", model, tmp_path / "out", *options, "--fill", "at-most", "--solver", "greedy", "--json")
    written = json.loads(result.stdout)["pattern"]
    for command in (("verify", tmp_path / "out"), ("prune", tmp_path / "out", tmp_path / "again", "--dry-run")):
        assert run(*command, "--pattern", written).exit_code == 0
    assert run("verify", tmp_path / "out", "--pattern", "1:8").exit_code == 1


def test_operating_system_errors_are_one_line(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_tile(*args: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(masked, "write_tile", write_tile)
    assert_one_line_error(run("prune", model, tmp_path / "out", "--pattern", "2:4"), "No space left on device")


def test_defects_keep_their_trace(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "write_tile", None)
    result = run("prune", model, tmp_path / "out", "--pattern", "2:4")
    assert isinstance(result.exception, TypeError)


def test_tensor_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    name = "\x1b[31m[bold]red.weight"
    path = write(tmp_path / "x.safetensors", {name: np.ones((8, 8), "f4")})
    for result in (
        run("prune", path, tmp_path / "out", "--pattern", "2:4", "--dry-run"),
        run("prune", path, tmp_path / "out", "--pattern", "2:4"),
        run("verify", path, "--pattern", "2:4"),
    ):
        assert "\x1b" not in result.stdout + result.stderr
        assert r"x1b[31m[bold]red.weight" in result.stdout


def command(*args: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nmflow", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_no_number_is_cut_where_a_terminal_is_narrow(width: int) -> None:
    name = "encoder.layer.0.attention.output.dense.weight"
    numbers = ["10,764,288 entries", "70.336", "5.675", "all of 672,768", "1,073,741,824"]
    table = Table(title="weights")
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "kept %", "loss against\nrows-only %", "proven", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("note", overflow="fold")
    table.add_row(name, *numbers, "measured on \\[some] of its blocks")
    out = io.StringIO()
    print_table(Console(file=out, width=width, highlight=False), table)
    assert all(number in out.getvalue() for number in numbers)
    assert "…" not in out.getvalue()
    assert name in "".join(line.strip("│ ").split(" ")[0] for line in out.getvalue().splitlines())
    assert "[some]" in out.getvalue()
    assert width < 120 or max(map(len, out.getvalue().splitlines())) <= width


def printed(table: Table, width: int) -> list[str]:
    out = io.StringIO()
    print_table(Console(file=out, width=width, highlight=False), table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_table_that_does_not_fit_has_each_name_above_its_numbers() -> None:
    table = Table(title="weights")
    for heading, justify in (("tensor", "left"), ("kept entries", "right"), ("note", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_row("encoder.w", "1,234", "as it was")
    table.add_row("b", "5,678,901", "-")
    assert printed(table, 36) == [
        "weights",
        "tensor",
        "       kept",
        "    entries  note",
        "encoder.w",
        "      1,234  as it was",
        "b",
        "  5,678,901  -",
    ]
    assert "│ b         │ 5,678,901 │ -         │" in printed(table, 37)  # lines and the room beside them fit


def test_only_names_are_folded_where_a_table_fits_so() -> None:
    table = Table()
    table.add_column("tensor", overflow="fold")
    table.add_column("kept entries", justify="right")
    table.add_row(name := "encoder.layer.0.attention.output.dense.weight", "5,678,901")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(table, 45) if "│" in line]
    assert "".join(row[0] for row in rows) == name
    assert [row[1] for row in rows if row[1]] == ["5,678,901"]


def test_as_a_process(tmp_path: Path, model: Path) -> None:
    process = command("prune", model, tmp_path / "out", "--pattern", "2:4")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "every block proven optimal" in out
    process = command("verify", model, "--pattern", "2:4")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (1, "")


def test_reader_that_goes_away_is_no_violation(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"w.weight": np.eye(8, dtype="f4")})
    verify, diversity = ("verify", str(path), "--pattern", "2:4"), ("diversity", "2:4")
    for arguments in (verify, (*verify, "--json"), diversity, (*diversity, "--json"), ("--help",), ("diff", "--help")):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as closed:
            done = subprocess.run(
                [sys.executable, "-m", "nmflow.cli", *arguments],
                stdout=closed,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert (done.returncode, done.stderr) == (141, b"")  # as of a program that SIGPIPE ends


def test_streams_that_nobody_reads_change_no_exit_status(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    for line in (
        f"verify {model} --pattern 8:8 2>&-; test $? = 0",
        f"verify {tmp_path}/none --pattern 2:4 2>&-; test $? = 2",
        f"verify {model} --pattern 2:4 >&- 2>&-; test $? = 1",
        f"prune {model} {out} --pattern 2:4 >&- 2>&-; test $? = 0",
        f"verify {tmp_path}/none --pattern 2:4 2> >(exec true); test $? = 2",
    ):
        subprocess.run(["bash", "-c", f"{sys.executable} -m nmflow {line}"], check=True, timeout=300)
    assert out.is_file()


def test_a_full_disk_behind_standard_output_is_named(tmp_path: Path, model: Path) -> None:
    np.save(matrix := tmp_path / "x.npy", np.eye(4))
    bench = ("bench", str(matrix), "--pattern", "1:2", "--solver", "greedy", "--seconds", "0.01")
    for arguments in (("verify", str(model), "--pattern", "8:8"), ("diversity", "2:4"), bench):
        for option in ((), ("--json",)):
            assert_full(*arguments, *option)


def assert_full(*arguments: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nmflow", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "nmflow: [Errno 28] No space left on device: 'standard output'\n",
    )


@pytest.mark.parametrize("arguments", [("prune", "", "OUT", "--pattern", "2:4"), ("verify", ""), ("diff", ".", "")])
def test_an_empty_path_is_no_folder(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(model.parent)
    result = run(*arguments)
    assert result.exit_code == 2
    assert "No argument must be empty" in result.output
    for function in (prune_checkpoint, export_checkpoint):
        with pytest.raises(InputValueError, match='must have a path, not ""'):
            function("", tmp_path / "out", "2:4" if function is prune_checkpoint else "dense")
    with pytest.raises(InputValueError, match='must have a path, not ""'):
        verify_checkpoint("", "2:4")
    with pytest.raises(InputValueError, match=r"dst must be a path, which has no character 0, not 'a\\x00b'"):
        prune_checkpoint(model, "a\0b", "2:4")


def test_paths_are_shown_as_they_are(tmp_path: Path) -> None:
    assert_one_line_error(run("inspect", tmp_path / "two  spaces"), "two  spaces must exist")
    assert_one_line_error(run("inspect", tmp_path / "a\n\x1b[31mline"), r"a\n\x1b[31mline must exist")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_kill_leaves_nothing_or_what_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    rng = np.random.default_rng(0)
    shapes = {f"{i}.weight": (1024, 1024) for i in range(24)}
    path = write(tmp_path / "x.safetensors", {name: rng.standard_normal(s).astype("f4") for name, s in shapes.items()})
    out = tmp_path / "out"
    process = command("prune", path, out, "--pattern", "16:32", "--threads", "1")
    deadline = time.monotonic() + 120
    while not leftovers(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    # A compiler that is interrupted may grumble first.
    last = err.splitlines()[-1]
    assert last.startswith("nmflow: interrupted")
    assert not out.exists()
    assert bool(leftovers(tmp_path)) == ("tensors are done and kept in" in last)


INTERRUPTED_BEFORE_THE_COMMAND = """
import os, signal, time
import typer.core
from nmflow.cli import main

def stop(*_, **__):
    exec("os.kill(os.getpid(), signal.{0}); time.sleep(60)")

typer.core.{1} = stop
main()
"""
"""Run as a module: there Python ends as of SIGINT if an interrupt went through text that it ran."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["TyperGroup.parse_args", "TyperCommand.parse_args", "TyperGroup.__init__"])
def test_a_polite_kill_before_a_command_begins(tmp_path: Path, number: signal.Signals, place: str) -> None:
    (tmp_path / "stopped.py").write_text(INTERRUPTED_BEFORE_THE_COMMAND.format(number.name, place))
    done = subprocess.run(
        [sys.executable, "-m", "stopped", "verify", "x", "--pattern", "2:4"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(nmflow.__file__).parents[1])},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (128 + number, "nmflow: interrupted\n")


@pytest.mark.parametrize("option", [("--certify",), ("--report",), ("--scheduler", "x"), ("--on-nonfinite", "skip")])
def test_options_that_a_method_does_not_take(tmp_path: Path, model: Path, option: tuple[str, ...]) -> None:
    result = run(
        *("prune", model, tmp_path / "out", "--pattern", "2:4", "--method", "wanda", "--calibration", model), *option
    )
    assert_one_line_error(result, f"{option[0]} must be left out with --method wanda; it goes with magnitude")


def test_a_method_without_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    options = ["--method", "wanda", "--calibration", str(tmp_path), "--pattern", "2:4"]
    done = run("prune", tmp_path, tmp_path / "out", *options)
    assert done.exit_code == 2
    assert 'needs torch, which is not installed; pip install "nmflow[transformers]"' in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_help_that_nobody_can_read_is_an_error_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nmflow", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "nmflow: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("can't start new thread"), "the system must let threads start, and lets no more"),
        (MemoryError(), "there must be more memory; use fewer threads"),
    ],
)
def test_what_the_system_lacks_is_said_in_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("nmflow.checkpoint.verify_checkpoint", lacking)
    assert_one_line_error(run("verify", model, "--pattern", "2:4"), message)
