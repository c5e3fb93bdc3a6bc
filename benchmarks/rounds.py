"""What an earlier solution can save, and what few bits cost: the blocks that rounds of ascent leave open.

``python -m benchmarks.rounds`` writes benchmarks/results/rounds.json and the section of docs/performance.md that shows
it. A first pass over 32 blocks is called as `nmflow.kernels.settle` calls it, with any number of rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numba import types

import nmflow
from benchmarks.section import section
from benchmarks.store import setting
from benchmarks.table import head, line
from nmflow.kernels.ascent import ascent_of
from nmflow.kernels.compile import call, compiled
from nmflow.kernels.room import Room
from nmflow.kernels.rounds import rounds_for
from nmflow.kernels.settle_passes import first_pass
from nmflow.kernels.share import SUMS
from nmflow.kernels.simd import LANES
from nmflow.kernels.surplus import drop_kernel

PATTERNS = ("4:8", "8:16", "16:32")
NOISE = 0.01
"""Deviation of what is added to weights whose deviation is 1."""
LESS = (0.003, 0.001, 0.0003)
"""The same, where weights change less."""
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STARTS = ("nothing", "the last duals", "its own duals")
WHOLE = 32 * LANES
"""Columns of whole groups of the largest blocks."""
CACHED = 8
"""Groups of blocks over which a pass is timed: they stay in a cache."""
TIMED = (1, 3, 5, 7)
"""Rounds of the passes that are timed; what a round takes is the slope."""
ENTRIES = 1 << 22
"""Entries that are passed over at least in one timing."""


def _driver() -> Any:
    """Compile first passes over all blocks of a matrix, some times; how many blocks are open each time, in sum."""
    lanes = LANES

    def passes(  # type: ignore[no-untyped-def]
        operation, room, scores, mask, duals, sums, ascent, dropping, rounds, tall, wide, side, item, times
    ):  # fmt: skip
        left, step = 0, wide * side
        for _ in range(times):
            for s in range(tall):
                for j in range(0, wide, lanes):
                    place = s * side * step + j * side
                    start = duals + (s * step + j * side) * 4 if duals else 0
                    lanes_left = call(
                        operation,
                        (
                            room, scores + place * item, step * item, mask + place, step, start, lanes, sums, ascent,
                            rounds, 0, dropping,
                        ),
                    )  # fmt: skip
                    while lanes_left:
                        lanes_left &= lanes_left - 1
                        left += 1
        return left

    return compiled(passes, types.int64(*[types.int64] * 14))


class Passes:
    """First passes of one pattern over the blocks of a matrix of one dtype."""

    def __init__(self, pattern: str, kind: str = "float32") -> None:
        n, m = (int(number) for number in pattern.split(":"))
        self.side = m
        self._operations = first_pass(kind, m, m, n, n, 2, 2, True), ascent_of(m, m, n, n, 0, 0, 0)
        self._room = np.zeros(Room.of(kind, m, m).size + 64, np.uint8)
        self._sums = np.zeros(SUMS)
        self._run = _driver()

    def open_blocks(self, weights: Any, duals: Any, rounds: int, times: int = 1) -> int:
        """How many blocks so many rounds leave open, from these column duals or from nothing."""
        rows, cols = weights.shape
        mask = np.empty(weights.shape, np.uint8)
        operation, ascent = self._operations
        found: int = self._run(
            operation, (self._room.ctypes.data + 63) & ~63, weights.ctypes.data, mask.ctypes.data,
            0 if duals is None else duals.ctypes.data, self._sums.ctypes.data, ascent, drop_kernel(), rounds,
            rows // self.side, cols // self.side, self.side, weights.itemsize, times,
        )  # fmt: skip
        return found

    def nanoseconds(self, rounds: int, repeats: int) -> float:
        """What a pass takes an entry, in cache, on one thread: the best of some."""
        weights = np.random.default_rng(0).standard_normal((self.side, CACHED * LANES * self.side), dtype=np.float32)
        times = max(1, ENTRIES // weights.size)
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            self.open_blocks(weights, None, rounds, times)
            took.append(time.perf_counter() - began)
        return min(took) / (times * weights.size) * 1e9


def measure(side: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((side, side), dtype=np.float32)
    change = rng.standard_normal((side, side), dtype=np.float32)
    after = before + np.float32(NOISE) * change
    rows = []
    for pattern in PATTERNS:
        passes = Passes(pattern)
        duals = [
            np.ascontiguousarray(nmflow.solve(weights, pattern=pattern, duals=True).col_duals, np.float32)
            for weights in (before, after)
        ]
        known, blocks = rounds_for(passes.side), (side // passes.side) ** 2
        slope, whole = np.polyfit(TIMED, [passes.nanoseconds(count, repeats) for count in TIMED], 1)
        rows.append(
            {
                "pattern": pattern,
                "pass": float(whole),
                "round": float(slope),
                # small blocks begin from nothing; one round less is the least that these would have to save
                "rounds": {"nothing": known.first, "the last duals": known.warm or known.first - 1},
                "open": {
                    start: [passes.open_blocks(after, given, count) / blocks for count in range(1, known.first + 1)]
                    for start, given in zip(STARTS, (None, *duals), strict=True)
                },
                "after one": {
                    noise: passes.open_blocks(before + np.float32(noise) * change, duals[0], 1) / blocks
                    for noise in (NOISE, *LESS)
                },
                "dtypes": {name: _left(after.astype(dtype), pattern, name) for name, dtype in DTYPES.items()},
            }
        )
    return {**setting(), "side": side, "rows": rows}


def _left(weights: Any, pattern: str, kind: str) -> dict[str, float]:
    """The share of the blocks that a first pass leaves open, and of those that go to paths in the end."""
    passes = Passes(pattern, kind)
    solution = nmflow.solve(weights, pattern=pattern)
    blocks = solution.certificate.n_blocks
    first = passes.open_blocks(weights, None, rounds_for(passes.side).first)
    return {"open": first / blocks, "paths": solution.stats.get("augmented", 0) / blocks}


def table(results: dict[str, Any]) -> str:
    """The section of the page."""
    side = results["side"]
    lines = [
        f"First passes over {side}×{side} float32 N(0,1) after noise of {NOISE:.0%} of the deviation, and what they "
        f"take in cache, one thread; {results['machine']['cpu']}.",
        "",
        *head(
            "pattern", "a pass without rounds, ns an entry", "a round", "open after so many from nothing",
            "after one from the last duals", "after the most that are made", "after one from its own duals",
            "pass from nothing to that",
        ),
    ]  # fmt: skip
    for row in results["rows"]:
        cold, warm = (row["rounds"][start] for start in STARTS[:2])
        shares = {start: row["open"][start] for start in STARTS}
        most = (row["pass"] + cold * row["round"]) / (row["pass"] + row["round"])
        open_ = (
            f"{cold}: {shares[STARTS[0]][cold - 1]:.1%}", f"{shares[STARTS[1]][0]:.1%}",
            f"{warm}: {shares[STARTS[1]][warm - 1]:.1%}", f"{shares[STARTS[2]][0]:.1%}",
        )  # fmt: skip
        lines.append(line(row["pattern"], f"{row['pass']:.2f}", f"{row['round']:.3f}", *open_, f"{most:.2f}"))
    noises = [f"{float(noise):.2%}" for noise in results["rows"][0]["after one"]]
    lines += ["", "Open after one round from the last duals, by the noise:", "", *head("pattern", *noises)]
    lines += [line(row["pattern"], *(f"{share:.1%}" for share in row["after one"].values())) for row in results["rows"]]
    names = [name for kind in DTYPES for name in (f"{kind}, open", "paths")]
    lines += [
        "",
        "Open after the first pass from nothing, and left for paths in the end, by the dtype of the weights:",
        "",
        *head("pattern", *names),
    ]
    for row in results["rows"]:
        cells = (cell for left in row["dtypes"].values() for cell in (f"{left['open']:.1%}", f"{left['paths']:.2%}"))
        lines.append(line(row["pattern"], *cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    return section("rounds", __doc__, measure, table, side=2048, repeats=15, multiple=WHOLE, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
