"""Dual ascent over many blocks at once: candidates for the duals, on a grid, in 16-bit integers.

The dual of one block (see `nmflow.certificate`) is minimised by turns over its row duals u and its column duals v.
With v fixed, row i is optimal for any u_i between the n-th and the (n+1)-th largest of S[i, :] - v; the midpoint is
the choice that converges, and stepping a little past it (over-relaxation) converges about twice as fast. 32 blocks
stand side by side in a vector, so a row step and a column step are the same code, and the two order statistics come
from a pruned selection network.

Scores are first cut to 15 bits below each block's largest one. That costs no exactness: duals are only *candidates*
here, and because they lie on a grid of few bits, u + v is exact in float32 and `nmflow.kernels.threshold` can compare
the true scores with it. Blocks that this does not settle are solved by `nmflow.kernels.augment`.

References
----------
Hubara et al., "Accelerated Sparse Neural Training", NeurIPS 2021 (the linear program);
D. Bertsekas, "Network Optimization", 1998, chapter 6 (dual coordinate ascent).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, fingerprint
from nmflow.kernels.networks import selection_network
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.simd import (
    F64,
    I16,
    I32,
    I64,
    LANES,
    Emitter,
    copy_bytes,
    deinterleave,
    interleave,
    literal,
    loop,
    vector,
)

__all__ = ["ascent_kernel", "ascent_scratch"]

VECTOR = 2 * LANES
"""Bytes of a vector of 16-bit lanes."""
ZOOM = 3
"""Bits by which what is left of the scores, S - u - v, is magnified for the last rounds."""
BIAS = 1 << 14
"""Magnitudes fill 15 bits and are stored less this, so that they fill a signed 16-bit lane."""


@intrinsic(prefer_literal=True)
def load_segment(typing, scores, stride, lanes, scales, kind, rows, cols, absolute):  # type: ignore[no-untyped-def]
    """Read 32 neighbouring blocks into lanes of 16 bits, and write each block's scale.

    Returns the largest magnitude's bits less infinity's: negative if and only if all are finite.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), literal(absolute)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales = args[:4]
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
        scale, inverse = _scales(emit, block, kind_, absolute_)
        emit.store(inverse, scales)
        wide = [emit.pick(scale, [(k * LANES + t) // cols_ for t in range(LANES)]) for k in range(cols_)]
        # scores times a power of two, cut to integers, transposed to lanes
        builder.store(scores, row)
        target = emit.variable(lanes)
        with loop(builder, rows_):
            base = builder.load(row)
            parts = []
            for k in range(cols_):
                value = kind_.load(emit, emit.at(base, k * LANES * kind_.itemsize), LANES, bool(absolute_))
                number = builder.fptosi(builder.fmul(value, wide[k]), vector(I32, LANES))
                if absolute_:
                    number = builder.sub(number, emit.splat(I32, LANES, BIAS))
                parts.append(builder.trunc(number, vector(I16, LANES)))
            out = builder.load(target)
            for j, part in enumerate(deinterleave(emit, parts)):
                emit.store(part, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(builder.add(base, stride), row)
        return builder.sext(verdict, I64) if kind_.itemsize < 8 else verdict

    return types.int64(scores, stride, lanes, scales, kind, rows, cols, absolute), codegen


def _scales(emit: Emitter, block: Any, kind: Any, absolute: int) -> tuple[Any, Any]:
    """Powers of two that bring each block's largest magnitude to 15 bits (14 if signed), and their inverses."""
    builder = emit.builder
    work_raw, work_bits, bias = (I64, 52, 1023) if kind.work == F64 else (I32, 23, 127)
    number = builder.zext(block, vector(work_raw, LANES))
    number = builder.lshr(number, emit.splat(work_raw, LANES, kind.mantissa - (8 * kind.itemsize - 16)))
    if kind.mantissa == 10:  # float16 widened: exponent fields are 112 apart; subnormals are below the smallest
        number = builder.add(number, emit.splat(work_raw, LANES, 112))
    # a block of tiny scores gets the largest scale that is still a normal number
    number = emit.call("llvm.smax", number, emit.splat(work_raw, LANES, 32))
    up = 14 if absolute else 13
    scale = builder.sub(emit.splat(work_raw, LANES, 2 * bias + up), number)
    inverse = builder.sub(number, emit.splat(work_raw, LANES, up))
    shift = emit.splat(work_raw, LANES, work_bits)
    return (
        builder.bitcast(builder.shl(scale, shift), vector(kind.work, LANES)),
        builder.bitcast(builder.shl(inverse, shift), vector(kind.work, LANES)),
    )


@intrinsic(prefer_literal=True)
def zoom_segment(typing, scores, stride, lanes, scales, u, u_stride, v, kind, rows, cols, absolute):  # type: ignore[no-untyped-def]
    """Read 32 neighbouring blocks again, less u + v and magnified, cut off where they leave 16 bits."""
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), literal(absolute)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales, u, u_stride, v = args[:7]
        work, item, size = kind_.work, kind_.itemsize, kind_.work_size
        # the scale is the inverse's inverse: an exponent field of twice the bias less its own
        raw, bits, bias = (I64, 52, 1023) if work == F64 else (I32, 23, 127)
        inverse = builder.bitcast(emit.load(scales, vector(work, LANES)), vector(raw, LANES))
        scale = builder.sub(emit.splat(raw, LANES, (2 * bias + ZOOM) << bits), inverse)
        scale = builder.bitcast(scale, vector(work, LANES))
        block = [[(k * LANES + t) // cols_ for t in range(LANES)] for k in range(cols_)]
        half, top = emit.splat(work, LANES, 32768.0), emit.splat(work, LANES, 65535.0)
        zero = emit.splat(work, LANES, 0.0)
        at, target, row_at = emit.variable(scores), emit.variable(lanes), emit.variable(u)
        with loop(builder, rows_):
            base = builder.load(at)
            row_duals = emit.load(builder.load(row_at), vector(work, LANES))
            parts = []
            for k in range(cols_):
                value = kind_.load(emit, emit.at(base, k * LANES * item), LANES, bool(absolute_))
                col_duals = emit.load(emit.at(v, k * LANES * size), vector(work, LANES))
                value = builder.fsub(value, builder.fadd(emit.pick(row_duals, block[k]), col_duals))
                value = builder.fadd(builder.fmul(value, emit.pick(scale, block[k])), half)
                value = builder.select(builder.fcmp_ordered(">", value, zero), value, zero)
                value = builder.select(builder.fcmp_ordered("<", value, top), value, top)
                number = builder.sub(builder.fptosi(value, vector(I32, LANES)), emit.splat(I32, LANES, 32768))
                parts.append(builder.trunc(number, vector(I16, LANES)))
            out = builder.load(target)
            for j, part in enumerate(deinterleave(emit, parts)):
                emit.store(part, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(builder.add(base, stride), at)
            builder.store(builder.add(builder.load(row_at), u_stride), row_at)
        return context.get_dummy_value()

    arguments = (scores, stride, lanes, scales, u, u_stride, v, kind, rows, cols, absolute)
    return types.none(*arguments), codegen


@intrinsic(prefer_literal=True)
def line_step(typing, line, other, dual, relax, count, stride, budget, floor):  # type: ignore[no-untyped-def]
    """One line of 32 blocks: move its dual to the midpoint of the budget-th and the next largest, and past it.

    line : address of the line's first lane vector; its others are `stride` bytes apart.
    other : address of the duals across. dual : address of the line's own. relax : 0, or -1 to step past the midpoint.
    floor : least value of the dual, or below -32768 for none.
    """
    count_, stride_, budget_, floor_ = literal(count), literal(stride), literal(budget), literal(floor)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, other, dual, relax = args[:4]
        kind = vector(I16, LANES)
        wires = []
        for t in range(count_):
            score = emit.load(emit.at(line, t * stride_), kind, VECTOR)
            wires.append(emit.call("llvm.ssub.sat", score, emit.load(emit.at(other, t * VECTOR), kind, VECTOR)))
        ranks = (budget_ - 1, budget_) if budget_ < count_ else (budget_ - 1,)
        for i, j, use_max, use_min in selection_network(count_, ranks):
            a, b = wires[i], wires[j]
            if use_max:
                wires[i] = emit.call("llvm.smax", a, b)
            if use_min:
                wires[j] = emit.call("llvm.smin", a, b)
        one = emit.splat(I16, LANES, 1)
        if budget_ < count_:
            a, b = wires[budget_ - 1], wires[budget_]
            # rounded up: an entry that equals the dual lost a fraction when it was cut, and is above it
            target = builder.add(b, builder.ashr(builder.add(builder.sub(a, b), one), one))
        else:
            target = builder.sub(wires[budget_ - 1], one)
        old = emit.load(dual, kind, VECTOR)
        step = builder.and_(emit.call("llvm.ssub.sat", target, old), emit.broadcast(builder.trunc(relax, I16), LANES))
        fresh = emit.call("llvm.sadd.sat", target, builder.ashr(step, emit.splat(I16, LANES, 2)))
        if count_ > 8:  # larger blocks gain from a larger step: 1 + 1/4 + 1/8
            fresh = emit.call("llvm.sadd.sat", fresh, builder.ashr(step, emit.splat(I16, LANES, 3)))
        if floor_ >= -(1 << 15):
            fresh = emit.call("llvm.smax", fresh, emit.splat(I16, LANES, floor_))
        emit.store(fresh, dual, VECTOR)
        return context.get_dummy_value()

    return types.none(line, other, dual, relax, count, stride, budget, floor), codegen


def _unit(emit: Emitter, scales: Any, kind: Any, zoomed: int) -> Any:
    """What one step of a lane is worth, for each block."""
    unit = emit.load(scales, vector(kind.work, LANES))
    return emit.builder.fmul(unit, emit.splat(kind.work, LANES, 0.5**ZOOM)) if zoomed else unit


@intrinsic(prefer_literal=True)
def store_rows(typing, duals, scales, out, stride, kind, rows, bias, zoomed):  # type: ignore[no-untyped-def]
    """Write the row duals of 32 neighbouring blocks as work numbers, `stride` bytes a row; add, if zoomed."""
    kind_, rows_, bias_, zoomed_ = BY_CODE[literal(kind)], literal(rows), literal(bias), literal(zoomed)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        duals, scales, out, stride = args[:4]
        inverse = _unit(emit, scales, kind_, zoomed_)
        row, source = emit.variable(out), emit.variable(duals)
        with loop(builder, rows_):
            at = builder.load(source)
            number = builder.sext(emit.load(at, vector(I16, LANES), VECTOR), vector(I32, LANES))
            number = builder.add(number, emit.splat(I32, LANES, bias_))
            value = builder.fmul(builder.sitofp(number, vector(kind_.work, LANES)), inverse)
            to = builder.load(row)
            if zoomed_:
                value = builder.fadd(value, emit.load(to, vector(kind_.work, LANES)))
            emit.store(value, to)
            builder.store(builder.add(to, stride), row)
            builder.store(emit.at(at, VECTOR), source)
        return context.get_dummy_value()

    return types.none(duals, scales, out, stride, kind, rows, bias, zoomed), codegen


@intrinsic(prefer_literal=True)
def store_cols(typing, duals, scales, out, kind, cols, zoomed):  # type: ignore[no-untyped-def]
    """Write the column duals of 32 blocks as work numbers, in the order of the matrix's columns; add, if zoomed."""
    kind_, cols_, zoomed_ = BY_CODE[literal(kind)], literal(cols), literal(zoomed)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        duals, scales, out = args[:3]
        inverse = _unit(emit, scales, kind_, zoomed_)
        parts = [emit.load(emit.at(duals, j * VECTOR), vector(I16, LANES), VECTOR) for j in range(cols_)]
        for k, part in enumerate(interleave(emit, parts)):
            value = builder.sitofp(builder.sext(part, vector(I32, LANES)), vector(kind_.work, LANES))
            scale = emit.pick(inverse, [(k * LANES + t) // cols_ for t in range(LANES)])
            value, to = builder.fmul(value, scale), emit.at(out, k * LANES * kind_.work_size)
            if zoomed_:
                value = builder.fadd(value, emit.load(to, vector(kind_.work, LANES)))
            emit.store(value, to)
        return context.get_dummy_value()

    return types.none(duals, scales, out, kind, cols, zoomed), codegen


ROUNDS = {4: (5, 0), 8: (7, 0), 16: (9, 0), 32: (11, 6), 64: (16, 10)}
"""Rounds at first and after magnifying, by the longer side of a block: more of them cost more than solving the blocks
that are left; measured on Gaussian scores."""


def rounds_for(side: int) -> tuple[int, int]:
    """Rounds for a block whose longer side is `side`."""
    return next(rounds for size, rounds in ROUNDS.items() if side <= size)


def ascent_scratch(kind: str, block_shape: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Workspace of the kernel, in bytes."""
    rows, cols = block_shape
    item = KINDS[kind]
    lanes = (rows * cols + rows + cols) * VECTOR
    return np.empty(
        lanes + LANES * 8 + LANES * rows * cols * item.itemsize + LANES * (rows + cols) * item.work_size + 256, np.uint8
    )


@cache
def ascent_kernel(
    kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, clamp_rows: bool, clamp_cols: bool,
    absolute: bool, free_cols: bool,
) -> Any:  # fmt: skip
    """Compile dual ascent for one kind of scores and one pattern.

    Returns
    -------
    function (scores, stride, grid_rows, grid_cols, u, v, scratch) -> int
        Addresses as int64: scores with `stride` bytes between rows; u, C-contiguous, shape (h, grid_cols) and v,
        shape (grid_rows, w), both in the work dtype of the kind. Returns 0, or 1 if a score is not finite.
    """
    kind = KINDS[kind_name]
    code, item, work = kind.code, kind.itemsize, kind.work_size
    magnitude = int(absolute)
    bias = BIAS if absolute else 0
    row_floor = -bias if clamp_rows else -(1 << 16)
    col_floor = 0 if clamp_cols else -(1 << 16)
    first_rounds, zoomed_rounds = (0, 0) if free_cols else rounds_for(max(rows, cols))
    if clamp_rows or clamp_cols:  # a magnified dual would need a floor of its own in every lane
        first_rounds, zoomed_rounds = first_rounds + zoomed_rounds, 0
    row_bytes, block_bytes = cols * VECTOR, cols * item
    segment_bytes, col_bytes = LANES * cols * item, cols * work
    version = fingerprint()
    lane_count, vector_bytes = LANES, VECTOR

    def ascend(scores, stride, grid_rows, grid_cols, u, v, scratch):  # type: ignore[no-untyped-def]
        if version == 0:
            return 2
        lanes = (scratch + 63) & ~63
        rows_at = lanes + rows * row_bytes
        cols_at = rows_at + rows * vector_bytes
        scales = cols_at + cols * vector_bytes
        gathered = scales + lane_count * 8
        rows_out = gathered + rows * segment_bytes
        cols_out = rows_out + rows * lane_count * work
        blocks = grid_rows * grid_cols
        bad = 0
        for first in range(0, blocks, lane_count):
            s = first // grid_cols
            j = first - s * grid_cols
            whole = j + lane_count <= grid_cols
            if whole:
                base, step = scores + s * rows * stride + j * block_bytes, stride
                to_u, u_step = u + (s * rows * grid_cols + j) * work, grid_cols * work
                to_v = v + (s * grid_cols + j) * cols * work
            else:
                # blocks from the end of one stripe and the start of the next: bring them side by side
                base, step = gathered, segment_bytes
                to_u, u_step, to_v = rows_out, lane_count * work, cols_out
                for lane in range(lane_count):
                    b = min(first + lane, blocks - 1)
                    bs = b // grid_cols
                    source = scores + bs * rows * stride + (b - bs * grid_cols) * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
            if load_segment(base, step, lanes, scales, code, rows, cols, magnitude) >= 0:
                bad = 1
            for t in range(cols):
                clear_vector(cols_at + t * vector_bytes)
            for zoomed in range(2 if zoomed_rounds else 1):
                if zoomed:
                    zoom_segment(base, step, lanes, scales, to_u, u_step, to_v, code, rows, cols, magnitude)
                    for t in range(rows + cols):
                        clear_vector(rows_at + t * vector_bytes)
                turns = zoomed_rounds if zoomed else first_rounds
                for k in range(turns + 1):
                    # past the midpoint, but for the first and the last step
                    relax = -1 if 0 < k < turns else 0
                    for i in range(rows):
                        line_step(
                            lanes + i * row_bytes, cols_at, rows_at + i * vector_bytes, relax,
                            cols, vector_bytes, row_budget, row_floor,
                        )  # fmt: skip
                    if k == turns:
                        break
                    for t in range(cols):
                        line_step(
                            lanes + t * vector_bytes, rows_at, cols_at + t * vector_bytes, relax,
                            rows, row_bytes, col_budget, col_floor,
                        )  # fmt: skip
                if zoomed:
                    store_rows(rows_at, scales, to_u, u_step, code, rows, 0, 1)
                    store_cols(cols_at, scales, to_v, code, cols, 1)
                else:
                    store_rows(rows_at, scales, to_u, u_step, code, rows, bias, 0)
                    store_cols(cols_at, scales, to_v, code, cols, 0)
            if not whole:
                for lane in range(min(lane_count, blocks - first)):
                    bs = (first + lane) // grid_cols
                    bj = first + lane - bs * grid_cols
                    for i in range(rows):
                        copy_bytes(
                            rows_out + (i * lane_count + lane) * work, u + ((bs * rows + i) * grid_cols + bj) * work, work
                        )
                    copy_bytes(cols_out + lane * col_bytes, v + (bs * grid_cols + bj) * col_bytes, col_bytes)
        return bad

    return compiled(ascend, types.int64(*[types.int64] * 7))


@intrinsic
def clear_vector(typing, address):  # type: ignore[no-untyped-def]
    """Store zeros to one lane vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        emit.store(emit.splat(I16, LANES, 0), args[0], VECTOR)
        return context.get_dummy_value()

    return types.none(address), codegen
