"""The sum of what a mask keeps."""

from __future__ import annotations

import triton
import triton.language as tl

from nmflow.torch.device.kernels.common import score_bits

__all__ = ["kept_score"]


# a width that is a multiple of 16 is worth a program of its own: only then are wide loads whole
@triton.jit(do_not_specialize=["height"])
def kept_score(scores, row_stride, col_stride, mask, sums, height, width, ABSOLUTE: tl.constexpr, SIZE: tl.constexpr):
    """Sum what the mask keeps of a band of rows in float64, in a fixed order: one program a band, one sum each."""
    total = tl.zeros([SIZE], tl.float64)
    row = tl.program_id(0).to(tl.int64)
    width = width.to(tl.int64)
    while row < height:
        first = tl.cast(0, tl.int64)
        while first < width:
            col = first + tl.arange(0, SIZE)
            here = col < width
            kept = tl.load(mask + row * width + col, mask=here, other=0)
            found = tl.load(scores + row * row_stride + col * col_stride, mask=here, other=0.0)
            value = score_bits(found).to(tl.float32, bitcast=True)
            if ABSOLUTE:
                value = tl.abs(value)
            total += tl.where(kept != 0, value, 0.0).to(tl.float64)
            first += SIZE
        row += tl.num_programs(0)
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))
