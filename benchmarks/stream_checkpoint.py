"""Pruning a checkpoint of 4 GB: speed against copying it, and peak memory.

    python -m benchmarks.stream_checkpoint --folder DIR    # writes results/stream.json, fills docs/checkpoints.md

The checkpoint is generated in DIR (bfloat16, normal; seven layers of a 7-billion-parameter model, its embedding, and
one tensor of 1 GB) unless it is there, and stays there; results are removed. Needs 14 GB in DIR. Each figure is taken
in a process of its own. Copies and prunings take turns; each copy is synced, as what prune writes is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.page import fill_page
from benchmarks.progress import counted
from benchmarks.store import save, setting
from benchmarks.table import head, line

RESULTS = Path(__file__).resolve().parent / "results" / "stream.json"
PAGE = RESULTS.parents[2] / "docs" / "checkpoints.md"
BLOCK = 1 << 24
LIMITS = {"peak_mb": 400.0, "times_copy": 3.0}
"""What nmflow promises at 2:4 on two cores: memory over the libraries, and time against a copy."""

COPY = """
import os, sys, time
source, target = sys.argv[1:]
started = time.perf_counter()
os.mkdir(target)
for name in sorted(os.listdir(source)):
    with open(f"{source}/{name}", "rb") as a, open(f"{target}/{name}", "xb") as b:
        while part := a.read(8 << 20):
            b.write(part)
        b.flush()
        os.fsync(b.fileno())
folder = os.open(target, os.O_RDONLY)
os.fsync(folder)
print(time.perf_counter() - started, 0, 0)
"""
STEP = """
import resource, sys, time
import ml_dtypes, numpy, xxhash
import nmflow
from nmflow import checkpoint
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for transposable in (True, False):
    nmflow.solve(numpy.zeros((8, 8), ml_dtypes.bfloat16), 2, 4, transposable=transposable)
base = peak()
src, dst = sys.argv[1:]
started = time.perf_counter()
{call}
print(time.perf_counter() - started, peak() - base, base)
"""
CALLS = {
    "prune": 'assert checkpoint.prune_checkpoint(src, dst, "2:4").proven',
    "verify": 'assert checkpoint.verify_checkpoint(dst, "2:4").ok',
    "diff": "checkpoint.diff_checkpoints(src, dst)",
    "export": 'checkpoint.export_checkpoint(dst, dst + ".packed", "cutlass-24", pad=True)',
    "verify export": 'assert checkpoint.verify_packed(dst + ".packed").ok',
}


NAMES = {
    "copy": "copy, with fsync",
    "prune": "`nmflow prune`",
    "verify": "`nmflow verify`",
    "diff": "`nmflow diff`, both read",
    "export": "`nmflow export --format cutlass-24`",
    "verify export": "`nmflow verify` of the export",
}


def shapes(gigabytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors of each shard."""
    shards: list[dict[str, tuple[int, ...]]] = [
        {"big.weight": (32768, 16384), "model.embed_tokens.weight": (32000, 4096)}
    ]
    for layer in range(max(1, (10 * gigabytes - 12) // 4)):
        own: dict[str, tuple[int, ...]] = {f"model.layers.{layer}.input_layernorm.weight": (4096,)}
        for name, shape in {
            **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (4096, 4096)),
            "self_attn.o_proj": (4096, 4096),
            "mlp.gate_proj": (11008, 4096),
            "mlp.up_proj": (11008, 4096),
            "mlp.down_proj": (4096, 11008),
        }.items():
            own[f"model.layers.{layer}.{name}.weight"] = shape
        shards.append(own)
    return shards


def generate(folder: Path, gigabytes: int) -> None:
    """Write the checkpoint."""
    folder.mkdir(parents=True)
    rng, weight_map = np.random.default_rng(0), {}
    parts = shapes(gigabytes)
    for number, tensors in enumerate(parts, 1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        header, size = {}, 0
        for tensor, shape in tensors.items():
            stop = size + 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [size, stop]}
            weight_map[tensor], size = name, stop
        text = json.dumps(header).encode()
        with (folder / name).open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, size, BLOCK):
                count = min(BLOCK, size - start) // 2
                file.write(rng.standard_normal(count, np.float32).astype(ml_dtypes.bfloat16).tobytes())
            os.fsync(file.fileno())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run(code: str, source: Path, target: Path) -> tuple[float, float, float]:
    """Seconds, peak memory over that of the libraries, and that of the libraries, in MB, of a script."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)], env=environment, stdout=subprocess.PIPE, check=True
    )
    seconds, peak, base = map(float, done.stdout.split())
    return seconds, peak, base


def remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    os.sync()  # what one step leaves behind is not paid by the next


def measure(source: Path, folder: Path, repeats: int) -> dict[str, Any]:
    out, copy, packed = folder / "out", folder / "copy", folder / "out.packed"
    prune = STEP.format(call=CALLS["prune"])
    rows: dict[str, list[tuple[float, float, float]]] = {"copy": [], "prune": []}
    for _ in range(repeats):
        remove(out, copy, packed)
        rows["copy"].append(run(COPY, source, copy))
        remove(copy)
        rows["prune"].append(run(prune, source, out))
        os.sync()
    for name, call in CALLS.items():
        if name != "prune":
            rows[name] = [run(STEP.format(call=call), source, out)]
            os.sync()
    remove(out, copy, packed)
    size = sum(path.stat().st_size for path in source.iterdir())
    ratios = [p[0] / c[0] for p, c in zip(rows["prune"], rows["copy"], strict=True)]
    return {
        "bytes": size,
        "pattern": "2:4",
        "steps": [
            {
                "step": name,
                "seconds": statistics.median(seconds for seconds, _, _ in found),
                "seconds_all": [seconds for seconds, _, _ in found],
                "gb_per_second": size / statistics.median(seconds for seconds, _, _ in found) / 1e9,
                "peak_mb": max(peak for _, peak, _ in found) if name != "copy" else None,
                "libraries_mb": max(base for _, _, base in found) if name != "copy" else None,
            }
            for name, found in rows.items()
        ],
        "times_copy": statistics.median(ratios),
        "times_copy_all": ratios,
        "limits": LIMITS,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: each step, and what was promised."""
    machine_, ratios = found["machine"], found["times_copy_all"]
    lines = [
        f"{machine_['cpu']}, {machine_['usable_cores']} cores, {machine_['system']}; {found['bytes'] / 1e9:.1f} GB in "
        f"bfloat16 at {found['pattern']}, one tensor of 1 GB.",
        "",
        *head("step", "seconds", "GB of the checkpoint a second", "MB beyond the libraries"),
    ]
    for row in found["steps"]:
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        lines.append(line(NAMES[row["step"]], f"{row['seconds']:.1f}", f"{row['gb_per_second']:.2f}", peak))
    lines += [
        "",
        f"Pruning took {found['times_copy']:.2f} times as long as copying the same file in the same run "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds). Promised on two cores: at most "
        f"{LIMITS['times_copy']:.0f} times as long, in at most {LIMITS['peak_mb']:.0f} MB.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/stream"))
    parser.add_argument("--gigabytes", type=counted, default=4, help="about")
    parser.add_argument("--repeats", type=counted, default=3)
    parser.add_argument("--generate", action="store_true", help="generate the checkpoint and measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    source = options.folder / f"checkpoint-{options.gigabytes}"
    if not source.exists():
        generate(source, options.gigabytes)
    if options.generate:
        return
    found = {
        **setting(),
        **measure(source, options.folder, options.repeats),
    }
    save(options.output, found)
    if options.output == RESULTS:
        fill_page(PAGE, {"stream": table(found)})
    for row in found["steps"]:
        peak = "" if row["peak_mb"] is None else f", {row['peak_mb']:.0f} MB over the libraries"
        print(f"{row['step']:14} {row['seconds']:7.1f} s {row['gb_per_second']:6.2f} GB/s{peak}")
    print(f"prune takes {found['times_copy']:.2f} times as long as the copy")
    good = found["times_copy"] <= LIMITS["times_copy"]
    good &= all(row["peak_mb"] is None or row["peak_mb"] <= LIMITS["peak_mb"] for row in found["steps"])
    sys.exit(not good)


if __name__ == "__main__":
    main()
