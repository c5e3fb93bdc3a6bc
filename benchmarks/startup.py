"""What a new process pays: import, first solve with compiled code in the cache, first solve without.

    python -m benchmarks.startup     # writes benchmarks/results/startup.json

Each number is taken in processes of its own. NumPy is loaded before the clock starts: nmflow cannot do without it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nmflow.bench.machine import machine, versions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "startup.json"
PATTERNS = ("2:4", "4:8", "8:16", "16:32")
LIMITS = {"import": 0.2, "first_solve_cached": 1.5, "first_solve_cold": 25.0}
"""Seconds that nmflow promises."""

IMPORT = """
import time, numpy
started = time.perf_counter()
import nmflow
print(time.perf_counter() - started)
"""
SOLVE = """
import sys, time, numpy
weights = numpy.random.default_rng(0).standard_normal((512, 512), numpy.float32)
started = time.perf_counter()
import nmflow
assert nmflow.solve(weights, pattern=sys.argv[1]).certificate.proven
print(time.perf_counter() - started)
"""


def seconds(code: str, cache: str, *arguments: str) -> float:
    """What a script measures of itself, in a new process."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure(repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        seconds(IMPORT, cache)  # bytecode is compiled once
        imports = [seconds(IMPORT, cache) for _ in range(repeats)]
    rows = []
    for pattern in PATTERNS:
        with tempfile.TemporaryDirectory() as cache:
            cold = seconds(SOLVE, cache, pattern)
            cached = [seconds(SOLVE, cache, pattern) for _ in range(repeats)]
        rows.append(
            {
                "pattern": pattern,
                "first_solve_cold": cold,
                "first_solve_cached": statistics.median(cached),
                "first_solve_cached_range": [min(cached), max(cached)],
            }
        )
    return {
        "import": statistics.median(imports),
        "import_range": [min(imports), max(imports)],
        "first_solve": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure import and first calls in new processes.")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    found = {"machine": machine(), "versions": versions(), "limits": LIMITS, "seconds": measure(options.repeats)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    took = found["seconds"]
    print(f"import over NumPy: {took['import']:.3f} s (limit {LIMITS['import']})")
    for row in took["first_solve"]:
        print(
            f"first solve at {row['pattern']}: {row['first_solve_cached']:.2f} s with compiled code in the cache "
            f"(limit {LIMITS['first_solve_cached']}), {row['first_solve_cold']:.1f} s without "
            f"(limit {LIMITS['first_solve_cold']})"
        )


if __name__ == "__main__":
    main()
