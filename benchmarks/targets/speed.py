"""Targets of speed: against the stream, other patterns, other instances, dtypes and forms, and a warm start."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import nmflow
from benchmarks.families import FAMILIES, GAUSSIAN, Array, make
from benchmarks.run import DIVISIBLE
from benchmarks.table import HALVES
from benchmarks.targets.turns import Bench, Row, unavailable
from nmflow.bench.stream import Stream
from nmflow.errors import NmflowError

__all__ = ["families", "forms", "halves", "other_m", "stream", "warm_start"]

STREAM = {"1:4": 3, "2:4": 3, "2:8": 6, "4:8": 6, "4:16": 10, "8:16": 10, "8:32": 20, "16:32": 20}
ROWS = ("2:4 rows only", "8:16 rows only")
LESS_NOISE = 0.001
"""Of the deviation: nearer to what one step of an optimizer does."""
MORE = 5
"""Times as many turns for what lies within a few percent of its bound."""


def stream(bench: Bench) -> Iterator[Row]:
    """Multiples of the time that reading the matrix and writing a byte an entry takes."""
    for side in (bench.side, 2 * bench.side):
        weights = bench.weights(side)
        with Stream(weights, bench.threads) as yardstick:
            for pattern, most in {**STREAM, **dict.fromkeys(ROWS, 3)}.items():
                yield bench.against(
                    f"{pattern} on {side}x{side}, multiple of stream", "<=", most, {"stream": yardstick},
                    bench.solving(weights, pattern), weights.size, pattern=pattern, side=side,
                )  # fmt: skip


def other_m(bench: Bench) -> Iterator[Row]:
    """Group lengths that are no power of two, against the next one; and 64 against 32."""
    weights = bench.weights(DIVISIBLE * bench.side // 4096 // 240 * 240 or 240)
    pairs = [("1:3", "2:4", 3), ("2:5", "4:8", 3), ("3:6", "4:8", 3), ("6:12", "8:16", 3), ("12:24", "16:32", 3)]
    for pattern, base, most in [*pairs, ("32:64", "16:32", 4)]:
        yield bench.against(
            f"{pattern} against {base}", "<=", most, {"base": bench.solving(weights, base)},
            bench.solving(weights, pattern), weights.size, pattern=pattern,
        )  # fmt: skip


def families(bench: Bench) -> Iterator[Row]:
    """Named families of instances against Gaussian weights."""
    yield from _families_of_halves(bench)
    side = bench.side // 2
    base = make(GAUSSIAN, (side, side))
    for family in FAMILIES:
        if family == GAUSSIAN:
            continue
        for pattern in (*HALVES, *ROWS):
            name = f"{family} at {pattern} against Gaussian"
            try:
                weights = bench.weights(side, family)
            except (NmflowError, OSError) as error:
                yield unavailable(name, "<=", 4, str(error))
                continue
            yield bench.against(
                name, "<=", 4, {"base": bench.solving(base, pattern)}, bench.solving(weights, pattern), weights.size,
                pattern=pattern, family=family,
            )  # fmt: skip


def _families_of_halves(bench: Bench) -> Iterator[Row]:
    """Families of few values in bfloat16, where they are rounded, against Gaussian weights."""
    side = bench.side // 2
    base = make(GAUSSIAN, (side, side), "bfloat16")
    for family in ("few values", "learned codes"):
        weights = bench.weights(side, family, dtype="bfloat16")
        for pattern in HALVES:
            yield bench.against(
                f"{family} in bfloat16 at {pattern} against Gaussian", "<=", 4, {"base": bench.solving(base, pattern)},
                bench.solving(weights, pattern), weights.size, pattern=pattern, family=family,
            )  # fmt: skip


def halves(bench: Bench) -> Iterator[Row]:
    """float16 and bfloat16 against float32."""
    base = make(GAUSSIAN, (bench.side, bench.side))
    for dtype in ("float16", "bfloat16"):
        weights = bench.weights(bench.side, dtype=dtype)
        for pattern in HALVES:
            yield bench.against(
                f"{dtype} at {pattern} against float32", "<=", 1, {"base": bench.solving(base, pattern)},
                bench.solving(weights, pattern), weights.size, MORE, pattern=pattern,
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
            yield bench.against(
                f"{name} at {pattern} against the plain form", "<=", most, {"base": plain}, call, weights.size,
                pattern=pattern,
            )  # fmt: skip


def warm_start(bench: Bench) -> Iterator[Row]:
    """A refresh from the last solution after noise of 1% of the weights' deviation; both ways keep their duals.

    The note says how it is after a tenth of that noise, and how beside a cold solve that keeps no duals.
    """
    before = make(GAUSSIAN, (bench.side, bench.side))
    noise = np.random.default_rng(1).standard_normal(before.shape, dtype=np.float32)
    after, less = (before + noise * np.float32(share) for share in (0.01, LESS_NOISE))
    del noise
    for pattern in HALVES[1:]:
        last = nmflow.solve(before, pattern=pattern, threads=bench.threads, duals=True)
        kept, none = (_refresh(bench, less, pattern, last, duals)["measured"] for duals in (True, False))
        note = f"after noise of {LESS_NOISE:.1%}: {kept:.2f}, or {none:.2f} where the cold solve keeps no duals"
        yield {**_refresh(bench, after, pattern, last), "note": note}


def _refresh(bench: Bench, weights: Array, pattern: str, last: nmflow.Solution, duals: bool = True) -> Row:
    """The row of a warm start beside a cold solve that keeps its `duals`, or none."""
    cold = bench.solving(weights, pattern, duals=duals)
    warm = bench.solving(weights, pattern, duals=True, warm_start=last)
    warm()
    target = f"refresh at {pattern}, times faster than cold"
    return bench.against(target, ">=", 2, {"cold": cold}, warm, weights.size, pattern=pattern)
