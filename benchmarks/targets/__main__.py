"""Measure the targets: ``python -m benchmarks.targets``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import targets
from benchmarks.progress import counted, showing, tell
from benchmarks.store import INTERRUPTED, Store, moved_to
from benchmarks.targets import growth, other_programs, processes, speed
from benchmarks.targets.turns import Bench, Row
from nmflow.bench.machine import digest_of
from nmflow.bench.timing import REPEATS

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "targets.json"
CODE = [*HERE.glob("*.py"), *(HERE.parent / f"{name}.py" for name in ("families", "peer", "library_peers", "peers"))]
"""What figures are of, beside nmflow: those that other code measured are not theirs."""
MULTIPLE = 256
"""An eighth of the side, the least of the sizes whose growth is measured, holds whole blocks of 32."""
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
ONCE = ("memory", "starting")
"""Groups that one pass is enough for: of bytes, and of figures far below their bounds that take long."""
PASSES = 3
"""Times that all others are measured, a minute or two apart: a burst of other load outlasts the turns of one figure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status is 0 even where targets are not met: the file says so."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.only or () if name not in GROUPS]
    if unknown:
        tell(f"--only must name groups out of {', '.join(GROUPS)}, not {', '.join(unknown)}")
        return 2
    chosen = options.only or list(GROUPS)
    kept = {name: getattr(options, name) for name in ("side", "threads", "repeats", "passes")}
    todo = [(number, group) for number in range(options.passes) for group in chosen if not number or group not in ONCE]
    try:
        store = Store(options.out, kept, resume=not options.fresh, also={"instances": digest_of(HERE.parent, CODE)})
    except ValueError as error:
        tell(str(error))
        return 2
    if store.moved:
        tell(moved_to(store.moved, options.fresh))
    bench = Bench(options.side, options.threads, options.repeats)
    try:
        with showing("targets", len(todo)) as report:
            for done, (number, group) in enumerate(todo):
                name = f"{group}, pass {number + 1}"
                report(name, done)
                if f"{name}: done" in store:
                    continue
                for row in GROUPS[group](bench):
                    earlier = store.rows.get(row["target"], {}).get("passes", [])[:number]
                    store.add(row["target"], {"group": group, **_middle([*earlier, row])})
                    report(f"{name}: {row['target']}", done)
                store.add(f"{name}: done", {"group": group, "target": None})
    except KeyboardInterrupt:
        tell(f"interrupted; finished groups are in {options.out}: the same command goes on from there")
        return INTERRUPTED
    if len(chosen) == len(GROUPS):
        store.finish()
    _print(store)
    return 0


def _middle(passes: Sequence[Row]) -> Row:
    """The row of the pass whose figure is the median, with all passes in it; the last one where there is no figure.

    Of two in the middle it is the one that is further from meeting the target.
    """
    worse = -1 if passes[0]["sign"] == "<=" else 1
    measured = sorted((row for row in passes if row["measured"] is not None), key=lambda row: worse * row["measured"])
    return {**(measured[(len(measured) - 1) // 2] if measured else passes[-1]), "passes": [*passes]}


def _print(store: Store) -> None:
    for row in store.rows.values():
        if row["target"] is not None:
            met = {True: "met", False: "NOT MET", None: ""}[row["met"]]
            met = ", ".join(filter(None, (met, row["note"])))
            measured = "" if row["measured"] is None else f"{row['measured']:.3g}"
            print(f"{row['group']:<11} {row['target']:<64} {row['sign']} {row['bound']:<5} {measured:>8}  {met}")


def _side(text: str) -> int:
    side = counted(text)
    if side % MULTIPLE:
        raise argparse.ArgumentTypeError(f"must be a multiple of {MULTIPLE}, not {text}")
    return side


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=targets.__doc__)
    parser.add_argument("--only", action="append", metavar="GROUP", help=f"one of {', '.join(GROUPS)}; repeatable")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew; earlier results are moved aside")
    parser.add_argument(
        "--side", type=_side, default=4096, help=f"of most matrices, a multiple of {MULTIPLE} (default %(default)s)"
    )
    parser.add_argument("--threads", type=counted, default=2, help="default %(default)s")
    parser.add_argument("--repeats", type=counted, default=REPEATS, help="turns (default %(default)s)")
    parser.add_argument("--passes", type=counted, default=PASSES, help="over all groups (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
