"""Ties dropped where lines keep too many: whenever there is one choice, and nothing but ties that are whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_lanes import unproven
from test_mend import aligned

import nmflow
from benchmarks import rounds
from nmflow.crew import call_on_threads
from nmflow.kernels.compile import call, once, operation
from nmflow.kernels.lanes import WORD, choose_lanes, words_in_row
from nmflow.kernels.memory import read_words
from nmflow.kernels.mend import faulty_lanes
from nmflow.kernels.simd import LANES
from nmflow.kernels.surplus import drop_kernel, surplus_lanes

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = [(4, 4, 2, 2), (3, 3, 1, 1), (8, 8, 3, 3), (16, 8, 2, 4), (20, 20, 7, 7), (32, 32, 16, 16), (64, 64, 32, 32)]
BIAS, LEAST = 100, 60


@once
def surplus_kernel(rows: int, cols: int, r: int, c: int) -> int:
    """operation (job, number) -> lanes to change: lanes, u, v, words, faults, marks."""

    def choose(job, number):  # type: ignore[no-untyped-def]
        lanes, u, v, words, faults, marks = read_words(job, 6)
        choose_lanes(lanes, u, v, words, faults, rows, cols, r, c)
        found = surplus_lanes(words, marks, rows, cols, r, c)
        return found & faulty_lanes(faults)

    return operation(choose, 2)


@once
def dropping_kernel() -> int:
    """operation (job, number): that of `drop_kernel`, whose address comes first."""

    def drop(job, number):  # type: ignore[no-untyped-def]
        kernel, words, marks, faults, lanes, u, v, chosen, rows, cols, bias, least = read_words(job, 12)
        return call(kernel, (words, marks, faults, lanes, u, v, chosen, rows, cols, bias, least))

    return operation(drop, 2)


def as_masks(words: Array, cols: int) -> Array:
    """What lanes hold, shape (32, rows, cols)."""
    return np.stack([words[:, j // WORD] >> (j % WORD) & 1 for j in range(cols)], axis=-1).transpose(1, 0, 2)


def dropped(numbers: Array, u: Array, v: Array, r: int, c: int) -> tuple[Array, Array, Array]:
    """Masks of blocks of numbers, shape (32, rows, cols); which are right; and which could be made so, as bits."""
    _, rows, cols = numbers.shape
    held = [aligned(shape, np.int16) for shape in ((rows, cols, LANES), (rows, LANES), (cols, LANES))]
    for to, given in zip(held, (numbers.transpose(1, 2, 0), u.T, v.T), strict=True):
        to[:] = given
    words, faults = aligned((rows, words_in_row(cols), LANES), np.uint16), aligned((LANES,), np.int16)
    marks = aligned((words_in_row(rows) + words_in_row(cols), LANES), np.uint16)
    places = [side.ctypes.data for side in held]
    job = *places, words.ctypes.data, faults.ctypes.data, marks.ctypes.data
    chosen = call_on_threads(surplus_kernel(rows, cols, r, c), job, 0, 1)
    assert np.array_equal(as_masks(words, cols), numbers >= u[:, :, None] + v[:, None, :])
    job = drop_kernel(), words.ctypes.data, marks.ctypes.data, faults.ctypes.data, *places, chosen
    call_on_threads(dropping_kernel(), (*job, rows, cols, BIAS, LEAST), 0, 1)
    return as_masks(words, cols), faults == 0, (chosen >> np.arange(LANES)) & 1 == 1


@pytest.mark.parametrize(("rows", "cols", "r", "c"), SHAPES)
def test_masks_lose_their_surplus(rows: int, cols: int, r: int, c: int) -> None:
    rng = np.random.default_rng(rows * cols)
    left = mended = 0
    for _ in range(20):
        # masks that keep their budgets, and a surplus of ties, some of which are too small to be told from others
        right = np.stack([_regular(rng, rows, cols, r) for _ in range(LANES)])
        u, v = rng.integers(-90, 90, (LANES, rows)), rng.integers(-90, 90, (LANES, cols))
        rest = np.where(right, rng.integers(0, 3, right.shape), -1 - rng.integers(0, 3, right.shape))
        many = rng.integers(1, 4, LANES)
        extra = np.zeros_like(right)
        for k in range(LANES):
            for i in rng.permutation(rows)[: many[k]]:
                free = np.flatnonzero(~right[k, i] & ~extra[k].any(axis=0))
                if len(free):
                    extra[k, i, free[0]] = True
        rest[extra] = 0
        numbers = rest + u[:, :, None] + v[:, None, :]
        masks, done, chosen = dropped(numbers, u, v, r, c)
        over = [(rest >= 0).sum(axis) - budget for axis, budget in ((2, r), (1, c))]
        for k in range(LANES):
            before, ties = rest[k] >= 0, (rest[k] == 0) & (np.abs(numbers[k] + BIAS) > LEAST)
            assert chosen[k] == (over[0][k].any() and max(over[0][k].max(), over[1][k].max()) == 1)
            if not over[0][k].any():
                assert done[k]
                assert np.array_equal(masks[k], before)
                continue
            if done[k]:
                assert np.all(masks[k].sum(1) == r)
                assert np.all(masks[k].sum(0) == c)
                assert np.all(before >= masks[k])
                assert np.all(ties[before > masks[k]])
                mended += 1
                continue
            left += 1
            if over[1][k].max() == 1:  # some row has no tie in such a column, or must share one
                open_ties = ties[np.ix_(over[0][k] > 0, over[1][k] > 0)]
                assert np.any(open_ties.sum(1) != 1) or np.any(open_ties.sum(0) != 1)
    assert mended > 20
    assert left > 20


def _regular(rng: Any, rows: int, cols: int, r: int) -> Array:
    """A mask that keeps r of each row and as many of each column."""
    mask = np.zeros((rows, cols), bool)
    mask[np.repeat(np.arange(rows), r), np.arange(rows * r) % cols] = True
    return mask[rng.permutation(rows)][:, rng.permutation(cols)]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_scores_of_few_bits_open_fewer_blocks(dtype: Any) -> None:
    """Than the same numbers in float32, whose ties nobody looks for."""
    weights = np.random.default_rng(0).standard_normal((512, 1024)).astype(dtype)
    assert nmflow.solve(weights, 8, 16).certificate.proven
    name = np.dtype(dtype).name
    found = {kind: rounds.Passes("8:16", kind).open_blocks(weights.astype(kind), None, 7) for kind in (name, "float32")}
    assert found[name] < found["float32"]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_scores_that_were_cut_are_no_ties(dtype: Any) -> None:
    """Lanes hold the floor of small scores beside a large one: those that look alike there may differ."""
    rng = np.random.default_rng(0)
    weights = np.exp2(rng.uniform(-12, -6, (64, 320))) * rng.choice([1.0, 1.25, 1.5], (64, 320))
    weights[::16, ::16] = 1.0
    weights = weights.astype(dtype)
    solution = nmflow.solve(weights, 8, 16, duals=True)
    assert solution.certificate.proven
    assert unproven(weights, solution, absolute=True) == 0
