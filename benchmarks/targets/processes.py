"""Targets that take a process of their own: memory, and what the first solve costs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nmflow
from benchmarks.targets.turns import Bench, Row, row, unavailable

__all__ = ["environment", "memory", "starting"]


MEMORY = """
import json, sys
import numpy as np, nmflow
pattern, side, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
weights = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
nmflow.solve(weights[:256, :256].copy(), pattern=pattern, threads=threads)  # compiled before it is measured
def resident(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) << 10
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident("VmRSS")
solution = nmflow.solve(weights, pattern=pattern, threads=threads)
peak = resident("VmHWM")
print(json.dumps([peak - before - solution.mask.nbytes, solution.certificate.n_blocks]))
"""


def memory(bench: Bench) -> Iterator[Row]:
    """Peak of solve beyond its input and its mask, in a process of its own."""
    for side in (bench.side, 2 * bench.side):
        for pattern in ("2:4", "16:32"):
            name = f"{pattern} on {side}x{side}, MB beyond input, mask and two bytes a block"
            if not Path("/proc/self/clear_refs").exists():
                yield unavailable(name, "<=", 64, "the peak of a call is read from Linux's /proc")
                continue
            try:
                beyond, blocks = json.loads(python(MEMORY, pattern, str(side), str(bench.threads)))
            except RuntimeError as error:
                yield unavailable(name, "<=", 64, str(error))
                continue
            yield row(name, "<=", 64, (beyond - 2 * blocks) / 1e6, {}, 0, pattern=pattern, blocks=blocks, bytes=beyond)


IMPORT = """
import time
import numpy
started = time.perf_counter()
import nmflow
print(time.perf_counter() - started)
"""
FIRST = """
import sys, time
import numpy as np
weights = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
started = time.perf_counter()
import nmflow
nmflow.solve(weights, pattern=sys.argv[1])
print(time.perf_counter() - started)
"""


def starting(bench: Bench) -> Iterator[Row]:
    """Seconds of the import, and of the first solve in a new process with and without compiled code on disk."""
    python("import nmflow, numba")  # bytecode is made once
    took = [float(python(IMPORT)) for _ in range(bench.repeats)]
    yield row("import nmflow, seconds beyond NumPy", "<=", 0.2, statistics.median(took), {"import": took}, 0)
    for pattern in ("2:4", "8:16", "16:32", "32:64", "6:12"):
        with tempfile.TemporaryDirectory() as cache:
            cold = float(python(FIRST, pattern, NUMBA_CACHE_DIR=cache))
            cached = [float(python(FIRST, pattern, NUMBA_CACHE_DIR=cache)) for _ in range(3)]
        yield row(f"first solve at {pattern}, not compiled, seconds", "<=", 25, cold, {}, 0, pattern=pattern)
        yield row(
            f"first solve at {pattern}, compiled before, seconds", "<=", 1.5, statistics.median(cached),
            {"first": cached}, 0, pattern=pattern,
        )  # fmt: skip


def python(code: str, *arguments: str, **more: str) -> str:
    """Run code in a new process, which finds the nmflow that this one uses; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, env=environment() | more,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the process ended with {done.returncode}")
    return done.stdout


def environment() -> dict[str, str]:
    """That of a process which finds the nmflow that this one uses, and keeps the bytecode of what it imports."""
    root = str(Path(nmflow.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
