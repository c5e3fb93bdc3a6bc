"""Measure the targets: ``python -m benchmarks.targets``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import targets
from benchmarks.progress import showing, tell
from benchmarks.store import INTERRUPTED, Store
from benchmarks.targets import growth, other_programs, processes, speed
from benchmarks.targets.turns import Bench, Row
from nmflow.bench.timing import REPEATS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "targets.json"


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "stream": speed.stream,
    "linear": growth.linear,
    "other m": speed.other_m,
    "families": speed.families,
    "dtypes": speed.halves,
    "forms": speed.forms,
    "warm start": speed.warm_start,
    "threads": growth.threads,
    "greedy": other_programs.greedy,
    "OR-Tools": other_programs.ortools,
    "memory": processes.memory,
    "starting": processes.starting,
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


def _print(store: Store) -> None:
    for row in store.rows.values():
        if row["target"] is not None:
            met = {True: "met", False: "NOT MET", None: ""}[row["met"]]
            met = ", ".join(filter(None, (met, row["note"])))
            measured = "" if row["measured"] is None else f"{row['measured']:.3g}"
            print(f"{row['group']:<11} {row['target']:<64} {row['sign']} {row['bound']:<5} {measured:>8}  {met}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=targets.__doc__)
    parser.add_argument("--only", action="append", metavar="GROUP", help=f"one of {', '.join(GROUPS)}; repeatable")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew; earlier results are moved aside")
    parser.add_argument("--side", type=int, default=4096, help="of most matrices (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
