"""What is left of scores beside duals, in lanes; and the grain of the scores near them, a power of two.

Scores near u + v are multiples of their grain, and so are the differences that tell masks apart. Where the grain is
many steps, these differences are often 0, and the ascent of `nmflow.kernels.ascent` has nothing to choose by. Offsets
that are a small part of a grain, the same for all blocks, decide then: each score is moved up by its own. Duals of the
moved scores are rounded to the grain, all cut at one place: u to the next lower multiple and v to the next higher one,

    u' = g floor(u / g - t),   v' = -g floor(-v / g - t).

Floors keep an order, so u + v >= S gives u' + v' >= S for each multiple S of g, and u + v <= S + e gives
u' + v' <= S unless the cut lies between u and u - e. It is put where no u lies closely above it; under at-most fill at
0, so that duals that are 0 stay so. Nothing is claimed of the outcome: `nmflow.kernels.proof` grades it with the scores
themselves.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE, ScoreKind
from nmflow.kernels.segments import VECTOR, exponents, fold_columns, inverse, magnified, spread_over
from nmflow.kernels.simd import I1, I16, I32, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.transpose import deinterleave_narrow

__all__ = ["add_offsets", "read_rest", "round_duals"]

LARGEST = 14
"""Bits of the largest grain, in steps."""
PART = 3
"""Bits by which offsets are smaller than the grain."""
CUTS = tuple(k / 8 for k in range(8))
"""Places at which duals may be cut, in grains."""


@intrinsic(prefer_literal=True)
def read_rest(  # type: ignore[no-untyped-def]
    typing, scores, stride, lanes, scales, u, u_stride, v, zoom, digits, grains, kind, rows, cols, absolute, moved
):
    """Read S - u - v of 32 neighbouring blocks into lanes of 16 bits, magnified, cut off at 15 bits.

    moved : whether it is to be moved, and the blocks' grains are written. digits : bits that a score has, counting the
    highest. grains : address of 32 numbers in the work type, output: the grain of the least score that is not cut off,
    and at least a step.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))
    moved_ = bool(literal(moved))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales, u, u_stride, v, zoom, digits, grains = args[:10]
        work, item, size = kind_.work, kind_.itemsize, kind_.work_size
        raw, _, _ = kind_.work_fields
        unit = magnified(emit, emit.load(scales, vector(work, LANES)), kind_, zoom)
        scale = inverse(emit, unit, kind_)
        wide = [spread_over(emit, scale, k, cols_) for k in range(cols_)]
        # adding 2**14 before cutting makes it a floor; there is room for offsets above
        half, zero = emit.splat(work, LANES, 16384.0), emit.splat(work, LANES, 0.0)
        top = emit.splat(work, LANES, 32767.0 - (1 << (LARGEST - PART) if moved_ else 0))
        largest = (1 << (8 * size - 1)) - 1
        least = [emit.variable(emit.splat(raw, LANES, largest)) for _ in range(cols_ if moved_ else 0)]
        at, target, row_at = emit.variable(scores), emit.variable(lanes), emit.variable(u)
        with loop(builder, rows_):
            base = builder.load(at)
            row_duals = emit.load(builder.load(row_at), vector(work, LANES))
            parts = []
            for k in range(cols_):
                score = kind_.load(emit, emit.at(base, k * LANES * item), LANES, absolute_)
                col_duals = emit.load(emit.at(v, k * LANES * size), vector(work, LANES))
                threshold = builder.fadd(spread_over(emit, row_duals, k, cols_), col_duals)
                value = builder.fadd(builder.fmul(builder.fsub(score, threshold), wide[k]), half)
                cut = emit.better(emit.better(value, zero, ">"), top, "<")
                parts.append(builder.fptosi(cut, vector(I32, LANES)))
                if not moved_:
                    continue
                bits = builder.bitcast(score, vector(raw, LANES))
                if not absolute_:
                    bits = builder.and_(bits, emit.splat(raw, LANES, largest))
                far = builder.sext(builder.fcmp_unordered("!=", value, cut), vector(raw, LANES))
                builder.store(emit.call("llvm.umin", builder.load(least[k]), builder.or_(bits, far)), least[k])
            out = builder.load(target)
            for j, part in enumerate(deinterleave_narrow(emit, parts)):
                part = builder.sub(part, emit.splat(I16, LANES, 16384))
                emit.store(part, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(builder.add(base, stride), at)
            builder.store(builder.add(builder.load(row_at), u_stride), row_at)
        if moved_:
            emit.store(_grain(emit, [builder.load(slot) for slot in least], unit, digits, kind_), grains)
        return context.get_dummy_value()

    arguments = (scores, stride, lanes, scales, u, u_stride, v, zoom, digits, grains, kind, rows, cols, absolute, moved)
    return types.none(*arguments), codegen


def _grain(emit: Emitter, least: list[Any], unit: Any, digits: Any, kind: ScoreKind) -> Any:
    """The lowest bit of each block's least magnitude, at least `unit`; least : bits of magnitudes, by entry."""
    builder = emit.builder
    raw, shift, _ = kind.work_fields
    block = builder.zext(fold_columns(emit, least, "llvm.umin"), vector(raw, LANES))
    field = builder.lshr(block, emit.splat(raw, LANES, shift + 16 - raw.width))
    number = builder.sub(digits, ir.Constant(I64, 1))
    number = number if raw == I64 else builder.trunc(number, raw)
    field = builder.sub(field, emit.broadcast(number, LANES))
    step = exponents(emit, unit, kind)
    field = emit.call("llvm.smax", field, step)
    field = emit.call("llvm.smin", field, builder.add(step, emit.splat(raw, LANES, LARGEST)))
    return builder.bitcast(builder.shl(field, emit.splat(raw, LANES, shift)), vector(kind.work, LANES))


@intrinsic(prefer_literal=True)
def add_offsets(typing, lanes, scales, zoom, grains, offsets, kind, entries):  # type: ignore[no-untyped-def]
    """Move each lane vector up by its offset, as a part of the block's grain; offsets : uint16, of 2**16 parts."""
    kind_, entries_ = BY_CODE[literal(kind)], literal(entries)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        lanes, scales, zoom, grains, offsets = args[:5]
        raw, _, _ = kind_.work_fields
        shape, long = vector(I16, LANES), vector(I32, LANES)
        numbers = vector(kind_.work, LANES)
        unit = magnified(emit, emit.load(scales, numbers), kind_, zoom)
        bits = builder.sub(exponents(emit, emit.load(grains, numbers), kind_), exponents(emit, unit, kind_))
        most = builder.lshr(builder.shl(emit.splat(raw, LANES, 1), bits), emit.splat(raw, LANES, PART))
        most = builder.zext(builder.trunc(most, shape), long)
        some = emit.reduce("llvm.vector.reduce.or", most)
        with builder.if_then(builder.icmp_unsigned("!=", some, ir.Constant(I32, 0))), loop(builder, entries_) as turn:
            at = emit.beyond(lanes, turn.index, VECTOR)
            offset = emit.broadcast(emit.load(emit.beyond(offsets, turn.index, 2), I16), LANES)
            offset = builder.lshr(builder.mul(builder.zext(offset, long), most), emit.splat(I32, LANES, 16))
            moved = builder.add(emit.load(at, shape, VECTOR), builder.trunc(offset, shape))
            emit.store(moved, at, VECTOR)
        return context.get_dummy_value()

    return types.none(lanes, scales, zoom, grains, offsets, kind, entries), codegen


@intrinsic(prefer_literal=True)
def round_duals(typing, u, u_stride, v, to_u, to_v, grains, kind, rows, cols, free, clamped):  # type: ignore[no-untyped-def]
    """Write the duals of 32 neighbouring blocks as multiples of their grains; see above. Where columns are `free`: u.

    clamped : whether duals must not be negative, so that the cut is 0.
    u, to_u : `u_stride` bytes between rows. v, to_v : in the matrix's order. Returns 1 if every u' + v' is a float
    without rounding, else 0.
    """
    kind_, rows_, cols_, free_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(free))
    clamped_ = bool(literal(clamped))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        u, u_stride, v, to_u, to_v, grains = args[:6]
        shape = vector(kind_.work, LANES)
        grain = emit.load(grains, shape)
        scale, none = inverse(emit, grain, kind_), emit.splat(kind_.work, LANES, 0.0)
        cut = none
        if not free_ and not clamped_:
            rooms = [emit.variable(emit.splat(kind_.work, LANES, 1.0)) for _ in CUTS]
            with loop(builder, rows_) as turn:
                ratio = builder.fmul(emit.load(emit.beyond(u, turn.index, u_stride), shape), scale)
                for place, slot in zip(CUTS, rooms, strict=True):
                    above = builder.fsub(ratio, emit.splat(kind_.work, LANES, place))
                    above = builder.fsub(above, emit.call("llvm.floor", above))
                    builder.store(emit.better(above, builder.load(slot), "<"), slot)
            best = builder.load(rooms[0])
            for place, slot in zip(CUTS[1:], rooms[1:], strict=True):
                room = builder.load(slot)
                more = builder.fcmp_ordered(">", room, best)
                best = builder.select(more, room, best)
                cut = builder.select(more, emit.splat(kind_.work, LANES, place), cut)
        # larger numbers have no bits below the grain, or are of no use
        most = emit.splat(kind_.work, LANES, 2.0 ** kind_.work_fields[1])
        plain = emit.variable(emit.splat(I1, LANES, 1))

        def rounded(dual: Any, scale: Any, grain: Any, cut: Any, up: bool) -> Any:
            ratio = builder.fmul(dual, scale)
            moved = builder.fadd(ratio, cut) if up else builder.fsub(ratio, cut)
            whole = builder.fmul(emit.call("llvm.ceil" if up else "llvm.floor", moved), grain)
            small = builder.fcmp_ordered("<", emit.call("llvm.fabs", ratio), most)
            finite = builder.fcmp_ordered("<", emit.call("llvm.fabs", whole), emit.splat(kind_.work, LANES, math.inf))
            small = builder.and_(small, finite)
            builder.store(builder.and_(builder.load(plain), small), plain)
            return builder.select(small, whole, dual)

        with loop(builder, rows_) as turn:
            ahead = builder.mul(turn.index, u_stride)
            dual = emit.load(builder.add(u, ahead), shape)
            emit.store(rounded(dual, scale, grain, cut, False), builder.add(to_u, ahead))
        for k in range(cols_):
            place = k * LANES * kind_.work_size
            dual = emit.load(emit.at(v, place), shape)
            if not free_:
                dual = rounded(dual, *(spread_over(emit, x, k, cols_) for x in (scale, grain, cut)), True)
            emit.store(dual, emit.at(to_v, place))
        return builder.zext(emit.reduce("llvm.vector.reduce.and", builder.load(plain)), I64)

    return types.int64(u, u_stride, v, to_u, to_v, grains, kind, rows, cols, free, clamped), codegen
