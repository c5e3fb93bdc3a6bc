"""Runs on checkpoints that are cut short, late, or twice: what is lost, and what is looked at before it goes on."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_files import leftovers, read, sharded, snapshot, write
from test_resume import Stop, Stopping, new_of

from nmflow.checkpoint import (
    Done,
    disk,
    export_checkpoint,
    lock,
    masked,
    open_source,
    prune_checkpoint,
    publish,
    read_header,
    stage,
    tiles,
    unit,
)
from nmflow.checkpoint.journal import Journal
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.replace import replace_tensors
from nmflow.checkpoint.tiles import read_tile, write_tile
from nmflow.errors import ChangedError, CheckpointError, DestinationBusyError, DestinationExistsError


@pytest.mark.parametrize("which", ["source", "masks"])
def test_a_worker_that_sees_another_file_reads_nothing_of_it(tmp_path: Path, which: str) -> None:
    """Of the same size, while this process sees what it was: as on a node whose mount is behind."""
    values = {"w.weight": np.arange(1, 65, dtype="f4").reshape(8, 8)}
    eye = np.tile(np.eye(4, dtype=bool), (2, 2))
    source = write(tmp_path / "source", values)
    masks = write(tmp_path / "masks", {"w.weight": eye})
    seen = source if which == "source" else masks
    other = write(tmp_path / "other", {"w.weight": values["w.weight"] * -1 if which == "source" else eye[::-1].copy()})
    assert other.stat().st_size == seen.stat().st_size
    os.utime(other, ns=(0, seen.stat().st_mtime_ns - 1))

    class Behind:
        def submit(self, function: Any, /, *args: Any) -> Future[Done]:
            future: Future[Done] = Future()
            seen.rename(tmp_path / "aside")
            other.rename(seen)
            try:
                future.set_result(function(*args))
            except ChangedError as error:
                future.set_exception(error)
            finally:
                seen.rename(other)
                (tmp_path / "aside").rename(seen)
            return future

    with pytest.raises(ChangedError, match=f"{which} must not change while it is read, and it was replaced"):
        prune_checkpoint(source, tmp_path / "out", "2:4", keep_from=masks, executor=Behind())
    assert not (tmp_path / "out").exists()


def test_a_worker_may_number_devices_and_files_in_another_way(tmp_path: Path) -> None:
    """As another machine does that sees the same files: what a copy of the same time looks like here."""
    eye = np.tile(np.eye(4, dtype=bool), (2, 2))
    paths = write(tmp_path / "source", {"w.weight": eye.astype("f4")}), write(tmp_path / "masks", {"w.weight": eye})

    class Elsewhere:
        def submit(self, function: Any, /, *args: Any) -> Future[Done]:
            future: Future[Done] = Future()
            for path in paths:
                path.rename(tmp_path / f"{path.name}-here")
                shutil.copy2(tmp_path / f"{path.name}-here", path)
            try:
                future.set_result(function(*args))
            finally:
                for path in paths:
                    (tmp_path / f"{path.name}-here").rename(path)
            return future

    prune_checkpoint(paths[0], tmp_path / "out", "1:4", keep_from=paths[1], executor=Elsewhere())
    assert (read(tmp_path / "out")["w.weight"] == eye).all()


def test_what_is_written_is_never_open_to_read_as_well_and_all_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of network storage would write back whole pages, with what a neighbour had not written yet."""
    values = {"w.weight": np.arange(1, 65, dtype="f4").reshape(8, 8)}
    source = write(tmp_path / "source", values)
    masks = write(tmp_path / "masks", {"w.weight": np.zeros((8, 8), bool)})
    real, ways = os.open, []

    def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if ".out.nmflow/new-" in str(path):
            ways.append(flags & os.O_ACCMODE)
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", opened)
    before = len(os.listdir("/proc/self/fd"))
    prune_checkpoint(source, tmp_path / "out", "2:4", keep_from=masks)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.O_WRONLY in ways
    assert os.O_RDWR not in ways


def test_a_source_on_a_broken_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise OSError(errno.EIO, "broken disk")

    src = write(tmp_path / "model.safetensors")
    monkeypatch.setattr(unit, "read_tile", broken)
    with pytest.raises(OSError, match=r"broken disk, at tensor '.*': '.*/model.safetensors'"):
        prune_checkpoint(src, tmp_path / "out", "2:4")


def test_what_is_done_is_kept_when_a_destination_appears(tmp_path: Path) -> None:
    src, out = write(tmp_path / "model.safetensors"), tmp_path / "out"

    def progress(name: str, done: int, total: int) -> None:
        if not name:
            out.write_text("another's")

    with pytest.raises(DestinationExistsError, match="appeared meanwhile") as caught:
        prune_checkpoint(src, out, "2:4", progress=progress)
    assert leftovers(tmp_path) == [".out.nmflow"]
    assert "(--resume) goes on from there" in caught.value.__notes__[0]


@pytest.mark.parametrize("can", [True, False])
def test_a_link_that_appears_after_the_last_look_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    """It leads nowhere. Where renameat2 is to be had, what appears later than any look at it is spared, too."""
    new, dst = tmp_path / "new", tmp_path / "dst"
    new.touch()
    dst.symlink_to("nowhere")
    if can:
        monkeypatch.setattr(os.path, "lexists", lambda path: False)
    else:
        monkeypatch.setattr(publish, "_rename", lambda *names: False)
    with pytest.raises(DestinationExistsError, match="appeared meanwhile; choose another"):
        publish.put_in_place(new, dst, tmp_path / "old", False)
    assert dst.is_symlink()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_file_takes_the_place_of_a_link_in_one_step_on_any_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    new, dst, old = (tmp_path / name for name in ("new", "dst", "old"))
    (tmp_path / "home").mkdir()
    new.touch()
    dst.symlink_to("home")

    class System:
        @staticmethod
        def renameat2(*names: Any) -> int:
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: System)
    monkeypatch.delattr(os, "rename")
    publish.put_in_place(new, dst, old, True)
    assert dst.is_file()
    assert sorted(os.listdir(tmp_path)) == ["dst", "home"]


def test_after_both_renames_the_new_stays(tmp_path: Path) -> None:
    dst, old = tmp_path / "dst", tmp_path / "old"
    dst.write_text("new")
    old.write_text("old")
    publish.restore(dst, old)
    assert dst.read_text() == "new"
    dst.unlink()
    publish.restore(dst, old)
    assert dst.read_text() == "old"


def test_what_a_kill_after_both_renames_left_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, out = tmp_path / "hf", tmp_path / "out"
    src.mkdir()
    write(src / "model.safetensors")
    prune_checkpoint(src, out, "2:4")
    shutil.copytree(src, tmp_path / ".out.nmflow" / "old")
    monkeypatch.setattr("nmflow.checkpoint.publish._rename", lambda *names: False)
    prune_checkpoint(src, out, "1:4", overwrite=True)
    assert (np.count_nonzero(read(out / "model.safetensors")["encoder.f32.weight"], axis=1) <= 2).all()
    assert not leftovers(tmp_path)


def test_two_interrupts_between_two_renames_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes as what was there is about to be put back."""
    folder, out = tmp_path / "hf", tmp_path / "dst"
    folder.mkdir()
    write(folder / "model.safetensors")
    prune_checkpoint(folder, out, "2:4")
    before, rename, interrupts = snapshot(out), os.rename, [1, 2]

    def interrupted(source: Any, target: Any) -> None:
        if Path(target) == out and interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("nmflow.checkpoint.publish._rename", lambda *names: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_tensors(open_source(folder), out, {}, {"command": "x"}, overwrite=True)
    assert not interrupts
    assert snapshot(out) == before
    assert not leftovers(tmp_path)


def test_all_that_is_renamed_is_on_the_disk_and_then_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, out, synced, fsync = tmp_path / "hf", tmp_path / "out", list[int](), os.fsync
    (src / "sub").mkdir(parents=True)
    (src / "sub" / "notes").write_text("mine")
    write(src / "model.safetensors")

    def noted(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        fsync(file)

    def rename(new: Path, dst: Path, flag: int) -> bool:
        text = (tmp_path / ".out.nmflow" / "journal").read_text().splitlines()
        assert "published" in text[-1]
        assert synced[-1] == (tmp_path / ".out.nmflow" / "journal").stat().st_ino
        assert {path.stat().st_ino for path in (new, *new.rglob("*"))} <= {*synced}
        synced.clear()
        return real(new, dst, flag)

    real = publish._rename
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(publish, "_rename", rename)
    prune_checkpoint(src, out, "2:4")
    assert out.exists()
    assert synced == [tmp_path.stat().st_ino]


def test_a_disk_that_fails_at_the_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    src = write(tmp_path / "model.safetensors")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=r"Input/output error: '.*/\.out\.nmflow/new-[0-9a-f]+'"):
        prune_checkpoint(src, tmp_path / "out", "2:4")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EIO, "broken"), f"[Errno {errno.EIO}] broken: 'here'"),
        (OSError(errno.EIO, "broken", "there"), f"[Errno {errno.EIO}] broken: 'there'"),
        (OSError("of another library"), "of another library"),
    ],
)
def test_an_error_that_names_its_file_or_is_not_of_the_system_stays_as_it_is(error: OSError, text: str) -> None:
    with pytest.raises(OSError, match=f"^{re.escape(text)}$"), disk.named(Path("here")):
        raise error


def test_the_disk_is_waited_for_as_often_as_much_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fdatasync" if hasattr(os, "fdatasync") else "fsync", waited.append)
    half = unit.FLUSH_BYTES // 2
    assert unit.flushed(7, ((half, number) for number in range(5))) == [0, 1, 2, 3, 4]
    assert waited == [7, 7]


def test_a_journal_that_was_changed_leads_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, {}, resume=False) as journal:
        new = journal.new
    path.write_text(path.read_text().replace(new, f"{new}/../../mine"))
    with Journal(path, {}, resume=True) as journal:
        assert journal.new not in (new, f"{new}/../../mine")
        assert re.fullmatch("new-[0-9a-f]{16}", journal.new)


def test_a_journal_knows_who_may_be_at_work_on_what_the_run_moved_to(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, {"command": "x"}, resume=False) as journal:
        for state in ("a", "b"):
            journal.lend(state)
        journal.move(journal.fresh())
        for _ in range(2):
            journal.lend("a")
        new = journal.new
    held = path.read_bytes()
    with Journal(path, {"command": "x"}, resume=True) as journal:
        assert (journal.new, journal.elsewhere) == (new, ["a"])
    assert path.read_bytes() == held
    first, *rest = held.splitlines(keepends=True)
    for broken in (
        held[:-5],
        held[:-1],
        *(b"".join((first, bad, *rest)) for bad in (b"x\n", b"5\n", b"[" * 9999 + b"\n")),
    ):
        path.write_bytes(broken)  # by a kill or a fault: what is written from now on must not be lost with it
        with Journal(path, {"command": "x"}, resume=True) as journal:
            assert journal.elsewhere == []
            journal.lend("c")
        with Journal(path, {"command": "x"}, resume=True) as journal:
            assert journal.elsewhere == ["c"]


def test_a_journal_is_written_through_no_link(tmp_path: Path) -> None:
    (home := tmp_path / "home").write_text("mine")
    (tmp_path / "journal").symlink_to(home)
    with pytest.raises(OSError, match="journal"):
        Journal(tmp_path / "journal", {}, resume=False)
    assert home.read_text() == "mine"


def test_what_is_built_is_removed_once_the_journal_names_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with Journal(tmp_path / "journal", {}, resume=False) as journal:
        built = tmp_path / journal.new
        built.touch()
        monkeypatch.setattr(Journal, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage._copied(tmp_path, journal)
        assert built.exists()


def test_a_stage_is_removed_where_the_journal_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    src = write(tmp_path / "model.safetensors")
    monkeypatch.setattr(Journal, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(src, tmp_path / "out", "2:4")
    assert not leftovers(tmp_path)


def test_a_stage_is_removed_once_the_journal_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On network storage what is open stays under another name until then."""
    remove, held = stage.remove, [True]

    def closed(journal: Journal, *args: Any) -> None:
        held.clear()
        leave(journal, *args)

    def removed(path: Path) -> None:
        if held:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        remove(path)

    leave = Journal.__exit__
    monkeypatch.setattr(Journal, "__exit__", closed)
    src = write(tmp_path / "model.safetensors")

    def progress(*args: Any) -> None:
        monkeypatch.setattr(stage, "remove", removed)
        raise CheckpointError("x must be y")

    with pytest.raises(CheckpointError, match="x must be y") as caught:
        prune_checkpoint(src, tmp_path / "out", "2:4", progress=progress)
    assert not hasattr(caught.value, "__notes__")
    assert not leftovers(tmp_path)


def test_half_a_line_on_a_full_disk_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write_, full = tmp_path / "journal", os.write, [True]

    def half(file: int, data: bytes) -> int:
        if full:
            if len(data) < 10:
                full.clear()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_(file, data[: len(data) // 2])
        return write_(file, data)

    with Journal(path, {"command": "x"}, resume=False) as journal:
        journal.add(Done("s", "a", "1", "2"))
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left on device"):
            journal.add(Done("s", "b", "1", "2"))
        journal.add(Done("s", "c", "1", "2"))
    with Journal(path, {"command": "x"}, resume=True) as journal:
        assert sorted(name for _, name in journal.done) == ["a", "c"]


def test_a_source_that_changes_while_tensors_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, copyfile = write(tmp_path / "model.safetensors"), shutil.copyfile

    def changing(source: Any, target: Any, **options: Any) -> Any:
        copyfile(source, target, **options)
        os.utime(src)
        return target

    monkeypatch.setattr(shutil, "copyfile", changing)
    with pytest.raises(ChangedError, match=r"model.safetensors must not change while it is read"):
        replace_tensors(open_source(src), tmp_path / "out", {}, {})
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_a_finished_folder_whose_other_file_only_looks_the_same(tmp_path: Path) -> None:
    """Of the size and the time of what it is a copy of."""
    src, out = sharded(tmp_path / "hf"), tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    index = "model.safetensors.index.json"
    (out / index).write_text((src / index).read_text().replace("00001", "00002"))
    info = (src / index).stat()
    os.utime(out / index, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(CheckpointError, match=f"{index} is not what .*{index} is"):
        prune_checkpoint(src, out, "2:4", resume=True)


def test_a_lock_that_was_removed_before_it_was_held_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finished between our opening the file and locking it."""
    folder, flock, removed = tmp_path / ".out.nmflow", fcntl.flock, list[int]()

    def late(file: int, how: int) -> None:
        if not removed:
            removed.append(file)
            (folder / "lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    here = folder, tmp_path / "out"
    files = len(os.listdir("/proc/self/fd"))
    with lock.locked(*here), pytest.raises(DestinationBusyError), lock.locked(*here):
        pass
    assert not folder.exists()
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_stage_that_is_removed_between_two_looks_at_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process was at work when we would make it, and is done when we look whose it is."""
    mkdir = Path.mkdir

    def late(path: Path, **options: Any) -> None:
        monkeypatch.setattr(Path, "mkdir", mkdir)
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", late)
    with lock.locked(tmp_path / ".out.nmflow", tmp_path / "out"):
        assert (tmp_path / ".out.nmflow" / "lock").exists()


def test_who_was_kept_out_leaves_the_lock_of_who_came_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that kept us out finished, and a third one began, before we left."""
    folder, flock, path = tmp_path / ".out.nmflow", fcntl.flock, tmp_path / ".out.nmflow" / "lock"

    def busy(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.rename(tmp_path / "first")
        path.touch()
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", busy)
    with pytest.raises(DestinationBusyError), lock.locked(folder, tmp_path / "out"):
        pass
    assert path.exists()


def test_an_interrupt_between_two_renames_puts_the_old_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is kept for a run that resumes; nobody needs one to have the old back."""
    folder, out, rename = tmp_path / "hf", tmp_path / "dst", os.rename
    folder.mkdir()
    write(folder / "model.safetensors")
    prune_checkpoint(folder, out, "2:4")
    before = snapshot(out)

    def interrupted(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name == "old":
            raise KeyboardInterrupt

    monkeypatch.setattr("nmflow.checkpoint.publish._rename", lambda *names: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(folder, out, "1:4", overwrite=True)
    assert snapshot(out) == before
    assert leftovers(tmp_path) == [".dst.nmflow"]


@pytest.mark.parametrize("command", ["prune", "export"])
def test_what_others_may_still_work_on_is_copied_if_masks_have_changed(tmp_path: Path, command: str) -> None:
    values = {f"{name}.weight": np.ones((8, 8), "f4") for name in "ab"}
    src = write(tmp_path / "src", values)
    masks = write(tmp_path / "masks", {name: np.tile(np.eye(4, dtype=bool), (2, 2)) for name in values})

    def run(**options: Any) -> None:
        if command == "prune":
            prune_checkpoint(src, tmp_path / "out", "2:4", keep_from=masks, **options)
        else:
            export_checkpoint(src, tmp_path / "out", "dense", masks=masks, **options)

    names = []
    for _ in range(2):
        with pytest.raises(Stop):
            run(executor=Stopping(1), resume=bool(names))
        names.append(new_of(tmp_path / ".out.nmflow").name)
        os.utime(masks, (1, 1))
    assert names[0] != names[1]


def test_what_the_system_does_in_parts_is_done_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may be cut short by a signal, by a disk that is nearly full, or above 2 GiB."""
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(tiles.os, "pwrite", lambda file, data, at: pwrite(file, data[:7], at))
    monkeypatch.setattr(tiles.os, "preadv", lambda file, parts, at: preadv(file, [parts[0][:5]], at))
    whole = np.arange(96, dtype="f4").reshape(8, 12)
    tile = (slice(1, 7), slice(2, 9))
    with (tmp_path / "file").open("w+b") as file:
        write_tile(file.fileno(), 3, whole.shape, tile, np.ascontiguousarray(whole[tile]))
        found = read_tile(file.fileno(), 3, whole.shape, tile, whole.dtype)
    np.testing.assert_array_equal(found, whole[tile])


def test_an_error_of_a_piece_waits_for_the_others() -> None:
    """Their files are closed next, and the numbers of these given to other files."""
    begun, ended = threading.Event(), threading.Event()

    def work(item: int) -> None:
        if item == 0:
            begun.wait(60)
            raise RuntimeError("broken")
        begun.set()
        time.sleep(0.2)
        ended.set()

    with Pool(2) as pool:
        with pytest.raises(RuntimeError, match="broken"):
            list(pool.map(work, range(2)))
        assert ended.is_set()


def test_what_has_not_begun_is_cancelled_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.checkpoint.engine.PATIENCE", 0.01)
    src = write(tmp_path / "src", {f"{name}.weight": np.ones((8, 8), "f4") for name in "abc"})
    futures: list[Future[Done]] = []

    class Queue:
        def submit(self, function: Any, /, *args: Any) -> Future[Done]:
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_exception(RuntimeError("broken"))
            return futures[-1]

    with pytest.raises(RuntimeError, match="broken"):
        prune_checkpoint(src, tmp_path / "out", "2:4", executor=Queue())
    assert [future.cancelled() for future in futures] == [False, True, True]


def test_an_error_ends_what_is_at_work_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of many pieces is not solved to its end for nothing."""
    monkeypatch.setattr(tiles, "TILE_BYTES", 128)
    src = write(tmp_path / "src", {"a.weight": np.full((4, 4), 9, "f4"), "b.weight": np.ones((800, 8), "f4")})
    solve, begun, pieces = masked.solve, threading.Event(), list[int]()

    def slow(weights: Any, **options: Any) -> Any:
        if weights[0, 0] == 9:
            begun.wait(60)
            raise RuntimeError("broken")
        pieces.append(1)
        begun.set()
        time.sleep(0.01)
        return solve(weights, **options)

    monkeypatch.setattr(masked, "solve", slow)
    with pytest.raises(RuntimeError, match="broken"):
        prune_checkpoint(src, tmp_path / "out", "2:4", threads=1)
    assert len(pieces) < 100


@pytest.mark.parametrize("format_", ["cutlass-24", "dense"])
@pytest.mark.parametrize("change", ["nothing", "source", "masks", "staged"])
def test_an_export_that_resumes_looks_at_all_it_did(tmp_path: Path, format_: str, change: str) -> None:
    rng = np.random.default_rng(0)
    values = {f"{name}.weight": rng.standard_normal((64, 128)).astype("f2") for name in "abc"}
    write(tmp_path / "model.safetensors", values)
    prune_checkpoint(tmp_path / "model.safetensors", tmp_path / "src", "2:4")
    masks = write(tmp_path / "masks", {name: value != 0 for name, value in read(tmp_path / "src").items()})
    src, out = tmp_path / "src", tmp_path / "out"
    with pytest.raises(Stop):
        export_checkpoint(src, out, format_, masks=masks, executor=Stopping(2))
    staged = new_of(tmp_path / ".out.nmflow") / "src"
    path = {"source": src, "masks": masks, "staged": staged}.get(change)
    if path is not None:
        raw = bytearray(path.read_bytes())
        raw[read_header(path).entries[0].start] ^= 1
        path.write_bytes(raw)
    if change in ("source", "masks"):
        with pytest.raises(ChangedError, match="must not have changed since the unfinished run read it"):
            export_checkpoint(src, out, format_, masks=masks, resume=True)
        return
    export_checkpoint(src, out, format_, masks=masks, resume=True)
    export_checkpoint(src, tmp_path / "whole", format_, masks=masks)
    assert (out / "src").read_bytes() == (tmp_path / "whole" / "src").read_bytes()
    assert not leftovers(tmp_path)


def test_an_export_resumes_only_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {f"{name}.weight": np.ones((8, 8), "f4") for name in "ab"}
    src = write(tmp_path / "src", values)
    masks = [write(tmp_path / f"masks{k}", {name: np.ones((8, 8), bool) for name in values}) for k in range(2)]
    with pytest.raises(Stop):
        export_checkpoint(src, tmp_path / "out", "dense", masks=masks[0], executor=Stopping(1))
    with pytest.raises(CheckpointError, match=r"masks was .*masks0"):
        export_checkpoint(src, tmp_path / "out", "dense", masks=masks[1], resume=True)
    with pytest.raises(Stop):
        export_checkpoint(src, tmp_path / "other", "dense", executor=Stopping(1))
    with pytest.raises(CheckpointError, match=r"'b.weight' was packed, and is not now"):
        export_checkpoint(src, tmp_path / "other", "dense", exclude=["b.weight"], resume=True)
    monkeypatch.setattr("nmflow.checkpoint.export.version", lambda: "9.9")
    with pytest.raises(CheckpointError, match=r'version was ".*", not "9\.9"'):
        export_checkpoint(src, tmp_path / "other", "dense", resume=True)
