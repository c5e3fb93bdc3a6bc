"""Scores that lie near a lattice, as small whole numbers: `nmflow.solvers.levels` says which and why.

A score is S = coarse * L + fine * d with whole L and d; it becomes T = step * L + d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.simd import F32, F64, I1, I8, I32, I64, Emitter, literal, vector

__all__ = ["LEAST_WIDTH", "beyond_kernel", "kept_kernel", "level_kernel"]

LEAST_WIDTH = 16
"""Scores of a vector, and so of a row."""
FOLDS = (8, 4, 2, 1)
"""Distances between lanes that are folded, until one lane holds what all did."""


def _over_row(emit: Emitter, width: Any, body: Any) -> None:
    """A loop over the vectors of a row, by the number of their first score; the last one reaches back into the row."""
    builder = emit.builder
    count = builder.udiv(builder.add(width, ir.Constant(I64, LEAST_WIDTH - 1)), ir.Constant(I64, LEAST_WIDTH))
    with cgutils.for_range(builder, count) as turn:
        first = builder.mul(turn.index, ir.Constant(I64, LEAST_WIDTH))
        last = builder.sub(width, ir.Constant(I64, LEAST_WIDTH))
        body(first, builder.select(builder.icmp_signed("<", first, last), first, last))


@intrinsic(prefer_literal=True)
def level_row(typing, scores, width, coarse, fine, step, to, kind, absolute):  # type: ignore[no-untyped-def]
    """Write a row as whole numbers in float32; the largest |d|, infinite where d is not whole."""
    kind_, absolute_ = BY_CODE[literal(kind)], bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, width, coarse, fine, step, to = args[:6]
        one = ir.Constant(F64, 1.0)

        def every(value: Any) -> Any:
            return emit.broadcast(value if kind_.work == F64 else builder.fptrunc(value, F32), LEAST_WIDTH)

        back, whole = every(builder.fdiv(one, coarse)), every(builder.fdiv(one, fine))
        coarse, step = every(coarse), every(step)
        bound, none = (emit.splat(kind_.work, LEAST_WIDTH, x) for x in (2.0**23, float("inf")))
        worst = emit.variable(emit.splat(kind_.work, LEAST_WIDTH, 0.0))

        def convert(_: Any, first: Any) -> None:
            at = builder.add(scores, builder.mul(first, ir.Constant(I64, kind_.itemsize)))
            score = kind_.load(emit, at, LEAST_WIDTH, absolute_)
            level = emit.call("llvm.rint", builder.fmul(score, back))
            # rounded once; where it is a small multiple of `fine` not at all
            rest = builder.fmul(emit.call("llvm.fma", builder.fneg(level), coarse, score), whole)
            value = builder.fadd(builder.fmul(level, step), rest)
            right = builder.and_(
                builder.fcmp_ordered("==", rest, emit.call("llvm.rint", rest)),
                builder.fcmp_ordered("<", emit.call("llvm.fabs", value), bound),
            )
            size = builder.select(right, emit.call("llvm.fabs", rest), none)
            builder.store(emit.better(size, builder.load(worst), ">"), worst)
            value = value if kind_.work == F32 else builder.fptrunc(value, vector(F32, LEAST_WIDTH))
            emit.store(value, builder.add(to, builder.mul(first, ir.Constant(I64, 4))))

        _over_row(emit, width, convert)
        largest = builder.load(worst)
        for turn in FOLDS:
            largest = emit.better(largest, emit.pick(largest, [t ^ turn for t in range(LEAST_WIDTH)]), ">")
        largest = builder.extract_element(largest, ir.Constant(I32, 0))
        return largest if kind_.work == F64 else builder.fpext(largest, F64)

    i8, f8 = types.int64, types.float64
    return f8(i8, i8, f8, f8, f8, i8, kind, absolute), codegen


@once
def level_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, height, width, coarse, fine, step, to, most) -> float
        Addresses as int64; stride in bytes; width at least LEAST_WIDTH. Writes T, shape (height, width), float32, to
        `to`. Returns the largest |d|; it ends early where that is above `most`.
    """
    code, magnitude = KINDS[kind_name].code, int(absolute)
    version = fingerprint()

    def level(scores, stride, height, width, coarse, fine, step, to, most):  # type: ignore[no-untyped-def]
        worst = 0.0
        for i in range(height if version else 0):
            worst = max(
                worst, level_row(scores + i * stride, width, coarse, fine, step, to + i * width * 4, code, magnitude)
            )
            if worst > most:
                break
        return worst

    i8, f8 = types.int64, types.float64
    return compiled(level, f8(i8, i8, i8, i8, f8, f8, f8, i8, f8))


@intrinsic(prefer_literal=True)
def kept_row(typing, scores, mask, width, kind, absolute):  # type: ignore[no-untyped-def]
    """Sum of the scores of a row that a mask keeps."""
    kind_, absolute_ = BY_CODE[literal(kind)], bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, mask, width = args[:3]
        zero = emit.splat(F64, LEAST_WIDTH, 0.0)
        total = emit.variable(zero)
        lanes = ir.Constant(vector(I64, LEAST_WIDTH), list(range(LEAST_WIDTH)))

        def add(wanted: Any, first: Any) -> None:
            truths = emit.load(builder.add(mask, first), vector(I8, LEAST_WIDTH))
            # what the last vector shares with the one before was added there
            fresh = builder.icmp_signed(">=", lanes, emit.broadcast(builder.sub(wanted, first), LEAST_WIDTH))
            kept = builder.and_(builder.trunc(truths, vector(I1, LEAST_WIDTH)), fresh)
            at = builder.add(scores, builder.mul(first, ir.Constant(I64, kind_.itemsize)))
            score = kind_.load(emit, at, LEAST_WIDTH, absolute_)
            score = score if kind_.work == F64 else builder.fpext(score, vector(F64, LEAST_WIDTH))
            builder.store(builder.fadd(builder.load(total), builder.select(kept, score, zero)), total)

        _over_row(emit, width, add)
        every = builder.load(total)
        for turn in FOLDS:
            every = builder.fadd(every, emit.pick(every, [t ^ turn for t in range(LEAST_WIDTH)]))
        return builder.extract_element(every, ir.Constant(I32, 0))

    i8 = types.int64
    return types.float64(i8, i8, i8, kind, absolute), codegen


@once
def kept_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile for one kind of scores.

    Returns
    -------
    function (scores, stride, mask, mask_stride, height, width) -> float
        Addresses as int64; strides in bytes; width at least LEAST_WIDTH. Sum of the scores that the mask keeps.
    """
    code, magnitude = KINDS[kind_name].code, int(absolute)
    version = fingerprint()

    def kept(scores, stride, mask, mask_stride, height, width):  # type: ignore[no-untyped-def]
        total = 0.0
        for i in range(height if version else 0):
            total += kept_row(scores + i * stride, mask + i * mask_stride, width, code, magnitude)
        return total

    return compiled(kept, types.float64(*[types.int64] * 6))


@once
def beyond_kernel() -> Any:
    """Compile the check of duals of whole numbers.

    Returns
    -------
    function (u, v, step, worst, beyond) -> int
        u : (h, block columns), v : (block rows, w) float32. beyond : (block rows, block columns) uint8, output: whether
        the least remainders of a row dual, of a column dual and of any score, `worst`, can add up to a step. Returns
        for how many blocks they can.
    """
    version = fingerprint()

    def beyond_steps(u, v, step, worst, beyond):  # type: ignore[no-untyped-def]
        tall, wide = beyond.shape
        rows, cols = u.shape[0] // tall, v.shape[1] // wide
        step, back = np.float32(step), np.float32(1.0 / step)  # powers of two: nothing here rounds
        most, rests = np.empty(wide, np.float32), np.empty(v.shape[1], np.float32)
        count = 0
        for s in range(tall if version else 0):
            most[:] = 0.0
            for i in range(rows):
                for b in range(wide):
                    x = u[s * rows + i, b]
                    most[b] = max(most[b], abs(x - np.rint(x * back) * step))
            for j in range(len(rests)):
                x = v[s, j]
                rests[j] = abs(x - np.rint(x * back) * step)
            for b in range(wide):
                across = rests[b * cols]
                for j in range(1, cols):
                    across = max(across, rests[b * cols + j])
                beyond[s, b] = not np.float64(most[b]) + np.float64(across) + worst < step
                count += beyond[s, b]
        return count

    single = types.float32[:, ::1]
    return compiled(beyond_steps, types.int64(single, single, types.float64, types.float64, types.uint8[:, ::1]))
