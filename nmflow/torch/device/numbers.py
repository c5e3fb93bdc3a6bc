"""Scores as integers that keep the order of real numbers: what the device computes and proves with.

Each block has a unit, a power of two, chosen by its largest score. A score of s units becomes

    t = 2 s             where s is whole,
    t = 2 floor(s) + 1  else ("rounded to odd").

For every even h then s > h / 2 exactly when t > h, and s < h / 2 exactly when t < h; for odd h the same, but for
t = h, which says nothing. So with duals u, v in half units, comparing integers compares the scores themselves: nothing
rounds, and neither fused multiply-add nor flushed subnormals can touch a proof.

Two widths: 32 bits for all blocks, and 64 for those that 32 leave open. In 64 bits every float32 score within 2**-30 of
the largest of its block is whole (bfloat16: 2**-46), so that ties are seen as ties.

References
----------
S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE
Transactions on Computers 57(4), 2008.
"""

from __future__ import annotations

import torch

__all__ = ["LARGEST_SHIFT", "NARROW", "WIDE", "power_of_two", "to_numbers"]

NARROW, WIDE = 25, 54
"""Bits of the largest score of a block, in units, in 32-bit and in 64-bit numbers; the numbers have one more."""
LARGEST_SHIFT = 126
"""Units are at least 2**-126, the least normal float32: what a device flushes to zero was below one unit."""


def to_numbers(scores: torch.Tensor, *, absolute: bool, bits: int = NARROW) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn blocks of scores into integers.

    Parameters
    ----------
    scores : Tensor of float16, bfloat16 or float32, shape (k, R, C)
        Finite, or the numbers mean nothing. Not modified.
    absolute : bool
        Whether the score is the absolute value of the entry.
    bits : int
        NARROW or WIDE.

    Returns
    -------
    numbers : Tensor of int32, or of int64 where WIDE, shape (k, R, C)
        Magnitudes are below 2**(bits + 1).
    shift : Tensor of int32, shape (k,)
        One unit is 2**-shift, so numbers are scores * 2**(shift + 1).

    Examples
    --------
    >>> to_numbers(torch.tensor([[[1.0, -0.5], [0.0, 1e-30]]]), absolute=True)[0].tolist()
    [[[33554432, 16777216], [0, 1]]]
    """
    values = scores.float().contiguous()
    if absolute:
        values = values.abs()
    raw = values.view(torch.int32)
    size = raw & 0x7FFFFFFF
    # the exponent field of the largest magnitude; subnormals count as the least normal number
    top = size.amax(dim=(1, 2)) >> 23
    shift = (bits + 126 - top.clamp(min=1)).clamp(max=LARGEST_SHIFT)
    scaled = values.double() * power_of_two(shift)[:, None, None]
    floor = scaled.floor()
    whole = torch.int64 if bits > NARROW else torch.int32
    numbers = 2 * floor.to(whole) + (scaled != floor)
    # below one unit: said without the product, which a device may have flushed to zero
    small = torch.where(size != 0, 1 + 2 * (raw >> 31), 0).to(whole)
    return torch.where(scaled.abs() < 1, small, numbers), shift


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2.0**exponent as float64, exactly, for -1023 < exponent < 1024."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
