"""The cores that a process may use, with and without a limit on their time."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nmflow.asked import thread_count
from nmflow.cores import GROUPS, cores, share_of_time

V1 = "4:cpu,cpuacct:/docker/box\n0::/\n"


def share(folder: Path, member: str, files: dict[str, str]) -> float:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "member").write_text(member)
    return share_of_time(folder, folder / "member")


@pytest.mark.parametrize(
    ("member", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3.0),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "20000 10000\n"}, 2.0),
        # a container without a namespace for its groups: its own is the top, the line says where it lies outside
        (V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "nothing of a number"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("nothing of a group\n\n", {"cpu.max": ""}, math.inf),
    ],
)
def test_shares_of_time(tmp_path: Path, member: str, files: dict[str, str], expected: float) -> None:
    assert share(tmp_path, member, files) == expected


def test_no_groups(tmp_path: Path) -> None:
    assert share_of_time(tmp_path, tmp_path / "none") == math.inf


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group with the time of half a core."""
    first = GROUPS / "cpu" if (GROUPS / "cpu").is_dir() else GROUPS
    group = first / f"nmflow-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        if first is GROUPS:
            (group / "cpu.max").write_text("50000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(
            f"a control group that limits time can't be made here, which needs its folder to be writable: {error}"
        )
    yield group
    group.rmdir()


def test_a_limit_on_time_limits_threads(half_a_core: Path) -> None:
    code = (
        f"import os; open({str(half_a_core / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        "from nmflow.asked import thread_count; print(thread_count(None), thread_count(3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "3"]


def test_threads_are_those_of_the_cores() -> None:
    assert 1 <= cores() == thread_count(None) <= (os.cpu_count() or 1)
