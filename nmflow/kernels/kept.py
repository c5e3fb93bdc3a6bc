"""What masks keep of some blocks."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, once
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.simd import F64, Emitter, literal, read_word, vector

__all__ = ["kept_kernel"]


@intrinsic(prefer_literal=True)
def add_kept(typing, scores, mask, sums, kind, cols, absolute):  # type: ignore[no-untyped-def]
    """Add the scores that a mask keeps of `cols` entries of a row to as many sums in float64."""
    kind_, cols_, absolute_ = BY_CODE[literal(kind)], literal(cols), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, mask, sums = args[:3]
        score = kind_.load_doubles(emit, scores, cols_, absolute_)
        share = builder.select(emit.truths(mask, cols_), score, emit.splat(F64, cols_, 0.0))
        emit.store(builder.fadd(emit.load(sums, vector(F64, cols_)), share), sums)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, kind, cols, absolute), codegen


@once
def kept_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, mask, mask_stride, rows, cols, grid_cols, blocks, count, sums) -> None
        Addresses as int64; strides in bytes. Adds the scores that the mask keeps in `count` blocks, of `rows` x `cols`
        entries each, to `cols` float64.
    """
    kind = KINDS[kind_name]
    code, item, magnitude = kind.code, kind.itemsize, int(absolute)

    def add_blocks(scores, stride, mask, mask_stride, rows, cols, grid_cols, blocks, count, sums):  # type: ignore[no-untyped-def]
        sixteens, fours = cols - cols % 16, cols - cols % 4
        for k in range(count):
            b = read_word(blocks + k * 8)
            s = b // grid_cols
            j = (b - s * grid_cols) * cols
            for i in range(s * rows, (s + 1) * rows):
                line, kept = scores + i * stride + j * item, mask + i * mask_stride + j
                for t in range(0, sixteens, 16):
                    add_kept(line + t * item, kept + t, sums + t * 8, code, 16, magnitude)
                for t in range(sixteens, fours, 4):
                    add_kept(line + t * item, kept + t, sums + t * 8, code, 4, magnitude)
                for t in range(fours, cols):
                    add_kept(line + t * item, kept + t, sums + t * 8, code, 1, magnitude)

    return compiled(add_blocks, types.none(*[types.int64] * 10))
