"""Duals that follow from a mask of one block, if it is a best one: label correcting in float64, line by line.

Lanes (`nmflow.kernels.tied`) do the same for 32 blocks, by numbers that are cut off: where a score ties that has more
bits, they find a best mask and can't prove it. Other blocks are left alone, since their masks are none of the best.
Nothing is claimed here either: what is found is proven afterwards.

With duals u' and v' and the dual s of a slack node, u = u' + s and v = v' - s. A sweep takes each u' to the least of
S - v' that its row keeps, and -s if the row is short, and raises each v' to S - u' where its column drops; then s to
-u' of rows and to v' of columns that are short, and all v' to it. Sums of such terms have few more bits than the
scores; where float64 has no room for them the proof fails.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 5.4 (label correcting).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.bits import WIDTH, bits_of, each_vector, truths_of
from nmflow.kernels.compile import part
from nmflow.kernels.memory import count_ones, trailing_zeros
from nmflow.kernels.simd import F64, I1, I8, I32, I64, Emitter, vector
from nmflow.kernels.tied import Width
from nmflow.kernels.words import SHAPE, best_of

__all__ = ["follow_mask"]

SWEEPS = 5
"""Most sweeps: where a mask is a best one, that is enough for nearly all blocks."""
BITS = Width(1).bits - 1
"""Bits of scores, below a block's largest, that lanes hold in any case; of magnitudes they hold one more."""


@part
def follow_mask(  # type: ignore[no-untyped-def]
    lines, u, v, at_v, given, row_words, col_words, r, c, rows, cols, row_exact, col_exact
):
    """Whether a block has scores of more bits than lanes hold, budgets allow its mask, and sweeps come to an end.

    lines : address of the block's rows, each padded to whole vectors. v : what to begin from. given : the mask, as
    words of rows. Then u and v are duals by which it is best, but for what float64 rounds, and words hold the mask;
    else u, v and words are of no use.
    """
    across = -(-cols // WIDTH)
    step, in_row = (8 * WIDTH) * across, -1 if cols == 64 else (1 << cols) - 1
    if not has_more_bits(lines, rows * across):
        return False
    for j in range(cols):
        col_words[j] = 0
    for i in range(rows):
        row_words[i] = left = given[i]
        count = count_ones(left)
        if count > r or (row_exact and count != r):
            return False
        while left != 0:
            col_words[trailing_zeros(left)] |= 1 << i
            left &= left - 1
    for j in range(cols):
        count = count_ones(col_words[j])
        if count > c or (col_exact and count != c):
            return False
    slack = 0.0
    for _ in range(SWEEPS):
        changed, most = np.int64(0), slack
        for i in range(rows):
            least = least_of_line(lines + i * step, at_v, across, row_words[i])
            if not row_exact:
                if count_ones(row_words[i]) < r:
                    least = min(least, -slack)
                most = max(most, -least)
            u[i] = least
            changed |= raise_line(lines + i * step, least, at_v, across, in_row & ~row_words[i])
        for j in range(0 if col_exact else cols):
            if count_ones(col_words[j]) < c:
                most = max(most, v[j])
        changed |= most > slack
        slack = most
        for j in range(0 if col_exact else cols):
            if v[j] < slack:
                v[j], changed = slack, 1
        if changed == 0:
            for i in range(rows):
                u[i] += slack
            for j in range(cols):
                v[j] -= slack
            return True
    return False


@intrinsic
def has_more_bits(typing, lines, chunks):  # type: ignore[no-untyped-def]
    """Whether some score of a block is no multiple of what lies `BITS` bits below the largest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        lines, chunks = args
        largest, more = emit.variable(emit.splat(F64, WIDTH, 0.0)), emit.variable(emit.splat(I1, WIDTH, 0))

        def measure(number: Any, place: Any) -> None:
            size = emit.call("llvm.fabs", emit.load(builder.add(lines, place), SHAPE))
            builder.store(emit.better(size, builder.load(largest), ">"), largest)

        each_vector(builder, chunks, measure)
        bits = builder.bitcast(best_of(emit, builder.load(largest), ">"), vector(I64, WIDTH))
        power = builder.bitcast(builder.and_(bits, emit.splat(I64, WIDTH, 0x7FF << 52)), SHAPE)
        unit = builder.fmul(power, emit.splat(F64, WIDTH, 2.0 ** (1 - BITS)))
        back = builder.fdiv(emit.splat(F64, WIDTH, 1.0), unit)

        def compare(number: Any, place: Any) -> None:
            units = builder.fmul(emit.load(builder.add(lines, place), SHAPE), back)
            broken = builder.fcmp_unordered("!=", emit.call("llvm.rint", units), units)
            builder.store(builder.or_(builder.load(more), broken), more)

        each_vector(builder, chunks, compare)
        return builder.icmp_unsigned("!=", builder.bitcast(builder.load(more), I8), ir.Constant(I8, 0))

    return types.boolean(types.int64, types.int64), codegen


@intrinsic
def least_of_line(typing, line, across, chunks, kept):  # type: ignore[no-untyped-def]
    """The least S - v of what a row keeps, or infinity."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, across, chunks, kept = args
        none = emit.splat(F64, WIDTH, float("inf"))
        least = emit.variable(none)

        def fold(number: Any, place: Any) -> None:
            score, dual = (emit.load(builder.add(at, place), SHAPE) for at in (line, across))
            rest = builder.select(truths_of(builder, kept, number), builder.fsub(score, dual), none)
            builder.store(emit.better(rest, builder.load(least), "<"), least)

        each_vector(builder, chunks, fold)
        return builder.extract_element(best_of(emit, builder.load(least), "<"), ir.Constant(I32, 0))

    return types.float64(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def raise_line(typing, line, base, across, chunks, dropped):  # type: ignore[no-untyped-def]
    """Raise each v to the S - u that a row drops; which of them moved, as a word."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, base, across, chunks, dropped = args
        base = emit.broadcast(base, WIDTH)
        moved = emit.variable(ir.Constant(I64, 0))

        def lift(number: Any, place: Any) -> None:
            score, dual = (emit.load(builder.add(at, place), SHAPE) for at in (line, across))
            rest = builder.fsub(score, base)
            more = builder.and_(builder.fcmp_ordered(">", rest, dual), truths_of(builder, dropped, number))
            emit.store(builder.select(more, rest, dual), builder.add(across, place))
            builder.store(builder.or_(builder.load(moved), bits_of(builder, more, number)), moved)

        each_vector(builder, chunks, lift)
        return builder.load(moved)

    i8 = types.int64
    return i8(i8, types.float64, i8, i8, i8), codegen
