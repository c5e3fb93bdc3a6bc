"""What a measurement ran on: processor, memory, versions. Nothing that names the machine or who uses it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nmflow.cores import cores

__all__ = ["available_memory", "digest_of", "machine", "source_digest", "versions"]

LIBRARIES = ("numpy", "numba", "llvmlite", "ml_dtypes", "ortools", "networkx", "scipy", "POT", "torch")


def available_memory() -> int | None:
    """Bytes that could be allocated now; None where the system does not say."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.extend(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")  # a container's own limit, where there is one
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit.isdigit():
            found.append(int(limit) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError, IndexError):
        pass
    return max(0, min(found)) if found else None


def machine() -> dict[str, Any]:
    """Processor, cores and system."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": cores(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, nmflow and the libraries that are compared; None where one is not installed."""
    from nmflow import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "nmflow": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def source_digest() -> str:
    """A short digest of nmflow's source: rows of two different ones were not measured side by side."""
    root = Path(__file__).parent.parent
    return digest_of(root, root.rglob("*.py"))


def digest_of(root: Path, files: Iterable[Path]) -> str:
    """A short digest of files by their names below a folder."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _processor(told: Path = Path("/proc/cpuinfo")) -> str:
    """Its name, and on x86 what tells its generation: a rented machine often calls itself "AMD EPYC" and no more."""
    found: dict[str, str] = {}
    try:
        for line in told.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), " ".join(value.split()))
    except OSError:
        pass
    name = found.get("model name") or platform.processor() or "unknown"
    family, model = found.get("cpu family"), found.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name
