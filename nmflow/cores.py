"""How many cores a process may use: those it may run on, but no more than its share of their time.

A container is often given the time of a few cores and may still run on all of them. Threads beyond that share stand
still, all at once, for most of each period of the scheduler. Linux says the share in files of control groups: version 2
in `cpu.max`, version 1 in `cpu.cfs_quota_us` and `cpu.cfs_period_us`
(https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/scheduler/sched-bwc.html).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cores", "share_of_time"]

GROUPS, MEMBER = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores() -> int:
    """Cores that this process may use, at least one; a part of a core counts as one."""
    runs_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(runs_on, _own_share())))


@functools.cache
def _own_share() -> float:
    return share_of_time(GROUPS, MEMBER)


def share_of_time(groups: Path, member: Path) -> float:
    """Cores whose time a process may use together; infinite where nothing limits it, or nothing is known.

    groups : where control groups are mounted. member : the file that names those of the process, a line each.
    """
    try:
        lines = member.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return math.inf
    return min((share for line in lines for share in _shares(groups, line)), default=math.inf)


def _shares(groups: Path, line: str) -> Iterator[float]:
    """The limits of a group and of those it lies in. Within a container its own is the top, whatever the line says."""
    _, controllers, path = (*line.split(":", 2), "", "")[:3]
    if controllers and "cpu" not in controllers.split(","):
        return
    within = PurePosixPath(path.lstrip("/"))
    for group in (within, *within.parents):
        try:
            if controllers:
                found = [(groups / "cpu" / group / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period")]
            else:
                found = (groups / group / "cpu.max").read_text().split()
            quota, period = map(int, found)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            yield quota / period
