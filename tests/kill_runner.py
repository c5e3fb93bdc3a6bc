"""Kills real processes that prune, and checks what they leave. Run as a process of its own: it forks.

    python kill_runner.py every SRC FOLDER [--overwrite [--two-renames]]
                                                           kill before every operation on a file or folder, one by one
    python kill_runner.py random SRC FOLDER KILLS SEED     kill at random moments until so many were hit

It prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import nmflow
from nmflow.checkpoint import prune_checkpoint, publish, tiles
from nmflow.checkpoint.report import REPORT
from nmflow.errors import DestinationExistsError

WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "ctypes.dlsym")
"""Events that change a disk, or come just before such a call; see the audit events of Python."""


def content(path: Path) -> dict[str, bytes] | None:
    """Every byte of a checkpoint but those of the report, which holds timings; None if it is not there."""
    if not os.path.lexists(path):
        return None
    if path.is_file():
        return {"": path.read_bytes()}
    files = {str(each.relative_to(path)): each for each in path.rglob("*") if each.is_file()}
    report = files.pop(REPORT, None)
    if report is not None:
        json.loads(report.read_text())  # whole
    return {name: each.read_bytes() for name, each in files.items()}


def child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; returns its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(pid: int) -> bool:
    """Wait for a process; whether it was killed. Anything but a kill or success is an error."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("a child failed")
    return False


def killed_before(number: int, *args: Any, **options: Any) -> None:
    """Prune, in a process that kills itself before its operation of this number on a file of the destination."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in WATCHED and any("out" in str(arg) or arg == "renameat2" for arg in args):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    prune_checkpoint(*args, **options)


def every(src: Path, folder: Path, overwrite: bool, two_renames: bool) -> dict[str, Any]:
    """Kill before the first operation, then before the second, and so on, until a run ends by itself.

    two_renames : as on a file system where two names cannot be exchanged; what was there may then be away, but not lost
    """
    if two_renames:
        publish._rename = lambda *args: False
    expected = folder / "expected"
    prune_checkpoint(src, expected, "2:4")
    new, old = content(expected), None
    previous = folder / "previous"
    if overwrite:
        prune_checkpoint(src, previous, "1:4")
        old = content(previous)
        assert old != new
    out, stage = folder / "out", folder / ".out.nmflow"
    number = away = 0
    while True:
        number += 1
        for path in (out, stage):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if overwrite:
            shutil.copytree(previous, out) if previous.is_dir() else shutil.copy(previous, out)

        if not wait(child(partial(killed_before, number, src, out, "2:4", overwrite=overwrite, threads=1))):
            break
        found = content(out)
        if two_renames and found is None:
            away += 1
            with contextlib.suppress(DestinationExistsError):  # any run brings it back
                prune_checkpoint(src, out, "2:4")
            found = content(out)
            assert found == old
        assert found in (old, new), f"neither old nor new after a kill before operation {number}"
        if found == new and out.is_file() and not (stage / "journal").exists():
            continue  # killed after all was done; a folder holds a report that says so
        prune_checkpoint(src, out, "2:4", overwrite=overwrite, resume=True)
        assert content(out) == new, f"other bytes after a kill before operation {number}"
        assert not stage.exists()
    assert content(out) == new
    return {"kills": number - 1, "away": away}


def at_random(src: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the same command at random moments, resume, kill again; then again over what is there."""
    rng = random.Random(seed)
    tiles.TILE_BYTES = 1 << 17  # so that tensors have many pieces
    started = time.perf_counter()
    prune_checkpoint(src, folder / "expected", "2:4")
    seconds = time.perf_counter() - started
    prune_checkpoint(src, folder / "other", "1:4")
    new, other = content(folder / "expected"), content(folder / "other")
    out, stage = folder / "out", folder / ".out.nmflow"
    hit = finished = resumed = 0
    old: dict[str, bytes] | None = None
    while hit < kills:
        overwrite = old is not None
        # killed after it was put in place: a run that neither resumes nor overwrites is right to refuse
        resume = rng.random() < 0.8 or (not overwrite and os.path.lexists(out))
        pid = child(partial(prune_checkpoint, src, out, "2:4", overwrite=overwrite, resume=resume))
        time.sleep(rng.uniform(0.0, 0.6) * seconds)
        os.kill(pid, signal.SIGKILL)
        killed = wait(pid)
        hit += killed
        resumed += killed and (stage / "journal").exists()
        found = content(out)
        assert found in (old, new), f"neither old nor new after kill {hit}"
        if found != new or stage.exists():
            if rng.random() < 0.3:  # sometimes let one go on to its end
                prune_checkpoint(src, out, "2:4", overwrite=overwrite, resume=True)
            else:
                continue
        assert content(out) == new
        assert not stage.exists()
        finished += 1
        # The next is built over another one, or where nothing is.
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        old = None
        if rng.random() < 0.5:
            old = other
            shutil.copytree(folder / "other", out) if src.is_dir() else shutil.copy(folder / "other", out)
    return {"kills": hit, "finished": finished, "with_journal": resumed}


def main() -> None:
    """Compile first, so that a child does nothing but the work."""
    mode, src, folder, *rest = sys.argv[1:]
    for pattern in ("2:4", "1:4"):
        for transposable in (True, False):
            nmflow.solve(np.zeros((4, 4), np.float32), pattern=pattern, transposable=transposable)
    if mode == "every":
        found = every(Path(src), Path(folder), "--overwrite" in rest, "--two-renames" in rest)
    else:
        found = at_random(Path(src), Path(folder), int(rest[0]), int(rest[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
