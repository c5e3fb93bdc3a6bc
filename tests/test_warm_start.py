"""Starting from the duals of an earlier solution, and writing into a mask that is there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import families
import numpy as np
import pytest

import nmflow
from nmflow import cutting
from nmflow.cutting import Sizes
from nmflow.earlier import earlier_duals
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError
from nmflow.problem import Problem


def perturbed(weights: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(weights.shape)
    return (weights * (1.0 + share * noise)).astype(weights.dtype)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (8, 16), (3, 5), (16, 32)])
@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_a_warm_start_reaches_the_same_objective(pattern: tuple[int, int], fill: str, share: float) -> None:
    weights = families.gaussian((67, 133), 0)
    first = nmflow.solve(weights, *pattern, fill=fill, duals=True)
    changed = perturbed(weights, share)
    warm = nmflow.solve(changed, *pattern, fill=fill, warm_start=first)
    cold = nmflow.solve(changed, *pattern, fill=fill)
    assert warm.certificate.proven
    assert warm.objective == pytest.approx(cold.objective, rel=1e-12)


@pytest.mark.parametrize("family", ["few_values", "mostly_zero", "huge_among_tiny", "gaussian_float64"])
def test_a_warm_start_from_another_problem_is_still_exact(family: str) -> None:
    first = nmflow.solve(families.gaussian((64, 96), 0), 8, 16, duals=True)
    weights = families.FAMILIES[family]((64, 96), 3)
    warm = nmflow.solve(weights, 8, 16, warm_start=first)
    assert warm.certificate.proven
    assert warm.objective == pytest.approx(nmflow.solve(weights, 8, 16).objective, rel=1e-12)


def test_duals_beyond_the_work_dtype_start_a_search_too() -> None:
    first = nmflow.solve(families.largest_float64((64, 96), 0), 8, 16, duals=True)
    weights = families.gaussian((64, 96), 3)
    warm = nmflow.solve(weights, 8, 16, warm_start=first)
    assert warm.certificate.proven
    assert warm.objective == pytest.approx(nmflow.solve(weights, 8, 16).objective, rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"pattern": "2:4"}, {"pattern": "4:8"}, {"row": "2:4", "col": "4:8"}, {"pattern": "8:16", "transposable": False}],
)
def test_where_old_duals_save_nothing_they_are_not_read(options: dict[str, Any]) -> None:
    weights = families.gaussian((16, 160), 0)
    first = nmflow.solve(weights, duals=True, **options)
    first.col_duals[...] = np.nan  # an array that is the caller's
    warm = nmflow.solve(weights, warm_start=first, duals=True, **options)
    assert np.array_equal(warm.mask, first.mask)
    assert np.array_equal(warm.row_duals, first.row_duals)
    assert warm.certificate.proven


def test_a_warm_start_works_for_stacks_convolutions_and_their_own_result() -> None:
    stack = families.gaussian((3, 20, 36), 0)
    first = nmflow.solve(stack, 5, 10, layout="batch", duals=True)
    again = nmflow.solve(stack, 5, 10, layout="batch", duals=True, warm_start=first)
    assert (again.mask == first.mask).all()
    weights = families.gaussian((32, 6, 3, 3), 0)
    first = nmflow.solve(weights, 8, 16, layout="conv", groups=2, duals=True)
    assert nmflow.solve(weights, 8, 16, layout="conv", groups=2, warm_start=first).certificate.proven


@pytest.mark.parametrize("entries", [1 << 22, 2000])
def test_a_stack_starts_as_the_tall_matrix_of_its_entries(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same duals, though none of them are copied but those of a chunk: here chunks end within matrices."""
    monkeypatch.setattr(cutting, "SIZES", Sizes(chunk=entries, first=entries // 3, least=entries // 2))
    stack = families.gaussian((7, 24, 76), 0)
    shapes: tuple[tuple[tuple[int, ...], dict[str, str]], ...] = (
        (stack.shape, {"layout": "batch"}),
        ((7 * 24, 76), {}),
    )
    warm = []
    for shape, options in shapes:
        first = nmflow.solve(stack.reshape(shape), 6, 12, duals=True, **options)
        changed = perturbed(stack, 0.01).reshape(shape)
        warm.append(nmflow.solve(changed, 6, 12, warm_start=first, **options))
    assert np.array_equal(warm[0].mask.reshape(-1), warm[1].mask.reshape(-1))
    assert warm[0].stats["ascended"] == warm[1].stats["ascended"]
    assert warm[0].certificate.proven


def test_earlier_duals_of_a_stack_are_not_copied() -> None:
    stack = families.gaussian((3, 24, 36), 0)
    first = nmflow.solve(stack, 6, 12, layout="batch", duals=True)
    problem = Problem.build(stack, first.pattern, layout="batch")
    assert problem.stack == 3
    assert all(one is other for one, other in zip(earlier_duals(problem, first) or (), first.col_duals, strict=True))


@pytest.mark.parametrize("change", [lambda duals: duals.astype(str), lambda duals: duals.astype(complex)])
def test_duals_are_arrays_of_floats(change: Any) -> None:
    first = nmflow.solve(families.gaussian((8, 8), 0), 4, 8, duals=True)
    other = replace(first, col_duals=change(first.col_duals))
    with pytest.raises(InputTypeError, match="warm_start must hold duals as solve gives them"):
        nmflow.solve(families.gaussian((8, 8), 0), 4, 8, warm_start=other)


@pytest.mark.parametrize("pattern", [(2, 4), (8, 16)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_warm_start_still_sees_scores_that_are_not_finite(value: float, pattern: tuple[int, int]) -> None:
    weights = families.gaussian((64, 64), 0)
    first = nmflow.solve(weights, *pattern, duals=True)
    for place in (np.abs(weights).argmin(), np.abs(weights).argmax()):
        bad = weights.copy()
        bad.flat[place] = value
        with pytest.raises(NonFiniteError, match="at 1 of 4096 entries"):
            nmflow.solve(bad, *pattern, warm_start=first)


def test_what_cannot_be_a_warm_start_is_refused() -> None:
    weights = families.gaussian((16, 16), 0)
    first = nmflow.solve(weights, 2, 4, duals=True)
    for arguments, words in [
        ({"warm_start": nmflow.solve(weights, 2, 4)}, "warm_start must hold duals, not None"),
        ({"warm_start": first, "fill": "at-most"}, "warm_start must have pattern 2:4 at-most, not 2:4"),
        ({"warm_start": first, "solver": "enumerate"}, 'warm_start must go with solver="dual", not "enumerate"'),
    ]:
        with pytest.raises(InputValueError, match=re.escape(words)):
            nmflow.solve(weights, 2, 4, **arguments)
    with pytest.raises(InputValueError, match="warm_start must be of a problem of shape"):
        nmflow.solve(families.gaussian((16, 20), 0), 2, 4, warm_start=first)
    with pytest.raises(InputTypeError, match="warm_start must be a Solution, not ndarray"):
        nmflow.solve(weights, 2, 4, warm_start=first.mask)
    last = nmflow.solve(weights, 8, 16, duals=True)
    assert last.col_duals is not None
    for bad in (np.nan, np.inf):
        last.col_duals[0, 0] = bad
        with pytest.raises(InputValueError, match="warm_start must hold finite duals"):
            nmflow.solve(weights, 8, 16, warm_start=last)


def test_out_takes_the_mask() -> None:
    weights = families.gaussian((19, 34), 0)
    wide = np.ones((19, 40), np.bool_)
    out = wide[:, 3:37]
    solution = nmflow.solve(weights, 2, 4, out=out)
    assert solution.mask is out
    assert (out == nmflow.solve(weights, 2, 4).mask).all()
    assert wide[:, :3].all()
    assert wide[:, 37:].all()


def test_out_may_be_a_subclass() -> None:
    weights = np.random.default_rng(0).standard_normal((17, 18))
    whole = nmflow.solve(weights, 2, 4)
    hidden = np.ma.masked_array(np.zeros(weights.shape, np.bool_), np.ones(weights.shape, np.bool_), hard_mask=True)
    for out in (hidden, np.zeros(weights.shape, np.bool_).view(np.matrix)):
        solution = nmflow.solve(weights, 2, 4, out=out, keep=np.zeros(weights.shape, np.bool_))
        assert type(solution.mask) is np.ndarray
        assert np.shares_memory(solution.mask, out)
        assert np.array_equal(solution.mask, whole.mask)


class Tall(np.ndarray):
    """What says that it is larger than it is."""

    shape = property(lambda self: (64, 64))  # type: ignore[assignment]


def test_out_is_as_large_as_its_memory() -> None:
    small = np.zeros((4, 4), np.bool_).view(Tall)
    with pytest.raises(InputValueError, match=r"out must be .* of shape \(64, 64\), not bool of shape \(4, 4\)"):
        nmflow.solve(families.gaussian((64, 64), 0), 2, 4, out=small)


def test_what_cannot_be_out_is_refused() -> None:
    weights = families.gaussian((16, 16), 0)
    for out, words in [
        (np.empty((16, 15), np.bool_), "out must be a NumPy array of bool of shape"),
        (np.empty((16, 16), np.uint8), "not uint8 of shape"),
        ([True], "not list"),
        (np.empty((16, 16), np.bool_, order="F"), "out must be writeable and have the entries of a row side by side"),
        (weights.view(np.bool_)[:, ::4][:, :16], "side by side"),
        (weights.view(np.bool_)[:, :16], "out must not share memory with the scores"),
    ]:
        with pytest.raises(InputValueError, match=words):
            nmflow.solve(weights, 2, 4, out=out)
    images = families.gaussian((8, 4, 3, 3), 0)
    last = nmflow.solve(weights, 2, 4).mask
    both = np.zeros((20, 16), np.bool_)
    for name in ("keep", "drop"):
        with pytest.raises(InputValueError, match=f"out must not share memory with {name}"):
            nmflow.solve(weights, 2, 4, out=both[4:], **{name: both[:16]})
    for strides in ((0, 1), (8, 1)):
        twice = np.lib.stride_tricks.as_strided(np.zeros(400, np.bool_), (16, 16), strides)
        with pytest.raises(InputValueError, match="out must have entries of its own in memory, none twice"):
            nmflow.solve(weights, 2, 4, out=twice)
    with pytest.raises(InputValueError, match="out must not share memory with previous"):
        nmflow.solve(weights, 2, 4, previous=last, switch_cost=0.1, out=last)
    with pytest.raises(InputValueError, match='out must be None for layout="conv"'):
        nmflow.solve(images, 2, 4, layout="conv", out=np.empty(images.shape, np.bool_))


def test_out_that_must_not_be_written_is_refused() -> None:
    out = np.zeros((16, 16), np.bool_)
    out.flags.writeable = False
    with pytest.raises(InputValueError, match="out must be writeable"):
        nmflow.solve(families.gaussian((16, 16), 0), 2, 4, out=out)
    assert not out.any()


def test_rows_of_out_may_stand_in_any_order() -> None:
    weights = families.gaussian((3, 16, 18), 0)
    best = nmflow.solve(weights, 2, 4, layout="batch").mask
    memory = np.zeros((16, 3, 18), np.bool_)
    for out in (np.zeros_like(best)[:, ::-1], np.zeros_like(best)[::-1], memory.transpose(1, 0, 2)):
        assert nmflow.solve(weights, 2, 4, layout="batch", out=out).mask is out
        assert np.array_equal(out, best)


def test_finite_duals_of_any_size_start_a_search() -> None:
    weights = families.gaussian((64, 64), 0)
    last = nmflow.solve(weights, 8, 16, duals=True)
    last.col_duals[...] = np.float32(3e38)
    found = nmflow.solve(weights, 8, 16, warm_start=last)
    assert found.proven
    assert found.objective == pytest.approx(last.objective, rel=1e-12)


@pytest.mark.parametrize("pattern", [(6, 12), (8, 16), (16, 32)])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.03])
def test_rounds_that_are_learned_on_the_way_depend_on_no_thread(pattern: tuple[int, int], share: float) -> None:
    """Few rounds where scores hardly change, more where a group of blocks needs them: in each share anew."""
    weights = families.gaussian((512, 2048), 0)
    first = nmflow.solve(weights, *pattern, duals=True)
    changed = perturbed(weights, share)
    changed[256:] = perturbed(weights, 10 * share, 2)[256:]
    one, two = (nmflow.solve(changed, *pattern, warm_start=first, duals=True, threads=threads) for threads in (1, 2))
    cold = nmflow.solve(changed, *pattern)
    assert one.certificate.proven
    assert one.objective == pytest.approx(cold.objective, rel=1e-12)
    assert nmflow.certify(np.abs(changed), one.mask, *pattern).proven
    for side in ("mask", "row_duals", "col_duals"):
        assert np.array_equal(getattr(two, side), getattr(one, side))
