"""What the groups of targets have in common: matrices, calls that are timed in turn, and rows of results."""

from __future__ import annotations

import operator
import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import nmflow
from benchmarks.families import GAUSSIAN, Array, make
from nmflow.bench.timing import REPEATS, in_turn, ratio

__all__ = ["PROBE", "Bench", "Row", "row", "unavailable"]

Row = dict[str, Any]
Times = dict[str, list[float]]
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

    def turns(self, calls: dict[str, Callable[[], Any]], times: int = 1) -> Times:
        """Times of calls in turn; `times` as many turns as others take, where a few percent decide."""
        return in_turn(calls, times * self.repeats, seconds=SLOWEST)

    def against(
        self, target: str, sign: str, bound: float, other: dict[str, Callable[[], Any]], solve: Callable[[], Any],
        entries: int, more: int = 1, **details: Any,
    ) -> Row:  # fmt: skip
        """The row of a call beside another, which is named: its time as a multiple ("<="), or how much faster it is."""
        (name,) = other
        times = self.turns({**other, "solve": solve}, more)
        pair = ("solve", name) if sign == "<=" else (name, "solve")
        return row(target, sign, bound, ratio(*(times[each] for each in pair)), times, entries, **details)


def row(target: str, sign: str, bound: float, measured: float, times: Times, entries: int, **details: Any) -> Row:
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


def unavailable(target: str, sign: str, bound: float, why: str) -> Row:
    known = {"target": target, "sign": sign, "bound": bound}
    return {**known, "measured": None, "met": None, "note": f"not available: {why}"}
