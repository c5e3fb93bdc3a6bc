"""What is read, and what is somebody else's, is never lost or mixed up, whatever happens while pruning."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_files import leftovers, read, snapshot, write
from typer.testing import CliRunner

from nmflow.checkpoint import (
    diff_checkpoints,
    disk,
    export_checkpoint,
    journal,
    keep,
    open_source,
    prune_checkpoint,
    report_file,
    stage,
    verify_checkpoint,
    verify_packed,
    write_reports,
)
from nmflow.checkpoint.replace import replace_tensors
from nmflow.checkpoint.report import RECORDS
from nmflow.cli import app
from nmflow.errors import (
    ChangedError,
    CheckpointError,
    DestinationExistsError,
    InputTypeError,
    InputValueError,
    NonFiniteError,
)
from nmflow.formats import get


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A checkpoint in a folder, with a file and a folder beside the weights."""
    root = tmp_path / "hf"
    (root / "sub").mkdir(parents=True)
    write(root / "model.safetensors")
    (root / "config.json").write_text("{}")
    (root / "sub" / "notes").write_text("mine")
    return root


@pytest.mark.parametrize("name", ["overwrite", "resume", "certify", "pad"])
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_flag_that_is_no_bool_replaces_nothing(tmp_path: Path, model: Path, name: str, value: Any) -> None:
    out = tmp_path / "out"
    prune_checkpoint(model, out, "2:4")
    before = snapshot(tmp_path)
    for function, kind in ((prune_checkpoint, "2:4"), (export_checkpoint, "nibble")):
        if name != ("pad" if function is prune_checkpoint else "certify"):
            with pytest.raises(InputTypeError, match=f"{name} must be True or False, not {value!r}"):
                function(out, model, kind, **{name: value})  # type: ignore[operator]
    assert snapshot(tmp_path) == before
    with pytest.raises(InputTypeError, match="pad must be True or False, not "):
        get("nibble").encode(np.eye(8, dtype="f4"), np.eye(8) > 0, pad=value)


# A source that is another in the middle of a run.


def other_of(path: Path) -> Path:
    """A file of the same size and names, in another order."""
    values = {f"{i}.weight": np.full((8, 8), 1.0 + i, "f4") for i in range(6)}
    other = write(path.with_name("other"), dict(reversed([(name, value + 10) for name, value in values.items()])))
    write(path, values)
    assert other.stat().st_size == path.stat().st_size
    return other


@pytest.mark.parametrize("at", [1, 6, 7], ids=["early", "after the last tensor", "at the end"])
@pytest.mark.parametrize("how", ["replace", "replace as old", "touch"])
def test_a_source_that_changes_meanwhile(tmp_path: Path, at: int, how: str) -> None:
    src, calls = tmp_path / "src.safetensors", []
    other = other_of(src)

    def progress(name: str, done: int, total: int) -> None:
        calls.append(name)
        if len(calls) != at:
            return
        info = src.stat()
        if how == "touch":
            os.utime(src)
            return
        os.replace(other, src)
        if how == "replace as old":
            os.utime(src, ns=(info.st_atime_ns, info.st_mtime_ns))

    def run(resume: bool = False) -> None:
        prune_checkpoint(src, tmp_path / "out", "2:4", threads=1, resume=resume, progress=progress)

    if at == 7:  # everything was read
        run()
        assert (read(tmp_path / "out")["0.weight"] <= 1).all()
        return
    with pytest.raises(
        ChangedError, match=r"src.safetensors must not change while it is read, and it was replaced"
    ) as caught:
        run()
    assert not (tmp_path / "out").exists()
    assert "(--resume) goes on from there" in caught.value.__notes__[0]
    if how != "touch":
        with pytest.raises(CheckpointError, match=r"src.safetensors"):
            run(resume=True)
        if at == 1:  # some of the other may have been read
            return
        other_of(src)
    run(resume=True)
    prune_checkpoint(src, tmp_path / "whole", "2:4")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not leftovers(tmp_path)


def test_a_source_that_is_another_before_it_is_read(tmp_path: Path, model: Path) -> None:
    source = open_source(model)
    write(model, {"w.weight": np.ones((8, 8), "f4")})
    with pytest.raises(CheckpointError, match=r"model.safetensors must not change while it is read"):
        stage.start_shard(source.shards[0], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"model.safetensors must not change while it is read"):
        replace_tensors(source, tmp_path / "out", {}, {})
    assert not leftovers(tmp_path)


def test_a_source_that_goes_away(tmp_path: Path) -> None:
    src = write(tmp_path / "src", {"w.weight": np.ones((8, 8), "f4")})
    with pytest.raises(CheckpointError, match="src must not change while it is read, and it was removed"):
        prune_checkpoint(src, tmp_path / "out", "2:4", progress=lambda *args: src.unlink(missing_ok=True))


def test_what_is_only_read_must_not_change_either(tmp_path: Path, model: Path) -> None:
    copy = write(tmp_path / "copy")
    change = r"copy must not change while it is read, and it was replaced or written to"
    with pytest.raises(CheckpointError, match=change):
        verify_checkpoint(copy, "8:8", progress=lambda *args: os.utime(copy))
    with pytest.raises(CheckpointError, match=change):
        diff_checkpoints(model, copy, progress=lambda *args: os.utime(copy))
    export_checkpoint(model, tmp_path / "packed", "dense")
    shard = tmp_path / "packed" / model.name
    with pytest.raises(CheckpointError, match="must not change while it is read"):
        verify_packed(tmp_path / "packed", progress=lambda *args: os.utime(shard))


@pytest.mark.parametrize("command", ["prune", "export"])
def test_masks_that_change_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    values = {"w.weight": np.ones((8, 8), "f4")}
    src = write(tmp_path / "src", values)
    masks = write(tmp_path / "masks", {name: np.tile(np.eye(4, dtype=bool), (2, 2)) for name in values})

    def run(progress: Callable[[str, int, int], None] | None = None) -> None:
        if command == "prune":
            prune_checkpoint(src, tmp_path / "out", "2:4", keep_from=masks, threads=1, progress=progress)
        else:
            export_checkpoint(src, tmp_path / "out", "dense", masks=masks, threads=1, progress=progress)

    with pytest.raises(CheckpointError, match="masks must not change while it is read, and it was"):
        run(lambda name, done, total: os.utime(masks))
    real = keep.read_tile

    def read_tile(*args: Any) -> Any:
        os.truncate(masks, masks.stat().st_size - 1)
        return real(*args)

    monkeypatch.setattr(keep, "read_tile", read_tile)
    with pytest.raises(CheckpointError, match=r"masks: mask 'w.weight' must not change while it is read, and its file"):
        run()
    assert not leftovers(tmp_path)


def test_masks_on_a_broken_disk_are_named(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = write(tmp_path / "masks", {"encoder.f32.weight": np.zeros((12, 8), bool)})

    def read_tile(*args: Any) -> Any:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(keep, "read_tile", read_tile)
    with pytest.raises(OSError, match=r"broken disk, at tensor 'encoder.f32.weight': '.*masks'"):
        prune_checkpoint(model, tmp_path / "out", "2:4", keep_from=masks)


# What is read, by another path.


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Gives a folder a second path."""
    made: list[Path] = []

    def bind(folder: Path, at: Path | None = None) -> Path:
        at = at or tmp_path / f"mount{len(made)}"
        at.mkdir()
        if subprocess.run(["mount", "--bind", folder, at], capture_output=True, check=False).returncode:
            pytest.skip("this process may not mount a folder")
        made.append(at)
        return at

    yield bind
    for path in reversed(made):
        subprocess.run(["umount", path], check=True)


def test_a_mount_is_no_other_place(tmp_path: Path, mount: Callable[..., Path], folder: Path) -> None:
    (tmp_path / "models").mkdir()
    src = folder.rename(tmp_path / "models" / "hf")
    before = snapshot(src)
    bound = mount(tmp_path / "models")
    for a, b in ((src, bound / "hf"), (bound / "hf", src), (src / "model.safetensors", bound / "hf/model.safetensors")):
        with pytest.raises(InputValueError, match="dst must not be src"):
            prune_checkpoint(a, b, "2:4", overwrite=True)
    with pytest.raises(InputValueError, match="dst must not lie inside src"):
        prune_checkpoint(src, bound / "hf" / "sub" / "out", "2:4")
    with pytest.raises(InputValueError, match="dst must not lie inside src"):
        prune_checkpoint(src, mount(src / "sub") / "out", "2:4")
    with pytest.raises(InputValueError, match="dst must not hold src"):
        prune_checkpoint(src / "model.safetensors", bound / "hf", "2:4", overwrite=True)
    out = tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    mount(src, out / "more")
    with pytest.raises(InputValueError, match="dst must not hold src"):
        prune_checkpoint(src, out, "2:4", overwrite=True)
    assert snapshot(src) == before


def test_other_inputs_are_spared(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(folder, out, "2:4")
    masks = write(out / "masks.safetensors", {"encoder.f32.weight": np.zeros((12, 8), bool)})
    alone = write(tmp_path / "alone", {"encoder.f32.weight": np.zeros((12, 8), bool)})
    for alias in (tmp_path / "alias", out / "alias"):
        alias.symlink_to(alone)
    before = snapshot(out)
    with pytest.raises(InputValueError, match=r"dst must not hold .*out/alias, which is read"):
        prune_checkpoint(folder, out, "2:4", keep_from=out / "alias", overwrite=True)
    with pytest.raises(InputValueError, match=r"dst must not hold .*masks.safetensors, which is read"):
        prune_checkpoint(folder, out, "2:4", keep_from=masks, overwrite=True)
    with pytest.raises(InputValueError, match=r"dst must not hold .*masks.safetensors, which is read"):
        export_checkpoint(folder, out, "dense", masks=masks, overwrite=True)
    for given, dst in ((alone, alone), (tmp_path / "alias", alone), (alone, tmp_path / "alias")):
        with pytest.raises(InputValueError, match=r"dst must not be .*, which is read"):
            prune_checkpoint(folder / "model.safetensors", dst, "2:4", keep_from=given, overwrite=True)
    with pytest.raises(InputValueError, match=r"dst must not be .*, which is read"):
        export_checkpoint(folder, out, "dense", masks=out, overwrite=True)
    assert snapshot(out) == before
    assert alone.is_file()


def test_a_link_to_the_source_is_no_other_place(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (folder / "empty" / "too").mkdir(parents=True)
    for src in (folder, tmp_path / "link"):
        for dst in (
            folder / "out",
            tmp_path / "link" / "out",
            folder / "sub" / "out",
            folder / "empty" / "too" / "out",
        ):
            with pytest.raises(InputValueError, match="dst must not lie inside src"):
                prune_checkpoint(src, dst, "2:4")


def test_a_link_that_leads_nowhere_is_in_the_way(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(DestinationExistsError, match=r"dst must not exist, and .*/out does; choose another"):
        prune_checkpoint(model, tmp_path / "out", "2:4")


@pytest.mark.parametrize("name", RECORDS)
def test_a_folder_called_as_a_record_is_told_first(tmp_path: Path, folder: Path, name: str) -> None:
    """A record could not be written in its place, after hours."""
    (folder / name).mkdir()
    (folder / name / "mine").write_text("mine")
    for command in (partial(prune_checkpoint, pattern="2:4"), export_checkpoint):
        with pytest.raises(CheckpointError, match=f"must not hold a folder {name}: .* rename it"):
            command(folder, tmp_path / "out")
    assert not leftovers(tmp_path)


def test_a_source_in_the_stage_is_spared(tmp_path: Path, model: Path) -> None:
    (tmp_path / ".out.nmflow").mkdir()
    src = model.rename(tmp_path / ".out.nmflow" / "new")
    with pytest.raises(InputValueError, match=r"dst must not hold src, .* as .*\.out\.nmflow does"):
        prune_checkpoint(src, tmp_path / "out", "2:4")
    assert src.is_file()


# What may be replaced.


def unrelated(path: Path) -> None:
    """A folder of somebody who works with such files."""
    (path / "figures").mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    for name in ("a", "b"):
        write(path / f"{name}.safetensors", {"x": np.ones(3, "f4")})


def test_overwrite_spares_what_is_no_checkpoint(tmp_path: Path, model: Path, folder: Path) -> None:
    unrelated(tmp_path / "work")
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:-1])
    before = snapshot(tmp_path)
    for src, name in ((folder, "work"), (model, "work"), (model, "thesis.tex"), (model, "cut.safetensors")):
        with pytest.raises(DestinationExistsError, match=r"dst must be a checkpoint to be overwritten, and .* is"):
            prune_checkpoint(src, tmp_path / name, "2:4", overwrite=True)
    assert snapshot(tmp_path) == before


def test_overwrite_replaces_what_nmflow_wrote(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(folder, out, "2:4")
    (out / "model.safetensors").unlink()  # no checkpoint any more, but the report says whose it is
    prune_checkpoint(folder, out, "2:4", overwrite=True)
    export_checkpoint(out, tmp_path / "packed", "dense")
    prune_checkpoint(folder, tmp_path / "packed", "2:4", overwrite=True)
    (tmp_path / "empty").mkdir()
    prune_checkpoint(folder, tmp_path / "empty", "2:4", overwrite=True)


NEW = ("files", "others", "index", "sha256")
"""What the record of an export by an early nmflow lacks."""


@pytest.mark.parametrize("name", ["notes.txt", "lora.safetensors", ".git/HEAD", "checkpoint-500/optimizer.pt"])
@pytest.mark.parametrize("what", ["pruned", "exported", "exported before", "original"])
def test_overwrite_spares_what_is_beside_a_checkpoint(tmp_path: Path, folder: Path, what: str, name: str) -> None:
    out, pruned = tmp_path / "out", tmp_path / "pruned"
    prune_checkpoint(folder, pruned, "2:4")
    for record in pruned.glob("nmflow-report.*") if what.startswith("exported") else ():
        record.unlink()  # which tells of all files, too
    if what.startswith("exported"):
        export_checkpoint(pruned, out, "dense")
    else:
        shutil.copytree(pruned if what == "pruned" else folder, out, ignore=shutil.ignore_patterns("sub"))
    if what == "exported before":
        earlier = json.loads((out / "nmflow.json").read_text())
        (out / "nmflow.json").write_text(json.dumps({key: earlier[key] for key in earlier if key not in NEW}))
    stranger = out / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("mine")
    # what may belong to weights that nmflow did not write, and what it does not know of exports of before
    known = {"original": "/" in name, "exported before": name == ".git/HEAD"}.get(what, True)
    if known:
        with pytest.raises(DestinationExistsError, match=f"remove it yourself .it holds {name}, which is no part of"):
            prune_checkpoint(folder, out, "2:4", overwrite=True)
        assert stranger.read_text() == "mine"
        stranger.unlink()
    prune_checkpoint(folder, out, "2:4", overwrite=True)


@pytest.mark.parametrize("name", ["nmflow-report.json", "nmflow.json"])
def test_overwrite_spares_what_only_looks_like_ours(tmp_path: Path, folder: Path, name: str) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / name).touch()
    with pytest.raises(DestinationExistsError, match=r"dst must be a checkpoint to be overwritten, and .*thesis is"):
        prune_checkpoint(folder, tmp_path / "thesis", "2:4", overwrite=True)


def test_overwrite_spares_what_its_report_does_not_name(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(folder, out, "2:4")
    report = json.loads((out / "nmflow-report.json").read_text())
    (out / "nmflow-report.json").write_text(json.dumps({**report, "asked": None}))
    with pytest.raises(DestinationExistsError, match="must name the files of weights that it speaks of; prune again"):
        prune_checkpoint(folder, out, "2:4", overwrite=True)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_appears_meanwhile_is_looked_at(tmp_path: Path, model: Path, folder: Path, kind: str) -> None:
    out = tmp_path / "out"

    def progress(name: str, done: int, total: int) -> None:
        if not name:
            unrelated(out) if kind == "folder" else out.write_text("years of work")

    src = folder if kind == "folder" else model
    with pytest.raises(DestinationExistsError, match="dst must be a checkpoint to be overwritten"):
        prune_checkpoint(src, out, "2:4", overwrite=True, progress=progress)
    assert (out / "thesis.tex" if kind == "folder" else out).read_text() == "years of work"


@pytest.mark.parametrize("kind", ["folder", "dangling", "file"])
def test_a_stage_that_is_no_folder(tmp_path: Path, model: Path, kind: str) -> None:
    stage, home = tmp_path / ".out.nmflow", tmp_path / "home"
    home.mkdir()
    (home / "lock").write_text("mine")
    if kind == "file":
        stage.write_text("mine")
    else:
        stage.symlink_to(home if kind == "folder" else tmp_path / "nowhere")
    for resume in (False, True):
        with pytest.raises(DestinationExistsError, match=r"\.out\.nmflow must be a folder, in which .* remove it"):
            prune_checkpoint(model, tmp_path / "out", "2:4", resume=resume)
    assert snapshot(home) == {"lock": b"mine"}
    assert os.path.lexists(stage)


@pytest.mark.parametrize("resume", [False, True])
def test_a_stage_of_another_user(tmp_path: Path, model: Path, resume: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp anybody can make it first, and then put links in place of what is written to it."""
    stage, lstat, owner = tmp_path / ".out.nmflow", Path.lstat, tmp_path.stat().st_uid
    (stage / "new-0").mkdir(parents=True)
    (stage / "lock").touch()
    stranger = os.stat_result((*stage.stat()[:4], owner + 1, *stage.stat()[5:]))
    monkeypatch.setattr(Path, "lstat", lambda path: stranger if path == stage else lstat(path))
    with pytest.raises(
        DestinationExistsError, match=rf"nmflow must be your own, .* user {owner + 1}'s, who could .* another dst"
    ):
        prune_checkpoint(model, tmp_path / "out", "2:4", resume=resume)
    assert sorted(stage.iterdir()) == [stage / "lock", stage / "new-0"]
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)  # a mount on which one user owns all
    prune_checkpoint(model, tmp_path / "out", "2:4", solver="greedy")


def test_a_lock_that_is_a_link_makes_no_file(tmp_path: Path, model: Path) -> None:
    (tmp_path / ".out.nmflow").mkdir()
    (tmp_path / ".out.nmflow" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        prune_checkpoint(model, tmp_path / "out", "2:4")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "new", "new-york", "journal.pdf"])
def test_a_stage_of_somebody_else_is_spared(tmp_path: Path, model: Path, name: str) -> None:
    stage = tmp_path / ".out.nmflow"
    (stage / name).mkdir(parents=True)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(DestinationExistsError, match=rf"and it holds '{name}'; move it, or choose another dst"):
            prune_checkpoint(model, tmp_path / "out", "2:4", **options)
    assert list(stage.iterdir()) == [stage / name]


# What an earlier run left.


def stop(src: Path, out: Path) -> None:
    """Leave a run in the middle."""

    def progress(*args: Any) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prune_checkpoint(src, out, "2:4", progress=progress)
    assert leftovers(out.parent)


def test_what_was_replaced_stays_where_something_else_appeared(tmp_path: Path, folder: Path) -> None:
    """A kill came between two renames, and then another program wrote to the free name."""
    stop(folder, tmp_path / "out")
    (tmp_path / ".out.nmflow" / "old").mkdir()
    (tmp_path / ".out.nmflow" / "old" / "notes").write_text("mine")
    (tmp_path / "out").write_text("another's")
    with pytest.raises(DestinationExistsError, match=r"dst must not exist, and .* does; choose another"):
        prune_checkpoint(folder, tmp_path / "out", "2:4", resume=True)
    assert (tmp_path / ".out.nmflow" / "old" / "notes").read_text() == "mine"


def test_nothing_of_an_earlier_run_gets_in(tmp_path: Path, folder: Path) -> None:
    before: list[bool] = []
    (folder / "sub" / "gone").mkdir()
    for name in ("token.txt", "sub/gone/token.txt"):
        (folder / name).write_text("secret")
    stop(folder, tmp_path / "out")
    (folder / "token.txt").unlink()
    (folder / "sub" / "gone" / "token.txt").unlink()
    (folder / "sub" / "gone").rmdir()
    lost = tmp_path / ".out.nmflow" / "new-0"  # of a run whose journal went away
    lost.mkdir()
    prune_checkpoint(folder, tmp_path / "out", "2:4", resume=True, progress=lambda *args: before.append(lost.exists()))
    assert not any(before)  # its room may be needed
    assert snapshot(tmp_path / "out").keys() == snapshot(folder).keys() | {"nmflow-report.json"}
    assert not (tmp_path / "out" / "sub" / "gone").exists()
    assert not leftovers(tmp_path)


def sealed(folder: Path) -> None:
    """A folder from which nobody, root either, may remove anything."""
    if not shutil.which("chattr"):
        pytest.skip("needs chattr: apt-get install e2fsprogs")
    if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be sealed here")


def test_what_cannot_be_removed_is_said(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(folder, out, "2:4")
    sealed(out / "sub")
    left = tmp_path / ".out.nmflow"
    try:
        with pytest.raises(PermissionError, match=r"permitted, at 'notes' in it: '.*/\.out\.nmflow/new-\w+'") as caught:
            prune_checkpoint(folder, out, "1:4", overwrite=True)
        assert f"{out} is written, but {left} beside it cannot be removed" in caught.value.__notes__[0]
        assert (np.count_nonzero(read(out / "model.safetensors")["encoder.f32.weight"], axis=1) <= 2).all()
        with pytest.raises(PermissionError, match=r"permitted, at 'notes' in it: '.*/\.out\.nmflow/new-\w+'"):
            prune_checkpoint(folder, out, "2:4", overwrite=True)
    finally:
        subprocess.run(["chattr", "-R", "-i", left], check=False)
    prune_checkpoint(folder, out, "2:4", overwrite=True)
    assert not leftovers(tmp_path)


def test_folders_that_may_not_be_written_are_removed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who is not root."""
    real, calls = shutil.rmtree, []

    def rmtree(path: Path) -> None:
        calls.append(path)
        for each in (path, *path.rglob("*")):
            if each.is_dir() and not each.is_symlink() and not each.stat().st_mode & 0o200:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(each))
        real(path)

    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    (folder / "sub" / "home").symlink_to(home)
    (folder / "sub" / "more").mkdir()
    for path in (folder / "sub" / "more", folder / "sub", folder):
        path.chmod(0o555)
    monkeypatch.setattr(disk.shutil, "rmtree", rmtree)
    disk.remove(folder)
    assert len(calls) == 2
    assert not folder.exists()
    assert home.stat().st_mode & 0o777 == 0o555


# Errors of the system that know no name.


@pytest.mark.parametrize("what", ["journal", "size", "report"])
def test_a_full_disk_is_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/proc/self/fd"))
    if what == "journal":
        monkeypatch.setattr(journal.os, "write", fail)
    elif what == "report":
        monkeypatch.setattr(disk, "close_to_others", fail)  # called as it is written
    if what == "size":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    name = {"journal": "journal", "size": "model.safetensors", "report": "nmflow-report.json"}[what]
    try:
        with pytest.raises(OSError, match=rf"\[Errno \d+\] \w+ .*: '.*\.out\.nmflow/.*{name}'"):
            prune_checkpoint(folder, tmp_path / "out", "2:4")
    finally:
        if what == "size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before  # of the journal too
    assert not (tmp_path / "out").exists()


def test_folders_too_deep(tmp_path: Path, folder: Path) -> None:
    deep = folder / "/".join("d" * 120)
    deep.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="must hold folders at most 100 deep"):
        prune_checkpoint(folder, tmp_path / "out", "2:4")


# Who may read what is written.


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nobody_may_read_more_than_of_the_source(tmp_path: Path, folder: Path, kind: str) -> None:
    modes = {folder / "sub": 0o750, folder / "sub" / "notes": 0o440, folder / "model.safetensors": 0o400, folder: 0o700}
    for path, mode in modes.items():
        path.chmod(mode)
    out, staged = tmp_path / "out", set[int]()

    def progress(*args: Any) -> None:
        staged.add((tmp_path / ".out.nmflow").stat().st_mode & 0o777)

    src = folder if kind == "folder" else folder / "model.safetensors"
    report = prune_checkpoint(src, out, "2:4", progress=progress)
    assert staged == {0o700}
    made = [*write_reports(out, report=report)]  # they show weights
    if kind == "file":
        assert {path.stat().st_mode & 0o777 for path in (out, *made)} == {0o600}
        return
    modes[folder / "model.safetensors"] = 0o600  # its owner may write it
    assert {path: (out / path.relative_to(folder)).stat().st_mode & 0o777 for path in modes} == modes
    replace_tensors(open_source(folder), tmp_path / "copy", {}, {})
    assert (tmp_path / "copy" / "model.safetensors").stat().st_mode & 0o777 == 0o600
    export_checkpoint(folder, tmp_path / "packed", "dense")
    assert (tmp_path / "packed" / "model.safetensors").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "packed").stat().st_mode & 0o777 == 0o700
    made += [out / "nmflow-report.json", tmp_path / "packed" / "nmflow.json"]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}


def test_groups_that_may_not_read_the_source_may_not_read_the_copy(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy gets the group of its source, or nothing for its own."""
    group = next((group for group in os.getgroups() if group != os.getegid()), None)
    group = 65534 if os.geteuid() == 0 else group
    if group is None:
        pytest.skip("needs a user in two groups")
    paths = folder, folder / "model.safetensors", folder / "sub", folder / "sub" / "notes"
    for path in paths:
        os.chown(path, -1, group)
        path.chmod(0o750 if path.is_dir() else 0o640)
    out, closed = tmp_path / "out", tmp_path / "closed"
    prune_checkpoint(folder, out, "2:4")
    for path in paths:
        made = (out / path.relative_to(folder)).stat()
        assert (made.st_gid, made.st_mode & 0o777) == (group, 0o750 if path.is_dir() else 0o640)

    def refused(*args: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refused)
    prune_checkpoint(folder, closed, "2:4")
    for path in paths:
        assert (closed / path.relative_to(folder)).stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert (closed / "nmflow-report.json").stat().st_mode & 0o777 == 0o600


def test_a_report_is_for_those_who_may_read_all_of_the_source(tmp_path: Path) -> None:
    shards = [tmp_path / name for name in ("a", "b")]
    for shard, mode in zip(shards, (0o640, 0o604), strict=True):
        shard.touch()
        shard.chmod(mode)
    for like in (shards, shards[::-1]):
        disk.write_new(tmp_path / "report", "", like)
        assert (tmp_path / "report").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user who may give files to any group")
def test_a_report_of_files_of_two_groups_is_for_neither(tmp_path: Path) -> None:
    shards = [tmp_path / name for name in ("a", "b")]
    for group, shard in enumerate(shards, 65533):
        shard.touch()
        shard.chmod(0o640)
        os.chown(shard, -1, group)
    disk.write_new(tmp_path / "report", "", shards)
    made = (tmp_path / "report").stat()
    assert (made.st_gid, made.st_mode & 0o777) == (os.getegid(), 0o600)


def test_a_copy_does_not_run_as_whoever_made_it(tmp_path: Path, folder: Path) -> None:
    """A program that runs as its owner, the stranger who gave the folder, must not run as us once it is copied."""
    modes = {folder / "sub" / "notes": 0o6755, folder / "sub": 0o3755}
    for path, mode in modes.items():
        path.chmod(mode)
    prune_checkpoint(folder, tmp_path / "out", "2:4")
    for path in modes:
        assert (tmp_path / "out" / path.relative_to(folder)).stat().st_mode & 0o7777 == 0o755


def test_a_full_disk_is_named_by_reports(tmp_path: Path) -> None:
    text, limits = "x" * 100_000, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*\.page.html.new"):
            report_file.write_text(tmp_path, tmp_path / "page.html", text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_reports_are_written_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that somebody puts at the name of what is about to be written, where anybody may write."""
    (home := tmp_path / "home").write_text("mine")
    unlink = Path.unlink

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        path.symlink_to(home)

    monkeypatch.setattr(Path, "unlink", unlinked)
    with pytest.raises(FileExistsError, match=r"\.page.html.new"):
        report_file.write_text(tmp_path, tmp_path / "page.html", "")
    assert home.read_text() == "mine"


# What is printed.


@pytest.mark.parametrize("option", [(), ("--report",)])
def test_nothing_pruned_is_not_proven(tmp_path: Path, option: tuple[str, ...]) -> None:
    src = write(tmp_path / "x.safetensors", {"w.weight": np.full((8, 8), np.nan, "f4")})
    done = CliRunner().invoke(
        app, ["prune", str(src), str(tmp_path / "out"), "--pattern", "2:4", "--on-nonfinite", "skip", *option]
    )
    assert done.exit_code == 0, done.stderr
    assert f"nothing was pruned; wrote {tmp_path / 'out'}\n" in done.stdout
    assert "proven" not in done.stdout  # no table with all of 0 either
    report = prune_checkpoint(src, tmp_path / "again", "2:4", on_nonfinite="skip")
    assert not report.proven
    assert report.to_dict()["proven"] is False


def test_long_paths_are_not_broken(tmp_path: Path, model: Path) -> None:
    out = tmp_path / ("o" * 120)
    done = CliRunner().invoke(app, ["prune", str(model), str(out), "--pattern", "2:4"])
    assert f"wrote {out}\n" in done.stdout
    done = CliRunner().invoke(app, ["export", str(out), str(tmp_path / ("e" * 120)), "--format", "dense"])
    assert f"wrote {tmp_path / ('e' * 120)}\n" in done.stdout


def test_names_that_a_terminal_cannot_print(tmp_path: Path) -> None:
    src = write(tmp_path / "x.safetensors", {"層.weight": np.ones((8, 8), "f4")})
    done = subprocess.run(
        [sys.executable, "-m", "nmflow.cli", "prune", src, tmp_path / "out", "--pattern", "2:4"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"\u5c64.weight" in done.stdout


def test_other_files_must_not_change_while_they_are_copied(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one was published torn: half as it was, half as it became."""
    copy = shutil.copyfile

    def torn(source: Any, target: Any) -> Any:
        done = copy(source, target)
        if Path(source).name == "config.json":
            Path(source).write_text('{"another": "config"}')
        return done

    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(ChangedError, match=r"config.json must not change while it is read, and it was replaced"):
        prune_checkpoint(folder, tmp_path / "out", "2:4")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    prune_checkpoint(folder, tmp_path / "out", "2:4", resume=True)
    assert (tmp_path / "out" / "config.json").read_text() == '{"another": "config"}'


def test_other_files_that_are_links_into_what_is_replaced_are_spared(tmp_path: Path, folder: Path) -> None:
    prune_checkpoint(folder, tmp_path / "old", "2:4")
    (folder / "extra.json").symlink_to(tmp_path / "old" / "config.json")
    before = snapshot(tmp_path / "old")
    with pytest.raises(InputValueError, match="dst must not hold src"):
        prune_checkpoint(folder, tmp_path / "old", "2:4", overwrite=True)
    assert snapshot(tmp_path / "old") == before
    (folder / "extra.json").unlink()
    (folder / "more").symlink_to(tmp_path / "old")
    with pytest.raises(InputValueError, match="dst must not"):
        prune_checkpoint(folder, tmp_path / "old", "2:4", overwrite=True)
    assert snapshot(tmp_path / "old") == before


@pytest.mark.parametrize("at", ["after the first rename", "in the second"])
def test_an_interrupt_between_two_renames_loses_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Where names cannot be exchanged, as on NFS, and nothing was noted that would keep what was built."""
    prune_checkpoint(folder, tmp_path / "dst", "2:4")
    before = snapshot(tmp_path / "dst")
    rename = os.rename

    def interrupted(source: Any, target: Any) -> None:
        if at == "in the second" and Path(target).name == "dst" and Path(source).name != "old":
            raise KeyboardInterrupt
        rename(source, target)
        if at == "after the first rename" and Path(target).name == "old":
            raise KeyboardInterrupt

    monkeypatch.setattr("nmflow.checkpoint.publish._rename", lambda *names: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_tensors(open_source(folder), tmp_path / "dst", {}, {"command": "x"}, overwrite=True)
    assert snapshot(tmp_path / "dst") == before
    assert leftovers(tmp_path) == []


def test_overwrite_spares_what_it_cannot_look_into(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prune_checkpoint(folder, out, "2:4")
    (out / "private").mkdir()
    (out / "private" / "thesis.txt").write_text("x")
    look = os.scandir

    def scandir(path: Any = ".") -> Any:
        if os.fspath(path).endswith("private"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(
            DestinationExistsError, match=r"dst must be a checkpoint to be overwritten.*Permission denied"
        ):
            prune_checkpoint(folder, out, "2:4", overwrite=True)
    assert (out / "private" / "thesis.txt").read_text() == "x"
    shutil.rmtree(out / "private")
    (out / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(DestinationExistsError, match="it holds elsewhere, which is no part of one"):
        prune_checkpoint(folder, out, "2:4", overwrite=True)


def test_a_mount_is_refused_before_the_work(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)  # to make a real one is for few
    with pytest.raises(
        DestinationExistsError, match=r"dst must be something that can be renamed, and .*out is a mount"
    ):
        prune_checkpoint(folder, out, "2:4", overwrite=True)


def test_a_worktree_does_not_lead_back_to_its_repository(tmp_path: Path, folder: Path) -> None:
    (folder / ".git").write_text("gitdir: /elsewhere/.git/worktrees/x")
    prune_checkpoint(folder, tmp_path / "out", "2:4")
    assert not (tmp_path / "out" / ".git").exists()


def test_weights_under_the_name_of_a_record_are_refused(tmp_path: Path, model: Path) -> None:
    for name in ("nmflow.json", "nmflow-report.json"):
        path = tmp_path / name
        shutil.copy(model, path)
        with pytest.raises(CheckpointError, match=rf"{name} must have a name that is none of .*; rename it"):
            export_checkpoint(path, tmp_path / "out", "dense")
    assert not (tmp_path / "out").exists()


def test_a_broken_index_is_an_error_before_the_work(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    shutil.copy(model, folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text("{")
    seen: list[Any] = []
    with pytest.raises(CheckpointError, match="index"):
        export_checkpoint(folder, tmp_path / "out", "dense", progress=lambda *args: seen.append(args))
    assert not seen


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"layers:key:0.weight": np.ones((8, 8), "f4")})
    result = CliRunner().invoke(app, ["prune", str(path), str(tmp_path / "y.safetensors"), "--pattern", "2:4"])
    assert "layers:key:0.weight" in result.stdout


def test_infinity_in_a_tensor_of_many_axes(tmp_path: Path) -> None:
    header = {"w.weight": {"dtype": "F32", "shape": [8, 8] + [1] * 62, "data_offsets": [0, 256]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = np.ones(64, "<f4")
    data[9] = np.inf
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data.tobytes())
    with pytest.raises(NonFiniteError, match=r"at 1 of 64 entries, the first at \(1, 1, 0"):
        prune_checkpoint(path, tmp_path / "y.safetensors", "2:4")


def test_reports_of_files_whose_names_differ_at_the_end() -> None:
    paths = {report_file.report_path(f"model.{pattern}", "html").name for pattern in ("2x4", "4x8")}
    assert len(paths) == 2


def test_replacing_tensors_spares_what_is_there(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    before = snapshot(tmp_path)
    for dst, overwrite in ((other, False), (other, True), (folder, True), (folder / "new", False)):
        with pytest.raises(DestinationExistsError if dst == other else InputValueError):
            replace_tensors(open_source(folder), dst, {}, {"command": "x"}, overwrite=overwrite)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [("encoder.none.weight", 8, "named like tensors of .*'encoder.none.weight'"),
     ("encoder.steps", 7, "8 bytes, not 7"), ("encoder.steps", 16, "8 bytes, not 16")],
)  # fmt: skip
def test_replacing_tensors_takes_data_that_fits(
    tmp_path: Path, folder: Path, name: str, size: int, message: str
) -> None:
    """Longer data would run into the tensor behind it."""
    with pytest.raises(InputValueError, match=message):
        replace_tensors(open_source(folder), tmp_path / "out", {name: bytes(size)}, {"command": "x"})
    assert not (tmp_path / "out").exists()
