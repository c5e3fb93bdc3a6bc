"""Going on with an unfinished run: what is checked before it does, who may do it, and who else can do the work."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_files import PRUNED, leftovers, sharded, tensors, write
from typer.testing import CliRunner

from nmflow.checkpoint import (
    Done,
    Unit,
    engine,
    export_checkpoint,
    masked,
    prune_checkpoint,
    read_header,
    stage,
    tiles,
    work,
)
from nmflow.cli import app
from nmflow.errors import (
    ChangedError,
    CheckpointError,
    DestinationBusyError,
    DestinationExistsError,
    InputValueError,
    NonFiniteError,
    SourceNotFoundError,
)


class Stop(RuntimeError):
    pass


@pytest.fixture
def stopped(tmp_path: Path, model: Path) -> Path:
    """A stage that a stopped run left."""
    stop(model, tmp_path / "out")
    return tmp_path / ".out.nmflow"


class Stopping:
    """An executor that does some units, and stops."""

    def __init__(self, units: int) -> None:
        self.left = units

    def submit(self, function: Any, /, *args: Any) -> Future[Done]:
        future: Future[Done] = Future()
        if self.left:
            self.left -= 1
            future.set_result(function(*args))
        else:
            future.set_exception(Stop())
        return future


def stop(src: Path, out: Path, after: int = 6, **options: Any) -> None:
    """Let a run stop after some tensors."""
    with pytest.raises(Stop):
        prune_checkpoint(src, out, "2:4", executor=Stopping(after), **options)


def lines(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / "journal").read_text().splitlines()]


def finished(stage: Path) -> list[dict[str, Any]]:
    """Lines of units that are done."""
    return [line for line in lines(stage) if "written" in line]


def new_of(stage: Path) -> Path:
    """What is being built in a stage."""
    (new,) = stage.glob("new-*")
    return new


def whole(model: Path, tmp_path: Path, **options: Any) -> bytes:
    prune_checkpoint(model, tmp_path / "whole", "2:4", **options)
    return (tmp_path / "whole").read_bytes()


def test_the_journal_says_what_was_asked_for_and_what_is_done(stopped: Path) -> None:
    asked, done = lines(stopped)[0], finished(stopped)
    assert asked["command"] == "prune"
    assert asked["pattern"] == "2:4"
    assert {"read", "written"} <= done[0].keys()
    assert len(done) == 6


def test_only_what_is_left_is_done(tmp_path: Path, model: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = {line["name"] for line in finished(stopped)}
    written = []
    real = masked.write_tile

    def write_tile(file: int, start: int, *args: Any) -> None:
        written.append(start)
        real(file, start, *args)

    monkeypatch.setattr(masked, "write_tile", write_tile)
    report = prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    starts = {entry.start: entry.name for entry in read_header(model).entries}
    assert {starts[start] for start in written} == {tensor.name for tensor in report.tensors} - done
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "1:4"}, 'pattern was "2:4", not "1:4"'),
        ({"fill": "at-most"}, 'pattern was "2:4", not "2:4 at-most"'),
        ({"solver": "greedy"}, 'solver was "dual", not "greedy"'),
        ({"certify": True}, "certify was false, not true"),
        ({"exclude": ["*f32*"]}, "'encoder.f32.weight' was pruned, and is not now"),
        ({"include": ["lm_head*"]}, "'lm_head.weight' was not pruned, and is now"),
    ],
)
def test_other_options_cannot_go_on(
    tmp_path: Path, model: Path, stopped: Path, options: dict[str, Any], message: str
) -> None:
    before = lines(stopped)
    with pytest.raises(CheckpointError, match=f"unfinished run was asked for, and {re.escape(message)}"):
        prune_checkpoint(model, tmp_path / "out", **{"pattern": "2:4", **options}, resume=True)
    assert lines(stopped) == before  # and the right ones still can
    prune_checkpoint(model, tmp_path / "out", "2:4", resume=True, threads=2)
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)


def test_another_version_or_source_cannot_go_on(
    tmp_path: Path, model: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmflow.checkpoint.prune.version", lambda: "9.9")
    with pytest.raises(CheckpointError, match=r'version was ".*", not "9.9"'):
        prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    monkeypatch.undo()
    other = write(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r'source path was ".*/model.safetensors", not ".*/other.safetensors"'):
        prune_checkpoint(other, tmp_path / "out", "2:4", resume=True)
    write(model, {"x.weight": np.ones((8, 8), "f4")})
    with pytest.raises(CheckpointError, match=r"source shards model.safetensors was \[\d+, "):
        prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)


def test_without_resume_it_begins_anew(tmp_path: Path, model: Path, stopped: Path) -> None:
    prune_checkpoint(model, tmp_path / "out", "1:4")
    prune_checkpoint(model, tmp_path / "other", "1:4")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "other").read_bytes()
    assert not leftovers(tmp_path)


def test_a_line_cut_off_by_a_kill_counts_for_nothing(tmp_path: Path, model: Path, stopped: Path) -> None:
    journal = stopped / "journal"
    raw = journal.read_bytes()
    for cut in (raw[:-1], raw[:-30], raw + b'{"shard": "x', raw + b"\0\0\0", raw[:40], b""):
        stopped.mkdir(exist_ok=True)
        journal.write_bytes(cut)
        prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
        assert (tmp_path / "out").read_bytes() == whole(model, tmp_path, overwrite=True)
        (tmp_path / "out").unlink()


def test_a_line_that_was_changed_counts_for_nothing(tmp_path: Path, model: Path, stopped: Path) -> None:
    journal, expected = stopped / "journal", whole(model, tmp_path)
    asked, done = lines(stopped)[0], finished(stopped)
    pruned = next(line for line in done if line["row"])
    for changed in (
        {},
        {"published": None},
        {"shard": [1]},
        {**pruned, "row": 5},
        {**pruned, "row": {**pruned["row"], "kept": "much"}},
        {**pruned, "more": 1},
    ):
        stopped.mkdir(exist_ok=True)
        journal.write_text("".join(json.dumps(line) + "\n" for line in (asked, changed, *done)))
        report = prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
        assert report.proven
        assert (tmp_path / "out").read_bytes() == expected
        (tmp_path / "out").unlink()


def test_what_is_staged_is_checked(tmp_path: Path, model: Path, stopped: Path) -> None:
    """A power failure may take back what the journal speaks of."""
    expected = whole(model, tmp_path)
    staged = new_of(stopped)
    size = staged.stat().st_size
    done = {line["name"] for line in finished(stopped)}
    with staged.open("r+b") as file:
        for entry in read_header(model).entries:
            if entry.name in done and entry.n_bytes:
                file.seek(entry.stop - 1)
                file.write(b"\x55")
    prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    assert (tmp_path / "out").read_bytes() == expected
    assert len(expected) == size


def test_a_staged_file_that_went_away_is_made_again(tmp_path: Path, model: Path, stopped: Path) -> None:
    new_of(stopped).unlink()
    prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)


def test_a_source_that_changed_is_an_error(tmp_path: Path, model: Path, stopped: Path) -> None:
    name = next(line["name"] for line in finished(stopped) if line["row"])
    entry = next(entry for entry in read_header(model).entries if entry.name == name)
    before = model.read_bytes()
    with model.open("r+b") as file:
        file.seek(entry.start)
        file.write(b"\x01")
    with pytest.raises(ChangedError, match=re.escape(f"tensor {name!r} must not have changed since the unfinished")):
        prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    assert not (tmp_path / "out").exists()
    model.write_bytes(before)  # what was done is still there
    prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)
    assert not leftovers(tmp_path)


def test_masks_are_part_of_what_was_read(tmp_path: Path, model: Path) -> None:
    weights = tensors()
    keep = {name: np.zeros(weights[name].shape, bool) for name in PRUNED}
    masks = write(tmp_path / "masks.safetensors", keep)
    stop(model, tmp_path / "out", keep_from=masks)
    name = next(line["name"] for line in finished(tmp_path / ".out.nmflow") if line["row"])
    keep[name].flat[0] = True
    write(masks, keep)
    with pytest.raises(CheckpointError, match=f"{name}' must not have changed"):
        prune_checkpoint(model, tmp_path / "out", "2:4", keep_from=masks, resume=True)


def test_resume_over_something(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(model, out, "1:4")
    old = out.read_bytes()
    stop(model, out, overwrite=True)
    assert out.read_bytes() == old
    with pytest.raises(DestinationExistsError):
        prune_checkpoint(model, out, "2:4", resume=True)
    assert out.read_bytes() == old
    prune_checkpoint(model, out, "2:4", resume=True, overwrite=True)
    assert out.read_bytes() == whole(model, tmp_path)


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    src, out = sharded(tmp_path / "hf"), tmp_path / "out"
    report = prune_checkpoint(src, out, "2:4")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (tmp_path / ".out.nmflow").mkdir()  # as a kill at the very end leaves it
    again = prune_checkpoint(src, out, "2:4", resume=True)
    assert again == report
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not leftovers(tmp_path)
    asked = re.escape(f'resume must be asked for what the run that finished {out} was asked for, and pattern was "2:4"')
    with pytest.raises(DestinationExistsError, match=asked):
        prune_checkpoint(src, out, "1:4", resume=True)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    whole_report = json.loads((out / "nmflow-report.json").read_text())
    for change in ({"keep_from": ...}, {"pruned": [["x"]]}, {"of_another_version": None}):
        asked_then = {key: value for key, value in {**whole_report["asked"], **change}.items() if value is not ...}
        (out / "nmflow-report.json").write_text(json.dumps({**whole_report, "asked": asked_then}))
        with pytest.raises(DestinationExistsError, match="resume must be asked for what the run that finished"):
            prune_checkpoint(src, out, "2:4", resume=True)
    (out / "nmflow-report.json").write_text(json.dumps(whole_report))
    assert prune_checkpoint(src, out, "2:4", resume=True, on_nonfinite="skip") == report
    for text in ("[]", "{", '{"asked": 1}'):
        (out / "nmflow-report.json").write_text(text)
        with pytest.raises(DestinationExistsError):
            prune_checkpoint(src, out, "2:4", resume=True)


def test_a_source_may_be_named_in_another_way(tmp_path: Path) -> None:
    src, out, masks = sharded(tmp_path / "hf"), tmp_path / "out", tmp_path / "masks.safetensors"
    write(masks, {"encoder.f32.weight": np.zeros((12, 8), bool)})
    report = prune_checkpoint(src, out, "2:4", keep_from=masks)
    (tmp_path / "latest").symlink_to("hf")
    again = prune_checkpoint(tmp_path / "latest", out, "2:4", keep_from=src / ".." / masks.name, resume=True)
    assert again == report


def test_resume_says_that_there_is_no_run_of_what_holds_no_record_of_one(model: Path, tmp_path: Path) -> None:
    pruned, packed = tmp_path / "pruned.safetensors", tmp_path / "packed"
    prune_checkpoint(model, pruned, "2:4", resume=True)
    export_checkpoint(pruned, packed, "dense", resume=True)
    before = pruned.read_bytes(), sorted(packed.iterdir())
    found = (
        "resume must find an unfinished run, and there is none of .*{}, which exists; .* nothing is left to do, else"
    )
    with pytest.raises(DestinationExistsError, match=found.format(pruned.name)):
        prune_checkpoint(model, pruned, "2:4", resume=True)
    with pytest.raises(DestinationExistsError, match=found.format(packed.name)):
        export_checkpoint(pruned, packed, "dense", resume=True)
    assert (pruned.read_bytes(), sorted(packed.iterdir())) == before
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shard", "tensor '.*' is not what was written"),
        ("short", "tensor '.*' is not what was written"),
        ("header", "the header of .* is another"),
        ("missing", "model-00001-of-00002.safetensors is gone"),
        ("other", "model.safetensors.index.json is gone"),
        ("emptied", "out/model.safetensors.index.json is not what .*hf/model.safetensors.index.json is"),
        ("source", "tensor '.*' is not what was read"),
    ],
)
def test_a_finished_folder_is_read_again(tmp_path: Path, change: str, message: str) -> None:
    src, out = sharded(tmp_path / "hf"), tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    shard = out / "model-00001-of-00002.safetensors"
    place = read_header(shard).entries[0]
    if change == "missing":
        shard.unlink()
    elif change == "other":
        (out / "model.safetensors.index.json").unlink()
    elif change == "emptied":
        (out / "model.safetensors.index.json").write_text("")
    elif change == "short":
        os.truncate(shard, place.stop)
    else:
        path, at = (src / shard.name if change == "source" else shard), (place.start if change != "header" else 60)
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        if change == "header":  # still a sound file
            raw = bytearray(path.read_bytes().replace(b'{"format":"pt"}', b'{"format":"np"}'))
        path.write_bytes(raw)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    which = "the source of it" if change == "source" else "it"
    with pytest.raises(
        CheckpointError, match=f"resume must find .*out as it was finished, and {which} was changed since: .*{message}"
    ):
        prune_checkpoint(src, out, "2:4", resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("command", ["prune", "export"])
def test_what_was_published_before_a_kill_is_read_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    src, out = (model if command == "prune" else tmp_path / "pruned"), tmp_path / "out"
    prune_checkpoint(model, tmp_path / "pruned", "2:4")

    def run(**options: Any) -> None:
        prune_checkpoint(src, out, "2:4", **options) if command == "prune" else export_checkpoint(
            src, out, "dense", **options
        )

    def killed(path: Path) -> None:
        raise Stop

    for changed in (False, True):
        monkeypatch.setattr(stage, "sync_folder", killed)
        with pytest.raises(Stop):
            run(overwrite=changed)
        monkeypatch.undo()
        shard = out if out.is_file() else out / "pruned"
        if changed:
            with shard.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x55")
            with pytest.raises(CheckpointError, match="is not what was written"):
                run(resume=True)
        else:
            run(resume=True)
        assert not leftovers(tmp_path)


def test_skipped_tensors_resume_too(tmp_path: Path) -> None:
    weights = {f"{i}.weight": np.ones((8, 8), "f4") for i in range(4)}
    weights["0.weight"][1, 2] = np.nan
    src = write(tmp_path / "x.safetensors", weights)
    stop(src, tmp_path / "out", after=2, on_nonfinite="skip")
    report = prune_checkpoint(src, tmp_path / "out", "2:4", on_nonfinite="skip", resume=True)
    assert report.skipped == (("0.weight", "NaN or infinite at 1 of 64 entries"),)
    assert len(report.tensors) == 3
    assert (tmp_path / "out").read_bytes() == whole(src, tmp_path, on_nonfinite="skip")
    result = CliRunner().invoke(
        app, ["prune", str(src), str(tmp_path / "cli"), "--pattern", "2:4", "--on-nonfinite", "skip"]
    )
    assert result.exit_code == 0
    assert "copied as it is: 1 x NaN or infinite at 1 of 64 entries" in result.stdout
    for choice in ("maybe", np.array(["error", "skip"])):
        with pytest.raises(InputValueError, match='on_nonfinite must be "error" or "skip", not '):
            prune_checkpoint(src, tmp_path / "none", "2:4", on_nonfinite=choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("skip", [False, True], ids=["repaired", "skipped"])
def test_what_was_done_before_nan_is_kept(tmp_path: Path, skip: bool) -> None:
    weights = {f"{i}.weight": np.full((8, 8), i, "f4") for i in range(4)}
    src = write(tmp_path / "x.safetensors", weights)
    sound = src.read_bytes()
    weights["3.weight"][1, 2] = np.nan
    write(src, weights)
    out = tmp_path / "out"
    with pytest.raises(NonFiniteError, match=r"'3.weight' must be finite") as caught:
        prune_checkpoint(src, out, "2:4", threads=1)
    # two units are on their way at a time, so that at least one is done before the last begins
    (note,) = caught.value.__notes__
    assert re.match(r"[123] tensors are done and kept in .*\(--resume\)", note)
    assert not out.exists()
    with pytest.raises(NonFiniteError, match=r"'3.weight' must be finite"):
        prune_checkpoint(src, out, "2:4", resume=True)
    inode = new_of(tmp_path / ".out.nmflow").stat().st_ino
    if not skip:
        src.write_bytes(sound)
    options: dict[str, Any] = {"on_nonfinite": "skip"} if skip else {}
    report = prune_checkpoint(src, out, "2:4", resume=True, **options)
    assert report.skipped == ((("3.weight", "NaN or infinite at 1 of 64 entries"),) if skip else ())
    assert out.stat().st_ino == inode
    assert out.read_bytes() == whole(src, tmp_path, **options)
    assert not leftovers(tmp_path)


def test_what_was_skipped_is_an_error_once_it_may_not_be(tmp_path: Path) -> None:
    weights = {f"{i}.weight": np.ones((8, 8), "f4") for i in range(4)}
    weights["0.weight"][1, 2] = np.inf
    src = write(tmp_path / "x.safetensors", weights)
    stop(src, tmp_path / "out", after=2, on_nonfinite="skip")
    assert any(line["reason"] for line in finished(tmp_path / ".out.nmflow"))
    with pytest.raises(NonFiniteError, match=r"'0.weight' must be finite"):
        prune_checkpoint(src, tmp_path / "out", "2:4", resume=True)
    assert not (tmp_path / "out").exists()


def test_what_was_finished_with_weights_skipped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a.weight": np.ones((8, 8)), "b.weight": np.full((8, 8), np.nan)}
    src, out = write(tmp_path / "x.safetensors", weights), tmp_path / "out"

    def killed(path: Path) -> None:
        raise Stop

    for options in ({"on_nonfinite": "skip"}, {}):
        with monkeypatch.context() as patch:
            patch.setattr(stage, "sync_folder", killed)
            with pytest.raises(Stop):
                prune_checkpoint(src, out, "2:4", on_nonfinite="skip", overwrite=True)
        before = out.read_bytes()
        if options:
            prune_checkpoint(src, out, "2:4", resume=True, **options)  # type: ignore[arg-type]
        else:
            with pytest.raises(CheckpointError, match="finished by a run that copied weights that are not finite"):
                prune_checkpoint(src, out, "2:4", resume=True)
        assert out.read_bytes() == before
        assert not leftovers(tmp_path)


# The lock.


def test_one_process_at_a_time(tmp_path: Path, model: Path) -> None:
    stage = tmp_path / ".out.nmflow"
    stage.mkdir()
    with (stage / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for resume in (True, False):
            with pytest.raises(
                DestinationBusyError, match=r"by one process at a time, and another is at work on .*out"
            ):
                prune_checkpoint(model, tmp_path / "out", "2:4", resume=resume)
        result = CliRunner().invoke(app, ["prune", str(model), str(tmp_path / "out"), "--pattern", "2:4"])
        assert result.exit_code == 2
        assert "wait until it is done" in result.stderr
        prune_checkpoint(model, tmp_path / "other", "2:4")  # which is another destination
    prune_checkpoint(model, tmp_path / "out", "2:4")
    assert not leftovers(tmp_path)


def test_many_at_once_and_one_gets_through(tmp_path: Path, model: Path) -> None:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(prune_checkpoint(model, tmp_path / "out", "2:4"))
        except (DestinationBusyError, DestinationExistsError) as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)
    assert not leftovers(tmp_path)


# Disks.


def test_a_file_too_large_for_the_disk_is_an_error_before_any_work(tmp_path: Path, model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large") as caught:
            prune_checkpoint(model, tmp_path / "out", "2:4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not leftovers(tmp_path)


def test_a_full_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    src = write(tmp_path / "x.safetensors", {f"{i}.weight": rng.standard_normal((128, 256)) for i in range(8)})
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("this process may not mount a small disk")
    try:
        with pytest.raises(OSError, match=r"No space left on device, at tensor '\d.weight': '.*/new-.*'") as caught:
            prune_checkpoint(src, disk / "out", "2:4", threads=1)
        assert caught.value.errno == errno.ENOSPC
        assert not (disk / "out").exists()
        result = CliRunner().invoke(app, ["prune", str(src), str(disk / "out"), "--pattern", "2:4", "--resume"])
        assert result.exit_code == 2
        assert "tensors are done and kept in" in result.stderr
        assert result.stderr.count("\n") == 1
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        prune_checkpoint(src, disk / "out", "2:4", resume=True)
        assert (disk / "out").read_bytes() == whole(src, tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(InputValueError, match=r"can be written to, and .*disk cannot: Read-only"):
            prune_checkpoint(src, disk / "other", "2:4")
    finally:
        subprocess.run(["umount", disk], check=True)


# Executors.


def test_other_processes_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = sharded(tmp_path / "hf")
    prune_checkpoint(src, tmp_path / "here", "2:4")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        report = prune_checkpoint(src, tmp_path / "there", "2:4", executor=executor)
        broken = write(tmp_path / "nan.safetensors", {"w.weight": np.full((8, 8), np.nan, "f4")})
        with pytest.raises(NonFiniteError, match="at 64 of 64 entries") as caught:
            prune_checkpoint(broken, tmp_path / "none", "2:4", executor=executor)
        assert (caught.value.count, caught.value.first) == (64, (0, 0))
    for path in (tmp_path / "here").iterdir():
        if path.name != "nmflow-report.json":
            assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    assert report.proven
    assert not leftovers(tmp_path)


class Awkward:
    """An executor that does everything twice."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.pool = ThreadPoolExecutor(1)

    def submit(self, function: Any, /, *args: Any) -> Future[Done]:
        self.units.append(args[0])

        def twice() -> Done:
            function(*args)
            return function(*args)  # type: ignore[no-any-return]

        return self.pool.submit(twice)


class Echo(Future[Done]):
    """A future that calls back twice."""

    def add_done_callback(self, fn: Any) -> None:
        super().add_done_callback(fn)
        super().add_done_callback(fn)


class Echoing:
    """An executor whose first futures call back before the last are submitted, each twice."""

    def submit(self, function: Any, /, *args: Any) -> Future[Done]:
        future = Echo()
        future.set_result(function(*args))
        return future


def test_told_twice_is_done_once(tmp_path: Path, model: Path) -> None:
    """The last units were not waited for, and an export had zeros in their place."""
    prune_checkpoint(model, tmp_path / "out", "2:4", executor=Echoing())
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)


def test_done_twice_is_done_once(tmp_path: Path, model: Path) -> None:
    executor = Awkward()
    prune_checkpoint(model, tmp_path / "out", "2:4", executor=executor)
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)
    assert {unit.entry.name for unit in executor.units} == set(tensors())
    executor.pool.shutdown()


def test_a_worker_that_does_not_see_the_files(tmp_path: Path, model: Path) -> None:
    executor = Awkward()
    prune_checkpoint(model, tmp_path / "out", "2:4", executor=executor)
    with pytest.raises(
        SourceNotFoundError, match="must be there for every process that works on it; put it back, or use storage"
    ):
        work(executor.units[0])  # the stage is gone
    executor.pool.shutdown()


@pytest.mark.parametrize("error", [ConnectionError("lost"), SourceNotFoundError("lost")])
def test_an_executor_that_fails_leaves_what_is_done(tmp_path: Path, model: Path, error: Exception) -> None:
    class Failing(Awkward):
        def submit(self, function: Any, /, *args: Any) -> Future[Done]:
            if len(self.units) == 9:
                future: Future[Done] = Future()
                self.pool.submit(lambda: future.set_exception(error))
                return future
            return super().submit(function, *args)

    executor = Failing()
    with pytest.raises(type(error), match="lost"):
        prune_checkpoint(model, tmp_path / "out", "2:4", executor=executor)
    executor.pool.shutdown()
    assert leftovers(tmp_path)
    prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    assert (tmp_path / "out").read_bytes() == whole(model, tmp_path)


class Fetched:
    """An executor whose pool has fetched all units: the first fails, the others wait and cannot be cancelled."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def submit(self, function: Any, /, *args: Any) -> Future[Done]:
        future: Future[Done] = Future()
        future.set_running_or_notify_cancel()
        if not self.units:
            future.set_exception(Stop())
        self.units.append(args[0])
        return future


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_worker_that_is_late_finds_nothing_of_the_next_run(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    src, out = (model if kind == "file" else sharded(tmp_path / "hf")), tmp_path / "out"
    monkeypatch.setattr(engine, "PATIENCE", 0.01)
    executor = Fetched()
    with pytest.raises(Stop):
        prune_checkpoint(src, out, "1:4", executor=executor)

    def late(name: str, done: int, total: int) -> None:
        if done == total:
            for unit in executor.units[1:]:
                with pytest.raises(SourceNotFoundError):
                    work(unit)

    prune_checkpoint(src, out, "2:4", progress=late)
    prune_checkpoint(src, tmp_path / "whole", "2:4")
    for path in [out] if out.is_file() else out.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(out)).read_bytes()


def test_a_worker_that_is_late_writes_nothing_into_the_run_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its file open and its piece solved, of a weight that was trained on since."""
    rng = np.random.default_rng(0)
    src, out = tmp_path / "x.safetensors", tmp_path / "out"
    weights = {f"{name}.weight": rng.standard_normal((32, 32)).astype("f4") for name in "cba"}
    write(src, {**weights, "a.weight": np.full((32, 32), np.nan, "f4")})
    real, reached, released, late = masked.write_tile, threading.Event(), threading.Event(), list[threading.Thread]()

    def write_tile(file: int, start: int, shape: Any, *rest: Any) -> None:
        if not released.is_set() and start == places["b.weight"]:
            reached.set()
            released.wait(60)
        real(file, start, shape, *rest)

    class Late:
        """What it cancels goes on, as on a Dask cluster."""

        def submit(self, function: Any, /, unit: Unit) -> Future[Done]:
            future: Future[Done] = Future()
            if unit.entry.name == "b.weight":
                late.append(threading.Thread(target=function, args=(unit,)))
                late[0].start()
                assert reached.wait(60)
                return future
            try:
                future.set_result(function(unit))
            except NonFiniteError as error:
                future.set_exception(error)
            return future

    places = {entry.name: entry.start for entry in read_header(src).entries}
    monkeypatch.setattr(masked, "write_tile", write_tile)
    with pytest.raises(NonFiniteError, match=r"'a.weight' must be finite"):
        prune_checkpoint(src, out, "2:4", executor=Late())
    monkeypatch.setattr(masked, "write_tile", real)
    assert [line["name"] for line in finished(tmp_path / ".out.nmflow")] == ["c.weight"]
    before = new_of(tmp_path / ".out.nmflow").stat().st_ino
    write(src, {**weights, "b.weight": weights["b.weight"] + 1})
    prune_checkpoint(src, out, "2:4", resume=True)
    assert out.stat().st_ino != before
    expected = whole(src, tmp_path)
    assert out.read_bytes() == expected
    released.set()
    late[0].join()
    assert out.read_bytes() == expected
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("command", ["prune", "export"])
def test_what_others_may_still_work_on_is_copied_if_their_work_would_be_another(
    tmp_path: Path, kind: str, command: str
) -> None:
    src = write(tmp_path / "x.safetensors") if kind == "file" else sharded(tmp_path / "hf")
    if command == "export":
        prune_checkpoint(src, tmp_path / "pruned", "2:4")
        src = tmp_path / "pruned"

    def run(out: Path, **options: Any) -> None:
        if command == "prune":
            prune_checkpoint(src, out, "2:4", **options)
        else:
            export_checkpoint(src, out, "dense", **options)

    stage = tmp_path / ".out.nmflow"
    with pytest.raises(Stop):
        run(tmp_path / "out", executor=Stopping(6))
    names = [new_of(stage).name]
    for changed in (False, True):
        if changed:
            shard = min(src.glob("*.safetensors")) if src.is_dir() else src
            os.utime(shard, (1, 1))
        with pytest.raises(Stop):
            run(tmp_path / "out", executor=Stopping(1), resume=True)
        names.append(new_of(stage).name)
    assert names[0] == names[1] != names[2]
    assert len(finished(stage)) >= 6
    with pytest.raises(Stop):  # what it builds now is known from the journal
        run(tmp_path / "out", executor=Stopping(1), resume=True)
    assert new_of(stage).name == names[2]
    run(tmp_path / "out", resume=True)
    run(tmp_path / "all")
    for path in [tmp_path / "out"] if (tmp_path / "out").is_file() else (tmp_path / "out").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "all" / path.relative_to(tmp_path / "out")).read_bytes()
    assert not leftovers(tmp_path)


def test_an_error_waits_for_what_is_at_work_and_keeps_it(tmp_path: Path, model: Path) -> None:
    futures: list[Future[Done]] = []

    class Slow(Awkward):
        def submit(self, function: Any, /, *args: Any) -> Future[Done]:
            def slowly() -> Done:
                time.sleep(0.3)
                return function(*args)  # type: ignore[no-any-return]

            futures.append(self.pool.submit(slowly))
            if len(futures) < 3:
                return futures[-1]
            future: Future[Done] = Future()
            future.set_exception(Stop())
            return future

    executor = Slow()
    with pytest.raises(Stop):
        prune_checkpoint(model, tmp_path / "out", "2:4", executor=executor)
    executor.pool.shutdown(cancel_futures=True)
    begun = [future for future in futures[:2] if not future.cancelled()]
    assert begun
    assert all(future.done() for future in begun)
    names = {line["name"] for line in finished(tmp_path / ".out.nmflow")}
    assert names == {future.result().name for future in begun}


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes; pytest would keep them."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_tensor(large: Path) -> None:
    """0.5 GB in one bfloat16 tensor, and a tall and a wide one: 200 MB at most over what the libraries take."""
    header, data = {}, 0
    for name, shape in (("big.weight", (8192, 30720)), ("wide.weight", (4, 1 << 21)), ("tall.weight", (1 << 21, 4))):
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [data, data + size]}
        data += size
    text = json.dumps(header).encode()
    block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    raw = (block.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (large / "x.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, data, len(raw)):
            file.write(raw[: data - start])
    code = """
import resource, sys
import numpy as np, nmflow, ml_dtypes, xxhash
from nmflow.checkpoint import diff_checkpoints, export_checkpoint, prune_checkpoint, verify_checkpoint, verify_packed
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
src, out, packed = sys.argv[1:]
for rows in (True, False):
    nmflow.solve(np.zeros((8, 8), ml_dtypes.bfloat16), 2, 4, transposable=rows)
base = peak()
two = {"threads": 2}  # each has tiles of its own
steps = [lambda: prune_checkpoint(src, out, "2:4", **two), lambda: verify_checkpoint(out, "2:4", **two),
         lambda: diff_checkpoints(src, out, **two),
         lambda: export_checkpoint(out, packed, "nibble", pad=True, **two), lambda: verify_packed(packed, **two)]
for step in steps:
    assert getattr(step(), "ok", True)
    print(peak() - base)
"""
    args = [large / "x.safetensors", large / "out.safetensors", large / "packed"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [int(line) for line in done.stdout.split()]
    assert len(found) == 5
    assert max(found) <= 200, found
    assert os.path.getsize(large / "x.safetensors") >= 1 << 29
    assert tiles.TILE_BYTES < 1 << 24


@pytest.mark.parametrize("side", [8, 1500])
def test_a_folder_that_was_finished_with_weights_skipped_is_not_one_without(tmp_path: Path, side: int) -> None:
    """Whether it was read in one piece or several; what was skipped is known from the report."""
    weights = np.ones((side, side), "f4")
    weights[3, 3] = np.nan
    (tmp_path / "hf").mkdir()
    write(tmp_path / "hf" / "model.safetensors", {"a.weight": weights, "b.weight": np.ones((8, 8), "f4")})
    out = tmp_path / "out"
    report = prune_checkpoint(tmp_path / "hf", out, "2:4", on_nonfinite="skip")
    assert [name for name, _ in report.skipped] == ["a.weight"]
    assert prune_checkpoint(tmp_path / "hf", out, "2:4", on_nonfinite="skip", resume=True) == report
    with pytest.raises(DestinationExistsError, match='on_nonfinite was "skip", not "error"'):
        prune_checkpoint(tmp_path / "hf", out, "2:4", resume=True)


def test_a_folder_that_was_published_before_a_kill_leaves_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report says that it is finished; so does the journal, which is what `resume` must go by."""
    src, out = sharded(tmp_path / "hf"), tmp_path / "out"

    def killed(path: Path) -> None:
        raise Stop

    monkeypatch.setattr(stage, "sync_folder", killed)
    with pytest.raises(Stop):
        prune_checkpoint(src, out, "2:4")
    monkeypatch.undo()
    assert (out / "nmflow-report.json").is_file()
    prune_checkpoint(src, out, "2:4", resume=True)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"sums": ...}, {"sums": None}, {"sums": [["x"]]}, {"sums": []}, {"asked": ...}, {"asked": ["pattern"]}],
    ids=str,
)
def test_a_report_without_sums_is_of_no_finished_run(tmp_path: Path, change: dict[str, Any]) -> None:
    src, out = sharded(tmp_path / "hf"), tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    path = out / "nmflow-report.json"
    found = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))
    with pytest.raises(DestinationExistsError, match="resume must find an unfinished run, and there is none"):
        prune_checkpoint(src, out, "2:4", resume=True)


def test_a_copied_file_that_changed_at_the_same_size_and_time_is_found(tmp_path: Path) -> None:
    """Copies have the times of what they are copies of: only their bytes tell."""
    src, out = sharded(tmp_path / "hf"), tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    path, original = out / "model.safetensors.index.json", src / "model.safetensors.index.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    os.utime(path, ns=(original.stat().st_atime_ns, original.stat().st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"is not what .*hf/model.safetensors.index.json is"):
        prune_checkpoint(src, out, "2:4", resume=True)
