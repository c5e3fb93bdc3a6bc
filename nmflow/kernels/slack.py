"""Lines that need not be full, in the lanes of `nmflow.kernels.untie`.

A block has a slack node then, whose dual is 0: a line that keeps less than its budget sends the rest there, so its dual
is 0 too, and no dual is negative. As if there were one more column and one more row of scores 0: `loosen_lanes` takes
both through a sweep of `nmflow.kernels.tied`. The dual of that column is the slack; it only rises, as those of the
others do. In the end it is taken from all column duals and added to all row duals.

`zero` is the number that stands for a score of 0.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nmflow.kernels.lanes import WORD, place_bit, words_in_row
from nmflow.kernels.moved import ZOOM, ends
from nmflow.kernels.segments import BIAS, VECTOR
from nmflow.kernels.simd import I1, I16, I32, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.tied import width_of

__all__ = ["balance_lanes", "first_floors", "limit_rows", "loosen_lanes", "magnify_floors", "place_zero", "short_lines"]

SHAPE = vector(I16, LANES)


@intrinsic(prefer_literal=True)
def place_zero(typing, zero, low, shift, lows, shifts, wide, cut):  # type: ignore[no-untyped-def]
    """Write the number of a score of 0: that of a lattice from `low` on, or of `cut` scores from lanes of lows."""
    lanes, cut_ = width_of(wide), bool(literal(cut))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        zero, low, shift, lows, shifts = args[:5]
        if cut_:
            number = builder.shl(builder.neg(lanes.load(emit, lows)), lanes.load(emit, shifts))
        else:
            number = lanes.broadcast(emit, builder.shl(builder.neg(builder.fptosi(low, I64)), shift))
            number = number if lanes.wide else builder.sub(number, emit.splat(I16, LANES, BIAS))
        lanes.store(emit, number, zero)
        return context.get_dummy_value()

    return types.none(zero, types.float64, shift, lows, shifts, wide, cut), codegen


@intrinsic(prefer_literal=True)
def first_floors(typing, zero, floors, rows, cols, wide):  # type: ignore[no-untyped-def]
    """Write the least duals of rows, then of columns, as `nmflow.kernels.moved.move_lanes` has numbers."""
    rows_, cols_, lanes = literal(rows), literal(cols), width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        number = lanes.load(emit, args[0])
        if lanes.wide:
            number = lanes.early(emit, number)
        for t in range(rows_ + cols_):
            emit.store(number if t < rows_ else emit.splat(I16, LANES, 0), emit.at(args[1], t * VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(zero, floors, rows, cols, wide), codegen


@intrinsic(prefer_literal=True)
def magnify_floors(typing, zero, floors, duals, down, bits, rows, cols, wide):  # type: ignore[no-untyped-def]
    """The same as `nmflow.kernels.moved.magnify_lanes` has them: what is left beside duals of rows, then of columns."""
    rows_, cols_, lanes = literal(rows), literal(cols), width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        zero, floors, duals, down, bits = args[:5]
        high, low = ends(emit, lanes, bits)
        down = lanes.broadcast(emit, down)
        for t in range(rows_ + cols_):
            dual, at = lanes.load(emit, duals, t), emit.at(floors, t * VECTOR)
            if lanes.wide:
                floor = lanes.load(emit, zero) if t < rows_ else lanes.splat(emit, 0)
                rest = builder.ashr(builder.sub(floor, dual), down)
            else:
                rest = lanes.less(emit, emit.load(at, SHAPE, VECTOR), dual)
            rest = emit.call("llvm.smax", emit.call("llvm.smin", rest, high), low)
            rest = builder.trunc(rest, SHAPE) if lanes.wide else builder.shl(rest, lanes.splat(emit, ZOOM))
            emit.store(rest, at, VECTOR)
        return context.get_dummy_value()

    return types.none(zero, floors, duals, down, bits, rows, cols, wide), codegen


@intrinsic(prefer_literal=True)
def short_lines(typing, words, short, faults, rows, cols, r, c):  # type: ignore[no-untyped-def]
    """Which lines keep less than their budget, and lanes that are not 0 where one keeps more.

    words : as `choose_lanes` writes masks. short : output: a lane vector for each row, -1 where it is short, and then
    the columns that are as bits, as in a row of the mask.
    """
    rows_, cols_, r_, c_ = (literal(x) for x in (rows, cols, r, c))
    parts = words_in_row(cols_)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        words, short, faults = args[:3]
        none = emit.splat(I16, LANES, 0)
        wrong, budget = emit.variable(none), emit.splat(I16, LANES, r_)
        counts = [[emit.variable(none) for _ in range(rows_.bit_length())] for _ in range(parts)]
        with loop(builder, rows_) as turn:
            at, count = emit.beyond(words, turn.index, parts * VECTOR), none
            for p, digits in enumerate(counts):
                word = emit.load(emit.at(at, p * VECTOR), SHAPE, VECTOR)
                count = builder.add(count, emit.call("llvm.ctpop", word))
                for digit in digits:  # the columns' counts, a bit of all of them at a time
                    old = builder.load(digit)
                    builder.store(builder.xor(old, word), digit)
                    word = builder.and_(old, word)
            lacking = builder.sext(builder.icmp_signed("<", count, budget), SHAPE)
            emit.store(lacking, emit.beyond(short, turn.index, VECTOR), VECTOR)
            over = builder.sext(builder.icmp_signed(">", count, budget), SHAPE)
            builder.store(builder.or_(builder.load(wrong), over), wrong)
        for p, digits in enumerate(counts):
            width = min(WORD, cols_ - WORD * p)
            every = emit.splat(I16, LANES, -1 if width == WORD else (1 << width) - 1)
            less, same, more = none, every, none  # than the budget, judged from the highest bit down
            for d in reversed(range(len(digits))):
                digit = builder.load(digits[d])
                if c_ >> d & 1:
                    less = builder.or_(less, builder.and_(same, builder.not_(digit)))
                    same = builder.and_(same, digit)
                else:
                    more = builder.or_(more, builder.and_(same, digit))
                    same = builder.and_(same, builder.not_(digit))
            emit.store(less, emit.at(short, (rows_ + p) * VECTOR), VECTOR)
            builder.store(builder.or_(builder.load(wrong), more), wrong)
        emit.store(builder.load(wrong), faults, VECTOR)
        return context.get_dummy_value()

    return types.none(words, short, faults, rows, cols, r, c), codegen


@intrinsic(prefer_literal=True)
def limit_rows(typing, zero, slack, short, limits, rows, wide):  # type: ignore[no-untyped-def]
    """Write the most that the duals of rows may be: that of the slack column, where rows are short."""
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        zero, slack, short, limits = args[:4]
        most = lanes.less(emit, lanes.load(emit, zero), lanes.load(emit, slack))
        top, none = lanes.splat(emit, lanes.top), emit.splat(I16, LANES, 0)
        with loop(builder, literal(rows)) as turn:
            lacking = emit.load(emit.beyond(short, turn.index, VECTOR), SHAPE, VECTOR)
            lacking = builder.icmp_signed("!=", lacking, none)
            lanes.store(emit, builder.select(lacking, most, top), lanes.ahead(emit, limits, turn))
        return context.get_dummy_value()

    return types.none(zero, slack, short, limits, rows, wide), codegen


@intrinsic(prefer_literal=True)
def loosen_lanes(typing, zero, slack, short, u, v, rows, cols, wide):  # type: ignore[no-untyped-def]
    """The part of the slack in a sweep: up to what rows and short columns ask for, and all columns up to it.

    Returns the bits of the lanes in which it or some v moved.
    """
    rows_, cols_, lanes = literal(rows), literal(cols), width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        zero, slack, short, u, v = args[:5]
        number, old = lanes.load(emit, zero), lanes.load(emit, slack)
        raised = emit.variable(old)
        with loop(builder, rows_) as turn:
            rest = lanes.less(emit, number, lanes.load(emit, lanes.ahead(emit, u, turn)))
            builder.store(emit.call("llvm.smax", builder.load(raised), rest), raised)
        fresh, none = builder.load(raised), emit.splat(I16, LANES, 0)
        lacking = [emit.load(emit.at(short, (rows_ + p) * VECTOR), SHAPE, VECTOR) for p in range(words_in_row(cols_))]
        for j in range(cols_):
            one = builder.and_(lacking[j // WORD], place_bit(emit, j % WORD))
            wanted = builder.select(builder.icmp_signed("!=", one, none), lanes.load(emit, v, j), fresh)
            fresh = emit.call("llvm.smax", fresh, wanted)
        changed = builder.xor(fresh, old)
        for j in range(cols_):
            dual = lanes.load(emit, v, j)
            higher = emit.call("llvm.smax", dual, fresh)
            changed = builder.or_(changed, builder.xor(higher, dual))
            lanes.store(emit, higher, v, j)
        lanes.store(emit, fresh, slack)
        moved = builder.icmp_signed("!=", changed, lanes.splat(emit, 0))
        return builder.zext(builder.bitcast(moved, I32), I64)

    return types.int64(zero, slack, short, u, v, rows, cols, wide), codegen


@intrinsic(prefer_literal=True)
def balance_lanes(typing, zero, slack, u, v, chosen, rows, cols, wide):  # type: ignore[no-untyped-def]
    """In the lanes whose bits are chosen, the slack that leaves the least duals of rows and of columns alike."""
    rows_, cols_, lanes = literal(rows), literal(cols), width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        zero, slack, u, v, chosen = args[:5]
        least_u, least_v = lanes.load(emit, u), lanes.load(emit, v)
        for i in range(1, rows_):
            least_u = emit.call("llvm.smin", least_u, lanes.load(emit, u, i))
        for j in range(1, cols_):
            least_v = emit.call("llvm.smin", least_v, lanes.load(emit, v, j))
        apart = lanes.less(emit, least_v, lanes.less(emit, least_u, lanes.load(emit, zero)))
        middle = builder.ashr(apart, lanes.splat(emit, 1))
        here = builder.bitcast(builder.trunc(chosen, I32), vector(I1, LANES))
        lanes.store(emit, builder.select(here, middle, lanes.load(emit, slack)), slack)
        return context.get_dummy_value()

    return types.none(zero, slack, u, v, chosen, rows, cols, wide), codegen
