"""What the kernels share: scores as whole numbers, and lists of blocks on the device."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["ANY_SIZE", "append_blocks", "block_shift", "half_units", "power_of_two", "report_bad", "score_bits"]

# One program for all sizes and places: else Triton compiles again for a matrix that is one block wide, or whose number
# of blocks is no multiple of 16, or for a list that begins at another address.
ANY_SIZE = {
    "do_not_specialize": ["tall", "wide"],
    "do_not_specialize_on_alignment": [
        "old_u", "old_v", "u", "v", "given", "given_count", "open_list", "open_count", "bad",
    ],
}  # fmt: skip


@triton.jit
def score_bits(values):
    """Scores as the bits of float32; bfloat16 is half of them, and Triton's interpreter converts subnormals wrongly."""
    if values.dtype == tl.bfloat16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32) << 16
    else:
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
    return bits


@triton.jit
def block_shift(size, BITS: tl.constexpr):
    """One unit is 2**-shift, from the bits of the largest magnitude of a block."""
    # a constexpr first would swallow the tensor under the interpreter of Triton 3.7
    return tl.minimum(126 - (tl.maximum(size >> 23, 1) - BITS), 126)


@triton.jit
def power_of_two(shift):
    """2.0**shift as float32."""
    return ((shift + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def half_units(shift):
    """2.0**(shift + 1) as float64: half units in 1; and for -2 - shift the inverse of that."""
    return ((shift.to(tl.int64) + 1024) << 52).to(tl.float64, bitcast=True)


@triton.jit
def report_bad(size, bad):
    """Say that scores are not finite, if the magnitudes of some are not: a flag, which no number of them wraps."""
    found = tl.max((size >= 0x7F800000).to(tl.int32), axis=0)
    tl.atomic_max(bad, found, mask=found != 0)


@triton.jit
def append_blocks(blocks, chosen, block_list, count):
    """Append some blocks to a list on the device."""
    ones = chosen.to(tl.int32)
    first = tl.atomic_add(count, tl.sum(ones, axis=0))
    tl.store(block_list + first + tl.cumsum(ones, axis=0) - ones, blocks, mask=chosen)
