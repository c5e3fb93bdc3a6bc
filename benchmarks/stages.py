"""Where the time of a solve goes, and what its inner loops are made of: ``python -m benchmarks.stages``.

Processor time of one thread, kernel by kernel, and the vector instructions in the machine code of the first pass.
Writes benchmarks/results/stages.json and the section of docs/performance.md that shows it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import nmflow
from benchmarks.section import section
from benchmarks.store import setting
from benchmarks.table import HALVES, head, line

STAGES = {"settle": "ascent, mask, proof, and paths where few blocks need them"}
SELECTION = ("vpmaxsw", "vpminsw")
OTHERS = ("vpsubw", "vpsubsw", "vpaddw", "vpsraw", "vpand", "vpermt2w")


class Clock:
    """Adds up the processor time of what it wraps."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **options: Any) -> Any:
            began = time.thread_time()
            result = function(*values, **options)
            self.seconds[label] += time.thread_time() - began
            return result

        return run


def measure(side: int, repeats: int) -> dict[str, Any]:
    from nmflow.solvers import settled

    code = {pattern: instructions(pattern) for pattern in HALVES}
    clock = Clock()
    settled.call_on_threads = clock.timed("settle", settled.call_on_threads)
    weights = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    out = np.empty(weights.shape, np.bool_)
    rows = []
    for pattern in HALVES:
        nmflow.solve(weights, pattern=pattern, threads=1, out=out)
        best: tuple[float, dict[str, float], Any] | None = None
        for _ in range(repeats):
            clock.seconds.clear()
            began = time.thread_time()
            solution = nmflow.solve(weights, pattern=pattern, threads=1, out=out)
            total = time.thread_time() - began
            if best is None or total < best[0]:
                best = total, dict(clock.seconds), solution
        assert best is not None
        total, parts, solution = best
        nanoseconds = {stage: parts.get(stage, 0.0) / weights.size * 1e9 for stage in STAGES}
        rows.append(
            {
                "pattern": pattern,
                "total": total / weights.size * 1e9,
                "stages": nanoseconds,
                "rest": (total - sum(parts.values())) / weights.size * 1e9,
                "augmented": solution.stats.get("augmented", 0) / solution.certificate.n_blocks,
                "instructions": code[pattern],
            }
        )
    return {**setting(), "side": side, "rows": rows}


LISTING = """
import sys
from nmflow.kernels import compile
from nmflow.kernels.ascent import ascent_of
from nmflow.kernels.settle_passes import first_pass
n, m = (int(x) for x in sys.argv[1].split(":"))
ascent_of(m, m, n, n, 0, 0, 0)
first_pass("float32", m, m, n, n, 2, 2, True)
for made in compile._operations:
    print(made._library.get_asm_str())
"""


def instructions(pattern: str) -> dict[str, int]:
    """Vector instructions in the machine code of the first pass, by mnemonic, and those that spill a register."""
    with tempfile.TemporaryDirectory() as folder:  # Numba shows no code that comes from its cache
        text = subprocess.run(
            [sys.executable, "-c", LISTING, pattern],
            env={**os.environ, "NUMBA_CACHE_DIR": folder},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    counts: Counter[str] = Counter()
    for instruction in text.splitlines():
        found = re.match(r"\s+(v\w+)\s", instruction)
        if found:
            counts[found[1]] += 1
    kept = {name: counts[name] for name in SELECTION + OTHERS}
    return {
        **kept,
        "vector": sum(counts.values()),
        "spills": len(re.findall(r"\tv\w+\s+%[yz]mm\d+, -?\d*\(%rsp\)", text)),
    }


def table(results: dict[str, Any]) -> str:
    """The section of the page."""
    cpu, side = results["machine"]["cpu"], results["side"]
    lines = [
        f"Nanoseconds of processor time an entry, one thread, {side}×{side} float32 |N(0,1)|, the best of several "
        f"runs; {cpu}.",
        "",
        *head("pattern", *STAGES.values(), "the rest", "together", "blocks with paths"),
    ]
    for row in results["rows"]:
        took = (*(row["stages"][stage] for stage in STAGES), row["rest"], row["total"])
        lines.append(line(row["pattern"], *(f"{nanoseconds:.2f}" for nanoseconds in took), f"{row['augmented']:.2%}"))
    lines += [
        "",
        "Instructions in the machine code of the first pass over 32 blocks, to read, ascend and prove:",
        "",
    ]
    names = [*SELECTION, *OTHERS, "vector", "spills"]
    lines += head("pattern", *names)
    for row in results["rows"]:
        lines.append(line(row["pattern"], *(row["instructions"][name] for name in names)))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    return section("stages", __doc__, measure, table, side=4096, repeats=7, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
