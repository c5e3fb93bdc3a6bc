"""Scores into lanes as whole numbers, for `nmflow.kernels.tied`.

They come from a lattice (`nmflow.solvers.levels`), narrow or wide, or from cutting scores to 30 bits below each block's
largest one, wide.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE
from nmflow.kernels.segments import BIAS, inverse, magnified, spread_over
from nmflow.kernels.simd import F64, I1, I16, I32, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.tied import Width, width_of
from nmflow.kernels.transpose import deinterleave

__all__ = ["read_cut", "read_lattice"]

SHAPE = vector(I16, LANES)


@intrinsic(prefer_literal=True)
def read_lattice(  # type: ignore[no-untyped-def]
    typing, scores, stride, numbers, grains, coarse, fine, step, low, largest, shift, kind, rows, cols, absolute, wide
):
    """Read 32 neighbouring blocks into lanes: (T - low) << shift, less the bias in narrow ones.

    Returns whether all scores are on the lattice, with |d| at most `largest` and T - low within the lanes' bits.
    grains : address of a lane vector, the bits that some number of a block has.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, numbers, grains, coarse, fine, step, low, largest, shift = args[:10]
        work, one = kind_.work, ir.Constant(F64, 1.0)

        def every(value: Any) -> Any:
            return emit.broadcast(value if work == F64 else builder.fptrunc(value, work), LANES)

        # float32 holds it: a power of two less one, rounded down
        top = builder.lshr(ir.Constant(I64, (1 << lanes.bits) - (1 << max(0, lanes.bits - 20))), shift)
        back, part = every(builder.fdiv(one, coarse)), every(builder.fdiv(one, fine))
        coarse, fine, step, low, largest = (every(x) for x in (coarse, fine, step, low, largest))
        least, most = emit.splat(work, LANES, 0.0), every(builder.sitofp(top, F64))
        shift = lanes.broadcast(emit, shift)
        right = emit.variable(emit.splat(I1, LANES, 1))
        bits = emit.variable(lanes.splat(emit, 0))
        at = emit.variable(scores)
        with loop(builder, rows_) as turn:
            base, parts = builder.load(at), []
            for k in range(cols_):
                score = kind_.load(emit, emit.at(base, k * LANES * kind_.itemsize), LANES, absolute_)
                level = emit.call("llvm.rint", builder.fmul(score, back))
                # Rounded where the score is far from every level, and nowhere else. A score off the lattice is seen
                # here, since what follows could round a fraction of `fine` away.
                beside = emit.call("llvm.fma", builder.fneg(level), coarse, score)
                rest = emit.call("llvm.rint", builder.fmul(beside, part))
                value = builder.fsub(builder.fadd(builder.fmul(level, step), rest), low)
                # NaN becomes 0 here, and is then found to be no whole number
                inside = emit.better(emit.better(value, least, ">"), most, "<")
                number = builder.fptosi(inside, vector(I32, LANES))
                for good in (
                    builder.fcmp_ordered("==", builder.fmul(rest, fine), beside),
                    builder.fcmp_ordered("==", builder.sitofp(number, vector(work, LANES)), value),
                    builder.fcmp_ordered("<=", emit.call("llvm.fabs", rest), largest),
                ):
                    builder.store(builder.and_(builder.load(right), good), right)
                parts.append(number if lanes.wide else builder.trunc(number, SHAPE))
            out = lanes.ahead(emit, numbers, turn, cols_)
            for j, number in enumerate(deinterleave(emit, parts)):
                value = builder.shl(number, shift)
                builder.store(builder.or_(builder.load(bits), value), bits)
                value = value if lanes.wide else builder.sub(value, emit.splat(I16, LANES, BIAS))
                lanes.store(emit, value, out, j)
            builder.store(builder.add(base, stride), at)
        lanes.store(emit, builder.load(bits), grains)
        verdict = builder.icmp_signed("==", builder.bitcast(builder.load(right), I32), ir.Constant(I32, -1))
        return builder.zext(verdict, I64)

    i8, f8 = types.int64, types.float64
    return i8(i8, i8, i8, i8, f8, f8, f8, f8, f8, i8, kind, rows, cols, absolute, wide), codegen


@intrinsic(prefer_literal=True)
def read_cut(  # type: ignore[no-untyped-def]
    typing, scores, stride, numbers, grains, inexact, lows, shifts, scales, units, kind, rows, cols, absolute, zero
):
    """Read 32 neighbouring blocks into wide lanes: scores cut to whole steps below, less the least, in 30 bits.

    zero : whether the least and the largest are taken with a score of 0, so that there is a number for it.

    With a step of 30 bits below a block's largest magnitude, and q = floor(S / step), a lane holds (q - low) << shift;
    the shift uses all of the bits. grains : as `read_lattice`. inexact : address of three lane vectors: the least and
    the largest number whose score has more bits, and what a step is. lows, shifts : of the blocks. scales : what
    `measure_segment` wrote; units : steps as float64, output.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))
    lanes = Width(1)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, numbers, grains, inexact, lows, shifts, scales, units = args[:9]
        work = vector(kind_.work, LANES)
        unit = magnified(emit, emit.load(scales, work), kind_, ir.Constant(I64, lanes.late))
        emit.store(unit if kind_.work == F64 else builder.fpext(unit, vector(F64, LANES)), units)
        inverted = inverse(emit, unit, kind_)
        steps, back = ([spread_over(emit, x, k, cols_) for k in range(cols_)] for x in (unit, inverted))
        most, least = lanes.splat(emit, 2**31 - 1), lanes.splat(emit, -(2**31))
        low, high = (emit.variable(lanes.splat(emit, 0) if literal(zero) else end) for end in (most, least))
        ends = [[emit.variable(most), emit.variable(least)] for _ in range(cols_)]
        at = emit.variable(scores)
        with loop(builder, rows_) as turn:
            base, parts = builder.load(at), []
            for k in range(cols_):
                score = kind_.load(emit, emit.at(base, k * LANES * kind_.itemsize), LANES, absolute_)
                value = emit.call("llvm.floor", builder.fmul(score, back[k]))
                if not absolute_:  # a negative score is below 0 even where its product underflows
                    below = builder.fcmp_ordered("<", score, emit.splat(kind_.work, LANES, 0.0))
                    ceiling = builder.select(
                        below, emit.splat(kind_.work, LANES, -1.0), emit.splat(kind_.work, LANES, 2.0**30)
                    )
                    value = emit.better(value, ceiling, "<")
                number = builder.fptosi(value, lanes.shape)
                # the product is exact, a step being no subnormal: what was cut off is seen
                more = builder.fcmp_ordered("!=", builder.fmul(value, steps[k]), score)
                for end, order, none in zip(ends[k], ("llvm.smin", "llvm.smax"), (most, least), strict=True):
                    builder.store(emit.call(order, builder.load(end), builder.select(more, number, none)), end)
                parts.append(number)
            out = lanes.ahead(emit, numbers, turn, cols_)
            for j, number in enumerate(deinterleave(emit, parts)):
                builder.store(emit.call("llvm.smin", builder.load(low), number), low)
                builder.store(emit.call("llvm.smax", builder.load(high), number), high)
                lanes.store(emit, number, out, j)
            builder.store(builder.add(base, stride), at)
        low, high = builder.load(low), builder.load(high)
        spread = builder.or_(builder.sub(high, low), lanes.splat(emit, 1))
        shift = builder.sub(emit.leading_zeros(spread), lanes.splat(emit, 32 - lanes.bits))
        bits = emit.variable(lanes.splat(emit, 0))
        with loop(builder, rows_ * cols_) as turn:
            place = lanes.ahead(emit, numbers, turn)
            value = builder.shl(builder.sub(lanes.load(emit, place), low), shift)
            builder.store(builder.or_(builder.load(bits), value), bits)
            lanes.store(emit, value, place)
        # where all are equal a step stands for what they have in common
        step, found = builder.shl(lanes.splat(emit, 1), shift), builder.load(bits)
        found = builder.select(builder.icmp_signed("==", found, lanes.splat(emit, 0)), step, found)
        lanes.store(emit, found, grains)
        lanes.store(emit, low, lows)
        lanes.store(emit, shift, shifts)
        for place, order in enumerate(("llvm.smin", "llvm.smax")):
            every = deinterleave(emit, [builder.load(end[place]) for end in ends])
            best = every[0]
            for other in every[1:]:
                best = emit.call(order, best, other)
            # where all are exact the ends are in the wrong order, and clamping keeps them so
            best = emit.call("llvm.smax", emit.call("llvm.smin", best, builder.add(high, lanes.splat(emit, 1))),
                             builder.sub(low, lanes.splat(emit, 1)))  # fmt: skip
            lanes.store(emit, builder.shl(builder.sub(best, low), shift), inexact, place)
        lanes.store(emit, step, inexact, 2)
        return context.get_dummy_value()

    arguments = (
        scores, stride, numbers, grains, inexact, lows, shifts, scales, units, kind, rows, cols, absolute, zero,
    )  # fmt: skip
    return types.none(*arguments), codegen
