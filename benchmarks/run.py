"""Every solver and peer, over patterns, sizes and families, side by side: ``python -m benchmarks.run``.

Each row is measured in turn with the stream over the same matrix (`nmflow.bench.stream`). A run can be interrupted, and
goes on where it was when it is started again. Sampled rows say on how many blocks they were measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.families import FAMILIES, GAUSSIAN, make
from benchmarks.peers import peers
from benchmarks.progress import counted, positive, showing, tell
from benchmarks.store import INTERRUPTED, Store, moved_to
from benchmarks.table import HALVES
from nmflow.bench.contest import Contestant, TableSolver, table_solvers
from nmflow.bench.machine import digest_of
from nmflow.bench.rows import blank_row, measure
from nmflow.bench.stream import Stream
from nmflow.bench.timing import REPEATS
from nmflow.cores import cores
from nmflow.errors import NmflowError
from nmflow.pattern import Pattern

__all__ = ["Case", "cases", "main", "run"]

HERE = Path(__file__).resolve().parent
INSTANCES = [HERE / f"{name}.py" for name in ("families", "peer", "library_peers", "peers")]
"""What rows are of, beside nmflow: others are not theirs."""
PATTERNS = ("1:4", "2:4", "2:8", "4:8", "4:16", "8:16", "8:32", "16:32")
OTHERS = ("1:2", "1:3", "2:5", "3:6", "5:10", "6:12", "10:20", "12:24", "20:40", "24:48", "32:64")
DIVISIBLE = 3840
"""A multiple of 3, 5, 12, 24, 40, 48 and 64: no block of these sizes is cut at an edge."""
WHOLE = 10.0
"""Seconds that our own solver may take for a matrix before it, too, is measured on a part."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row to be: who, at which pattern, on which instance."""

    group: str
    family: str
    shape: tuple[int, int]
    dtype: str
    pattern: str
    contestant: Contestant

    @property
    def instance(self) -> tuple[str, tuple[int, int], str]:
        """What has to be made for it."""
        return self.family, self.shape, self.dtype

    @property
    def key(self) -> str:
        """Its name in the results."""
        rows, cols = self.shape
        return f"{self.pattern} {rows}x{cols} {self.family} {self.dtype} {self.contestant.name}"


def cases(quick: bool, threads: int) -> list[Case]:
    """Everything that is measured, ordered by instance."""
    found = list(_quick(threads) if quick else _full(threads))
    unique: dict[str, Case] = {}
    for case in found:
        unique.setdefault(case.key, case)  # the first group that names a row has it
    return sorted(unique.values(), key=lambda case: (case.shape, case.family, case.dtype))


def _full(threads: int) -> Iterator[Case]:
    everyone = [*table_solvers(threads), *peers(threads)]
    ours = TableSolver("dual", threads)
    for pattern in PATTERNS:
        for each in everyone:
            yield Case("solvers", GAUSSIAN, (4096, 4096), "float32", pattern, each)
    for pattern in (*OTHERS, *HALVES):
        yield Case("m", GAUSSIAN, (DIVISIBLE, DIVISIBLE), "float32", pattern, ours)
    for pattern in HALVES:
        for side in (512, 1024, 2048, 4096, 8192, 16384):
            # a matrix of more blocks than a slow solver does in half a second is measured in part whatever its size
            for each in everyone if side in (512, 8192) else [ours]:
                yield Case("sizes", GAUSSIAN, (side, side), "float32", pattern, each)
        for dtype in ("float16", "bfloat16", "float64"):
            yield Case("dtypes", GAUSSIAN, (4096, 4096), dtype, pattern, ours)
        for family in FAMILIES:
            for each in everyone:
                yield Case("families", family, (2048, 2048), "float32", pattern, each)


def _quick(threads: int) -> Iterator[Case]:
    everyone = [*table_solvers(threads), *peers(threads)]
    for pattern in ("1:4", *HALVES):
        for each in everyone:
            yield Case("solvers", GAUSSIAN, (1024, 1024), "float32", pattern, each)
    for family in FAMILIES:
        yield Case("families", family, (1024, 1024), "float32", "4:8", TableSolver("dual", threads))
    for side in (512, 2048):
        yield Case("sizes", GAUSSIAN, (side, side), "float32", "4:8", TableSolver("dual", threads))


def run(
    todo: Sequence[Case],
    store: Store,
    *,
    threads: int,
    repeats: int = REPEATS,
    seconds: float = 0.5,
    report: Callable[[str, int], None] = lambda name, done: None,
) -> None:
    """Measure what the store has no result of yet; each row is stored as soon as it is there.

    A row without a result is tried again, but for what a contestant cannot do: there may be memory or a library now.
    """
    left = [case for case in todo if not store.has(case.key, "ok", "not possible")]
    done = len(todo) - len(left)
    for (family, shape, dtype), group in groupby(left, key=lambda case: case.instance):
        together = list(group)
        report(f"making {family} {shape[0]}x{shape[1]} {dtype}", done)
        try:
            weights = make(family, shape, dtype)
        except (NmflowError, OSError, MemoryError) as error:
            status = "not installed" if isinstance(error, OSError) else "too large"
            for case in together:
                row = blank_row(case.contestant, shape, dtype, Pattern.parse(case.pattern), family)
                store.add(case.key, {**row, "group": case.group, "status": status, "note": str(error)})
            tell(f"{family} {shape[0]}x{shape[1]} {dtype}: {status}: {error}")
            done += len(together)
            continue
        with Stream(weights, threads) as stream:
            for case in together:
                report(case.key, done)
                row = measure(
                    case.contestant, weights, Pattern.parse(case.pattern), stream,
                    repeats=repeats, seconds=WHOLE if case.contestant.name == "dual" else seconds, family=family,
                )  # fmt: skip
                store.add(case.key, {**row, "group": case.group})
                done += 1
        del weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    options = _parser().parse_args(arguments)
    options.out = options.out or HERE / "results" / ("bench-quick.json" if options.quick else "bench.json")
    todo = whole = cases(options.quick, options.threads)
    if options.only:
        todo = [case for case in whole if any(text in (case.group, *_words(case)) for text in options.only)]
        if not todo:
            tell(f"--only must name a group, pattern, size, family, dtype or solver, not {', '.join(options.only)}")
            return 2
    kept = {name: getattr(options, name) for name in ("quick", "threads", "repeats", "seconds")}
    try:
        store = Store(options.out, kept, resume=not options.fresh, also={"instances": digest_of(HERE, INSTANCES)})
    except ValueError as error:
        tell(str(error))
        return 2
    if store.moved:
        tell(moved_to(store.moved, options.fresh))
    if store.resumed:
        tell(f"{store.resumed} rows are there already")
    try:
        with showing("measuring", len(todo)) as report:
            run(todo, store, threads=options.threads, repeats=options.repeats, seconds=options.seconds, report=report)
    except KeyboardInterrupt:
        tell(f"interrupted; {len(store.rows)} finished rows are in {options.out}: the same command goes on from there")
        return INTERRUPTED
    if all(case.key in store for case in whole):
        store.finish()
    tell(f"{len(store.rows)} rows are in {options.out}")
    return 0


def _words(case: Case) -> tuple[str, ...]:
    rows, cols = case.shape
    return case.pattern, f"{rows}x{cols}", str(rows), case.family, case.dtype, case.contestant.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small matrices: about a minute, and a file of its own")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a group, pattern, size, family, dtype or solver; repeatable"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the rows in --out (the default)")
    again.add_argument("--fresh", action="store_true", help="measure everything anew; earlier results are moved aside")
    parser.add_argument("--threads", type=counted, default=cores(), help="default: the cores this process may use")
    parser.add_argument("--repeats", type=counted, default=REPEATS, help="turns with the stream (default %(default)s)")
    parser.add_argument(
        "--seconds", type=positive, default=0.5, help="a solver slower than this is measured on its first blocks"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: results/bench.json, or bench-quick.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
