"""Masks made and proven in lanes: 32 blocks at once, in whole numbers, under exact fill.

A lane holds q = floor(S / unit), and its duals are whole numbers U and V of that unit. Whatever was cut off a score,

    S >= (U + V) * unit  if and only if  q >= U + V,

so keeping what has q - V >= U is right for the scores themselves: what is kept has S - u - v >= 0 and what is not
has S - u - v < 0, as real numbers. No float is compared, and nothing rounds: the power of two that scales a score is
exact, or brings it below 1 where only its floor matters. q - V is a saturating subtraction, and U > -2**15, so cutting
off at 16 bits changes no comparison either. What is left to check is that each line keeps its budget.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE
from nmflow.kernels.segments import VECTOR, exponents
from nmflow.kernels.simd import F64, I8, I16, I32, I64, LANES, Emitter, literal, loop, vector

__all__ = [
    "WORD",
    "choose_lanes",
    "first_lanes",
    "level_lanes",
    "place_bit",
    "prove_lanes",
    "spread_lanes",
    "words_in_row",
    "write_masks",
    "write_words",
]

WORD = 16
"""Entries of a row whose places in the mask are the bits of one lane."""


def words_in_row(cols: int) -> int:
    """Lane vectors that hold a row of a block's mask as bits."""
    return -(-cols // WORD)


@intrinsic(prefer_literal=True)
def level_lanes(typing, rows_at, cols_at, rows, cols, bias):  # type: ignore[no-untyped-def]
    """Move what rows and columns share so that their least duals are alike, and cut off what is below 0 then.

    Nothing is claimed of these duals but that they are not negative: what they prove is proven after.
    """
    rows_, cols_, bias_ = literal(rows), literal(cols), literal(bias)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, kind = Emitter(builder), vector(I16, LANES)
        sides = [[emit.at(at, t * VECTOR) for t in range(n)] for at, n in ((args[0], rows_), (args[1], cols_))]
        u, v = ([emit.load(place, kind, VECTOR) for place in side] for side in sides)
        least_u, least_v = (functools.reduce(lambda a, b: emit.call("llvm.smin", a, b), side) for side in (u, v))
        floor, none = emit.splat(I16, LANES, -bias_), emit.splat(I16, LANES, 0)
        apart = emit.call("llvm.ssub.sat", least_v, emit.call("llvm.ssub.sat", least_u, floor))
        share = builder.ashr(apart, emit.splat(I16, LANES, 1))
        for place, dual in zip(sides[0], u, strict=True):
            emit.store(emit.call("llvm.smax", emit.call("llvm.sadd.sat", dual, share), floor), place, VECTOR)
        for place, dual in zip(sides[1], v, strict=True):
            emit.store(emit.call("llvm.smax", emit.call("llvm.ssub.sat", dual, share), none), place, VECTOR)
        return context.get_dummy_value()

    return types.none(rows_at, cols_at, rows, cols, bias), codegen


@intrinsic(prefer_literal=True)
def prove_lanes(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, scales, words, faults, sums, here, kind, rows, cols, absolute
):
    """Write the masks of 32 neighbouring blocks; the bits of those of the first `here` lanes that are not proven.

    scores, mask : addresses where the blocks lie side by side. words, faults : as `choose_lanes` writes them.
    sums : address of 32 float64, to which the kept scores of the blocks that are proven are added.
    A block whose duals may be too large for the work type is not proven.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, scales, words, faults, sums, here = args[:9]
        shape, none = vector(I16, LANES), emit.splat(I16, LANES, 0)
        wrong = builder.or_(
            _too_large(emit, emit.load(scales, vector(kind_.work, LANES)), kind_), emit.load(faults, shape, VECTOR)
        )
        proven = builder.icmp_signed("==", wrong, none)
        real = first_lanes(emit, here)
        good = builder.sext(builder.and_(proven, real), shape)
        write_masks(emit, scores, stride, mask, mask_stride, words, sums, good, kind_, rows_, cols_, absolute_)
        left = builder.and_(builder.not_(proven), real)
        return builder.zext(builder.bitcast(left, I32), I64)

    arguments = scores, stride, mask, mask_stride, scales, words, faults, sums, here, kind, rows, cols, absolute
    return types.int64(*arguments), codegen


@intrinsic(prefer_literal=True)
def spread_lanes(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, words, open_lanes, sums, here, kind, rows, cols, absolute
):
    """Write the masks of 32 neighbouring blocks.

    sums : address of 32 float64, to which the kept scores of the first `here` blocks are added that are not open.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, words, open_lanes, sums, here = args[:8]
        real = first_lanes(emit, here)
        closed = builder.not_(builder.bitcast(builder.trunc(open_lanes, I32), real.type))
        good = builder.sext(builder.and_(closed, real), vector(I16, LANES))
        write_masks(emit, scores, stride, mask, mask_stride, words, sums, good, kind_, rows_, cols_, absolute_)
        return context.get_dummy_value()

    arguments = scores, stride, mask, mask_stride, words, open_lanes, sums, here, kind, rows, cols, absolute
    return types.none(*arguments), codegen


@intrinsic(prefer_literal=True)
def choose_lanes(typing, lanes, rows_at, cols_at, words, faults, rows, cols, r, c):  # type: ignore[no-untyped-def]
    """Write what lies on or above the duals as bits; faults : address of lanes, not 0 where a budget is broken.

    c : 0 where columns are free.
    """
    rows_, cols_, r_, c_ = (literal(x) for x in (rows, cols, r, c))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        lanes, rows_at, cols_at, words, faults = args[:5]
        emit.store(write_words(emit, lanes, rows_at, cols_at, words, rows_, cols_, r_, c_ or None), faults, VECTOR)
        return context.get_dummy_value()

    return types.none(lanes, rows_at, cols_at, words, faults, rows, cols, r, c), codegen


def write_words(
    emit: Emitter, lanes: Any, rows_at: Any, cols_at: Any, words: Any, rows: int, cols: int, r: int, c: int | None
) -> Any:
    """Write as bits what lies on or above the duals; lanes that are not 0 where a line does not keep its budget.

    c : None where columns are free. Row duals that are the least of 16 bits become the next: see above.
    """
    builder = emit.builder
    parts = words_in_row(cols)
    widths = [min(WORD, cols - WORD * p) for p in range(parts)]
    shape, none = vector(I16, LANES), emit.splat(I16, LANES, 0)
    faults = emit.variable(none)
    counts = [[emit.variable(none) for _ in range(rows.bit_length())] for _ in range(parts)]
    with loop(builder, rows) as turn:
        ahead = builder.mul(turn.index, ir.Constant(I64, VECTOR))
        line = emit.beyond(lanes, turn.index, cols * VECTOR)
        place = builder.add(rows_at, ahead)
        dual = emit.call("llvm.smax", emit.load(place, shape, VECTOR), emit.splat(I16, LANES, -32767))
        emit.store(dual, place, VECTOR)
        row_count = none
        for p in range(parts):
            word = none
            for t in range(widths[p]):
                at = (WORD * p + t) * VECTOR
                across = emit.load(emit.at(cols_at, at), shape, VECTOR)
                rest = emit.call("llvm.ssub.sat", emit.load(emit.at(line, at), shape, VECTOR), across)
                kept = builder.icmp_signed(">=", rest, dual)
                word = builder.select(kept, builder.add(word, place_bit(emit, t)), word)
            to = emit.beyond(words, turn.index, parts * VECTOR)
            emit.store(word, emit.at(to, p * VECTOR), VECTOR)
            row_count = builder.add(row_count, emit.call("llvm.ctpop", word))
            carry = word  # the columns' counts, a bit of all of them at a time
            for digit in counts[p]:
                old = builder.load(digit)
                builder.store(builder.xor(old, carry), digit)
                carry = builder.and_(old, carry)
        wrong = builder.xor(row_count, emit.splat(I16, LANES, r))
        builder.store(builder.or_(builder.load(faults), wrong), faults)
    for p, width in enumerate(widths):
        if c is None:
            break
        for d, digit in enumerate(counts[p]):
            wanted = (1 << width) - 1 if c >> d & 1 else 0
            wanted -= 1 << 16 if wanted >> 15 else 0
            wrong = builder.xor(builder.load(digit), emit.splat(I16, LANES, wanted))
            builder.store(builder.or_(builder.load(faults), wrong), faults)
    return builder.load(faults)


def place_bit(emit: Emitter, place: int) -> Any:
    """The bit of an entry in the word of its row, in every lane."""
    return emit.splat(I16, LANES, (1 << place) - (1 << 16 if place == 15 else 0))


def first_lanes(emit: Emitter, count: Any) -> Any:
    """Truth values of the first lanes."""
    number = ir.Constant(vector(I16, LANES), list(range(LANES)))
    return emit.builder.icmp_signed("<", number, emit.broadcast(emit.builder.trunc(count, I16), LANES))


def _too_large(emit: Emitter, unit: Any, kind: Any) -> Any:
    """Lanes that are not 0 where 2**17 steps are beyond the work type."""
    builder = emit.builder
    raw, _, bias = kind.work_fields
    beyond = builder.icmp_signed(">", exponents(emit, unit, kind), emit.splat(raw, LANES, 2 * bias - 18))
    return builder.zext(beyond, vector(I16, LANES))


def write_masks(
    emit: Emitter, scores: Any, stride: Any, mask: Any, mask_stride: Any, words: Any, sums: Any, good: Any,
    kind: Any, rows: int, cols: int, absolute: bool,
) -> None:  # fmt: skip
    """Spread the bits of good lanes over the bytes of the mask, and add the scores that they keep to the sums."""
    builder = emit.builder
    parts = words_in_row(cols)
    total = emit.variable(emit.splat(F64, LANES, 0.0))
    at, to = emit.variable(scores), emit.variable(mask)
    with loop(builder, rows) as turn:
        row = emit.beyond(words, turn.index, parts * VECTOR)
        bits = [
            builder.and_(emit.load(emit.at(row, p * VECTOR), vector(I16, LANES), VECTOR), good) for p in range(parts)
        ]
        for k in range(cols):
            # entry t of this vector is in column t % cols of block t // cols
            entries = [divmod(k * LANES + t, cols) for t in range(LANES)]
            chosen = emit.pick(bits[0], [block for block, _ in entries])
            for p in range(1, parts):
                chosen = emit.shuffle(
                    chosen, bits[p], [LANES + b if j // WORD == p else t for t, (b, j) in enumerate(entries)]
                )
            places = [1 << (j % WORD) for _, j in entries]
            places = [place - (1 << 16) if place >> 15 else place for place in places]
            one_bit = builder.and_(chosen, ir.Constant(vector(I16, LANES), places))
            kept = builder.icmp_signed("!=", one_bit, emit.splat(I16, LANES, 0))
            emit.store(builder.zext(kept, vector(I8, LANES)), emit.at(builder.load(to), k * LANES))
            share = kind.load_kept(emit, emit.at(builder.load(at), k * LANES * kind.itemsize), kept, absolute)
            builder.store(builder.fadd(builder.load(total), share), total)
        builder.store(builder.add(builder.load(at), stride), at)
        builder.store(builder.add(builder.load(to), mask_stride), to)
    scale = emit.splat(F64, LANES, kind.kept_scale(absolute))
    share = builder.fmul(builder.load(total), scale)
    emit.store(builder.fadd(emit.load(sums, vector(F64, LANES)), share), sums)
