"""Targets against others: a plain greedy, and OR-Tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

import nmflow
from benchmarks.families import Array
from benchmarks.library_peers import OrTools
from benchmarks.peers import Greedy
from benchmarks.table import HALVES
from benchmarks.targets.turns import PROBE, Bench, Row, row, unavailable
from nmflow.bench.timing import ratio
from nmflow.errors import NmflowError

__all__ = ["greedy", "ortools"]


def greedy(bench: Bench) -> Iterator[Row]:
    """The plain greedy in Numba, on as many threads."""
    weights = bench.weights(bench.side)
    for pattern in HALVES:
        other = Greedy(bench.threads).prepare(nmflow.Pattern.parse(pattern))
        yield bench.against(
            f"{pattern}, times faster than a plain greedy", ">=", 5, {"greedy": _bound(other, weights)},
            bench.solving(weights, pattern), weights.size, pattern=pattern,
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
            yield unavailable(name, ">=", least, str(error))
            continue
        part = np.ascontiguousarray(weights[: 32 * chosen.m, : 32 * chosen.m])
        times = bench.turns({"ortools": _bound(other, part), "solve": bench.solving(weights, pattern, 1)})
        per_entry = ratio(times["ortools"], times["solve"]) * weights.size / part.size
        yield row(name, ">=", least, per_entry, times, weights.size, pattern=pattern, ortools_blocks=1024)


def _bound(run: Callable[[Array], Array], weights: Array) -> Callable[[], Array]:
    run(np.ascontiguousarray(weights[:PROBE, :PROBE]))
    return lambda: run(weights)
