"""Masks mended along ties: whenever ties allow it, and by nothing but ties."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from nmflow.crew import call_on_threads
from nmflow.kernels.compile import call, once, operation
from nmflow.kernels.lanes import WORD, words_in_row
from nmflow.kernels.memory import read_words
from nmflow.kernels.mend import faulty_lanes, mend_kernel, mend_room, tie_lanes
from nmflow.kernels.simd import LANES

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = [(4, 4, 2), (3, 3, 1), (5, 5, 2), (8, 8, 3), (16, 16, 8), (20, 20, 7), (32, 32, 16), (64, 64, 32), (16, 8, 2)]


@once
def lanes_kernel(rows: int, cols: int, wide: bool) -> int:
    """operation (job, number) -> faulty lanes: numbers, ties, u, v, inexact, faults."""
    broad = int(wide)

    def write(job, number):  # type: ignore[no-untyped-def]
        numbers, ties, u, v, inexact, faults = read_words(job, 6)
        tie_lanes(numbers, ties, u, v, inexact, rows, cols, broad)
        return faulty_lanes(faults)

    return operation(write, 2)


@once
def mending_kernel() -> int:
    """operation (job, number): that of `mend_kernel`, whose address comes first."""

    def mend(job, number):  # type: ignore[no-untyped-def]
        kernel, words, ties, faults, chosen, rows, cols, r, c, room = read_words(job, 10)
        return call(kernel, (words, ties, faults, chosen, rows, cols, r, c, room))

    return operation(mend, 2)


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def as_words(masks: Array) -> Array:
    """Masks of 32 blocks, shape (32, rows, cols), as lanes hold them."""
    _, rows, cols = masks.shape
    words = aligned((rows, words_in_row(cols), LANES), np.uint16)
    for j in range(cols):
        words[:, j // WORD] |= masks[:, :, j].T.astype(np.uint16) << (j % WORD)
    return words


def as_masks(words: Array, cols: int) -> Array:
    bits = [words[:, j // WORD] >> (j % WORD) & 1 for j in range(cols)]
    return np.stack(bits, axis=1).transpose(2, 0, 1).astype(bool)


def can_be_mended(above: Array, ties: Array, r: int, c: int) -> bool:
    """Whether some ties beside what lies above fill all lines: a maximum flow."""
    rows, cols = above.shape
    graph = nx.DiGraph()
    lacks = r - above.sum(axis=1), c - above.sum(axis=0)
    if min(side.min() for side in lacks) < 0:
        return False
    graph.add_nodes_from(["from", "to"])
    for i in range(rows):
        graph.add_edge("from", ("row", i), capacity=int(lacks[0][i]))
    for j in range(cols):
        graph.add_edge(("col", j), "to", capacity=int(lacks[1][j]))
    graph.add_edges_from(((("row", i), ("col", j)) for i, j in np.argwhere(ties)), capacity=1)
    return bool(nx.maximum_flow_value(graph, "from", "to") == lacks[0].sum())


@pytest.mark.parametrize(("rows", "cols", "r"), SHAPES)
def test_masks_are_mended_wherever_ties_allow_it(rows: int, cols: int, r: int) -> None:
    rng, c = np.random.default_rng(rows * cols + r), r * rows // cols
    # a mask that is right, a few entries moved, and ties by chance: of these, all entries that were moved
    right = np.zeros((LANES, rows, cols), bool)
    for block in right:
        start = rng.integers(cols)
        for i, line in enumerate(block):
            line[(start + i * r + np.arange(r)) % cols] = True
        block[:] = block[rng.permutation(rows)][:, rng.permutation(cols)]
    assert (right.sum(axis=1) == c).all()
    ties = rng.random(right.shape) < rng.uniform(0.05, 0.5, LANES)[:, None, None]
    given = right.copy()
    for block, tied in zip(given, ties, strict=True):
        for _ in range(rng.integers(0, 5)):
            i, j = rng.integers(rows), rng.integers(cols)
            block[i, j] ^= True
            tied[i, j] |= rng.random() < 0.8
    words, tie_words = as_words(given), as_words(ties)
    wrong = [(block.sum(axis=1) != r).any() or (block.sum(axis=0) != c).any() for block in given]
    faults, room = aligned((LANES,), np.int16), np.zeros(mend_room() // 8, np.int64)
    faults[:] = np.where(wrong, 7, 0)
    chosen = sum(1 << k for k in range(LANES) if wrong[k])
    addresses = words.ctypes.data, tie_words.ctypes.data, faults.ctypes.data
    job = mend_kernel(), *addresses, chosen, rows, cols, r, c, room.ctypes.data
    assert call_on_threads(mending_kernel(), job, 0, 1) == 0
    mended = as_masks(words, cols)
    assert np.array_equal(as_masks(tie_words, cols), ties)
    assert not ((mended != given) & ~ties).any()
    done = 0
    for k in range(LANES):
        filled = bool((mended[k].sum(axis=1) == r).all() and (mended[k].sum(axis=0) == c).all())
        assert filled == (faults[k] == 0)
        if wrong[k]:
            assert filled == can_be_mended(given[k] & ~ties[k], ties[k], r, c)
            done += filled
    assert done > 0


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_ties_are_numbers_on_their_duals_that_stand_for_no_more(wide: bool, cut: bool) -> None:
    """A wide number of a certain range may stand for a score that is larger: then it is no tie."""
    rows, cols, dtype = 6, 20, np.int32 if wide else np.int16
    rng = np.random.default_rng(0)
    numbers, u, v = aligned((rows, cols, LANES), dtype), aligned((rows, LANES), dtype), aligned((cols, LANES), dtype)
    inexact, ties = aligned((3, LANES), dtype), aligned((rows, words_in_row(cols), LANES), np.uint16)
    faults = aligned((LANES,), np.int16)
    u[:], v[:] = rng.integers(0, 4, u.shape), rng.integers(-2, 2, v.shape)
    numbers[:] = rng.integers(0, 6, numbers.shape)
    inexact[0], inexact[1], inexact[2] = 2, 3, int(cut)
    faults[[3, 31]] = 1, -1
    job = [each.ctypes.data for each in (numbers, ties, u, v, inexact, faults)]
    assert call_on_threads(lanes_kernel(rows, cols, wide), job, 0, 1) == 1 << 3 | 1 << 31
    tied = numbers == u[:, None].astype(int) + v
    if wide and cut:
        tied &= (numbers < 2) | (numbers > 3)
    assert np.array_equal(as_masks(ties, cols), tied.transpose(2, 0, 1))
    assert tied.any()
