"""Targets of growth: with entries, and with threads."""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.families import GAUSSIAN, make
from benchmarks.progress import tell
from benchmarks.table import HALVES
from benchmarks.targets.processes import environment
from benchmarks.targets.turns import Bench, Row, row
from nmflow.bench.timing import ratio
from nmflow.errors import NmflowError

__all__ = ["linear", "threads"]

BATCHES = 5
"""How often threads and processes take turns: a rented machine gives both cores at one moment, and little more than one
at the next, for a second or so."""


def linear(bench: Bench) -> Iterator[Row]:
    """Whether time is proportional to entries, over five doublings of the side: all sizes take turns.

    A turn of a small size is as many matrices as hold the entries of a middle one, and their mean counts: layers of a
    model come one after the other. What the first of them takes, after matrices that leave nothing of the interpreter
    in a cache, is noted beside it. On one thread too: a small matrix has one chunk, so that others wait.
    """
    middle = bench.weights(bench.side)
    matrices = {side: middle.reshape(-1, side, side) for side in (bench.side // k for k in (8, 4, 2, 1))}
    for side in (2 * bench.side, 4 * bench.side):
        try:
            matrices[side] = make(GAUSSIAN, (side, side))[np.newaxis]
        except NmflowError as error:
            tell(f"growth is measured without this size: {error}")
    for pattern, threads in itertools.product(HALVES, sorted({1, bench.threads})):
        alone: dict[int, list[float]] = {side: [] for side in matrices}

        def turn(side: int, calls: list[Callable[[], Any]], firsts: dict[int, list[float]] = alone) -> None:
            started = time.perf_counter()
            calls[0]()
            firsts[side].append(time.perf_counter() - started)
            for call in calls[1:]:
                call()

        times = bench.turns({
            str(side): functools.partial(turn, side, [bench.solving(weights, pattern, threads) for weights in stack])
            for side, stack in matrices.items()
        })  # fmt: skip
        sizes = [side * side for side in matrices]
        seconds = [statistics.median(each) / len(matrices[int(side)]) for side, each in times.items()]
        exponent, by_first = (
            float(np.polyfit(np.log(sizes), np.log(took), 1)[0])
            for took in (seconds, [statistics.median(each) for each in alone.values()])
        )
        per_entry = {side: took / size * 1e9 for side, size, took in zip(times, sizes, seconds, strict=True)}
        name = f"{pattern}, time ~ entries to the power of p: |p - 1|" + (", one thread" if threads == 1 else "")
        yield row(
            name, "<=", 0.1, abs(exponent - 1), times, 0, pattern=pattern, threads=threads, exponent=exponent,
            exponent_of_the_first=by_first, ns_per_entry_by_side=per_entry,
            note=f"the first of each size: {abs(by_first - 1):.2f}",
        )  # fmt: skip


ALONE = """
import sys, time
import numpy as np, nmflow
pattern, side = sys.argv[1], int(sys.argv[2])
weights = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
out = np.empty(weights.shape, np.bool_)
nmflow.solve(weights, pattern=pattern, threads=1, out=out)
print(flush=True)
for _ in sys.stdin:
    started = time.perf_counter()
    nmflow.solve(weights, pattern=pattern, threads=1, out=out)
    print(time.perf_counter() - started, flush=True)
"""


def threads(bench: Bench) -> Iterator[Row]:
    """Two threads against one; and what two processes on matrices of their own reach, which share only the machine."""
    weights = bench.weights(bench.side)
    for pattern in HALVES:
        calls = {"one": bench.solving(weights, pattern, 1), "solve": bench.solving(weights, pattern, 2)}
        times: dict[str, list[float]] = {name: [] for name in calls}
        ratios = []
        with _two_processes(pattern, bench.side) as gained:
            for _ in range(BATCHES):
                for name, took in bench.turns(calls).items():
                    times[name] += took
                ratios += [gained() for _ in range(bench.repeats)]
        machine = statistics.median(ratios)
        yield row(
            f"two threads at {pattern}, times faster than one", ">=", 1.8, ratio(times["one"], times["solve"]), times,
            weights.size, pattern=pattern, two_processes=machine, note=f"two processes: {machine:.2f}",
        )  # fmt: skip


@contextlib.contextmanager
def _two_processes(pattern: str, side: int) -> Iterator[Callable[[], float]]:
    """Two processes, and what tells how much more they solve together in the time of one."""
    with contextlib.ExitStack() as stack:
        pair = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ALONE, pattern, str(side)],
                    env=environment(),
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for _ in range(2)
        ]

        def answer(process: Any) -> str:
            line: str = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a process that solves beside another has ended, with status {process.wait()}")
            return line

        def solve(*processes: Any) -> list[float]:
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
            return [float(answer(process)) for process in processes]

        for process in pair:
            answer(process)
        yield lambda: 2 * solve(pair[0])[0] / max(solve(*pair))
        for process in pair:
            process.stdin.close()  # type: ignore[union-attr]
