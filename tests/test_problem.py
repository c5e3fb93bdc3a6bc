"""Problem: the door. What is accepted, and every refusal by its message."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from foreign import OverDLPack, Viewed

from nmflow import pipeline
from nmflow.arrays import is_bfloat16
from nmflow.errors import (
    InfeasibleError,
    InputTypeError,
    InputValueError,
    MissingLibraryError,
    NmflowError,
    NonFiniteError,
    PatternError,
)
from nmflow.given import as_array, as_mask
from nmflow.pattern import Pattern
from nmflow.problem import Problem

P24 = Pattern(2, 4)
ONES = np.ones((4, 4), np.float32)


class Broken:
    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        raise RuntimeError("lives on another device")


@pytest.mark.parametrize("dtype", ["e", "f", "d", "b", "h", "i", "q", "B", "H", "I", "Q", ">f4", ">i8"])
def test_dtypes(dtype: str) -> None:
    assert Problem.build(np.ones((4, 4), dtype), P24).scores.dtype == np.dtype(dtype)


def test_bfloat16() -> None:
    array = np.ones((4, 4), ml_dtypes.bfloat16)
    assert is_bfloat16(array.dtype)
    assert Problem.build(array, P24).scores.dtype == array.dtype


@pytest.mark.parametrize("wrap", [Viewed, OverDLPack, lambda array: array.tolist()])
def test_whatever_numpy_can_view(wrap: Any) -> None:
    array = np.arange(16.0).reshape(4, 4)
    assert np.array_equal(Problem.build(wrap(array), P24).scores, array)


def test_a_subclass_counts_as_its_array() -> None:
    scores = Problem.build(ONES.view(np.memmap), P24).scores
    assert type(scores) is np.ndarray


def test_a_masked_array_is_refused() -> None:
    """What it hides would count."""
    masked = np.ma.masked_array(np.ones((2, 2)), np.eye(2, dtype=bool))
    with pytest.raises(InputTypeError, match=r"weights must be a plain array, not a masked one, .* use \.filled\(\)"):
        Problem.build(masked, Pattern(1, 2))
    with pytest.raises(InputTypeError, match="keep must be a plain array"):
        Problem.build(np.ones((2, 2)), Pattern(1, 2), keep=masked > 0)


def test_arrays_are_not_copied() -> None:
    for array in (ONES, np.asfortranarray(ONES), np.ones((8, 8), np.float32)[::2, ::-2]):
        array.setflags(write=False)
        assert np.shares_memory(Problem.build(array, P24).scores, array)


@pytest.mark.parametrize("dtype", ["O", "c8", "U1", "S1", "?", "M8[s]", "g"])
def test_dtype_refused(dtype: str) -> None:
    with pytest.raises(InputTypeError, match="weights must be float16, bfloat16, float32, float64 or an integer"):
        Problem.build(np.zeros((4, 4), dtype), P24)
    with pytest.raises(InputTypeError, match="scores must be float16"):
        Problem.build(ONES, P24, scores=np.zeros((4, 4), dtype))


@pytest.mark.parametrize("value", [Broken(), [[1.0, 2.0], [3.0]]])
def test_what_numpy_cannot_view(value: object) -> None:
    with pytest.raises(InputTypeError, match=r"weights must be an array that NumPy can view, not (Bro|li)") as caught:
        as_array(value, "weights")
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (np.float32(1.0), {}, "weights must have 2 axes, not 0; a mask needs rows and columns"),
        (np.ones(4), {}, "weights must have 2 axes, not 1; a mask needs rows and columns"),
        (np.ones((2, 4, 4)), {}, 'weights must have 2 axes, not 3; say layout="conv" for (out, in/groups, *kernel)'),
        (np.ones((4, 4)), {"layout": "conv"}, 'weights must have at least 3 axes for layout="conv", not 2'),
        (np.ones((4, 4)), {"layout": "batch"}, 'weights must have at least 3 axes for layout="batch", not 2'),
        (np.ones((4, 4)), {"layout": "nhwc"}, 'layout must be None, "conv" or "batch", not \'nhwc\''),
        (np.ones((4, 4)), {"layout": np.array(["conv", "batch"])}, 'layout must be None, "conv" or "batch", not array'),
        (np.ones((0, 4)), {}, "weights must not be empty, not of shape (0, 4)"),
        (np.ones((4, 0, 3)), {"layout": "conv"}, "weights must not be empty, not of shape (4, 0, 3)"),
        (ONES, {"scores": np.ones((4, 5))}, "scores must have the shape of weights, (4, 4), not (4, 5)"),
        (ONES, {"groups": 2}, 'groups must be 1 unless layout="conv"'),
        (np.ones((4, 4, 3)), {"layout": "conv", "groups": 3}, "groups must divide the 4 output channels, not 3"),
        (np.ones((4, 4, 3)), {"layout": "conv", "groups": 0}, "groups must divide the 4 output channels, not 0"),
        (np.ones((4, 4, 3)), {"layout": "conv", "groups": 1.5}, "groups must be a whole number, not 1.5"),
        (ONES, {"keep": np.ones((4, 5), bool)}, "keep must have shape (4, 4), not (4, 5)"),
        (ONES, {"drop": np.ones((5, 4), bool)}, "drop must have shape (4, 4), not (5, 4)"),
    ],
)
def test_values_refused(weights: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputValueError, match=re.escape(message)) as caught:
        Problem.build(weights, P24, **options)
    assert isinstance(caught.value, ValueError)


def test_masks_must_be_boolean() -> None:
    with pytest.raises(InputTypeError, match="keep must be boolean, not int64; write keep != 0 if that is meant"):
        Problem.build(ONES, P24, keep=np.ones((4, 4), np.int64))
    assert as_mask([[True, False]], (1, 2), "mask").tolist() == [[True, False]]


def test_keep_and_drop_must_not_overlap() -> None:
    keep, drop = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    keep[1, 2, 3] = drop[1, 2, 3] = drop[0, 0, 0] = True
    with pytest.raises(InfeasibleError, match=r"keep and drop must not mark the same entry, as they do at \(1, 2, 3\)"):
        Problem.build(np.ones((2, 4, 4)), P24, layout="batch", keep=keep, drop=drop)
    keep[1, 2, 3] = False
    Problem.build(np.ones((2, 4, 4)), P24, layout="batch", keep=keep, drop=drop)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_non_finite_error_counts_and_points(dtype: Any) -> None:
    array = np.ones((3, 5), dtype)
    array[1, 4], array[2, 0], array[2, 3] = np.nan, np.inf, -np.inf
    error = Problem.build(array, P24).non_finite_error()
    assert isinstance(error, NonFiniteError)
    assert (error.count, error.first) == (3, (1, 4))
    assert "weights must be finite, not NaN or infinite at 3 of 15 entries, the first at (1, 4)" in str(error)
    error = Problem.build(np.zeros((3, 5)), P24, scores=array).non_finite_error()
    assert str(error).startswith("scores must be finite")


def test_matrices_of_each_layout() -> None:
    plain = Problem.build(np.ones((5, 6)), P24)
    assert [matrix.shape for matrix in plain.matrices(plain.scores)] == [(5, 6)]
    stack = Problem.build(np.ones((2, 3, 5, 6)), P24, layout="batch")
    assert [matrix.shape for matrix in stack.matrices(stack.scores)] == [(5, 6)] * 6
    conv = Problem.build(np.ones((6, 3, 2, 2)), P24, layout="conv", groups=2)
    assert [matrix.shape for matrix in conv.matrices(conv.scores)] == [(3, 12)] * 2


def test_matrices_of_whole_blocks_that_follow_one_another_are_seen_as_one() -> None:
    array = np.arange(2.0 * 3 * 8 * 6).reshape(2, 3, 8, 6)
    for given, shapes in (
        (array, [(48, 6)]),
        (array[:, :, :, :5], [(48, 5)]),
        (array[:, :2], [(8, 6)] * 4),
        (array[:, :, :7], [(7, 6)] * 6),
        (array[:, :, ::-1], [(8, 6)] * 6),
        (array.swapaxes(0, 1), [(8, 6)] * 6),
    ):
        problem = Problem.build(given, P24, layout="batch")
        matrices = problem.matrices(problem.scores)
        assert [matrix.shape for matrix in matrices] == shapes
        assert all(np.shares_memory(matrix.array, array) for matrix in matrices)
        assert np.array_equal(np.concatenate([matrix.array for matrix in matrices]), given.reshape(-1, given.shape[-1]))
        mask, masks = problem.new_mask()
        assert all(np.shares_memory(part, mask) for part in masks)
    marked = Problem.build(array, P24, layout="batch", keep=np.zeros((3, 2, 8, 6), bool).swapaxes(0, 1))
    assert len(marked.matrices(marked.scores)) == 6  # what is kept cannot be seen as one matrix
    conv = Problem.build(np.ones((8, 3, 2, 2)), P24, layout="conv", groups=2)
    assert [matrix.shape for matrix in conv.matrices(conv.scores)] == [(8, 12)]


def conv_matrix(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """out x (kernel . in), written out entry by entry."""
    out, channels, *kernel = array.shape
    rows = [[array[(o, i, *k)] for k in np.ndindex(*kernel) for i in range(channels)] for o in range(out)]
    return np.array(rows, array.dtype)


@pytest.mark.parametrize("shape", [(6, 5, 3, 2), (4, 7, 3), (3, 1, 2, 2, 3)])
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[::-1], np.asfortranarray])
def test_a_convolution_is_out_by_kernel_and_in(shape: tuple[int, ...], view: Any) -> None:
    array = view(np.arange(float(np.prod(shape))).reshape(shape))
    problem = Problem.build(array, P24, layout="conv")
    (matrix,) = problem.matrices(problem.scores)
    expected = conv_matrix(array)
    assert matrix.shape == expected.shape
    assert np.array_equal(matrix.rows(1, 3), expected[1:3])
    width = expected.shape[1]
    for cols in (slice(0, width), slice(width - 2, width), slice(1, 3), slice(2, width)):
        assert np.array_equal(matrix.part(slice(1, 3), cols), expected[1:3, cols])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_new_mask_of_a_convolution_has_writable_matrices(groups: int) -> None:
    problem = Problem.build(np.zeros((6, 5, 3, 2)), P24, layout="conv", groups=groups)
    mask, matrices = problem.new_mask()
    assert mask.shape == problem.shape
    assert len(matrices) == groups
    rng = np.random.default_rng(0)
    for matrix in matrices:
        matrix[...] = rng.random(matrix.shape) < 0.5
    assert np.array_equal(conv_matrix(mask), np.concatenate(matrices))


@pytest.mark.parametrize(("shape", "layout"), [((5, 6), None), ((2, 3, 5, 6), "batch")])
def test_new_mask(shape: tuple[int, ...], layout: str | None) -> None:
    problem = Problem.build(np.zeros(shape), P24, layout=layout)
    mask, matrices = problem.new_mask()
    assert mask.shape == shape
    assert mask.dtype == bool
    for matrix in matrices:
        assert np.shares_memory(matrix, mask)


def test_every_error_is_also_a_builtin() -> None:
    assert issubclass(InputTypeError, TypeError)
    assert issubclass(InputValueError, ValueError)
    assert issubclass(InfeasibleError, ValueError)
    assert issubclass(MissingLibraryError, ImportError)
    for error in (InputTypeError, InputValueError, InfeasibleError, NonFiniteError, PatternError, MissingLibraryError):
        assert issubclass(error, NmflowError)


@pytest.mark.parametrize("name", ["duals", "certify", "absolute", "transposable"])
@pytest.mark.parametrize("value", ["no", "False", None, 2])
def test_flags_are_true_or_false(name: str, value: object) -> None:
    weights = np.eye(4)
    call: Any = (
        partial(pipeline.certify, weights, weights > 0) if name == "absolute" else partial(pipeline.solve, weights)
    )
    with pytest.raises((InputTypeError, PatternError), match=f"{name} must be True or False, not "):
        call(1, 4, **{name: value})
    pipeline.solve(weights, 1, 4, duals=np.True_, certify=np.False_, transposable=np.True_)  # type: ignore[arg-type]
