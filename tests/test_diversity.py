"""Counts of masks against enumeration, the literature and asymptotics; divergence of masks."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import families
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nmflow
from nmflow import count_masks, divergence, mask_diversity
from nmflow.cli.counts import _power
from nmflow.diversity import asymptotic_log_count
from nmflow.errors import InputTypeError, InputValueError, PatternError, SolverLimitError
from nmflow.pattern import Pattern

KNOWN = {
    "1:1": 1,
    "1:2": 2,
    "1:4": 24,
    "2:4": 90,
    "2:5": 2040,
    "3:6": 297200,
    "2:8": 187530840,
    "4:8": 116963796250,
    "4:10": 1289144584143523800,  # OEIS A058528
    "4:14": 12163525741347497524178307740904300,
    "1:32": math.factorial(32),
    "31:32": math.factorial(32),
    "1:64": math.factorial(64),  # the most columns that a digit of a state holds
    "63:64": math.factorial(64),
    "8:8": 1,
}


@pytest.mark.parametrize(("pattern", "count"), KNOWN.items())
def test_known_counts(pattern: str, count: int) -> None:
    assert count_masks(pattern) == count


def test_two_of_many_against_their_recurrence() -> None:
    """a(m) = m (m-1) / 2 * (2 a(m-1) + (m-1) a(m-2)), OEIS A001499."""
    before, count = 1, 0
    for m in range(2, 65):
        before, count = count, m * (m - 1) // 2 * (2 * count + (m - 1) * before)
        if m in (2, 3, 9, 10, 33, 64):
            assert count_masks(f"2:{m}") == count
            formula = mask_diversity((m, m), f"2:{m}", bound="paper").block_count
            assert (formula < count) == (m >= 10)  # as docs/diversity.md says


def test_the_largest_patterns_of_hardware_are_counted_in_time() -> None:
    started = time.process_time()
    assert f"{count_masks('8:16'):.4e}" == "3.4812e+55"
    assert time.process_time() - started < 15
    assert f"{count_masks('4:16'):.4e}" == "6.8927e+42"
    assert count_masks("12:16") == count_masks("4:16")


@pytest.mark.parametrize(
    ("row", "col"),
    [("1:2", "2:4"), ("2:4", "1:2"), ("1:3", "1:3"), ("2:3", "4:6"), ("1:1", "3:3"), ("2:6", "1:3"), ("3:4", "3:4")],
)
def test_against_enumeration(row: str, col: str) -> None:
    pattern = Pattern(row=row, col=col)
    assert count_masks(pattern) == sum(1 for _ in oracles.masks(pattern))
    assert count_masks(pattern) == count_masks(Pattern(row=col, col=row))


def test_rows_only_and_unstructured() -> None:
    assert count_masks(Pattern(2, 4, transposable=False)) == 6**4
    assert count_masks(Pattern(32, 64, transposable=False)) == math.comb(64, 32) ** 64
    assert mask_diversity((3, 8), Pattern(2, 4, transposable=False)).log2 == pytest.approx(6 * math.log2(6))
    found = mask_diversity((4, 4), 0.5)
    assert (found.block_count, found.method) == (math.comb(16, 8), "exact")
    assert found.log2 == pytest.approx(math.log2(12870))
    large, exact = mask_diversity((512, 512), 0.5), math.log2(math.comb(512 * 512, 512 * 256))
    assert large.block_count is None
    assert large.log2 == pytest.approx(exact, rel=1e-12)
    assert mask_diversity((4, 4), 0).log2 == mask_diversity((4, 4), 1.0).log2 == 0.0


@pytest.mark.parametrize(
    ("shape", "density"),
    [((10**8, 10**7), 1e-15), ((2**25, 2**10), 2.0**-35), ((1000, 1000), 0.005), ((500, 500), 0.7)],
)
def test_large_unstructured_masks_lose_no_digits(shape: tuple[int, int], density: float) -> None:
    size = shape[0] * shape[1]
    found = mask_diversity(shape, density).log2
    assert found == pytest.approx(math.log2(math.comb(size, round(Fraction(density) * size))), rel=1e-14)


def test_both_bounds_of_the_table() -> None:
    shape = (8, 8)
    exact = {name: mask_diversity(shape, name) for name in ("2:4", "4:8")}
    rows = {name: mask_diversity(shape, Pattern.parse(name, transposable=False)) for name in ("2:4", "4:8")}
    paper = {name: mask_diversity(shape, name, bound="paper") for name in ("2:4", "4:8")}
    assert paper["2:4"].block_count == 144
    assert 10 ** exact["4:8"].log10 == pytest.approx(1.1696e11, rel=1e-4)
    assert 10 ** exact["2:4"].log10 == pytest.approx(90**4)
    assert 10 ** rows["4:8"].log10 == pytest.approx(70**8)
    # the paper's order, and what becomes of it
    assert paper["4:8"].log2 > rows["2:4"].log2 > exact["4:8"].log2
    assert (
        mask_diversity((16, 16), "8:16", bound="paper").log2
        > mask_diversity((16, 16), Pattern(8, 16, transposable=False)).log2
    )
    assert exact["4:8"].bits_per_entry == exact["4:8"].log2 / 64


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("1:4", 0.05),
        ("2:4", 0.01),
        ("4:8", 0.004),
        ("6:16", 0.0012),
        ("3:32", 0.002),
        (Pattern(row="4:8", col="8:16"), 0.002),
        (Pattern(row="1:2", col="16:32"), 0.005),
        (Pattern(row="3:12", col="4:16"), 0.003),
        (Pattern(row="4:8", col="32:64"), 0.001),  # too many steps by rows of 8, few by columns
    ],
    ids=str,
)
def test_asymptotic_counts(pattern: Any, error: float) -> None:
    assert abs(math.expm1(asymptotic_log_count(pattern) - math.log(count_masks(pattern)))) < error


def test_what_would_not_finish_says_so_before_it_starts() -> None:
    started = time.process_time()
    for pattern in ("16:32", "8:32", "32:64", "10:20", "20:64"):
        with pytest.raises(
            SolverLimitError, match=f"count that finishes .* not that of {pattern}; asymptotic_log_count"
        ):
            count_masks(pattern)
    assert time.process_time() - started < 20
    found = mask_diversity((64, 64), "16:32")
    assert (found.method, found.block_count, found.blocks) == ("asymptotic", None, 4)
    assert found.log2 == pytest.approx(4 * asymptotic_log_count("16:32") / math.log(2))
    assert asymptotic_log_count("5:5") == 0.0
    assert asymptotic_log_count(Pattern(2, 4, transposable=False)) == pytest.approx(4 * math.log(6))
    assert asymptotic_log_count(Pattern(row="1:2", col="1:2")) > 0


def test_bad_input() -> None:
    with pytest.raises(InputValueError, match=r"shape must have at most \d+ entries, as an array has"):
        mask_diversity((10**200, 10**200), 0.5)
    with pytest.raises(PatternError, match='fill must be "exact" to count masks, not "at-most"'):
        count_masks(Pattern(2, 4, fill="at-most"))
    with pytest.raises(PatternError, match='pattern must be "n:m", for example "2:4", not \'half\''):
        count_masks("half")
    two = "two numbers"
    for shape, message in (((6, 4), "multiple of 4 x 4 for 2:4, not 6 x 4"), ((4,), two), ((0, 4), two)):
        with pytest.raises(InputValueError, match=f"shape must be .*{message}"):
            mask_diversity(shape, "2:4")
    with pytest.raises(InputTypeError, match="shape must be two whole numbers, not"):
        mask_diversity((4.0, 4), "2:4")  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match=r"constraint must be a density between 0 and 1, not 1\.5"):
        mask_diversity((4, 4), 1.5)
    for constraint in (None, True):
        with pytest.raises(InputTypeError, match=f'constraint must be "n:m", a Pattern or a density, not {constraint}'):
            mask_diversity((4, 4), constraint)  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match='bound must be "exact" or "paper", not \'upper\''):
        mask_diversity((4, 4), "2:4", bound="upper")  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match='bound must be "exact" or "paper", not array'):
        mask_diversity((4, 4), "2:4", bound=np.array(["exact", "paper"]))  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r'pattern must be "n:m" in both directions for bound="paper"'):
        mask_diversity((4, 4), Pattern(row="1:2", col="2:4"), bound="paper")


pairs = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


@settings(max_examples=60, deadline=None)
@given(pairs, st.sampled_from([Pattern(2, 4), Pattern(row="1:2", col="2:4"), Pattern(1, 3)]))
def test_divergence(masks: tuple[Any, Any], pattern: Pattern) -> None:
    first, second = masks
    found = divergence(first, second, pattern)
    assert found.sad == np.abs(first.astype(int) - second.astype(int)).sum()
    assert found.flip_rate == found.sad / first.size
    assert found.block_sad is not None
    assert found.block_flip_rate is not None
    assert found.block_sad.tolist() == [int(block.sum()) for _, block in oracles.blocks(first ^ second, pattern)]
    sizes = [int(block.sum()) for _, block in oracles.blocks(np.ones_like(first), pattern)]
    assert found.block_flip_rate.tolist() == (found.block_sad / sizes).tolist()
    assert divergence(second, first).sad == found.sad
    assert divergence(first, first, pattern).flip_rate == 0.0


def test_divergence_follows_the_layout_and_the_solution() -> None:
    weights = families.gaussian((6, 5, 3, 2), 8)
    before = nmflow.solve(weights, 2, 4, layout="conv").mask
    after = nmflow.solve(
        weights + families.gaussian(weights.shape, 9), 2, 4, layout="conv", previous=before, switch_cost=0.1
    )
    found = divergence(before, after.mask, "2:4", layout="conv")
    assert after.switch is not None
    assert found.sad == after.switch.flips
    assert found.block_sad is not None
    assert found.block_sad.shape == after.certificate.status.shape  # type: ignore[union-attr]
    assert divergence(before, after.mask).block_flip_rate is None


def test_every_count_can_be_written() -> None:
    for shape in ((118, 118), (119, 119), (100, 143), (128, 128)):  # Python writes no integer of more than 4300 digits
        assert repr(mask_diversity(shape, 0.5))


def test_the_formula_of_the_paper_is_no_bound() -> None:
    def ratio(pattern: str) -> float:
        side = int(pattern.split(":")[1])
        paper = mask_diversity((side, side), pattern, bound="paper").block_count
        assert paper is not None
        return count_masks(pattern) / paper

    assert ratio("1:8") == 1
    assert ratio("2:9") < 1 < ratio("2:10") < 1.05
    assert ratio("2:16") == pytest.approx(1.34, abs=0.005)


def test_divergence_of_bad_masks() -> None:
    with pytest.raises(InputValueError, match='layout must be None, "conv" or "batch", not'):
        divergence(np.ones((4, 4), bool), np.ones((4, 4), bool), layout="zzz")
    mask = np.ones((4, 4), bool)
    with pytest.raises(InputTypeError, match="mask_a must be an array that NumPy can view"):
        divergence([[True], [True, False]], mask)
    with pytest.raises(InputValueError, match=r"mask_b must have shape \(4, 4\), not \(4, 5\)"):
        divergence(mask, np.ones((4, 5), bool))
    for first, second, name in ((mask, mask.astype(int), "mask_b"), (mask.astype(int), mask, "mask_a")):
        with pytest.raises(InputTypeError, match=f"{name} must be boolean, not int64"):
            divergence(first, second)


def test_powers_are_written_with_a_digit_before_the_point() -> None:
    assert [_power(math.log10(number)) for number in (999_999, 1e6, 9_999_999)] == ["999,999", "1.000e6", "1.000e7"]
