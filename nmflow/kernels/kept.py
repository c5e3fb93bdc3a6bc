"""What masks keep of some blocks."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nmflow.kernels.carry import SOON, ask_block, block_at
from nmflow.kernels.compile import compiled, once
from nmflow.kernels.memory import read_word
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.simd import F64, PARTS, Emitter, literal, vector

__all__ = ["WIDE", "kept_kernel"]

WIDE = 64
"""Sums side by side: as many as the longest side of a block."""


@intrinsic(prefer_literal=True)
def add_kept(typing, scores, mask, sums, count, kind, absolute):  # type: ignore[no-untyped-def]
    """Add the scores that a mask keeps of `count` entries of a row to as many sums in float64."""
    kind_, absolute_ = BY_CODE[literal(kind)], bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, mask, sums, count = args[:4]
        for place, some in emit.parts(count, PARTS):
            score = kind_.load_doubles(emit, emit.beyond(scores, place, kind_.itemsize), some, absolute_)
            kept = emit.truths(builder.add(mask, place), some)
            share = builder.select(kept, score, emit.splat(F64, some, 0.0))
            at = emit.beyond(sums, place, 8)
            emit.store(builder.fadd(emit.load(at, vector(F64, some)), share), at)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4, kind, absolute), codegen


@once
def kept_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, mask, mask_stride, rows, cols, grid_cols, blocks, count, sums) -> None
        Addresses as int64; strides in bytes. Adds the scores that the mask keeps in `count` blocks, of `rows` x `cols`
        entries each, to `WIDE` float64. Neighbouring blocks are taken together, as many as these hold.
    """
    kind = KINDS[kind_name]
    code, item, magnitude, wide = kind.code, kind.itemsize, int(absolute), WIDE

    def add_blocks(scores, stride, mask, mask_stride, rows, cols, grid_cols, blocks, count, sums):  # type: ignore[no-untyped-def]
        k, most = 0, wide // cols
        while k < count:
            if k + SOON < count:
                b = read_word(blocks + (k + SOON) * 8)
                ask_block(scores, stride, grid_cols, b, rows, cols * item)
                ask_block(mask, mask_stride, grid_cols, b, rows, cols)
            b = read_word(blocks + k * 8)
            across, run = min(most, count - k, grid_cols - b % grid_cols), 1
            while run < across and read_word(blocks + (k + run) * 8) == b + run:
                run += 1
            score = block_at(scores, stride, grid_cols, b, rows, cols * item)
            kept = block_at(mask, mask_stride, grid_cols, b, rows, cols)
            for i in range(rows):
                add_kept(score + i * stride, kept + i * mask_stride, sums, run * cols, code, magnitude)
            k += run

    return compiled(add_blocks, types.none(*[types.int64] * 10))
