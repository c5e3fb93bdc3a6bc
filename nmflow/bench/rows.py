"""One row of results for a contestant: what it kept, what was proven, how long it took."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nmflow.arrays import Array
from nmflow.bench.contest import Answer, Contestant
from nmflow.bench.stream import Stream
from nmflow.bench.timing import REPEATS, in_turn, ratio
from nmflow.errors import MissingLibraryError, NmflowError
from nmflow.pattern import Pattern
from nmflow.solution import Certificate, Solution

__all__ = ["FEW_REPEATS", "Row", "blank_row", "measure"]

Row = dict[str, Any]
FEW_REPEATS = 3
"""Turns of a contestant that is measured on a few blocks only: it is far from what it is compared with."""
LONGEST = 20.0
"""Seconds of turns after which a row has enough of them."""


def measure(
    contestant: Contestant,
    weights: Array,
    pattern: Pattern,
    stream: Stream,
    *,
    repeats: int = REPEATS,
    seconds: float = 0.5,
    family: str = "",
) -> Row:
    """Run a contestant in turn with the stream, and grade its last mask.

    Parameters
    ----------
    weights : ndarray, shape (R, C)
    stream : Stream
        Over a matrix of that shape.
    repeats : int
        Turns; at most `FEW_REPEATS` where only some blocks are measured.
    seconds : float
        A contestant that would take longer than this for the matrix is measured on its first blocks.
    family : str
        Name of what the weights are.

    Returns
    -------
    dict
        ``status`` is "ok", "not installed", "not possible" or "failed", and ``note`` says why; then no number is
        there, but the row is.
    """
    row = blank_row(contestant, weights.shape, str(weights.dtype), pattern, family)
    try:
        run = contestant.prepare(pattern)
        part = _part_within(run, weights, pattern, seconds)
        whole = part.shape == weights.shape
        answers: list[Answer] = [np.empty(0)]

        def turn() -> None:
            answers[0] = run(part)

        turns = repeats if whole else min(repeats, FEW_REPEATS)
        times = in_turn({"stream": stream, "solver": turn}, turns, seconds=LONGEST)
        per_entry = [t / part.size for t in times["solver"]]
        per_stream = [t / stream.entries for t in times["stream"]]
        row.update(
            status="ok",
            blocks_measured=_count(part.shape, pattern),
            ns_per_entry=statistics.median(per_entry) * 1e9,
            stream_ns_per_entry=statistics.median(per_stream) * 1e9,
            times_stream=ratio(per_entry, per_stream),
            repeats=len(per_entry),
            seconds=statistics.median(times["solver"]),
            **_grades(answers[0], part, pattern),
        )
        notes = [] if whole else [f"measured on {row['blocks_measured']:,} of {row['blocks']:,} blocks"]
        if row["infeasible"]:
            notes.append(f"breaks the pattern in {row['infeasible']:,} blocks")
        row["note"] = "; ".join(notes)
    except MissingLibraryError as error:
        row.update(status="not installed", note=_line(error))
    except NmflowError as error:
        row.update(status="not possible", note=_line(error))
    except MemoryError as error:
        row.update(status="too large", note=f"memory ran out: {_line(error)}")
    except Exception as error:  # one that fails must not cost the others their rows
        row.update(status="failed", note=f"{type(error).__name__}: {_line(error)}")
    return row


def blank_row(
    contestant: Contestant, shape: tuple[int, ...], dtype: str, pattern: Pattern, family: str, **known: Any
) -> Row:
    """A row without results."""
    numbers = ("objective", "gap", "relative_gap", "loss", "proven", "infeasible", "blocks_measured", "ns_per_entry")
    row: Row = {
        "solver": contestant.name,
        "peer": contestant.peer,
        "pattern": str(pattern),
        "n": pattern.n,
        "m": pattern.m,
        "rows": shape[0],
        "cols": shape[1],
        "family": family,
        "dtype": dtype,
        "threads": contestant.threads,
        "status": "failed",
        "note": "",
        "blocks": _count(shape, pattern),
    }
    row |= dict.fromkeys((*numbers, "stream_ns_per_entry", "times_stream", "repeats", "seconds"))
    row["load"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return row | known


def _count(shape: tuple[int, ...], pattern: Pattern) -> int:
    rows, cols = pattern.block_shape
    return math.ceil(shape[0] / rows) * math.ceil(shape[1] / cols)


def _sizes(total: int) -> Iterator[int]:
    size = 1
    while size < total:
        yield size
        size *= 8
    yield total


def _part(weights: Array, pattern: Pattern, blocks: int) -> Array:
    """About `blocks` whole blocks from the top left corner, in a rectangle that is close to square."""
    rows, cols = pattern.block_shape
    tall, wide = max(1, weights.shape[0] // rows), max(1, weights.shape[1] // cols)
    if blocks >= tall * wide:
        return weights
    across = min(wide, math.isqrt(max(1, blocks)))
    down = min(tall, max(1, blocks // across))
    # a copy: a contestant should not be slower because its part lies scattered in a larger matrix
    return np.ascontiguousarray(weights[: down * rows, : min(wide, max(1, blocks // down)) * cols])


def _part_within(run: Callable[[Array], Answer], weights: Array, pattern: Pattern, seconds: float) -> Array:
    """The whole matrix, or as much of it as takes about `seconds`; what must be compiled is compiled by then."""
    run(_part(weights, pattern, 1))
    total = _count(weights.shape, pattern)
    part = weights
    for blocks in _sizes(total):
        part = _part(weights, pattern, blocks)
        took = min(_seconds(run, part) for _ in range(2))  # the first call of a library may start its threads
        if took > seconds / 8:
            affordable = int(_count(part.shape, pattern) * seconds / took)
            return _part(weights, pattern, max(1, affordable))
    return part


def _seconds(run: Callable[[Array], Answer], part: Array) -> float:
    started = time.perf_counter()
    run(part)
    return time.perf_counter() - started


def _grades(answer: Answer, part: Array, pattern: Pattern) -> Row:
    certificate = answer.certificate if isinstance(answer, Solution) else None
    if certificate is None:  # a peer, or a solver that is not exact: graded here, outside of what was timed
        from nmflow.pipeline import certify

        mask = answer.mask if isinstance(answer, Solution) else answer
        certificate = certify(part, mask, pattern=pattern, absolute=True)
    infeasible = int(np.isnan(certificate.gaps).sum())
    return {
        "objective": _number(certificate.objective),
        "gap": _number(certificate.gap),
        "relative_gap": _number(certificate.relative_gap),
        "loss": _loss(certificate, part, pattern),
        "proven": certificate.n_proven,
        "infeasible": infeasible,
    }


def _loss(certificate: Certificate, part: Array, pattern: Pattern) -> float | None:
    """Share of the best kept score that is lost; for a mask that breaks the pattern too, which has no gap."""
    if certificate.feasible:
        return _number(certificate.relative_gap)
    from nmflow.pipeline import solve

    best = solve(part, pattern=pattern).objective
    return _number((best - certificate.objective) / best) if best else None


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
