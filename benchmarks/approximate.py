"""What approximate solvers lose, block by block, on several families of scores.

python -m benchmarks.approximate          # benchmarks/results/approximate.json, then docs/solvers.md
python -m benchmarks.approximate --docs   # only the tables, from the results
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import nmflow
from benchmarks.page import fill_page
from benchmarks.store import now, save, setting
from benchmarks.table import HALVES, head, line
from nmflow.arrays import Array
from nmflow.solvers.base import Solver
from nmflow.solvers.entropic import Entropic

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "approximate.json"
PAGE = HERE.parent / "docs" / "solvers.md"
NAMES = ("two-approx", "greedy", "two-approx-refill", "local-search", "entropic")
SIDE = 1024
REPEATS = 3
"""Times that each solver is timed; the median counts."""


def families() -> dict[str, Array]:
    rng = np.random.default_rng(4)
    gaussian = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    outliers = np.where(rng.random(SIDE) < 0.03, rng.uniform(10.0, 100.0, SIDE), 1.0)
    return {
        "gaussian": gaussian,
        "outlier columns": (gaussian * outliers).astype(np.float32),
        "heavy tailed": rng.standard_t(1.5, (SIDE, SIDE)).astype(np.float32),
        "few values": rng.integers(0, 4, (SIDE, SIDE)).astype(np.float32),
    }


def measure() -> list[dict[str, Any]]:
    rows = []
    for family, weights in families().items():
        for pattern in HALVES:
            best = _by_block(weights, nmflow.solve(weights, pattern=pattern).mask, pattern)
            solvers: list[str | Solver] = list(NAMES)
            if family == "gaussian":
                solvers += [Entropic(temperature=t) for t in (2.5, 5.0, 20.0, 40.0)]
            rows += [{"family": family, **_row(weights, pattern, solver, best)} for solver in solvers]
    return rows


def _row(weights: Array, pattern: str, solver: str | Solver, best: Array) -> dict[str, Any]:
    fill = "at-most" if solver == "two-approx" else "exact"
    nmflow.solve(weights[:64, :64], pattern=pattern, solver=solver, fill=fill)  # compiles
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = nmflow.solve(weights, pattern=pattern, solver=solver, fill=fill, threads=1)
        seconds.append(time.perf_counter() - started)
    kept = _by_block(weights, found.mask, pattern)
    losses = np.where(best > 0, 1.0 - kept / np.maximum(best, 1e-300), 0.0)
    return {
        "pattern": pattern,
        "solver": found.solver,
        "temperature": solver.temperature if isinstance(solver, Entropic) else None,
        "loss": float(1.0 - kept.sum() / best.sum()),
        "worst_block_loss": float(losses.max()),
        "density": float(found.mask.mean()),
        "blocks": int(best.size),
        "left_to_exact": int(found.stats.get("left_to_exact", 0)),
        "ns_per_entry": statistics.median(seconds) / weights.size * 1e9,
    }


def _by_block(weights: Array, mask: Array, pattern: str) -> Array:
    m = int(pattern.split(":")[1])
    scores = np.where(mask, np.abs(weights.astype(np.float64)), 0.0)
    sums: Array = scores.reshape(SIDE // m, m, SIDE // m, m).sum(axis=(1, 3))
    return sums


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows, out = results["rows"], {}
    for family in dict.fromkeys(row["family"] for row in rows):
        lines = head(family, *HALVES)
        for name in NAMES:
            cells = []
            for pattern in HALVES:
                row = _find(rows, family=family, pattern=pattern, solver=name, temperature=None)
                cells.append(f"{100 * row['loss']:.3f}% ({100 * row['worst_block_loss']:.2f}%)")
            lines.append(line(f"`{name}`", *cells))
        out[family] = "\n".join(lines)
    default = Entropic().temperature
    lines = head("temperature", *HALVES)
    for t in (2.5, 5.0, default, 20.0, 40.0):
        found = [
            _find(rows, family="gaussian", pattern=p, solver="entropic", temperature=None if t == default else t)
            for p in HALVES
        ]
        lines.append(line(f"{t:g}", *(f"{100 * row['loss']:.4f}%" for row in found)))
    out["temperature"] = "\n".join(lines)
    lines = head("ns per entry, one thread", *HALVES)
    for name in NAMES:
        found = [_find(rows, family="gaussian", pattern=p, solver=name, temperature=None) for p in HALVES]
        lines.append(line(f"`{name}`", *(f"{row['ns_per_entry']:.0f}" for row in found)))
    out["times"] = "\n".join([*_measured(results), *lines])
    return out


def _measured(results: dict[str, Any]) -> list[str]:
    """How times were taken, and on what."""
    cpu, version = results["machine"]["cpu"], results["versions"]["nmflow"]
    return [f"{cpu}, nmflow {version}, measured {results['measured']}; the median of {results['repeats']}.", ""]


def _find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="only write the tables, from the results")
    if not parser.parse_args().docs:
        head = {**setting(), "repeats": REPEATS}
        save(RESULTS, {"side": SIDE, **head, "measured": now(), "rows": measure()})
    fill_page(PAGE, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
