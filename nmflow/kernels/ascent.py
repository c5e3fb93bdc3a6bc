"""Dual ascent over many blocks at once: candidates for the duals, in 16-bit integers.

The dual of one block (see `nmflow.certificate`) is minimised by turns over its row duals u and its column duals v.
With v fixed, row i is optimal for any u_i between the n-th and the (n+1)-th largest of S[i, :] - v; the midpoint is
the choice that converges, and stepping a little past it (over-relaxation) converges about twice as fast. 32 blocks
stand side by side in a vector, so a row step and a column step are the same code, and the two order statistics come
from a pruned selection network.

Scores are cut to 14 bits below each block's largest one. That costs no exactness: duals are only *candidates* here,
and `nmflow.kernels.proof` compares the true scores with them. Blocks that this does not settle are read again, less
their u + v and magnified, for more rounds: the same step that refreshes a mask from the duals of an earlier one.

References
----------
Hubara et al., "Accelerated Sparse Neural Training", NeurIPS 2021 (the linear program);
D. Bertsekas, "Network Optimization", 1998, chapter 6 (dual coordinate ascent).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.networks import selection_network
from nmflow.kernels.scores import BY_CODE, ScoreKind
from nmflow.kernels.simd import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    Emitter,
    deinterleave,
    interleave,
    literal,
    loop,
    vector,
)

__all__ = [
    "BIAS",
    "BITS",
    "VECTOR",
    "clear_lanes",
    "inverse",
    "line_step",
    "magnified",
    "measure_segment",
    "read_segment",
    "rounds_for",
    "set_floors",
    "spread_over",
    "store_duals",
]

VECTOR = 2 * LANES
"""Bytes of a vector of 16-bit lanes."""
BITS = 14
"""Bits of a block's largest magnitude: the sum of two scores less duals still fits 16."""
BIAS = 1 << (BITS - 1)
"""Magnitudes are stored less this, so that they are centred on 0."""


@intrinsic(prefer_literal=True)
def measure_segment(typing, scores, stride, scales, kind, rows, cols, absolute):  # type: ignore[no-untyped-def]
    """Write what one step of 16 bits is worth in each of 32 neighbouring blocks, a power of two.

    Returns the largest magnitude's bits less infinity's: negative if and only if all scores are finite.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), literal(absolute)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, scales = args[:3]
        # the largest magnitude of each block: down the rows where it lies, then across the block's columns
        bits = [emit.variable(emit.splat(kind_.raw, LANES, 0)) for _ in range(cols_)]
        row = emit.variable(scores)
        with loop(builder, rows_):
            base = builder.load(row)
            for k, slot in enumerate(bits):
                part = kind_.load_bits(emit, emit.at(base, k * LANES * kind_.itemsize), LANES)
                builder.store(emit.call("llvm.smax", builder.load(slot), part), slot)
            builder.store(builder.add(base, stride), row)
        top = builder.load(bits[0])
        for slot in bits[1:]:
            top = emit.call("llvm.smax", top, builder.load(slot))
        worst = emit.reduce("llvm.vector.reduce.smax", top)
        verdict = builder.sub(worst, ir.Constant(kind_.raw, kind_.infinity))
        # only exponents matter; 16 bits hold them for every kind
        drop = 8 * kind_.itemsize - 16
        exponents = []
        for slot in bits:
            part = builder.load(slot)
            if drop:
                part = builder.lshr(part, emit.splat(kind_.raw, LANES, drop))
                part = builder.trunc(part, vector(I16, LANES))
            exponents.append(part)
        largest = deinterleave(emit, exponents)
        block = largest[0]
        for part in largest[1:]:
            block = emit.call("llvm.smax", block, part)
        emit.store(_unit(emit, block, kind_, BITS if absolute_ else BITS - 1), scales)
        return builder.sext(verdict, I64) if kind_.itemsize < 8 else verdict

    return types.int64(scores, stride, scales, kind, rows, cols, absolute), codegen


def _unit(emit: Emitter, block: Any, kind: ScoreKind, up: int) -> Any:
    """The power of two that is 2**-up of each block's largest magnitude, given by the upper 16 bits."""
    builder = emit.builder
    raw, shift, _ = kind.work_fields
    number = builder.zext(block, vector(raw, LANES))
    number = builder.lshr(number, emit.splat(raw, LANES, kind.mantissa - (8 * kind.itemsize - 16)))
    if kind.mantissa == 10:  # float16 widened: exponent fields are 112 apart; subnormals are below the smallest
        number = builder.add(number, emit.splat(raw, LANES, 112))
    # a block of tiny scores gets the smallest step whose inverse, magnified, is still a normal number
    number = emit.call("llvm.smax", number, emit.splat(raw, LANES, 32 if kind.work == F32 else 80))
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


def spread_over(emit: Emitter, numbers: Any, part: int, cols: int) -> Any:
    """Repeat a number for each of 32 blocks over its columns: vector `part` of `cols`."""
    return emit.pick(numbers, [(part * LANES + t) // cols for t in range(LANES)])


@intrinsic(prefer_literal=True)
def read_segment(  # type: ignore[no-untyped-def]
    typing, scores, stride, lanes, scales, u, u_stride, v, zoom, kind, rows, cols, absolute, given
):
    """Read 32 neighbouring blocks into lanes of 16 bits: scores, or if duals are `given` S - u - v, magnified."""
    kind_, rows_, cols_ = BY_CODE[literal(kind)], literal(rows), literal(cols)
    absolute_, given_ = bool(literal(absolute)), literal(given)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales, u, u_stride, v, zoom = args[:8]
        work, item, size = kind_.work, kind_.itemsize, kind_.work_size
        unit = emit.load(scales, vector(work, LANES))
        scale = inverse(emit, magnified(emit, unit, kind_, zoom) if given_ else unit, kind_)
        wide = [spread_over(emit, scale, k, cols_) for k in range(cols_)]
        # adding 2**15 before cutting makes it a floor
        half, top = emit.splat(work, LANES, 32768.0), emit.splat(work, LANES, 65535.0)
        zero = emit.splat(work, LANES, 0.0)
        at, target, row_at = emit.variable(scores), emit.variable(lanes), emit.variable(u)
        with loop(builder, rows_):
            base = builder.load(at)
            row_duals = emit.load(builder.load(row_at), vector(work, LANES)) if given_ else None
            parts = []
            for k in range(cols_):
                value = kind_.load(emit, emit.at(base, k * LANES * item), LANES, absolute_)
                if given_:
                    col_duals = emit.load(emit.at(v, k * LANES * size), vector(work, LANES))
                    threshold = builder.fadd(spread_over(emit, row_duals, k, cols_), col_duals)
                    value = builder.fadd(builder.fmul(builder.fsub(value, threshold), wide[k]), half)
                    value = emit.better(value, zero, ">")
                    value = emit.better(value, top, "<")
                    offset = 32768
                else:
                    value = builder.fmul(value, wide[k])
                    offset = BIAS if absolute_ else 0
                number = builder.fptosi(value, vector(I32, LANES))
                if offset:
                    number = builder.sub(number, emit.splat(I32, LANES, offset))
                parts.append(builder.trunc(number, vector(I16, LANES)))
            out = builder.load(target)
            for j, part in enumerate(deinterleave(emit, parts)):
                emit.store(part, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(builder.add(base, stride), at)
            builder.store(builder.add(builder.load(row_at), u_stride), row_at)
        return context.get_dummy_value()

    arguments = (scores, stride, lanes, scales, u, u_stride, v, zoom, kind, rows, cols, absolute, given)
    return types.none(*arguments), codegen


@intrinsic(prefer_literal=True)
def line_step(typing, line, other, dual, floor, relax, count, stride, budget, clamp, given):  # type: ignore[no-untyped-def]
    """One line of 32 blocks: move its dual to the midpoint of the budget-th and the next largest, and past it.

    line : address of the line's first lane vector; its others are `stride` bytes apart.
    other : address of the duals across. dual, floor : addresses of the line's own, and of its least value if `clamp`.
    relax : 0, or -1 to step past the midpoint.
    given : whether scores are cut off at 16 bits, so that differences have to be too; else differences stay within
    16 bits, but for duals far from the scores, which then are poor candidates and no more.
    """
    count_, stride_, budget_ = literal(count), literal(stride), literal(budget)
    clamp_, given_ = literal(clamp), literal(given)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, other, dual, floor, relax = args[:5]
        kind = vector(I16, LANES)
        wires = []
        for t in range(count_):
            score = emit.load(emit.at(line, t * stride_), kind, VECTOR)
            across = emit.load(emit.at(other, t * VECTOR), kind, VECTOR)
            wires.append(emit.call("llvm.ssub.sat", score, across) if given_ else builder.sub(score, across))
        ranks = (budget_ - 1, budget_) if budget_ < count_ else (budget_ - 1,)
        for i, j, use_max, use_min in selection_network(count_, ranks, unordered=True):
            a, b = wires[i], wires[j]
            if use_max:
                wires[i] = emit.call("llvm.smax", a, b)
            if use_min:
                wires[j] = emit.call("llvm.smin", a, b)
        one = emit.splat(I16, LANES, 1)
        if budget_ < count_:
            # rounded up: an entry that equals the dual lost a fraction when it was cut, and is above it
            target = builder.ashr(builder.add(builder.add(wires[budget_ - 1], one), wires[budget_]), one)
        else:
            target = builder.sub(wires[budget_ - 1], one)
        old = emit.load(dual, kind, VECTOR)
        step = builder.and_(builder.sub(target, old), emit.broadcast(builder.trunc(relax, I16), LANES))
        fresh = builder.add(target, builder.ashr(step, emit.splat(I16, LANES, 2)))
        if count_ > 8:  # larger blocks gain from a larger step: 1 + 1/4 + 1/8
            fresh = builder.add(fresh, builder.ashr(step, emit.splat(I16, LANES, 3)))
        if clamp_:
            fresh = emit.call("llvm.smax", fresh, emit.load(floor, kind, VECTOR))
        emit.store(fresh, dual, VECTOR)
        return context.get_dummy_value()

    return types.none(line, other, dual, floor, relax, count, stride, budget, clamp, given), codegen


@intrinsic(prefer_literal=True)
def set_floors(  # type: ignore[no-untyped-def]
    typing, row_floors, col_floors, scales, u, u_stride, v, zoom, kind, rows, cols, bias, given
):
    """How far duals may fall: to 0 in all, from 0 at first (less the bias, in rows) or from those given."""
    kind_, rows_, cols_ = BY_CODE[literal(kind)], literal(rows), literal(cols)
    bias_, given_ = literal(bias), literal(given)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        row_floors, col_floors, scales, u, u_stride, v, zoom = args[:7]
        unit = emit.load(scales, vector(kind_.work, LANES))
        scale = inverse(emit, magnified(emit, unit, kind_, zoom), kind_)
        least = emit.splat(kind_.work, LANES, -32768.0)

        def floor(duals: Any, scale: Any) -> Any:
            value = emit.better(builder.fmul(builder.fneg(duals), scale), least, ">")
            return builder.fptosi(value, vector(I16, LANES))

        for i in range(rows_):
            value = emit.splat(I16, LANES, -bias_)
            if given_:
                at = builder.add(u, builder.mul(u_stride, ir.Constant(I64, i)))
                value = floor(emit.load(at, vector(kind_.work, LANES)), scale)
            emit.store(value, emit.at(row_floors, i * VECTOR), VECTOR)
        parts = [emit.splat(I16, LANES, 0)] * cols_
        if given_:
            loads = [
                emit.load(emit.at(v, k * LANES * kind_.work_size), vector(kind_.work, LANES)) for k in range(cols_)
            ]
            parts = deinterleave(
                emit, [floor(part, spread_over(emit, scale, k, cols_)) for k, part in enumerate(loads)]
            )
        for j, part in enumerate(parts):
            emit.store(part, emit.at(col_floors, j * VECTOR), VECTOR)
        return context.get_dummy_value()

    arguments = (row_floors, col_floors, scales, u, u_stride, v, zoom, kind, rows, cols, bias, given)
    return types.none(*arguments), codegen


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

        def write(steps: Any, unit: Any, to: Any) -> None:
            value = builder.fmul(builder.sitofp(steps, work), unit)
            emit.store(builder.fadd(value, emit.load(to, work)) if given_ else value, to)

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


@intrinsic(prefer_literal=True)
def clear_lanes(typing, address, count):  # type: ignore[no-untyped-def]
    """Store zeros to `count` lane vectors."""
    count_ = literal(count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        for t in range(count_):
            emit.store(emit.splat(I16, LANES, 0), emit.at(args[0], t * VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(address, count), codegen


ROUNDS = {4: (4, 4, 1), 8: (5, 5, 2), 16: (6, 6, 2), 32: (8, 9, 3), 64: (12, 14, 5)}
"""Rounds for all blocks, for those then open, and for all blocks from the duals of an earlier mask, by the longer side
of a block; measured on Gaussian scores: more of the first cost more than they settle, and more of the second cost more
than augmenting paths."""


def rounds_for(side: int) -> tuple[int, int, int]:
    """Rounds for a block whose longer side is `side`."""
    return next(rounds for size, rounds in ROUNDS.items() if side <= size)
