"""Sums of x xᵀ in float64; rows of 16-bit numbers are multiplied in float32, twice as fast.

Two such numbers have a product of at most 22 bits, which float32 holds. What is left is the rounding of sums over
`ROWS` rows: at most ROWS · 2⁻²⁴ of √(Gᵢᵢ Gⱼⱼ) in whatever order. Of bfloat16 tokens with outlying channels it was 4e-7
at most and 1e-8 as a rule, and SparseGPT and AdaPrune had the same masks, and errors that agreed to 2e-6 of them.
"""

from __future__ import annotations

import torch

__all__ = ["NARROW", "add_gram", "narrow"]

NARROW = (torch.bfloat16, torch.float16)
COLUMNS = 512
"""Columns of a gram matrix that are multiplied together; of each such part only what is on and below the diagonal."""
ROWS = 1024
"""Rows whose products are added up in float32: the more, the more its sums round."""
RANGE = 2.0**-40, 2.0**50
"""Where the largest magnitude of a column must lie: float32 holds its squares then, and what it flushes is nothing."""


def narrow(rows: torch.Tensor) -> bool:
    """Whether float32 is enough for products of rows, shape (groups, any, K), and faster; not of NaN or infinities."""
    if rows.dtype not in NARROW or rows.shape[-1] <= COLUMNS or not rows.numel():
        return False
    if rows.dtype == torch.float16 and torch.get_float32_matmul_precision() == "medium":
        return False  # which allows products of bfloat16, of fewer bits
    largest = rows.abs().amax(1)
    low, high = RANGE
    return bool(((largest == 0) | ((largest >= low) & (largest <= high))).all())


def add_gram(gram: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rowsᵀ rows to a symmetric matrix for each group: what is above the diagonal is a copy of what is below.

    Parameters
    ----------
    gram : Tensor of float64, shape (groups, K, K)
        Modified.
    rows : Tensor of float64, or of float32 where `narrow` says so, shape (groups, any, K)
    """
    width = gram.shape[-1]
    if width <= COLUMNS:
        torch.baddbmm(gram, rows.mT, rows, out=gram)
        return
    parts = [rows] if rows.dtype == gram.dtype else torch.split(rows, ROWS, dim=1)
    for matrix, *each in zip(gram, *parts, strict=True):
        for start in range(0, width, COLUMNS):
            stop = min(start + COLUMNS, width)
            below = matrix[start:, start:stop]
            for part in each:
                left, right = part[:, start:].T, part[:, start:stop]
                if part.dtype == gram.dtype:
                    below.addmm_(left, right)
                else:  # autocast leaves an operation alone that is told where to write
                    below += torch.mm(left, right, out=right.new_empty(below.shape))
            matrix[start:stop, stop:] = matrix[stop:, start:stop].T
