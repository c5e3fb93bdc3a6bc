"""The order of metadata words in CUTLASS's sm80 layout (ColumnMajorInterleaved<2> with reordered rows).

Word (r, c) of the row-major metadata goes to `flat = c' // 2 * 2 * R + 2 * r' + c' % 2`, where
`r' = r // G * G + r % 8 * I + r % G // 8` with (G, I) = (32, 4) for 16-bit words and (16, 2) for 32-bit ones; then
the off-diagonal words of each 2 x 2 swap: r' even and c odd go to (r' + 1, c - 1), r' odd and c even to
(r' - 1, c + 1). Source: reorder_meta() in CUTLASS's tools/util/include/cutlass/util/host_reorder.h, as reimplemented
in torch.sparse._semi_structured_conversions (2.13).
"""

from __future__ import annotations

from typing import Any

from numba import types

from nmflow.kernels.compile import compiled, fingerprint, once

__all__ = ["swizzle_kernel"]


@once
def swizzle_kernel(itemsize: int, back: bool) -> Any:
    """Compile for words of 2 or 4 bytes, in one direction.

    Returns
    -------
    function (source, target) -> None
        Both of shape (R, C), C-contiguous uint16 or uint32; R a multiple of 32 (16-bit) or 16, C even.
        Row-major to swizzled, or `back`. The target is written.
    """
    word = types.uint16 if itemsize == 2 else types.uint32
    group, interleave = (32, 4) if itemsize == 2 else (16, 2)
    version = fingerprint()

    def swizzle(source, target):  # type: ignore[no-untyped-def]
        if version == 0:
            return
        rows, cols = source.shape
        from_, to = source.ravel(), target.ravel()
        for base in range(0, rows, group):
            for pair in range(0, cols, 2):
                for r in range(group):
                    moved = base + r % 8 * interleave + r // 8
                    odd = moved & 1
                    for c in range(2):
                        # (odd, c) -> (c, odd): the swap of the off-diagonal words
                        swizzled = pair * rows + 2 * (moved - odd + c) + odd
                        plain = (base + r) * cols + pair + c
                        if back:
                            to[plain] = from_[swizzled]
                        else:
                            to[swizzled] = from_[plain]

    given, out = types.Array(word, 2, "C", readonly=True), types.Array(word, 2, "C")
    return compiled(swizzle, types.none(given, out))
