"""Encoding and decoding of storage formats, both sides together, as multiples of the stream time.

    python -m benchmarks.formats          # benchmarks/results/formats.json, then the table of docs/formats.md
    python -m benchmarks.formats --docs   # only the table, from the results

The stream (nmflow.bench.stream) reads a float32 matrix and writes a byte for each entry. Stream, encoding and
decoding take turns in each round; a ratio is that of one round, and the median over rounds is reported. "Kernels"
write into arrays that stay, as the stream does; calls of the library allocate theirs, which the system clears first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import nmflow
from benchmarks.page import fill_page
from nmflow import formats
from nmflow.bench.machine import machine, versions
from nmflow.bench.stream import Stream
from nmflow.formats import sides
from nmflow.formats.sides import compress, shapes
from nmflow.kernels.compress import compress_kernel
from nmflow.kernels.expand import expand_kernel

RESULTS = Path(__file__).resolve().parent / "results" / "formats.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
LIMIT = 12.0
CASES = [("nibble", d) for d in ("int8", "float16", "float32")] + [
    ("cutlass-24", d) for d in ("int8", "float16", "bfloat16", "float32")
]


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def kernels(weight: np.ndarray, mask: np.ndarray, threads: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both kernels on arrays that stay: what nibble does, less the allocation."""
    bits = sides.tile_bits(weight.dtype)
    packed = compress(weight, mask, threads)
    back, kept = np.empty_like(weight), np.empty_like(mask)
    rows, cols = weight.shape

    def run(kernel: Callable[..., int], one: np.ndarray, two: np.ndarray) -> None:
        where = (one.ctypes.data, two.ctypes.data, rows, cols)
        sides.in_stripes(lambda start, stop: kernel(*where, start, stop, *packed.addresses()), rows, threads)

    assert shapes(weight.shape, weight.dtype)[0] == packed.values.shape
    return (
        lambda: run(compress_kernel(weight.itemsize, bits), weight, mask),
        lambda: run(expand_kernel(weight.itemsize, bits), back, kept),
    )


def measure(name: str, dtype: str, size: int, threads: int, rounds: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((size, size), np.float32)
    format_ = formats.get(name)
    mask = nmflow.solve(normal, pattern=format_.requirements[dtype].pattern).mask
    weight = (normal * 30 if dtype == "int8" else normal).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    arrays = format_.encode(weight, mask, threads=threads)
    format_.decode(arrays, threads=threads)
    steps: dict[str, Callable[[], object]] = {
        "encode": lambda: format_.encode(weight, mask, threads=threads),
        "decode": lambda: format_.decode(arrays, threads=threads),
    }
    if name == "nibble":
        steps["encode_kernel"], steps["decode_kernel"] = kernels(weight, mask, threads)
    times: dict[str, list[float]] = {key: [] for key in ("stream", *steps)}
    with Stream(normal, threads=threads) as stream:
        for step in (stream, *steps.values()):
            step()
        for _ in range(rounds):
            times["stream"].append(timed(stream))
            for key, step in steps.items():
                times[key].append(timed(step))
    per_entry = {key: statistics.median(found) / size**2 * 1e9 for key, found in times.items()}
    ratios = {
        key: statistics.median(a / b for a, b in zip(found, times["stream"], strict=True))
        for key, found in times.items()
        if key != "stream"
    }
    return {"format": name, "dtype": dtype, "rows": size, "cols": size, "threads": threads, "rounds": rounds,
            "ns_per_entry": per_entry, "times_stream": ratios}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown: what both sides cost, as multiples of the stream time."""
    first = found["rows"][0]
    lines = [
        f"| × stream, {first['rows']}², {first['threads']} threads | encode | decode | kernels alone |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        times = row["times_stream"]
        alone = f"{times['encode_kernel']:.1f} + {times['decode_kernel']:.1f}" if "encode_kernel" in times else ""
        lines.append(f"| {row['format']}, {row['dtype']} | {times['encode']:.1f} | {times['decode']:.1f} | {alone} |")
    worst = max(max(row["times_stream"]["encode"], row["times_stream"]["decode"]) for row in found["rows"])
    limit = found["limit"]
    both = [row for row in found["rows"] if sum(row["times_stream"][key] for key in ("encode", "decode")) > limit]
    lines += [
        "",
        f"Limit, W and Wᵀ together: {limit:.0f}× for encoding and for decoding; the worst is {worst:.1f}×. "
        f"Encoding and decoding added up exceed {limit:.0f}× in {len(both)} of {len(found['rows'])} rows.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--docs", action="store_true", help="only write the table, from the results")
    options = parser.parse_args()
    if not options.docs:
        rows = []
        for name, dtype in CASES:
            rows.append(measure(name, dtype, options.size, options.threads, options.rounds))
            print(f"{name} {dtype}", flush=True)
        result = {"limit": LIMIT, "machine": machine(), "versions": versions(), "rows": rows}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    fill_page(PAGE, {"speed": page})
    print(page)


if __name__ == "__main__":
    main()
