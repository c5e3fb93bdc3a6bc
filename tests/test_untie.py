"""Blocks whose scores repeat: settled in lanes, on a lattice or not, and proven in fractions."""

from __future__ import annotations

from typing import Any

import families
import ml_dtypes
import numpy as np
import oracles
import pytest
from test_lanes import unproven
from test_levels import check

import nmflow
from nmflow.errors import NonFiniteError
from nmflow.solvers import dual, in_parts, trial, untied
from nmflow.solvers.levels import Lattice

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def codebook(
    shape: tuple[int, int], size: int, dtype: Any = np.float32, seed: int = 0, *, signed: bool = False
) -> Array:
    """A few numbers that lie on no lattice, over and over: what a learned or a normal-float code makes of weights."""
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(size) if signed else rng.random(size) + 0.1
    return numbers.astype(dtype)[rng.integers(0, size, shape)]


def scaled(shape: tuple[int, int]) -> Array:
    """Whole numbers of four bits, times a scale for each 128 of a row."""
    rng, (rows, cols) = np.random.default_rng(0), shape
    whole = np.clip(np.rint(rng.standard_normal((rows, cols // 128, 128)) * 2.6), -7, 7)
    return (whole * rng.uniform(0.5, 1, (rows, cols // 128, 1))).astype(np.float32).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [False, True])
def test_codes_of_every_dtype_are_untied(dtype: Any, signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_most_open", lambda _: -1.0)  # of half precision few stay open
    weights = codebook((64, 96), 5, dtype, signed=signed)
    solution = check(weights, "4:8", absolute=not signed)
    # no lane holds 53 bits
    assert solution.stats["tied"] > 0.5 * solution.certificate.n_blocks or dtype is np.float64
    best = nmflow.solve(weights, pattern="4:8", solver="network-simplex", **(
        {"scores": weights} if signed else {}
    ))  # fmt: skip
    assert solution.objective == pytest.approx(best.objective, rel=1e-12)


def whatever_the_threads(weights: Array) -> nmflow.Solution:
    """A solution at 8:16 by one thread: proven, graded, and the same by two."""
    one, two = (nmflow.solve(weights, 8, 16, duals=True, threads=threads) for threads in (1, 2))
    assert one.certificate.proven
    assert nmflow.certify(weights, one.mask, 8, 16, absolute=True).proven
    for side in ("mask", "row_duals", "col_duals"):
        assert np.array_equal(getattr(two, side), getattr(one, side))
    return one


@pytest.mark.parametrize(("values", "most"), [("decimal steps", 0.03), ("codes", 0.015), ("scales", 0.08)])
def test_masks_are_mended_in_lanes_whatever_the_threads(values: str, most: float) -> None:
    """Few values leave duals that are right with masks that are not; and long steps, few of either kind."""
    weights = np.random.default_rng(0).integers(0, 5, (512, 1024)).astype(np.float32) * np.float32(0.1)
    if values == "codes":
        weights = codebook((512, 1024), 16)
    if values == "scales":
        weights = scaled((512, 1024))
    one = whatever_the_threads(weights)
    assert one.stats["augmented"] < most * one.certificate.n_blocks


def test_rounds_rise_where_many_stay_open_whatever_the_threads() -> None:
    """Five codes leave so many blocks open that later groups ascend longer; groups solved alone begin anew."""
    weights = codebook((512, 2048), 5)
    one = whatever_the_threads(weights)
    alone = sum(
        nmflow.solve(weights[i : i + 16, j : j + 512], 8, 16).stats.get("augmented", 0)
        for i in range(0, 512, 16)
        for j in range(0, 2048, 512)
    )
    assert 0 < one.stats["augmented"] < 0.9 * alone


def cut_in_parts(monkeypatch: pytest.MonkeyPatch, entries: int) -> list[int]:
    """Solve parts of so many entries; what is returned grows by one for each."""
    parts: list[int] = []
    rows_of = in_parts._rows_of
    monkeypatch.setattr(in_parts, "MOST_ENTRIES", entries)
    monkeypatch.setattr(in_parts, "_rows_of", lambda chunk, *ends: parts.append(1) or rows_of(chunk, *ends))
    return parts


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("kind", ["code", "lattice", "gaussian after"])
def test_large_chunks_are_solved_in_parts(pattern: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself: one can hold ties and the next none."""
    weights = codebook((200, 64), 5)
    if kind == "lattice":
        weights = np.random.default_rng(1).integers(-3, 4, weights.shape).astype(np.float32) * np.float32(0.1)
    if kind == "gaussian after":
        weights[120:] = np.random.default_rng(1).standard_normal((80, 64))
    whole = nmflow.solve(weights, pattern=pattern)
    parts = cut_in_parts(monkeypatch, 40 * 64)
    once = nmflow.solve(weights, pattern=pattern)
    assert once.certificate.proven
    assert parts == [1] * 5
    assert once.objective == pytest.approx(whole.objective, rel=1e-12)
    assert check(weights, pattern).objective == pytest.approx(whole.objective, rel=1e-12)
    weights[150, 3] = np.inf
    with pytest.raises(NonFiniteError, match="150, 3"):
        nmflow.solve(weights, pattern=pattern)


@pytest.mark.parametrize("pattern", ["2:4", "3:5", "7:20", "1:3"])
def test_codes_of_every_shape_are_untied(pattern: str) -> None:
    m = nmflow.Pattern.parse(pattern).m
    solution = check(codebook((5 * m, 41 * m), 4), pattern)
    assert solution.stats["tied"] > 0.5 * solution.certificate.n_blocks


def test_budgets_of_rows_and_columns_may_differ() -> None:
    weights = codebook((64, 128), 5)
    solution = nmflow.solve(weights, row="2:4", col="4:8", duals=True)
    assert solution.certificate.proven
    assert unproven(weights, solution, absolute=True) == 0
    assert solution.stats["tied"] > 0


@pytest.mark.parametrize("absolute", [True, False])
def test_scores_with_more_bits_than_lanes_are_not_taken_for_ties(absolute: bool) -> None:
    """Numbers that 30 bits below the largest cannot tell apart, and that no float may be rounded to."""
    numbers = np.array([1.0, 1.0 + 2.0**-40, 1.0 + 2.0**-41, *2.0 ** -np.arange(28.0, 34.0), 0.0, 5e-324])
    if not absolute:
        numbers = np.concatenate([numbers, -numbers])
    weights = numbers[np.random.default_rng(0).integers(0, len(numbers), (64, 64))]
    for dtype in (np.float32, np.float64):
        check(weights.astype(dtype), "4:8", absolute=absolute)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 3e38])
def test_codes_of_any_size_are_proven(scale: float) -> None:
    weights = (codebook((48, 64), 5, np.float64) * scale / 1.2).astype(np.float32)
    assert np.isfinite(weights).all()
    check(weights, "4:8")
    check(weights - np.float32(scale / 3), "4:8", absolute=False)


def test_sizes_may_differ_from_block_to_block() -> None:
    weights = codebook((64, 64), 3) * np.repeat(np.repeat(10.0 ** np.arange(-30, 34, 8), 8), 8)[:64].astype(np.float32)
    check(weights.astype(np.float32), "4:8")


def test_blocks_of_one_number_are_proven_among_others() -> None:
    """What their duals share with the number must not be lost: it can have all the bits of a float."""
    weights = codebook((64, 64), 5)
    rng = np.random.default_rng(1)
    for i in range(0, 64, 8):
        for j in range(0, 64, 16):
            weights[i : i + 8, j : j + 8] = rng.random(dtype=np.float32)
    weights = np.concatenate([weights, np.repeat(np.repeat(rng.random((4, 8), np.float32), 16, 0), 16, 1)[:, :64]])
    for pattern in ("4:8", "8:16"):
        check(weights, pattern)
    check(weights - np.float32(0.3), "4:8", absolute=False)


def test_scores_beyond_those_of_a_sample_are_settled_at_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[bool] = []
    once = untied._untie

    def counted(*arguments: Any, **options: Any) -> Any:
        result = once(*arguments, **options)
        tries.append(result is not None)
        return result

    monkeypatch.setattr(untied, "_untie", counted)
    weights = np.random.default_rng(0).integers(-4, 5, (64, 64)).astype(np.float32) * np.float32(0.1)
    weights[37, 41] = np.float32(0.1) * 8
    check(weights, "4:8")
    assert tries == [False, True] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_code_that_is_not_finite_is_an_error(bad: float) -> None:
    weights = codebook((64, 64), 5)
    weights[37, 41] = bad
    with pytest.raises(nmflow.errors.NonFiniteError):
        nmflow.solve(weights, 4, 8)


def test_all_widths_of_lanes_keep_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).integers(-4, 5, (64, 64)).astype(np.int8)
    narrow = check(weights, "4:8")
    monkeypatch.setattr(untied, "NARROW", untied.BELOW)  # no number is as narrow: all lanes are wide
    wide = check(weights, "4:8")
    monkeypatch.setattr(dual, "plan", lambda *_: (True, None))  # no lattice is seen
    cut = check(weights, "4:8")
    assert narrow.objective == wide.objective == cut.objective
    assert all(solution.stats["tied"] > 0 for solution in (narrow, wide, cut))


def test_duals_move_to_where_they_prove_the_scores_too() -> None:
    lattice = Lattice(0.1, 2.0**-27, 1, 8, 0, 33)
    everywhere = np.arange(8.0)
    u = np.stack([np.full(8, 3.0) + 8 * everywhere, everywhere])
    v = np.stack([np.full(8, 5.0) - 8 * everywhere, everywhere])
    sums = u[:, :, None] + v[:, None, :]
    assert lattice.near(u, v, 1).tolist() == [True, False]
    assert np.array_equal(sums, u[:, :, None] + v[:, None, :])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["levels", "scaled levels", "ternary", "codes", "all equal"])
def test_lines_that_need_not_be_full_are_untied_as_if_they_had_to(kind: str, dtype: Any) -> None:
    """Under at-most fill: on a lattice, near one, on none; where zeros abound; in Python's integers too."""
    rng = np.random.default_rng(3)
    gaussian = rng.standard_normal((48, 64))
    weights = {
        "levels": np.clip(np.round(gaussian * 3), -7, 7),
        "scaled levels": np.clip(np.round(gaussian * 3), -7, 7) * dtype(0.0137),
        "ternary": np.sign(np.round(gaussian)),
        "codes": codebook((48, 64), 5, dtype),
        "all equal": np.full((48, 64), 0.3),
    }[kind].astype(dtype)
    patterns = [nmflow.Pattern(2, 4, fill="at-most")]
    if kind == "levels" and dtype is np.float32:  # kernels of more take long to compile, by the same way
        patterns.append(nmflow.Pattern(row="2:4", col="4:8", fill="at-most"))
    for pattern in patterns:
        solution = nmflow.solve(weights, pattern=pattern, duals=True)
        assert solution.certificate.proven
        assert solution.stats.get("tied", 0) > 0.5 * solution.certificate.n_blocks or dtype is np.float64
        lost = solution.stats.get("integers", 0) + solution.stats.get("rounded", 0)
        assert unproven(weights, solution, absolute=True) <= lost
        best = nmflow.solve(weights, pattern=pattern, solver="network-simplex")
        assert solution.objective == pytest.approx(best.objective, rel=1e-12)
        assert np.array_equal(solution.mask, nmflow.solve(weights, pattern=pattern).mask)


@pytest.mark.parametrize("pattern", ["2:4", "row 1:2 col 2:4"])
def test_duals_of_the_largest_floats_are_floats(pattern: str) -> None:
    for seed in range(5):
        weights = np.random.default_rng(seed).choice([0.0, 1.0, 8.8e306, 1.7e308], (32, 32))
        solution = nmflow.solve(weights, pattern=pattern, duals=True)
        assert solution.certificate.proven
        assert np.isfinite(solution.row_duals).all()
        assert np.isfinite(solution.col_duals).all()
        assert nmflow.certify(weights, solution.mask, pattern=pattern).proven


def test_parts_whose_blocks_need_integers_are_proven_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second part and later ones too: few numbers, which float64 duals can't prove."""
    weights = families.no_float_duals((48, 48), 0)
    pattern = nmflow.Pattern(1, 3)
    whole = nmflow.solve(weights, pattern=pattern)
    parts = cut_in_parts(monkeypatch, 12 * 48)
    solution = nmflow.solve(weights, pattern=pattern)
    assert parts == [1] * 4
    assert solution.stats["integers"] == whole.stats["integers"] > 0
    assert solution.certificate.proven
    scores = oracles.exact(weights)
    assert scores[solution.mask].sum() == oracles.best_total(scores, pattern)


@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_signed_scores_of_a_few_binades_are_proven_in_lanes(fill: Any) -> None:
    """Those near 0 decide: they need all bits that a float32 has below numbers sixteen times as large."""
    scores = scaled((512, 512))
    solution = nmflow.solve(scores, 8, 16, scores=scores, fill=fill, duals=True)
    assert unproven(scores, solution, absolute=False) == 0
    assert solution.stats["augmented"] < 0.1 * solution.certificate.n_blocks
