"""An earlier mask: how large scores are, what keeping its entries again is worth, and what a new mask changed."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, once
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.simd import F64, I1, I64, LANES, Emitter, literal, vector

__all__ = ["bonus_kernel", "compare_kernel", "measure_kernel"]


PARTS = (LANES, 1)
"""Entries of a row at a time."""


@intrinsic(prefer_literal=True)
def add_bonus(typing, scores, previous, target, bonus, count, kind, absolute):  # type: ignore[no-untyped-def]
    """Write `count` scores as float64, with the bonus where the earlier mask kept them: each sum is rounded once."""
    kind_, absolute_ = BY_CODE[literal(kind)], bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, previous, target, bonus, count = args[:5]
        for place, some in emit.parts(count, PARTS):
            value = kind_.load_doubles(emit, emit.beyond(scores, place, kind_.itemsize), some, absolute_)
            kept = emit.truths(builder.add(previous, place), some)
            more = builder.select(kept, emit.broadcast(bonus, some), emit.splat(F64, some, 0.0))
            emit.store(builder.fadd(value, more), emit.beyond(target, place, 8))
        return context.get_dummy_value()

    return types.none(scores, previous, target, bonus, types.int64, kind, absolute), codegen


@intrinsic(prefer_literal=True)
def compare_row(typing, scores, mask, previous, counts, sums, count, kind, absolute):  # type: ignore[no-untyped-def]
    """Add to the two `counts` what differs and what both keep of `count` entries, and to `sums` what the mask keeps."""
    kind_, absolute_ = BY_CODE[literal(kind)], bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, mask, previous, counts, sums, count = args[:6]
        for place, some in emit.parts(count, PARTS):
            now, before = (emit.truths(builder.add(side, place), some) for side in (mask, previous))
            for number, found in enumerate((builder.xor(now, before), builder.and_(now, before))):
                bits = builder.bitcast(found, ir.IntType(some) if some > 1 else I1)
                at = emit.at(counts, 8 * number)
                more = emit.scalar("llvm.ctpop.i64", builder.zext(bits, I64))
                emit.store(builder.add(emit.load(at, I64), more), at)
            value = kind_.load_doubles(emit, emit.beyond(scores, place, kind_.itemsize), some, absolute_)
            kept = builder.select(now, value, emit.splat(F64, some, 0.0))
            emit.store(builder.fadd(emit.load(sums, vector(F64, some)), kept), sums)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 6, kind, absolute), codegen


@intrinsic(prefer_literal=True)
def measure_row(typing, scores, sums, tops, count, kind):  # type: ignore[no-untyped-def]
    """Add the magnitudes of `count` scores to `sums`, and raise `tops` to them."""
    kind_ = BY_CODE[literal(kind)]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, sums, tops, count = args[:4]
        for place, some in emit.parts(count, PARTS):
            shape = vector(F64, some)
            value = kind_.load_doubles(emit, emit.beyond(scores, place, kind_.itemsize), some, True)
            emit.store(builder.fadd(emit.load(sums, shape), value), sums)
            emit.store(emit.better(value, emit.load(tops, shape), ">"), tops)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4, kind), codegen


@once
def measure_kernel(kind_name: str) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, rows, cols, sums, tops) -> None
        Addresses as int64, `stride` in bytes. sums: 32 float64, whose sum grows by the magnitudes: NaN if one is, and
        infinite if one is or they overflow. tops: 32 float64, raised to the magnitudes that are no NaN.
    """
    code = KINDS[kind_name].code

    def measure(scores, stride, rows, cols, sums, tops):  # type: ignore[no-untyped-def]
        for i in range(rows):
            measure_row(scores + i * stride, sums, tops, cols, code)

    return compiled(measure, types.none(*[types.int64] * 6))


@once
def bonus_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, previous, previous_stride, target, rows, cols, bonus) -> None
        Addresses as int64, strides in bytes; previous: bool; target: (rows, cols) float64, C-contiguous.
    """
    code, magnitude = KINDS[kind_name].code, int(absolute)

    def add(scores, stride, previous, previous_stride, target, rows, cols, bonus):  # type: ignore[no-untyped-def]
        for i in range(rows):
            before, to = previous + i * previous_stride, target + i * cols * 8
            add_bonus(scores + i * stride, before, to, bonus, cols, code, magnitude)

    return compiled(add, types.none(*[types.int64] * 7, types.float64))


@once
def compare_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, mask, mask_stride, previous, previous_stride, rows, cols, counts, sums) -> None
        Addresses as int64, strides in bytes; mask, previous: bool. counts: two int64, to which are added the entries
        that one of the masks keeps, and those that both keep. sums: 32 float64, whose sum grows by the scores kept.
    """
    code, magnitude = KINDS[kind_name].code, int(absolute)

    def compare(  # type: ignore[no-untyped-def]
        scores, stride, mask, mask_stride, previous, previous_stride, rows, cols, counts, sums
    ):
        for i in range(rows):
            now, before = mask + i * mask_stride, previous + i * previous_stride
            compare_row(scores + i * stride, now, before, counts, sums, cols, code, magnitude)

    return compiled(compare, types.none(*[types.int64] * 10))
