"""Encoding and decoding of storage formats, both sides together, as multiples of the stream time.

    python -m benchmarks.formats          # benchmarks/results/formats.json, then the table of docs/formats.md
    python -m benchmarks.formats --docs   # only the table, from the results

The stream (nmflow.bench.stream) reads a float32 matrix and writes a byte for each entry, into an array that stays.
Stream, encoding and decoding take turns in each round; a ratio is that of one round, and the median over rounds is
reported. "Into" passes `out=`, arrays that stay as the stream's does; "new" lets the library allocate what it returns,
which the system clears first. "Both" is encoding and decoding of a round added up.
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
from benchmarks.progress import counted
from benchmarks.store import save, setting
from benchmarks.table import head, line
from nmflow import formats
from nmflow.bench.stream import Stream

RESULTS = Path(__file__).resolve().parent / "results" / "formats.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
LIMIT = 12.0
KINDS = {"into": "Into arrays that are there", "new": "with new arrays"}
CASES = [("nibble", d) for d in ("int8", "float16", "float32")] + [
    ("cutlass-24", d) for d in ("int8", "float16", "bfloat16", "float32")
]


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(name: str, dtype: str, size: int, threads: int, rounds: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((size, size), np.float32)
    format_ = formats.get(name)
    mask = nmflow.solve(normal, pattern=format_.requirements[dtype].pattern).mask
    weight = (normal * 30 if dtype == "int8" else normal).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    arrays = format_.encode(weight, mask, threads=threads)
    there = dict(zip(("weight", "mask"), format_.decode(arrays, threads=threads), strict=True))
    steps: dict[str, Callable[[], object]] = {
        "encode_into": lambda: format_.encode(weight, mask, out=arrays, threads=threads),
        "decode_into": lambda: format_.decode(arrays, out=there, threads=threads),
        "encode_new": lambda: format_.encode(weight, mask, threads=threads),
        "decode_new": lambda: format_.decode(arrays, threads=threads),
    }
    times: dict[str, list[float]] = {key: [] for key in ("stream", *steps)}
    with Stream(normal, threads=threads) as stream:
        for step in (stream, *steps.values()):
            step()
        for _ in range(rounds):
            times["stream"].append(timed(stream))
            for key, step in steps.items():
                times[key].append(timed(step))
    for kind in KINDS:
        pairs = zip(times[f"encode_{kind}"], times[f"decode_{kind}"], strict=True)
        times[f"both_{kind}"] = [encoding + decoding for encoding, decoding in pairs]
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
    columns = (f"{step}{where}" for where in (" into `out`", ", new arrays") for step in ("encode", "decode", "both"))
    lines = head(f"× stream, {first['rows']}², {first['threads']} threads", *columns)
    for row in found["rows"]:
        times = row["times_stream"]
        cells = (f"{times[f'{step}_{kind}']:.1f}" for kind in KINDS for step in ("encode", "decode", "both"))
        lines.append(line(f"{row['format']}, {row['dtype']}", *cells))
    limit, said = found["limit"], []
    for kind, where in KINDS.items():
        both = [row["times_stream"][f"both_{kind}"] for row in found["rows"]]
        above = sum(value > limit for value in both)
        verb = "exceed" if above > 1 else "exceeds"
        said.append(f"{where} {above or 'none'} of {len(both)} rows {verb} it, the highest being {max(both):.1f}×")
    about = f"{found['machine']['cpu']}, nmflow {found['versions']['nmflow']}; medians of {first['rounds']} rounds."
    lines += ["", f"Limit, encoding and decoding W and Wᵀ added up: {limit:.0f}×. {'; '.join(said)}.", "", about]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=counted, default=4096)
    parser.add_argument("--threads", type=counted, default=2)
    parser.add_argument("--rounds", type=counted, default=15)
    parser.add_argument("--docs", action="store_true", help="only write the table, from the results")
    options = parser.parse_args()
    if options.size % 128:
        parser.error(f"--size must be a multiple of 128, of which all formats have whole tiles, not {options.size}")
    if not options.docs:
        rows = []
        for name, dtype in CASES:
            rows.append(measure(name, dtype, options.size, options.threads, options.rounds))
            print(f"{name} {dtype}", flush=True)
        save(RESULTS, {"limit": LIMIT, **setting(), "rows": rows})
    page = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    fill_page(PAGE, {"speed": page})
    print(page)


if __name__ == "__main__":
    main()
