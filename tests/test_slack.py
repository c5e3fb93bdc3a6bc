"""Lines that need not be full, untied in lanes: proven in fractions, and the best there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from test_lanes import unproven
from test_mend import aligned, as_words

import nmflow
from nmflow.crew import call_on_threads
from nmflow.kernels.compile import once, operation
from nmflow.kernels.lanes import WORD, words_in_row
from nmflow.kernels.memory import read_words
from nmflow.kernels.simd import LANES
from nmflow.kernels.slack import short_lines
from nmflow.solvers import trial, untied

Array = np.ndarray[Any, np.dtype[Any]]
PATTERNS = ["2:4 at-most", "row 1:4 col 2:4 at-most", "row 2:6 col 1:3 at-most"]
KINDS = ["levels", "scaled levels", "codes", "fine codes", "negative", "far from 0"]


def scores_of(kind: str, shape: tuple[int, int], dtype: Any = np.float32) -> Array:
    """Scores that repeat: on a lattice, near one, on none; most of them below 0; none near it."""
    rng = np.random.default_rng(11)
    codes = rng.standard_normal(16)
    scores = {
        "levels": rng.integers(-4, 5, shape),
        "scaled levels": rng.integers(-4, 5, shape) * dtype(0.1),
        "codes": codes[rng.integers(0, 16, shape)],
        "fine codes": np.round(codes * 2**8)[rng.integers(0, 16, shape)] / 2**8,
        "negative": rng.integers(-9, 3, shape) * dtype(0.25),
        "far from 0": 1000 + rng.integers(0, 5, shape),
    }[kind]
    return np.asarray(scores, dtype)


@pytest.fixture
def all_untied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_most_open", lambda _: -1.0)


@pytest.mark.usefixtures("all_untied")
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_proven_in_fractions(kind: str, pattern: str, absolute: bool) -> None:
    weights = scores_of(kind, (24, 216))
    options: dict[str, Any] = {"pattern": pattern, **({} if absolute else {"scores": weights})}
    solution = nmflow.solve(weights, duals=True, threads=1, **options)
    assert solution.certificate.proven
    assert solution.stats["tied"] > 0.8 * solution.certificate.n_blocks
    assert unproven(weights, solution, absolute=absolute) == 0
    exact = oracles.exact(weights, absolute=absolute)
    assert exact[solution.mask].sum() == oracles.best_total(exact, solution.pattern)
    for threads in (1, 2):
        assert np.array_equal(nmflow.solve(weights, threads=threads, **options).mask, solution.mask)


@pytest.mark.usefixtures("all_untied")
@pytest.mark.parametrize("kind", ["levels", "codes"])
def test_whether_lines_are_first_taken_as_full_changes_no_sum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.abs(scores_of(kind, (48, 64)))
    found = []
    for full in (True, False):
        monkeypatch.setattr(untied, "likely_full", lambda *_, full=full, **__: full)
        solution = nmflow.solve(weights, 4, 8, fill="at-most", duals=True)
        assert solution.certificate.proven
        assert solution.stats["tied"] > 0
        assert unproven(weights, solution, absolute=True) == 0
        found.append(oracles.exact(weights)[solution.mask].sum())
    assert found[0] == found[1]


@pytest.mark.parametrize(("pattern", "most"), [("2:4", 0.03), ("4:8", 0.1), ("8:16", 0.25), ("16:32", 0.4)])
@pytest.mark.parametrize("deviation", [0.8, 1.0, 1.2])
def test_weights_of_three_values_hardly_need_paths(pattern: str, most: float, deviation: float) -> None:
    weights = np.clip(np.rint(np.random.default_rng(7).standard_normal((256, 512)) * deviation), -1, 1)
    solution = nmflow.solve(weights.astype(np.float32), pattern=pattern, fill="at-most")
    assert solution.proven
    assert solution.stats["augmented"] < most * solution.certificate.n_blocks


@once
def counting_kernel(rows: int, cols: int, r: int, c: int) -> int:
    """operation (job, number): words, short, faults."""

    def count(job, number):  # type: ignore[no-untyped-def]
        words, short, faults = read_words(job, 3)
        short_lines(words, short, faults, rows, cols, r, c)
        return 0

    return operation(count, 2)


@pytest.mark.parametrize(
    ("rows", "cols", "r", "c"), [(4, 4, 2, 2), (3, 5, 1, 2), (8, 16, 8, 4), (32, 32, 16, 31), (64, 64, 32, 64)]
)
def test_short_lines_are_told_from_those_that_keep_too_much(rows: int, cols: int, r: int, c: int) -> None:
    rng = np.random.default_rng(rows)
    masks = rng.random((LANES, rows, cols)) < rng.choice([0.2, r / cols, c / rows], (LANES, 1, 1))
    masks[0], masks[1] = False, True
    parts = words_in_row(cols)
    words, short, faults = as_words(masks), aligned((rows + parts, LANES), np.int16), aligned((LANES,), np.int16)
    places = words.ctypes.data, short.ctypes.data, faults.ctypes.data
    call_on_threads(counting_kernel(rows, cols, r, c), places, 0, 1)
    by_row, by_col = masks.sum(axis=2), masks.sum(axis=1)
    assert np.array_equal(short[:rows].T != 0, by_row < r)
    for j in range(cols):
        bit = short[rows + j // WORD].view(np.uint16) >> (j % WORD) & 1
        assert np.array_equal(bit != 0, by_col[:, j] < c)
    assert np.array_equal(faults != 0, (by_row > r).any(axis=1) | (by_col > c).any(axis=1))
