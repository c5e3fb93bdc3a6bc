"""Sums of scores, which can go beyond float64 on the way where the whole does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["added", "in_range", "total"]

BITS = 64
"""Sums that may go beyond float64 are of numbers 2**-64 as large; no array has more than 2**64."""


def added(parts: npt.NDArray[np.float64]) -> float:
    """Sum of a few partial sums; infinite or NaN where it goes beyond float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(parts.sum())


def in_range(whole: float, values: Callable[[], npt.NDArray[np.float64]]) -> tuple[float, float]:
    """A sum, and 0; or 0 and the sum of these values times 2**-64, where the first went beyond float64.

    The second is rounded once, but for bits below 2**-1010, which are lost before.
    """
    if math.isfinite(whole):
        return whole, 0.0
    return 0.0, math.fsum(np.ldexp(values(), -BITS).ravel().tolist())


def total(sums: Iterable[float], scaled: Iterable[float] = (), share: int = 1) -> float:
    """Sum over `share`, rounded once or twice; infinite where that is beyond float64.

    scaled : more of them, times 2**-64.

    Examples
    --------
    >>> total([1e308, 1e308, -1e308]), total([1e308, 1e308])
    (1e+308, inf)
    """
    listed, more = list(sums), list(scaled)
    if not more:
        try:
            return math.fsum(listed) / share
        except OverflowError:
            pass
    whole = math.fsum([*more, *(math.ldexp(value, -BITS) for value in listed)]) / share
    try:
        return math.ldexp(whole, BITS)
    except OverflowError:
        return math.copysign(math.inf, whole)
