"""Segments: 32 neighbouring blocks in lanes of 16 bits, what a step of each is worth, and their duals in and out.

Scores are cut to 14 or 16 bits below each block's largest one: q = floor(S / unit), unit a power of two
(`nmflow.kernels.cuts`). So for every whole number T, S >= T * unit if and only if q >= T: what is compared in lanes is
proven of the scores themselves (`nmflow.kernels.lanes`). What these bits do not settle is read again, less u + v and
magnified (`nmflow.kernels.grains`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE, ScoreKind
from nmflow.kernels.simd import F32, I16, I32, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.transpose import deinterleave, interleave

__all__ = [
    "BIAS",
    "BITS",
    "VECTOR",
    "exponents",
    "first_bits",
    "fold_columns",
    "inverse",
    "load_duals",
    "magnified",
    "measure_segment",
    "spread_over",
    "store_duals",
]

VECTOR = 2 * LANES
"""Bytes of a vector of 16-bit lanes."""
BITS = 14
"""Bits of a block's largest magnitude where the sum of two scores less duals is to fit 16."""
BIAS = 1 << (BITS - 1)
"""Magnitudes are stored less this, so that they are centred on 0."""
PLAIN = 8
"""Longest side of a block whose first ascent gets these: it subtracts without cutting off."""


def first_bits(side: int) -> int:
    """Bits of a block's largest magnitude in its first ascent, by its longer side: all that lanes have, or `BITS`.

    Larger blocks have more thresholds close together, and their subtractions are few beside their comparisons.
    """
    return BITS if side <= PLAIN else 16


@intrinsic(prefer_literal=True)
def measure_segment(typing, scores, stride, scales, kind, rows, cols, absolute, bits):  # type: ignore[no-untyped-def]
    """Write what a step is worth in each of 32 neighbouring blocks, a power of two: scores take `bits`, sign included.

    Returns the largest magnitude's bits less infinity's: negative if and only if all scores are finite.
    """
    kind_, rows_, cols_ = BY_CODE[literal(kind)], literal(rows), literal(cols)
    size = literal(bits) if literal(absolute) else literal(bits) - 1

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, scales = args[:3]
        # the largest magnitude of each block: down the rows where it lies, then across the block's columns
        largest = [emit.variable(emit.splat(kind_.raw, LANES, 0)) for _ in range(cols_)]
        row = emit.variable(scores)
        with loop(builder, rows_):
            base = builder.load(row)
            for k, slot in enumerate(largest):
                part = kind_.load_bits(emit, emit.at(base, k * LANES * kind_.itemsize), LANES)
                builder.store(emit.call("llvm.smax", builder.load(slot), part), slot)
            builder.store(builder.add(base, stride), row)
        top = builder.load(largest[0])
        for slot in largest[1:]:
            top = emit.call("llvm.smax", top, builder.load(slot))
        worst = emit.reduce("llvm.vector.reduce.smax", top)
        verdict = builder.sub(worst, ir.Constant(kind_.raw, kind_.infinity))
        block = fold_columns(emit, [builder.load(slot) for slot in largest], "llvm.smax")
        emit.store(_unit(emit, block, kind_, size), scales)
        return builder.sext(verdict, I64) if kind_.itemsize < 8 else verdict

    return types.int64(scores, stride, scales, kind, rows, cols, absolute, bits), codegen


def fold_columns(emit: Emitter, parts: Sequence[Any], order: str) -> Any:
    """Fold the upper 16 bits of numbers, in the matrix's order, over each block's columns: they hold any exponent."""
    builder = emit.builder
    raw = parts[0].type.element
    if raw != I16:
        drop = emit.splat(raw, LANES, raw.width - 16)
        parts = [builder.trunc(builder.lshr(part, drop), vector(I16, LANES)) for part in parts]
    return functools.reduce(lambda a, b: emit.call(order, a, b), deinterleave(emit, parts))


def exponents(emit: Emitter, numbers: Any, kind: ScoreKind) -> Any:
    """Exponent fields of positive numbers of the work type."""
    raw, shift, _ = kind.work_fields
    return emit.builder.lshr(emit.builder.bitcast(numbers, vector(raw, LANES)), emit.splat(raw, LANES, shift))


def _unit(emit: Emitter, block: Any, kind: ScoreKind, up: int) -> Any:
    """The power of two that is 2**-up of each block's largest magnitude, given by the upper 16 bits."""
    builder = emit.builder
    raw, shift, _ = kind.work_fields
    number = builder.zext(block, vector(raw, LANES))
    number = builder.lshr(number, emit.splat(raw, LANES, kind.mantissa - (8 * kind.itemsize - 16)))
    # a block of tiny scores gets the smallest step whose inverse, magnified, is still a normal number
    least = 32 if kind.work == F32 else 80
    if kind.mantissa == 10:  # float16 widened: exponent fields are 112 apart, and subnormals have that of the next
        number, least = builder.add(number, emit.splat(raw, LANES, 112)), 113
    number = emit.call("llvm.smax", number, emit.splat(raw, LANES, least))
    number = builder.sub(number, emit.splat(raw, LANES, up - 1))
    return builder.bitcast(builder.shl(number, emit.splat(raw, LANES, shift)), vector(kind.work, LANES))


def inverse(emit: Emitter, unit: Any, kind: ScoreKind) -> Any:
    """One over powers of two: their exponent field is twice the bias less the other."""
    builder = emit.builder
    raw, shift, bias = kind.work_fields
    whole = emit.splat(raw, LANES, (2 * bias) << shift)
    return builder.bitcast(builder.sub(whole, builder.bitcast(unit, vector(raw, LANES))), vector(kind.work, LANES))


def magnified(emit: Emitter, unit: Any, kind: ScoreKind, zoom: Any) -> Any:
    """Powers of two less `zoom` bits."""
    builder = emit.builder
    raw, shift, _ = kind.work_fields
    bits = zoom if raw == I64 else builder.trunc(zoom, raw)
    less = emit.broadcast(builder.shl(bits, ir.Constant(raw, shift)), LANES)
    return builder.bitcast(builder.sub(builder.bitcast(unit, vector(raw, LANES)), less), vector(kind.work, LANES))


def spread_over(emit: Emitter, numbers: Any, part: int, cols: int, step: int = 1) -> Any:
    """Repeat a number for each of 32 blocks over its columns: vector `part` of `cols`, or of each `step`-th one."""
    return emit.pick(numbers, [(part * LANES + t) * step // cols for t in range(LANES)])


@intrinsic(prefer_literal=True)
def load_duals(typing, col_lanes, scales, v, kind, cols):  # type: ignore[no-untyped-def]
    """Read the column duals of 32 neighbouring blocks into lanes, in whole steps."""
    kind_, cols_ = BY_CODE[literal(kind)], literal(cols)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        col_lanes, scales, v = args[:3]
        work = vector(kind_.work, LANES)
        scale = inverse(emit, emit.load(scales, work), kind_)
        most, least = emit.splat(kind_.work, LANES, 32767.0), emit.splat(kind_.work, LANES, -32768.0)
        parts = []
        for k in range(cols_):
            value = emit.load(emit.at(v, k * LANES * kind_.work_size), work)
            value = builder.fmul(value, spread_over(emit, scale, k, cols_))
            value = emit.better(emit.better(value, most, "<"), least, ">")
            parts.append(builder.trunc(builder.fptosi(value, vector(I32, LANES)), vector(I16, LANES)))
        for j, part in enumerate(deinterleave(emit, parts)):
            emit.store(part, emit.at(col_lanes, j * VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(col_lanes, scales, v, kind, cols), codegen


@intrinsic(prefer_literal=True)
def store_duals(  # type: ignore[no-untyped-def]
    typing, row_lanes, col_lanes, scales, u, u_stride, v, zoom, kind, rows, cols, bias, given
):
    """Write the duals of 32 neighbouring blocks in the work dtype, in the matrix's order; add to those given."""
    kind_, rows_, cols_ = BY_CODE[literal(kind)], literal(rows), literal(cols)
    bias_, given_ = literal(bias), literal(given)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        row_lanes, col_lanes, scales, u, u_stride, v, zoom = args[:7]
        work = vector(kind_.work, LANES)
        unit = emit.load(scales, work)
        if given_:
            unit = magnified(emit, unit, kind_, zoom)

        # an infinite dual would prove what no number does
        most, least = (emit.splat(kind_.work, LANES, sign * kind_.largest) for sign in (1, -1))

        def write(steps: Any, unit: Any, to: Any) -> None:
            value = builder.fmul(builder.sitofp(steps, work), unit)
            value = builder.fadd(value, emit.load(to, work)) if given_ else value
            emit.store(emit.better(emit.better(value, most, "<"), least, ">"), to)

        row, source = emit.variable(u), emit.variable(row_lanes)
        with loop(builder, rows_):
            at, to = builder.load(source), builder.load(row)
            steps = builder.sext(emit.load(at, vector(I16, LANES), VECTOR), vector(I32, LANES))
            write(steps if given_ else builder.add(steps, emit.splat(I32, LANES, bias_)), unit, to)
            builder.store(builder.add(to, u_stride), row)
            builder.store(emit.at(at, VECTOR), source)
        parts = [emit.load(emit.at(col_lanes, j * VECTOR), vector(I16, LANES), VECTOR) for j in range(cols_)]
        for k, part in enumerate(interleave(emit, parts)):
            steps = builder.sext(part, vector(I32, LANES))
            write(steps, spread_over(emit, unit, k, cols_), emit.at(v, k * LANES * kind_.work_size))
        return context.get_dummy_value()

    arguments = (row_lanes, col_lanes, scales, u, u_stride, v, zoom, kind, rows, cols, bias, given)
    return types.none(*arguments), codegen
