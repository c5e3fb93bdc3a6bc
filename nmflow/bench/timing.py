"""Taking times in turn, so that what slows a machine down slows all that is compared."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from nmflow.kernels.garbage import uncollected

__all__ = ["REPEATS", "in_turn", "ratio"]

REPEATS = 7
"""Fewest turns for a figure that is compared with a target."""


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = REPEATS,
    *,
    seconds: float = math.inf,
    at_least: int = 3,
) -> dict[str, list[float]]:
    """Time some calls one after the other, again and again.

    Parameters
    ----------
    calls : mapping of name to callable
        Warmed up by the caller: every call counts.
    repeats : int
        Turns.
    seconds : float
        After this time no further turn begins, once there were `at_least`.

    Returns
    -------
    dict of name to seconds of each turn

    Examples
    --------
    >>> sorted(in_turn({"a": list, "b": dict}, 2))
    ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    gc.collect()
    with uncollected():
        for turn in range(repeats):
            if turn >= at_least and time.perf_counter() - began > seconds:
                break
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - started)
    return times


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios of each turn.

    Examples
    --------
    >>> ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(times, others, strict=True))
