"""How many masks a whole tensor admits under a constraint."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from nmflow.asked import check_choice
from nmflow.diversity.counting import asymptotic_log_count, count_masks, exact_pattern
from nmflow.errors import InputTypeError, InputValueError, PatternError, SolverLimitError
from nmflow.pattern import Pattern

__all__ = ["Diversity", "mask_diversity"]

LARGEST_EXACT = 14_000
"""Entries up to which unstructured masks are counted as an integer: it has as many bits, and Python writes 14,284."""
FEW = 1 << 10
"""Kept entries up to which they are for the logarithm alone; for more, three terms of Stirling's series are exact."""


@dataclass(frozen=True, slots=True)
class Diversity:
    """How many masks a tensor admits.

    Attributes
    ----------
    constraint : str
    shape : tuple of int
    method : {"exact", "asymptotic", "paper"}
        How the logarithm was found; "exact" up to its rounding.
    log2 : float
        Base-2 logarithm of the number of masks of the tensor.
    blocks : int
        Blocks of the tensor, each of which has as many masks.
    block_count : int or None
        Masks of one block, where they were counted.
    """

    constraint: str
    shape: tuple[int, ...]
    method: str
    log2: float
    blocks: int
    block_count: int | None

    @property
    def log10(self) -> float:
        """Base-10 logarithm of the number of masks."""
        return self.log2 * math.log10(2.0)

    @property
    def bits_per_entry(self) -> float:
        """Base-2 logarithm of the number of masks for each entry of the tensor."""
        return self.log2 / math.prod(self.shape)


def mask_diversity(
    shape: Sequence[int], constraint: str | Pattern | float, *, bound: Literal["exact", "paper"] = "exact"
) -> Diversity:
    """Count the masks of a tensor under a constraint.

    Parameters
    ----------
    shape : two whole numbers
        Multiples of the block shape (of the group length, if columns are free).
    constraint : str, Pattern or float
        "n:m" or a Pattern; a number is the density of unstructured masks.
    bound : {"exact", "paper"}
        "paper": for one transposable block M! (M-1)! ... (M-N+1)!, as in Hubara et al. 2021; no bound, though mostly
        too large (docs/diversity.md). N is what a line keeps; in the paper it counts zeros, the same for N = M/2.

    Returns
    -------
    Diversity

    Raises
    ------
    InputTypeError, InputValueError
        If the shape is not two whole numbers or does not fit, or the density is not a number between 0 and 1.
    PatternError
        If the pattern is at-most, or ``bound="paper"`` has no formula for it.

    Notes
    -----
    Where the exact count would not finish, the logarithm is the asymptotic one, and `method` says so.

    Examples
    --------
    >>> mask_diversity((8, 8), "4:8").block_count, mask_diversity((8, 8), "4:8", bound="paper").block_count
    (116963796250, 17557585920000)
    """
    rows, cols = _two(shape)
    check_choice(bound, ("exact", "paper"), "bound")
    if not isinstance(constraint, str | Pattern):
        return _unstructured(rows, cols, constraint)
    pattern = exact_pattern(constraint)
    tall, wide = pattern.block_shape if pattern.col else (1, pattern.m)
    if rows % tall or cols % wide:
        raise InputValueError(
            f"shape must be a multiple of {tall} x {wide} for {pattern}, not {rows} x {cols}; give that of whole blocks"
        )
    blocks = rows // tall * (cols // wide)
    count: int | None
    method: str = bound
    if pattern.col is None:  # the paper counts these exactly too
        count, method = math.comb(pattern.m, pattern.n), "exact"
    elif bound == "paper":
        if pattern.row != pattern.col:
            raise PatternError(f'pattern must be "n:m" in both directions for bound="paper", not {pattern}')
        count = math.prod(math.factorial(pattern.m - k) for k in range(pattern.n))
    else:
        try:
            count = count_masks(pattern)
        except SolverLimitError:
            count, method = None, "asymptotic"
    log2 = math.log2(count) if count is not None else asymptotic_log_count(pattern) / math.log(2.0)
    return Diversity(str(pattern), (rows, cols), method, blocks * log2, blocks, count)


def _two(shape: Sequence[int]) -> tuple[int, int]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise InputTypeError(f"shape must be two whole numbers, not {shape!r}") from None
    if len(sizes) == 2 and math.prod(sizes) > sys.maxsize:
        raise InputValueError(f"shape must have at most {sys.maxsize} entries, as an array has, not {sizes}")
    if len(sizes) != 2 or min(sizes) < 1:
        raise InputValueError(f"shape must be two numbers of at least 1, not {sizes}")
    return sizes[0], sizes[1]


def _unstructured(rows: int, cols: int, density: float) -> Diversity:
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise InputTypeError(f'constraint must be "n:m", a Pattern or a density, not {density!r}')
    if not 0.0 <= density <= 1.0:
        raise InputValueError(f"constraint must be a density between 0 and 1, not {density!r}")
    size = rows * cols
    kept = round(Fraction(density) * size)
    count = math.comb(size, kept) if size <= LARGEST_EXACT else None
    log2 = _log2_choose(size, min(kept, size - kept)) if count is None else math.log2(count)
    return Diversity(f"unstructured {density:g}", (rows, cols), "exact", log2, 1, count)


def _log2_choose(n: int, k: int) -> float:
    """log2 of n over k, for k <= n / 2: by Stirling's series, whose large terms are positive, so nothing cancels."""
    if k <= FEW:
        return math.log2(math.comb(n, k))
    large = k * math.log(n / k) - (n - k) * math.log1p(-k / n)
    small = 0.5 * math.log(n / (2.0 * math.pi * k * (n - k)))
    series = [sign * (1.0 / (12.0 * x) - 1.0 / (360.0 * x**3)) for sign, x in ((1, n), (-1, k), (-1, n - k))]
    return (large + small + sum(series)) / math.log(2.0)
