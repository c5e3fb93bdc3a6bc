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


@intrinsic(prefer_literal=True)
def add_bonus(typing, scores, previous, target, bonus, kind, count, absolute):  # type: ignore[no-untyped-def]
    """Write `count` scores as float64, with the bonus where the earlier mask kept them: each sum is rounded once."""
    kind_, count_, absolute_ = BY_CODE[literal(kind)], literal(count), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, previous, target, bonus = args[:4]
        value = kind_.load_doubles(emit, scores, count_, absolute_)
        more = builder.select(
            emit.truths(previous, count_), emit.broadcast(bonus, count_), emit.splat(F64, count_, 0.0)
        )
        emit.store(builder.fadd(value, more), target)
        return context.get_dummy_value()

    return types.none(scores, previous, target, bonus, kind, count, absolute), codegen


@intrinsic(prefer_literal=True)
def compare_part(typing, scores, mask, previous, counts, sums, kind, count, absolute):  # type: ignore[no-untyped-def]
    """Add to the two `counts` what differs and what both keep of `count` entries, and to `sums` what the mask keeps."""
    kind_, count_, absolute_ = BY_CODE[literal(kind)], literal(count), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, mask, previous, counts, sums = args[:5]
        now, before = emit.truths(mask, count_), emit.truths(previous, count_)
        for place, found in enumerate((builder.xor(now, before), builder.and_(now, before))):
            bits = builder.bitcast(found, ir.IntType(count_) if count_ > 1 else I1)
            at = emit.at(counts, 8 * place)
            number = emit.scalar("llvm.ctpop.i64", builder.zext(bits, I64))
            emit.store(builder.add(emit.load(at, I64), number), at)
        value = kind_.load_doubles(emit, scores, count_, absolute_)
        kept = builder.select(now, value, emit.splat(F64, count_, 0.0))
        emit.store(builder.fadd(emit.load(sums, vector(F64, count_)), kept), sums)
        return context.get_dummy_value()

    return types.none(scores, mask, previous, counts, sums, kind, count, absolute), codegen


@intrinsic(prefer_literal=True)
def measure_part(typing, scores, sums, tops, kind, count):  # type: ignore[no-untyped-def]
    """Add the magnitudes of `count` scores to `sums`, and raise `tops` to them."""
    kind_, count_ = BY_CODE[literal(kind)], literal(count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, shape = Emitter(builder), vector(F64, count_)
        scores, sums, tops = args[:3]
        value = kind_.load_doubles(emit, scores, count_, True)
        emit.store(builder.fadd(emit.load(sums, shape), value), sums)
        emit.store(emit.better(value, emit.load(tops, shape), ">"), tops)
        return context.get_dummy_value()

    return types.none(scores, sums, tops, kind, count), codegen


@once
def measure_kernel(kind_name: str) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, rows, cols, sums, tops) -> None
        Addresses as int64, `stride` in bytes. sums: 32 float64, whose sum grows by the magnitudes: NaN if one is, and
        infinite if one is or they overflow. tops: 32 float64, raised to the magnitudes that are no NaN.
    """
    kind = KINDS[kind_name]
    code, item, lane_count = kind.code, kind.itemsize, LANES

    def measure(scores, stride, rows, cols, sums, tops):  # type: ignore[no-untyped-def]
        whole = cols // lane_count * lane_count
        for i in range(rows):
            score = scores + i * stride
            for j in range(0, whole, lane_count):
                measure_part(score + j * item, sums, tops, code, lane_count)
            for j in range(whole, cols):
                measure_part(score + j * item, sums, tops, code, 1)

    return compiled(measure, types.none(*[types.int64] * 6))


@once
def bonus_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, previous, previous_stride, target, rows, cols, bonus) -> None
        Addresses as int64, strides in bytes; previous: bool; target: (rows, cols) float64, C-contiguous.
    """
    kind = KINDS[kind_name]
    code, item, magnitude, lane_count = kind.code, kind.itemsize, int(absolute), LANES

    def add(scores, stride, previous, previous_stride, target, rows, cols, bonus):  # type: ignore[no-untyped-def]
        whole = cols // lane_count * lane_count
        for i in range(rows):
            score, before, to = scores + i * stride, previous + i * previous_stride, target + i * cols * 8
            for j in range(0, whole, lane_count):
                add_bonus(score + j * item, before + j, to + j * 8, bonus, code, lane_count, magnitude)
            for j in range(whole, cols):
                add_bonus(score + j * item, before + j, to + j * 8, bonus, code, 1, magnitude)

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
    kind = KINDS[kind_name]
    code, item, magnitude, lane_count = kind.code, kind.itemsize, int(absolute), LANES

    def compare(  # type: ignore[no-untyped-def]
        scores, stride, mask, mask_stride, previous, previous_stride, rows, cols, counts, sums
    ):
        whole = cols // lane_count * lane_count
        for i in range(rows):
            score, now, before = scores + i * stride, mask + i * mask_stride, previous + i * previous_stride
            for j in range(0, whole, lane_count):
                compare_part(score + j * item, now + j, before + j, counts, sums, code, lane_count, magnitude)
            for j in range(whole, cols):
                compare_part(score + j * item, now + j, before + j, counts, sums, code, 1, magnitude)

    return compiled(compare, types.none(*[types.int64] * 10))
