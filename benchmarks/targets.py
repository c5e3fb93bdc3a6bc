"""The figures that nmflow is held to, each measured against its target: ``python -m benchmarks.targets``.

Whatever is compared is run in turn, and the median of the ratios counts. A target is met, not met, or not available.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import itertools
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nmflow
from benchmarks.families import FAMILIES, GAUSSIAN, Array, make
from benchmarks.peers import Greedy, OrTools
from benchmarks.progress import showing, tell
from benchmarks.run import DIVISIBLE, INTERRUPTED
from benchmarks.store import Store
from nmflow.bench.stream import Stream
from nmflow.bench.timing import REPEATS, in_turn, ratio
from nmflow.errors import NmflowError

__all__ = ["GROUPS", "main"]

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
Times = dict[str, list[float]]
STREAM = {"1:4": 3, "2:4": 3, "2:8": 6, "4:8": 6, "4:16": 10, "8:16": 10, "8:32": 20, "16:32": 20}
HALVES = ("2:4", "4:8", "8:16", "16:32")
COMPARE = {"<=": operator.le, ">=": operator.ge}
SLOWEST = 12.0
"""Seconds of turns after which three are enough: a figure that is far off needs no more."""
PROBE = 128
"""Side of the matrix that a kernel is compiled and tried on before it is timed."""


class Bench:
    """What all groups need: sizes, threads, turns.

    Parameters
    ----------
    side : int
        Of the matrices of most groups; others are in proportion.
    """

    def __init__(self, side: int = 4096, threads: int = 2, repeats: int = REPEATS) -> None:
        self.side, self.threads, self.repeats = side, threads, repeats
        self._made: tuple[tuple[str, int, str], Array] | None = None

    def weights(self, side: int, family: str = GAUSSIAN, dtype: str = "float32") -> Array:
        """An instance; the last one is kept."""
        key = (family, side, dtype)
        if self._made is None or self._made[0] != key:
            self._made = None
            self._made = (key, make(family, (side, side), dtype))
        return self._made[1]

    def solving(self, weights: Array, pattern: str, threads: int | None = None, **options: Any) -> Callable[[], Any]:
        """A call of nmflow.solve, warmed up: compiled, and every block proven on a part of the matrix."""
        count = threads or self.threads
        probe = nmflow.solve(np.ascontiguousarray(weights[:PROBE, :PROBE]), pattern=pattern, threads=count)
        if not probe.certificate.proven:
            raise RuntimeError(f"not every block is proven at {pattern}")
        # into a mask that is there, as the stream writes into an output that is there
        out = np.empty(weights.shape, np.bool_)
        return lambda: nmflow.solve(weights, pattern=pattern, threads=count, out=out, **options)

    def turns(self, calls: dict[str, Callable[[], Any]]) -> Times:
        """Times of calls in turn."""
        return in_turn(calls, self.repeats, seconds=SLOWEST)


def stream(bench: Bench) -> Iterator[Row]:
    """Multiples of the time that reading the matrix and writing a byte an entry takes."""
    for side in (bench.side, 2 * bench.side):
        weights = bench.weights(side)
        with Stream(weights, bench.threads) as yardstick:
            for pattern, most in STREAM.items():
                times = bench.turns({"stream": yardstick, "solve": bench.solving(weights, pattern)})
                yield _row(
                    f"{pattern} on {side}x{side}, multiple of stream", "<=", most,
                    ratio(times["solve"], times["stream"]), times, weights.size, pattern=pattern, side=side,
                )  # fmt: skip


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
        row = _row(
            name, "<=", 0.1, abs(exponent - 1), times, 0, pattern=pattern, threads=threads, exponent=exponent,
            exponent_of_the_first=by_first, ns_per_entry_by_side=per_entry,
        )  # fmt: skip
        yield {**row, "note": f"the first of each size: {abs(by_first - 1):.2f}"}


def other_m(bench: Bench) -> Iterator[Row]:
    """Group lengths that are no power of two, against the next one; and 64 against 32."""
    weights = bench.weights(DIVISIBLE * bench.side // 4096 // 240 * 240 or 240)
    pairs = [("1:3", "2:4", 3), ("2:5", "4:8", 3), ("3:6", "4:8", 3), ("6:12", "8:16", 3), ("12:24", "16:32", 3)]
    for pattern, base, most in [*pairs, ("32:64", "16:32", 4)]:
        times = bench.turns({"base": bench.solving(weights, base), "solve": bench.solving(weights, pattern)})
        yield _row(
            f"{pattern} against {base}", "<=", most, ratio(times["solve"], times["base"]), times, weights.size,
            pattern=pattern,
        )  # fmt: skip


def families(bench: Bench) -> Iterator[Row]:
    """Named families of instances against Gaussian weights."""
    side = bench.side // 2
    base = make(GAUSSIAN, (side, side))
    for family in FAMILIES:
        if family == GAUSSIAN:
            continue
        for pattern in HALVES:
            name = f"{family} at {pattern} against Gaussian"
            try:
                weights = bench.weights(side, family)
            except (NmflowError, OSError) as error:
                yield _unavailable(name, "<=", 4, str(error))
                continue
            times = bench.turns({"base": bench.solving(base, pattern), "solve": bench.solving(weights, pattern)})
            yield _row(
                name, "<=", 4, ratio(times["solve"], times["base"]), times, weights.size, pattern=pattern, family=family
            )


def halves(bench: Bench) -> Iterator[Row]:
    """float16 and bfloat16 against float32."""
    base = make(GAUSSIAN, (bench.side, bench.side))
    for dtype in ("float16", "bfloat16"):
        weights = bench.weights(bench.side, dtype=dtype)
        for pattern in HALVES:
            times = bench.turns({"base": bench.solving(base, pattern), "solve": bench.solving(weights, pattern)})
            yield _row(
                f"{dtype} at {pattern} against float32", "<=", 1, ratio(times["solve"], times["base"]), times,
                weights.size, pattern=pattern,
            )  # fmt: skip


def forms(bench: Bench) -> Iterator[Row]:
    """Other forms of a problem against the plain one, a matrix under exact fill: bounds of our own."""
    weights = bench.weights(bench.side)
    small = weights.reshape(-1, 32, 32)
    for pattern in HALVES[:3]:
        plain = bench.solving(weights, pattern)
        previous = nmflow.solve(weights[:, ::-1], pattern=pattern, threads=bench.threads).mask
        keep = np.zeros(weights.shape, np.bool_)
        keep[::97, ::31] = True  # no two in a line of a block
        kinds: dict[str, tuple[float, Array, dict[str, Any]]] = {
            "at most": (3, weights, {"fill": "at-most"}),
            "columns side by side": (4, weights.T, {}),
            "a stack of 32x32": (4, small, {"layout": "batch"}),
            "an earlier mask": (8, weights, {"previous": previous, "switch_cost": 0.1}),
            "some entries kept": (16, weights, {"keep": keep}),
        }
        for name, (most, given, options) in kinds.items():
            out = np.empty(given.shape, np.bool_)
            call = functools.partial(nmflow.solve, given, pattern=pattern, threads=bench.threads, out=out, **options)
            call()
            times = bench.turns({"base": plain, "solve": call})
            yield _row(
                f"{name} at {pattern} against the plain form", "<=", most, ratio(times["solve"], times["base"]), times,
                weights.size, pattern=pattern,
            )  # fmt: skip


def warm_start(bench: Bench) -> Iterator[Row]:
    """A refresh from the last solution after noise of 1% of the weights' deviation; both ways keep their duals."""
    names = {pattern: f"refresh at {pattern}, times faster than cold" for pattern in HALVES[1:]}
    if "warm_start" not in inspect.signature(nmflow.solve).parameters:
        for name in names.values():
            yield _unavailable(name, ">=", 2, "solve has no warm_start yet")
        return
    before = make(GAUSSIAN, (bench.side, bench.side))
    noise = np.random.default_rng(1).standard_normal(before.shape, dtype=np.float32)
    after = before + noise * np.float32(0.01)
    del noise
    for pattern, name in names.items():
        last = nmflow.solve(before, pattern=pattern, threads=bench.threads, duals=True)
        cold = bench.solving(after, pattern, duals=True)
        warm = bench.solving(after, pattern, duals=True, warm_start=last)
        warm()
        times = bench.turns({"cold": cold, "solve": warm})
        yield _row(name, ">=", 2, ratio(times["cold"], times["solve"]), times, after.size, pattern=pattern)


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
        times = bench.turns({"one": bench.solving(weights, pattern, 1), "solve": bench.solving(weights, pattern, 2)})
        machine = _two_processes(pattern, bench.side, bench.repeats)
        row = _row(
            f"two threads at {pattern}, times faster than one", ">=", 1.8, ratio(times["one"], times["solve"]), times,
            weights.size, pattern=pattern, two_processes=machine,
        )  # fmt: skip
        yield {**row, "note": f"two processes: {machine:.2f}"}


def _two_processes(pattern: str, side: int, repeats: int) -> float:
    """How much more two processes solve in the time of one: the median."""
    with contextlib.ExitStack() as stack:
        pair = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ALONE, pattern, str(side)],
                    env=_environment(),
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
        ratios = [2 * solve(pair[0])[0] / max(solve(*pair)) for _ in range(repeats)]
        for process in pair:
            process.stdin.close()  # type: ignore[union-attr]
    return statistics.median(ratios)


def greedy(bench: Bench) -> Iterator[Row]:
    """The plain greedy in Numba, on as many threads."""
    weights = bench.weights(bench.side)
    for pattern in HALVES:
        other = Greedy(bench.threads).prepare(nmflow.Pattern.parse(pattern))
        times = bench.turns({"greedy": _bound(other, weights), "solve": bench.solving(weights, pattern)})
        yield _row(
            f"{pattern}, times faster than a plain greedy", ">=", 5, ratio(times["greedy"], times["solve"]), times,
            weights.size, pattern=pattern,
        )  # fmt: skip


def ortools(bench: Bench) -> Iterator[Row]:
    """OR-Tools' SimpleMinCostFlow per block, both on one core."""
    weights = bench.weights(bench.side)
    for pattern, least in (("4:8", 100), ("8:16", 50)):
        name = f"{pattern}, times faster per block than OR-Tools, one core"
        chosen = nmflow.Pattern.parse(pattern)
        try:
            other = OrTools().prepare(chosen)
        except NmflowError as error:
            yield _unavailable(name, ">=", least, str(error))
            continue
        part = np.ascontiguousarray(weights[: 32 * chosen.m, : 32 * chosen.m])
        times = bench.turns({"ortools": _bound(other, part), "solve": bench.solving(weights, pattern, 1)})
        per_entry = ratio(times["ortools"], times["solve"]) * weights.size / part.size
        yield _row(name, ">=", least, per_entry, times, weights.size, pattern=pattern, ortools_blocks=1024)


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
                yield _unavailable(name, "<=", 64, "the peak of a call is read from Linux's /proc")
                continue
            try:
                beyond, blocks = json.loads(_python(MEMORY, pattern, str(side), str(bench.threads)))
            except RuntimeError as error:
                yield _unavailable(name, "<=", 64, str(error))
                continue
            yield _row(name, "<=", 64, (beyond - 2 * blocks) / 1e6, {}, 0, pattern=pattern, blocks=blocks, bytes=beyond)


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
    took = [float(_python(IMPORT)) for _ in range(bench.repeats)]
    yield _row("import nmflow, seconds beyond NumPy", "<=", 0.2, statistics.median(took), {"import": took}, 0)
    for pattern in ("2:4", "8:16", "16:32", "32:64", "6:12"):
        with tempfile.TemporaryDirectory() as cache:
            cold = float(_python(FIRST, pattern, NUMBA_CACHE_DIR=cache))
            cached = [float(_python(FIRST, pattern, NUMBA_CACHE_DIR=cache)) for _ in range(3)]
        yield _row(f"first solve at {pattern}, not compiled, seconds", "<=", 25, cold, {}, 0, pattern=pattern)
        yield _row(
            f"first solve at {pattern}, compiled before, seconds", "<=", 1.5, statistics.median(cached),
            {"first": cached}, 0, pattern=pattern,
        )  # fmt: skip


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "stream": stream,
    "linear": linear,
    "other m": other_m,
    "families": families,
    "dtypes": halves,
    "forms": forms,
    "warm start": warm_start,
    "threads": threads,
    "greedy": greedy,
    "OR-Tools": ortools,
    "memory": memory,
    "starting": starting,
}
"""Groups of targets by name, in the order in which they are measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status is 0 even where targets are not met: the file says so."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.only or () if name not in GROUPS]
    if unknown:
        tell(f"--only must name groups out of {', '.join(GROUPS)}, not {', '.join(unknown)}")
        return 2
    chosen = options.only or list(GROUPS)
    kept = {"side": options.side, "threads": options.threads, "repeats": options.repeats}
    try:
        store = Store(options.out, kept, resume=not options.fresh)
    except ValueError as error:
        tell(str(error))
        return 2
    if store.moved:
        tell(f"earlier results are in {store.moved} now")
    bench = Bench(options.side, options.threads, options.repeats)
    try:
        with showing("targets", len(chosen)) as report:
            for done, group in enumerate(chosen):
                report(group, done)
                if f"{group}: done" in store:
                    continue
                for row in GROUPS[group](bench):
                    store.add(row["target"], {"group": group, **row})
                    report(f"{group}: {row['target']}", done)
                store.add(f"{group}: done", {"group": group, "target": None})
    except KeyboardInterrupt:
        tell(f"interrupted; finished groups are in {options.out}: the same command goes on from there")
        return INTERRUPTED
    if len(chosen) == len(GROUPS):
        store.finish()
    _print(store)
    return 0


def _row(target: str, sign: str, bound: float, measured: float, times: Times, entries: int, **details: Any) -> Row:
    """A target with what was measured; `times` come with the median in seconds of each that was run in turn."""
    if entries:
        details["ns_per_entry"] = statistics.median(times["solve"]) / entries * 1e9
    return {
        "target": target,
        "sign": sign,
        "bound": bound,
        "measured": measured,
        "met": bool(COMPARE[sign](round(measured, 2), bound)),
        "note": "",
        "repeats": max((len(each) for each in times.values()), default=1),
        "seconds": {name: statistics.median(each) for name, each in times.items()},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **details,
    }


def _unavailable(target: str, sign: str, bound: float, why: str) -> Row:
    known = {"target": target, "sign": sign, "bound": bound}
    return {**known, "measured": None, "met": None, "note": f"not available: {why}"}


def _bound(run: Callable[[Array], Array], weights: Array) -> Callable[[], Array]:
    run(np.ascontiguousarray(weights[:PROBE, :PROBE]))
    return lambda: run(weights)


def _python(code: str, *arguments: str, **environment: str) -> str:
    """Run code in a new process, which finds the nmflow that this one uses; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, env=_environment() | environment,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"the process ended with {done.returncode}")
    return done.stdout


def _environment() -> dict[str, str]:
    """That of a process which finds the nmflow that this one uses."""
    root = str(Path(nmflow.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))}


def _print(store: Store) -> None:
    for row in store.rows.values():
        if row["target"] is not None:
            met = {True: "met", False: "NOT MET", None: ""}[row["met"]]
            met = ", ".join(filter(None, (met, row["note"])))
            measured = "" if row["measured"] is None else f"{row['measured']:.3g}"
            print(f"{row['group']:<11} {row['target']:<64} {row['sign']} {row['bound']:<5} {measured:>8}  {met}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__)
    parser.add_argument("--only", action="append", metavar="GROUP", help=f"one of {', '.join(GROUPS)}; repeatable")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew; earlier results are moved aside")
    parser.add_argument("--side", type=int, default=4096, help="of most matrices (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns (default %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "targets.json", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
