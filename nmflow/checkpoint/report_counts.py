"""How many masks each weight of a report could have had."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nmflow.checkpoint.report import TensorReport
from nmflow.diversity import asymptotic_log_count, mask_diversity
from nmflow.pattern import Pattern

__all__ = ["mask_digits"]

EXACT = 8
"""Longest group whose masks are counted exactly; above it a count takes seconds, and the asymptotic one is off by .2%
or less of the count of a block."""


def mask_digits(pattern: Pattern, tensors: Sequence[TensorReport]) -> list[float] | None:
    """Base-10 logarithm of the number of masks of each weight, over its whole blocks; None under at-most fill.

    Examples
    --------
    >>> one_block = TensorReport("w", "", "F32", (5, 4), None, 1.0, 1.0, 1.0, 0.0, 2, 2, 0.0)
    >>> [round(10**digits) for digits in mask_digits(Pattern(2, 4), [one_block])]
    [90]
    """
    if pattern.fill != "exact":
        return None
    if pattern.col is None or max(pattern.block_shape) <= EXACT:
        block = mask_diversity(pattern.block_shape, pattern).log10
    else:
        block = asymptotic_log_count(pattern) / math.log(10.0)
    return [_whole_blocks(pattern, tensor) * block for tensor in tensors]


def _whole_blocks(pattern: Pattern, tensor: TensorReport) -> float:
    """Blocks of a weight; where columns are free also parts of one, since its rows are independent."""
    height, width = pattern.block_shape
    matrices, rows, cols = tensor.matrices
    return matrices * (rows / height if pattern.col is None else rows // height) * (cols // width)
