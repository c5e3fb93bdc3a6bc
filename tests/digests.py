"""What every machine must find: digests of masks and duals of weights that are made of integers alone.

``python tests/digests.py`` solves them and says what differs from ``fixtures/masks.json``; ``--write`` takes what it
found. A change of digests is a change of which one of several best masks is found, or of duals, and belongs in the
changelog; objectives never change but by the rounding of sums.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import nmflow

Array = Any
FILE = Path(__file__).with_name("fixtures") / "masks.json"
SHAPE = (70, 164)


def _bell(rng: np.random.Generator) -> Array:
    """Like a Gaussian; no logarithm or root, which libraries round each in its own way."""
    return rng.integers(-(1 << 21), 1 << 21, (4, *SHAPE)).sum(axis=0)


FAMILIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "bell": lambda rng: np.ldexp(_bell(rng), -20).astype(np.float32),
    "few values": lambda rng: rng.integers(-3, 4, SHAPE).astype(np.float32),
    "decimal steps": lambda rng: (rng.integers(-3, 4, SHAPE) * np.float32(0.1)).astype(np.float32),
    "binades": lambda rng: np.ldexp(_bell(rng), rng.integers(-60, 60, SHAPE)).astype(np.float32),
    "near ties": lambda rng: np.ldexp((1 << 23) + rng.integers(-2, 3, SHAPE), -23).astype(np.float32),
    "mostly zero": lambda rng: (_bell(rng) * (rng.integers(0, 10, SHAPE) == 0)).astype(np.float32),
    "subnormal": lambda rng: np.ldexp(_bell(rng).astype(np.float64), -149).astype(np.float32),
}
DTYPES: dict[str, Callable[[np.random.Generator], Array]] = {
    "float16": lambda rng: np.ldexp(_bell(rng), -20).astype(np.float16),
    "bfloat16": lambda rng: np.ldexp(_bell(rng), -20).astype(ml_dtypes.bfloat16),
    "float64": lambda rng: np.ldexp(_bell(rng).astype(np.float64), -20) + np.ldexp(1.0, -40) * _bell(rng),
    "int8": lambda rng: rng.integers(-128, 128, SHAPE).astype(np.int8),
    "int64": lambda rng: rng.integers(-(1 << 63), (1 << 63) - 1, SHAPE),
}


def cases() -> Iterator[tuple[str, Array, dict[str, Any]]]:
    """Name, weights and options of each."""
    for pattern in ("2:4", "4:8", "8:16", "3:5", "2:4 at-most", "2:4 rows only"):
        for name, make in FAMILIES.items():
            weights = make(np.random.default_rng(len(name)))
            yield f"{pattern}, {name}", weights, {"pattern": pattern, "duals": True}
        weights = FAMILIES["bell"](np.random.default_rng(1))
        yield f"{pattern}, signed", weights, {"pattern": pattern, "duals": True, "scores": weights}
    for name, make in DTYPES.items():
        yield f"2:4, {name}", make(np.random.default_rng(2)), {"pattern": "2:4", "duals": True}
    weights = FAMILIES["bell"](np.random.default_rng(3))
    for solver in ("greedy", "two-approx", "two-approx-refill", "local-search"):
        fill = nmflow.solvers.get(solver).fills[0]
        yield f"4:8, {solver}", weights, {"pattern": "4:8", "solver": solver, "fill": fill}
    rng = np.random.default_rng(4)
    drop = rng.integers(0, 20, SHAPE) == 0
    keep = (rng.integers(0, 3, SHAPE) == 0) & (np.indices(SHAPE).sum(axis=0) % 8 == 0)  # at most one of each line
    yield "4:8, drop", weights, {"pattern": "4:8", "duals": True, "drop": drop}
    yield "4:8 at-most, keep", weights, {"pattern": "4:8 at-most", "duals": True, "keep": keep}
    earlier = nmflow.solve(FAMILIES["bell"](rng), 4, 8, duals=True)
    yield "4:8, previous", weights, {"pattern": "4:8", "duals": True, "previous": earlier.mask, "switch_cost": 0.5}
    earlier = nmflow.solve(FAMILIES["bell"](rng), 8, 16, duals=True)
    yield "8:16, warm start", weights, {"pattern": "8:16", "duals": True, "warm_start": earlier}


def found() -> dict[str, list[str]]:
    """Objective, digest of the mask and of its duals, by case."""
    return {name: _digests(nmflow.solve(weights, **options)) for name, weights, options in cases()}


def _digests(solution: nmflow.Solution) -> list[str]:
    duals = [side for side in (solution.row_duals, solution.col_duals) if side is not None]
    parts = [np.packbits(solution.mask), *(side.astype("<f8") for side in duals)]
    digests = [hashlib.blake2b(part.tobytes(), digest_size=8).hexdigest() for part in parts]
    return [float(solution.objective).hex(), *digests]


if __name__ == "__main__":
    here = found()
    if sys.argv[1:] == ["--write"]:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(digests)}" for name, digests in here.items())
        FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    known = json.loads(FILE.read_text(encoding="utf-8"))
    others = [name for name in here if here[name] != known.get(name)]
    print(f"{len(here)} solved, {len(others)} not as elsewhere", *others, sep="\n")
    sys.exit(bool(others) or here.keys() != known.keys())
