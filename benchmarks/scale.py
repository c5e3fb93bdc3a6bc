"""What a checkpoint of 405 billion parameters costs, from rates that are measured here.

    python -m benchmarks.scale          # benchmarks/results/scale.json, then the tables of docs/scale.md
    python -m benchmarks.scale --docs   # only the tables, from the results

Rates are those of whole runs: reading, checksums, solving, proving, the best masks by rows, and writing. They are
taken in a folder in memory, so that they are the processor's, on one core and on all; storage is reckoned apart.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import fill_page
from benchmarks.progress import counted
from benchmarks.store import now, save, setting
from benchmarks.table import head, line
from nmflow.cores import cores

RESULTS = Path(__file__).resolve().parent / "results" / "scale.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
PATTERNS = ("2:4", "4:8", "8:16")
TENSORS, SHAPE = 8, (2048, 4096)
TINY = 500
MACHINES = (1, 8, 64)
MACHINE_CORES, SLOTS = 64, 8
"""The machine that is reckoned with: its cores, and how many tensors it does at a time."""
STORAGE = (1.0, 4.0)
"""GB/s between a machine and the storage, read and written together."""
MOST_CORES = 8
"""Cores that a tensor can use: `nmflow.checkpoint.pool.MOST_THREADS`, less the one that reads and writes."""


@dataclass(frozen=True)
class Tensor:
    """Entries of a tensor, and whether it is pruned."""

    entries: int
    pruned: bool


def llama_405b() -> Iterator[Tensor]:
    """Tensors of Llama 3.1 405B in the order of their layers (A. Dubey et al. 2024, arXiv 2407.21783, table 3)."""
    layers, model, hidden, heads, kv_heads, vocabulary = 126, 16384, 53248, 128, 8, 128256
    narrow = model // heads * kv_heads
    yield Tensor(vocabulary * model, False)
    for _ in range(layers):
        for rows, cols in ((model, model), (narrow, model), (narrow, model), (model, model)):
            yield Tensor(rows * cols, True)
        for rows, cols in ((hidden, model), (hidden, model), (model, hidden)):
            yield Tensor(rows * cols, True)
        yield from (Tensor(model, False), Tensor(model, False))
    yield Tensor(model, False)
    yield Tensor(vocabulary * model, False)


def spread(tensors: Sequence[Tensor], slots: int, seconds_per_entry: float) -> float:
    """Seconds until all slots are done that take one tensor after the other, in order."""
    free = [0.0] * slots
    for tensor in tensors:
        if tensor.pruned:
            heapq.heapreplace(free, free[0] + tensor.entries * seconds_per_entry)
    return max(free)


def generate(path: Path, count: int, shape: tuple[int, int]) -> None:
    """A checkpoint of Gaussian weights in bfloat16."""
    import ml_dtypes
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    values = {f"{k}.weight": rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16) for k in range(count)}
    save_file(values, path)


def one(source: Path, folder: Path, pattern: str, count: int, repeats: int = 5) -> dict[str, Any]:
    """Prune on some cores, in this process, which should be a new one."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    from nmflow.checkpoint import prune_checkpoint

    small = folder / "small.safetensors"
    generate(small, 1, (64, 64))
    prune_checkpoint(small, folder / "warm.safetensors", pattern, overwrite=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        prune_checkpoint(source, folder / "out.safetensors", pattern, overwrite=True)
        seconds.append(time.perf_counter() - started)
    del seconds[0]  # what a process does once
    entries = TENSORS * SHAPE[0] * SHAPE[1]
    return {
        "kind": "prune", "pattern": pattern, "cores": count, "entries": entries, "repeats": repeats,
        "seconds": statistics.median(seconds), "ns_per_entry": statistics.median(seconds) / entries * 1e9,
        "extra_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }  # fmt: skip


def copying(source: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Copy a file to a disk, to the end: what its storage can do."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        with source.open("rb") as read, (folder / "copy").open("wb") as written:
            while part := read.read(8 << 20):
                written.write(part)
            written.flush()
            os.fsync(written.fileno())
        seconds.append(time.perf_counter() - started)
    size = source.stat().st_size
    return {"kind": "copy", "bytes": size, "seconds": statistics.median(seconds), "repeats": repeats,
            "gb_per_second": size / statistics.median(seconds) / 1e9}  # fmt: skip


def cluster(folder: Path) -> dict[str, Any]:
    """What a tensor costs on a Dask cluster beyond its work: many tiny ones, here and there."""
    from distributed import LocalCluster

    from nmflow.checkpoint import prune_checkpoint
    from nmflow.checkpoint.cluster import dask_executor

    source = folder / "tiny.safetensors"
    generate(source, TINY, (8, 8))
    seconds = {}
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as made,
        dask_executor(made.scheduler_address) as executor,
    ):
        for name, chosen in (("warm", executor), ("dask", executor), ("local", None)):
            started = time.perf_counter()
            prune_checkpoint(source, folder / "tiny-out.safetensors", "2:4", executor=chosen, overwrite=True)
            seconds[name] = time.perf_counter() - started
    return {"kind": "cluster", "tensors": TINY, "ms_per_tensor": seconds["dask"] / TINY * 1e3,
            "ms_per_tensor_local": seconds["local"] / TINY * 1e3}  # fmt: skip


def measure(memory: Path, disk: Path, rounds: int) -> dict[str, Any]:
    """All rows."""
    rows = []
    with tempfile.TemporaryDirectory(dir=memory) as name, tempfile.TemporaryDirectory(dir=disk) as on_disk:
        folder = Path(name)
        source = folder / "model.safetensors"
        generate(source, TENSORS, SHAPE)
        cases = [(pattern, count) for pattern in PATTERNS for count in sorted({1, cores()})]
        found: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(rounds):  # in turn: what slows the machine down slows all cases
            for pattern, count in cases:
                command = [sys.executable, "-m", "benchmarks.scale", "--one", pattern, str(count), str(source), name]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[pattern, count].append(json.loads(done.stdout))
        rows += [_median(each) for each in found.values()]
        rows.append(copying(source, Path(on_disk), rounds))
        rows.append(cluster(folder))
    return {**setting(), "measured": now(), "rows": rows}


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of those of all rounds."""
    middle = {key: statistics.median(row[key] for row in rounds) for key in ("seconds", "ns_per_entry")}
    return {**rounds[0], **middle, "rounds": len(rounds), "extra_mb": max(row["extra_mb"] for row in rounds)}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The sections of the page."""
    rows = found["rows"]
    copy = next(row for row in rows if row["kind"] == "copy")
    dask = next(row for row in rows if row["kind"] == "cluster")
    pruned = {(row["pattern"], row["cores"]): row for row in rows if row["kind"] == "prune"}
    most = max(count for _, count in pruned)
    about = found["machine"]
    lines = [
        f"{about['cpu']}, {about['usable_cores']} cores, {about['system']}; nmflow {found['versions']['nmflow']}, "
        f"measured {found['measured']}. {TENSORS} tensors of {SHAPE[0]} × {SHAPE[1]} in bfloat16, in memory.",
        "",
        *head("pattern", "ns per entry, 1 core", f"ns per entry, {most} cores", "of linear", "MB beyond the libraries"),
    ]
    shares = {}
    for pattern in PATTERNS:
        single, many = pruned[pattern, 1], pruned[pattern, most]
        shares[pattern] = single["seconds"] / many["seconds"] / most
        times = (f"{row['ns_per_entry']:.2f}" for row in (single, many))
        extra = max(single["extra_mb"], many["extra_mb"])
        lines.append(line(pattern, *times, f"{shares[pattern]:.0%}", f"{extra:.0f}"))
    lines += [
        "",
        f"Copying the same file to this machine's disk, with fsync: {copy['gb_per_second']:.2f} GB/s. "
        f"A tensor on a Dask cluster costs {dask['ms_per_tensor']:.1f} ms beyond its work, "
        f"here {dask['ms_per_tensor_local']:.1f} ms.",
    ]
    return {"rates": "\n".join(lines), "costs": _costs(pruned, most, copy["gb_per_second"], dask["ms_per_tensor"])}


def _costs(pruned: dict[tuple[str, int], dict[str, Any]], most: int, disk: float, handing: float) -> str:
    tensors = list(llama_405b())
    entries = sum(tensor.entries for tensor in tensors)
    taken = [tensor.entries for tensor in tensors if tensor.pruned]
    traffic = 2 * 2 * entries / 1e9
    # Memory goes with threads: one for each core, and one that reads and writes.
    extra = max(row["extra_mb"] / (count + 1) for (_, count), row in pruned.items()) * (MOST_CORES + 1) * SLOTS
    lines = [
        f"{entries / 1e9:.1f} billion parameters in {len(tensors):,} tensors, {2 * entries / 1e9:,.0f} GB; "
        f"{len(taken):,} weights with {sum(taken) / 1e9:.1f} billion entries are pruned, the largest of "
        f"{max(taken) / 1e6:,.0f} million. Read and written: {traffic:,.0f} GB together.",
        "",
        *head("machines", "pattern", "solving", *(f"I/O at {rate:.0f} GB/s each" for rate in STORAGE), "memory each"),
    ]
    for count in MACHINES:
        for pattern in PATTERNS:
            # A slot has MACHINE_CORES / SLOTS cores, each as fast as one of these when all of these are at work.
            rate = pruned[pattern, most]["ns_per_entry"] * most * 1e-9 / min(MACHINE_CORES / SLOTS, MOST_CORES)
            solving = spread(tensors, count * SLOTS, rate)
            moving = (_time(traffic / count / speed) for speed in STORAGE)
            lines.append(line(count, pattern, _time(solving), *moving, f"{extra / 1e3:.1f} GB"))
    here = sum(taken) * pruned["2:4", most]["ns_per_entry"] * 1e-9
    lines += [
        "",
        f"Handing {len(tensors):,} tensors out takes about {_time(len(tensors) * handing * 1e-3)} beside that.",
        "",
        f"On the machine that was measured, with its {most} cores and its disk, 2:4 would take {_time(here)} of "
        f"solving and {_time(2 * entries / 1e9 / disk)} of copying.",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="only write the tables, from the results")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a folder in memory")
    parser.add_argument("--disk", type=Path, default=RESULTS.parent, help="a folder on the disk")
    parser.add_argument("--rounds", type=counted, default=5)
    parser.add_argument("--one", nargs=4, metavar=("PATTERN", "CORES", "SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        pattern, count, source, folder = options.one
        print(json.dumps(one(Path(source), Path(folder), pattern, int(count))))
        return
    if not options.docs:
        for name in ("memory", "disk"):
            if not getattr(options, name).is_dir():
                parser.error(f"--{name} must be a folder that exists, not {getattr(options, name)}")
        save(RESULTS, measure(options.memory, options.disk, options.rounds))
    fill_page(PAGE, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
