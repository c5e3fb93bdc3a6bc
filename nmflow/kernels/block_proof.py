"""The proof of one block whose mask is the bits of words: signs of S - u - v, counts of lines, and what it keeps."""

from __future__ import annotations

import numpy as np

from nmflow.kernels.bits import WIDTH
from nmflow.kernels.compile import part
from nmflow.kernels.memory import count_ones
from nmflow.kernels.words import prove_line

__all__ = ["copy_numbers", "prove_block"]


@part
def prove_block(  # type: ignore[no-untyped-def]
    lines, u, v, at_v, row_words, col_words, ties, r, c, row_fill, col_fill, rows, cols, sums, at_sums
):
    """Whether duals prove the mask that words hold, and what it keeps."""
    across = -(-cols // WIDTH)
    in_row = -1 if cols == 64 else (1 << cols) - 1
    sums[:] = 0.0
    wrong = 0
    for i in range(rows):
        row = lines + i * (8 * WIDTH) * across
        wrong |= prove_line(row, u[i], at_v, across, row_words[i], ties, at_sums) & in_row
        wrong |= _line_wrong(count_ones(row_words[i]), r, u[i], row_fill)
    for j in range(cols):
        wrong |= _line_wrong(count_ones(col_words[j]), c, v[j], col_fill)
    total = 0.0
    for j in range(cols):
        total += sums[j]
    return wrong == 0, total


@part
def _line_wrong(count, budget, dual, fill):  # type: ignore[no-untyped-def]
    """Whether a line breaks its budget, or its dual is none: finite, at least 0, and 0 where it is free or has room."""
    if fill == 2:
        return np.int64(count != budget or not abs(dual) < np.inf)
    most = 0.0 if fill == 0 or count < budget else np.inf
    return np.int64(count > budget or not 0.0 <= dual <= most or dual == np.inf)


@part
def copy_numbers(source, target, near):  # type: ignore[no-untyped-def]
    """Copy numbers, to those of float32 where `near`."""
    for k in range(min(len(source), len(target))):
        target[k] = np.float32(source[k]) if near else source[k]
