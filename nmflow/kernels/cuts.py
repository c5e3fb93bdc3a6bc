"""Scores of 32 neighbouring blocks cut to whole steps and turned into lanes, for the first ascent.

A step is a power of two, so that cutting loses nothing but what lies below it. Most scores are scaled as floats.
Magnitudes of float16 are cut where their bits stand, 32 to a vector: the number with its leading bit at the top of 16
goes down by as many places as its exponent lies below that of the top, which takes fewer operations than to make
float32 of it, and gives the same.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE, ScoreKind
from nmflow.kernels.segments import VECTOR, exponents, inverse, spread_over
from nmflow.kernels.simd import I16, I32, LANES, Emitter, literal, loop, vector
from nmflow.kernels.transpose import deinterleave, deinterleave_narrow

__all__ = ["read_segment"]

TOP = 15
"""Place of the highest bit of a lane."""


@intrinsic(prefer_literal=True)
def read_segment(typing, scores, stride, lanes, scales, kind, rows, cols, absolute, bias):  # type: ignore[no-untyped-def]
    """Read 32 neighbouring blocks into lanes of 16 bits: scores, cut to whole steps below and less `bias`."""
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))
    bias_ = literal(bias)
    cut = _cut_halves if absolute_ and kind_.mantissa == 10 else _cut_floats

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales = args[:4]
        unit = emit.load(scales, vector(kind_.work, LANES))
        columns = cut(emit, unit, kind_, cols_, absolute_)
        at, target = emit.variable(scores), emit.variable(lanes)
        with loop(builder, rows_):
            out = builder.load(target)
            for j, column in enumerate(columns(builder.load(at))):
                # magnitudes are modulo 2**16, as they were cut off; so is the bias
                column = builder.sub(column, _splat(emit, bias_)) if absolute_ else column
                emit.store(column, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(builder.add(builder.load(at), stride), at)
        return context.get_dummy_value()

    return types.none(scores, stride, lanes, scales, kind, rows, cols, absolute, bias), codegen


def _cut_floats(emit: Emitter, unit: Any, kind: ScoreKind, cols: int, absolute: bool) -> Any:
    """What reads a row, given its address: a vector for each column."""
    builder, work = emit.builder, kind.work
    scale = inverse(emit, unit, kind)
    step = 2 if kind.mantissa == 7 and cols % 2 == 0 else 1
    each = cols // step
    wide = [spread_over(emit, scale, k, cols, step) for k in range(each)] * step
    top, zero = emit.splat(work, LANES, 32767.0), emit.splat(work, LANES, 0.0)

    def columns(base: Any) -> list[Any]:
        if step == 2:
            values = kind.load_pairs(emit, base, each, absolute)
        else:
            values = [kind.load(emit, emit.at(base, k * LANES * kind.itemsize), LANES, absolute) for k in range(cols)]
        parts = []
        for value, factor in zip(values, wide, strict=True):
            scaled = builder.fmul(value, factor)
            if not absolute:
                # a negative score is below 0 even where its product underflows
                below = builder.select(builder.fcmp_ordered("<", value, zero), emit.splat(work, LANES, -0.5), top)
                scaled = emit.call("llvm.floor", emit.better(scaled, below, "<"))
            parts.append(builder.fptosi(scaled, vector(I32, LANES)))
        out: list[Any] = [None] * cols
        for first in range(step):  # every column, or the even ones and the odd ones apart
            out[first::step] = deinterleave_narrow(emit, parts[first * each : (first + 1) * each])
        return out

    return columns


def _cut_halves(emit: Emitter, unit: Any, kind: ScoreKind, cols: int, absolute: bool) -> Any:
    """The same for magnitudes of float16."""
    builder, shape, digits = emit.builder, vector(I16, LANES), kind.mantissa
    sign, leading = 1 << TOP, 1 << digits
    own_bias, (_, _, bias) = (1 << (TOP - 1 - digits)) - 1, kind.work_fields
    # exponent field, in float16, of 2**15 steps
    top = builder.add(builder.trunc(exponents(emit, unit, kind), shape), _splat(emit, TOP + own_bias - bias))

    def columns(base: Any) -> list[Any]:
        parts = [emit.load(emit.at(base, k * LANES * kind.itemsize), shape) for k in range(cols)]
        return [shifted(builder.and_(part, _splat(emit, sign - 1))) for part in deinterleave(emit, parts)]

    def shifted(bits: Any) -> Any:
        # subnormal numbers have the exponent of the least normal ones; their leading bit goes with what they lack
        field = emit.call("llvm.umax", builder.and_(bits, _splat(emit, sign - leading)), _splat(emit, leading))
        number = builder.shl(builder.sub(bits, field), _splat(emit, TOP - digits))
        number = builder.xor(number, _splat(emit, sign))
        places = builder.sub(top, builder.lshr(field, _splat(emit, digits)))
        within = builder.icmp_unsigned("<", places, _splat(emit, TOP + 1))
        return builder.select(within, builder.lshr(number, places), _splat(emit, 0))

    return columns


def _splat(emit: Emitter, number: int) -> ir.Constant:
    """A number of 16 bits, signed or not, in every lane."""
    return emit.splat(I16, LANES, (number + (1 << TOP)) % (1 << (TOP + 1)) - (1 << TOP))
