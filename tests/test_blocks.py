"""Blocks: chunks tile every layout exactly, edges are padded, masks are written back, integers are exact."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from typing import Any

import families
import ml_dtypes
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nmflow
from nmflow import cutting
from nmflow.blocks import DROP, FREE, KEEP, Chunk, load, store
from nmflow.certificate import block_scores
from nmflow.cutting import Sizes, block_numbers, grids, places
from nmflow.integers import integers_of
from nmflow.pattern import Pattern
from nmflow.problem import Problem
from nmflow.reading import turned

PATTERNS = [Pattern(2, 4), Pattern(1, 3), Pattern(row="2:4", col="4:8"), Pattern(2, 4, transposable=False)]
SHAPES = [((8, 12), None, 1), ((5, 6, 7), "batch", 1), ((2, 2, 9, 4), "batch", 1), ((8, 3, 3, 2), "conv", 2)]
SHAPES += [(shape, None, 1) for shape in families.RAGGED]


def chunks_of(problem: Problem) -> tuple[np.ndarray[Any, Any], list[Chunk], tuple[Any, ...]]:
    matrices = problem.matrices(problem.scores)
    mask, masks = problem.new_mask()
    return mask, [load(problem, matrices, masks, place) for place in places(problem).all], masks


def matrix_of(problem: Problem, array: np.ndarray[Any, Any], number: int) -> np.ndarray[Any, Any]:
    matrix = problem.matrices(array)[number]
    return matrix.rows(0, matrix.shape[0])


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("shape", "layout", "groups"), SHAPES, ids=str)
def test_chunks_tile_the_matrices(
    pattern: Pattern, shape: Any, layout: Any, groups: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # many chunks, stripes cut as well
        monkeypatch.setattr(cutting, "SIZES", Sizes(chunk=32, stripe=8, stripe_blocks=1))
    array = np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    problem = Problem.build(array, pattern, layout=layout, groups=groups)
    mask, chunks, masks = chunks_of(problem)
    wanted = {
        (number, *place): block
        for number in range(len(masks))
        for place, block in oracles.blocks(matrix_of(problem, array, number), pattern)
    }
    numbers = {place: i for i, place in enumerate(sorted(wanted))}
    all_grids = grids(problem)
    for chunk in chunks:
        assert chunk.scores.flags.c_contiguous or chunk.scores.strides[1] == chunk.scores.itemsize
        running = block_numbers(chunk.place, all_grids[chunk.place.matrix])
        assert len(running) == chunk.n_blocks == chunk.grid[0] * chunk.grid[1]
        for block in range(chunk.n_blocks):
            where = chunk.where(block)
            assert np.array_equal(chunk.source[chunk.corner(block)], wanted.pop(where))
            assert running[block] == numbers[where]
            chunk.mask[chunk.corner(block)] = (running[block] + 1) % 2 == 0
        store(chunk, masks)
    assert not wanted
    for number in range(len(masks)):
        rows, cols = pattern.block_shape
        for i, j in np.ndindex(masks[number].shape):
            assert matrix_of(problem, mask, number)[i, j] == (numbers[number, i // rows, j // cols] % 2 == 1)


def test_two_threads_have_a_small_matrix_each_its_half_where_they_share_no_chunk() -> None:
    cut = places(Problem.build(np.ones((512, 512), np.float32), Pattern(2, 4)))
    sizes = [place.n_blocks for place in cut.all]
    assert 2 * max(sizes) <= sum(sizes) == cut.n_blocks
    assert cut.threads(2) == (2, 1)


def test_interior_is_read_and_written_in_place() -> None:
    array = np.ones((9, 8), np.float32)
    problem = Problem.build(array, Pattern(2, 4))
    _, chunks, masks = chunks_of(problem)
    inner, edge = chunks
    assert np.shares_memory(inner.scores, array)
    assert np.shares_memory(inner.mask, masks[0])
    assert edge.place.padded
    assert edge.source[1:].sum() == 0


def test_a_narrow_edge_of_a_wide_convolution_copies_no_more_than_itself() -> None:
    array = np.ones((64, 65, 63, 1), np.float32)  # 1 MiB, 4095 columns: three of them in the last block
    problem = Problem.build(array, Pattern(2, 4), layout="conv")
    matrices = problem.matrices(problem.scores)
    _, masks = problem.new_mask()
    (edge,) = [place for place in places(problem).all if place.padded]
    tracemalloc.start()
    load(problem, matrices, masks, edge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("family", {**families.FAMILIES, **families.SIGNED}.values(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("absolute", [False, True])
def test_block_integers_are_exact(family: families.Family, absolute: bool) -> None:
    array = family((4, 4), 1)
    problem = Problem(array, absolute, Pattern(2, 4))
    _, (chunk,), _ = chunks_of(problem)
    numbers, exponent = chunk.block_integers(0)
    assert all(type(number) is int for number in numbers.ravel())
    expected = oracles.exact(array, absolute=absolute)
    assert (numbers * Fraction(2) ** exponent == expected).all()
    rounded = [[float(x) for x in row] for row in expected]
    assert block_scores(chunk, np.array([0]))[0].tolist() == rounded


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=2, max_side=5),
        elements=st.floats(-1e4, 1e4, width=16) | st.sampled_from([0.0, -0.0, 2.0**-24, 1.0, -1.5]),
    )
)
def test_integers_of_is_exact_and_smallest(values: np.ndarray[Any, Any]) -> None:
    numbers, exponent = integers_of(values)
    assert (numbers * Fraction(2) ** exponent == oracles.exact(values, absolute=False)).all()
    assert not numbers.any() or any(number % 2 for number in numbers.ravel())


def test_integers_of_the_whole_range() -> None:
    values = np.array([5e-324, -np.finfo(np.float64).max, 0.0, -0.0, 1.0])
    numbers, exponent = integers_of(values)
    assert exponent == -1074
    assert (numbers * Fraction(2) ** exponent == oracles.exact(values, absolute=False)).all()


@pytest.mark.parametrize(
    ("value", "exact"), [(2**53 - 1, True), (2**53 + 1, False), (-(2**53) - 1, False), (-(2**63), False)]
)
def test_rounded_integers_are_told(value: int, exact: bool) -> None:
    array = np.full((4, 4), value, np.int64)
    _, (chunk,), _ = chunks_of(Problem.build(array, Pattern(2, 4)))
    assert chunk.kind == "float64"
    assert chunk.exact == exact


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("b", "float32"), ("H", "float32"), ("i", "float64"), ("e", "float16"), ("f", "float32"), (">f4", "float32")],
)
@pytest.mark.parametrize("view", [lambda a: a, np.asfortranarray, lambda a: a[::-1, ::-1]])
def test_kernels_get_contiguous_rows_of_a_dtype_that_they_read(dtype: str, kind: str, view: Any) -> None:
    array = view(np.arange(16).reshape(4, 4).astype(dtype))
    _, (chunk,), _ = chunks_of(Problem.build(array, Pattern(2, 4)))
    assert chunk.kind == kind
    assert chunk.scores.strides[1] == chunk.scores.itemsize
    values = chunk.scores.view(np.float16) if kind == "float16" else chunk.scores
    assert np.array_equal(values.astype(float), array.astype(float))


def test_keep_and_drop_become_states() -> None:
    keep, drop = np.zeros((5, 4), bool), np.zeros((5, 4), bool)
    keep[0, 1] = keep[4, 0] = drop[2, 3] = True
    problem = Problem.build(np.ones((5, 4)), Pattern(2, 4), keep=keep, drop=drop)
    _, (inner, edge), _ = chunks_of(problem)
    expected = np.full((4, 4), FREE)
    expected[0, 1], expected[2, 3] = KEEP, DROP
    assert np.array_equal(inner.block_state(0), expected)
    edge_state = edge.block_state(0)
    assert edge_state is not None
    assert edge_state[0, 0] == KEEP
    assert np.count_nonzero(edge_state) == 1
    _, (free,), _ = chunks_of(Problem.build(np.ones((4, 4)), Pattern(2, 4)))
    assert free.block_state(0) is None


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "bfloat16", ">f4", "float32", "float64", "int64"])
def test_columns_that_lie_side_by_side_are_turned(dtype: str) -> None:
    """Squares of a cache line, the last ones over those before, and matrices that hold none; strides of any sign."""
    rng = np.random.default_rng(3)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    numbers = rng.integers(0, 2 if dtype == "bool" else 100, (341, 370)).astype(kind)
    long = rng.integers(0, 2, (9, 5000)).astype(kind)
    for part in (numbers.T, numbers[::-1].T, numbers[::2, 1:].T, numbers[:63].T, long.T, long[:, 1:].T):
        copy = turned(part)
        assert np.array_equal(copy, part)
        assert copy.dtype == part.dtype
        assert copy.flags.c_contiguous
    for part in (numbers, numbers[:, ::2], numbers[:20, :30].T):
        assert turned(part) is part
    weights = families.few_values((141, 170), 2)
    assert np.array_equal(nmflow.solve(np.asfortranarray(weights), 4, 8).mask, nmflow.solve(weights, 4, 8).mask)
