"""Blocks whose scores repeat, in lanes: every one is moved a little, and duals of the true ones follow.

Among equal scores the ascent of `nmflow.kernels.ascent` has nothing to choose by. Offsets below the scores' grain, the
same for all blocks, decide; the mask that comes out is the best one of the moved scores, and so of the true ones where
only equal ones compete. Duals of these follow by Bellman-Ford, row by row, and prove it: a sweep that changes no column
dual leaves every score that is kept on or above u + v, and every other one on or below. Other blocks stay open.

Lanes are *narrow*, 14 bits in 16, or *wide*, 30 in 32. Nothing in a sweep is cut off while column duals have no more
bits than that; where they have, nothing is claimed.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 5.4 (label correcting).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.lanes import WORD, first_lanes, place_bit, words_in_row
from nmflow.kernels.segments import BIAS, BITS, VECTOR
from nmflow.kernels.simd import I16, I32, I64, LANES, Emitter, literal, loop, vector

__all__ = ["Width", "conclude_lanes", "correct_lanes", "restore_lanes", "round_lanes", "width_of"]

HELD = 16
"""Most column duals that stay in registers from row to row."""


class Width:
    """Lanes of one width: how numbers lie in memory, and the arithmetic on them.

    Attributes
    ----------
    bits, late : int
        Of a number, not counting its sign; and of these, that the first rounds of an ascent don't see.
    item, size : int
        Bytes of a number, and of a lane vector.
    """

    def __init__(self, wide: int) -> None:
        self.wide = bool(wide)
        self.element = I32 if wide else I16
        self.late = 16 if wide else 0
        self.bits = BITS + self.late
        self.size = 2 * VECTOR if wide else VECTOR
        self.item = self.size // LANES
        self.shape = vector(self.element, LANES)
        # a column dual of so many cannot make a sum of a sweep leave its lane
        self.limit = (1 << self.bits) - 1
        self.top = (1 << 31) - 1 if wide else (1 << 15) - 1

    def splat(self, emit: Emitter, value: int) -> Any:
        """One constant in all lanes."""
        return emit.splat(self.element, LANES, value)

    def broadcast(self, emit: Emitter, value: Any) -> Any:
        """One 64-bit integer in all lanes."""
        return emit.broadcast(emit.builder.trunc(value, self.element), LANES)

    def load(self, emit: Emitter, address: Any, place: int = 0) -> Any:
        """A lane vector, `place` vectors on."""
        return emit.load(emit.at(address, place * self.size), self.shape, VECTOR)

    def store(self, emit: Emitter, value: Any, address: Any, place: int = 0) -> None:
        """Store one."""
        emit.store(value, emit.at(address, place * self.size), VECTOR)

    def early(self, emit: Emitter, number: Any) -> Any:
        """What the first rounds see of a wide number: its upper bits, less the bias that narrow ones have already."""
        upper = emit.builder.ashr(number, self.splat(emit, self.late))
        return emit.builder.sub(emit.builder.trunc(upper, vector(I16, LANES)), emit.splat(I16, LANES, BIAS))

    def less(self, emit: Emitter, a: Any, b: Any) -> Any:
        """a - b; narrow lanes are cut off at 16 bits."""
        return emit.builder.sub(a, b) if self.wide else emit.call("llvm.ssub.sat", a, b)

    def ahead(self, emit: Emitter, address: Any, turn: Any, vectors: int = 1) -> Any:
        """Address of the lane vectors of a turn of a loop."""
        return emit.beyond(address, turn.index, vectors * self.size)


def width_of(wide: Any) -> Width:
    """The width that a literal argument names."""
    return Width(literal(wide))


@intrinsic(prefer_literal=True)
def round_lanes(typing, duals, grains, least, count, wide):  # type: ignore[no-untyped-def]
    """Round `count` lane vectors to multiples of the lowest bit that some number of a block has, or of `least`.

    grains : address of the bits that some number has. least : a power of two; the larger of the two counts.
    """
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        duals, grains, least = args[:3]
        none = lanes.splat(emit, 0)
        bits = lanes.load(emit, grains)
        back = builder.sub(none, builder.and_(bits, builder.sub(none, bits)))
        back = emit.call("llvm.smin", back, lanes.broadcast(emit, builder.neg(least)))
        half = builder.ashr(builder.sub(none, back), lanes.splat(emit, 1))
        with loop(builder, literal(count)) as turn:
            at = lanes.ahead(emit, duals, turn)
            lanes.store(emit, builder.and_(builder.add(lanes.load(emit, at), half), back), at)
        return context.get_dummy_value()

    return types.none(duals, grains, least, count, wide), codegen


@intrinsic(prefer_literal=True)
def correct_lanes(typing, numbers, words, u, v, inexact, limits, rows, cols, wide, loose):  # type: ignore[no-untyped-def]
    """One sweep over the rows: u to the least x - v that is kept, v up to every x - u that is not.

    limits : if `loose`, address of a lane vector for each row, the most that u may be.
    inexact : address of three lane vectors, read where lanes are wide: numbers from the first to the second may stand
    for more than they are, by less than the third. Returns the bits of the lanes in which some v moved.
    """
    rows_, cols_, lanes, loose_ = literal(rows), literal(cols), width_of(wide), bool(literal(loose))
    parts = words_in_row(cols_)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        numbers, words, u, v, inexact, limits = args[:6]
        none, top = lanes.splat(emit, 0), lanes.splat(emit, lanes.top)
        held = [emit.variable(lanes.load(emit, v, j)) for j in range(cols_)] if cols_ <= HELD else None
        changed = emit.variable(none)
        cut = [lanes.load(emit, inexact, k) for k in range(3)] if lanes.wide else []

        def dual(j: int) -> Any:
            return builder.load(held[j]) if held else lanes.load(emit, v, j)

        with loop(builder, rows_) as turn:
            line = lanes.ahead(emit, numbers, turn, cols_)
            word_at = emit.beyond(words, turn.index, parts * VECTOR)
            row = [emit.load(emit.at(word_at, p * VECTOR), vector(I16, LANES), VECTOR) for p in range(parts)]
            kept = [
                builder.icmp_signed(
                    "!=", builder.and_(row[j // WORD], place_bit(emit, j % WORD)), emit.splat(I16, LANES, 0)
                )
                for j in range(cols_)
            ]
            least = lanes.load(emit, lanes.ahead(emit, limits, turn)) if loose_ else top
            for j in range(cols_):
                rest = lanes.less(emit, lanes.load(emit, line, j), dual(j))
                least = emit.call("llvm.smin", least, builder.select(kept[j], rest, top))
            lanes.store(emit, least, lanes.ahead(emit, u, turn))
            for j in range(cols_):
                number, old = lanes.load(emit, line, j), dual(j)
                if cut:
                    inside = builder.and_(
                        builder.icmp_signed(">=", number, cut[0]), builder.icmp_signed("<=", number, cut[1])
                    )
                    number = builder.select(inside, builder.add(number, cut[2]), number)
                ahead = lanes.less(emit, number, least)
                raised = emit.call("llvm.smax", old, builder.select(kept[j], old, ahead))
                builder.store(builder.or_(builder.load(changed), builder.xor(raised, old)), changed)
                if held:
                    builder.store(raised, held[j])
                else:
                    lanes.store(emit, raised, v, j)
        for j, slot in enumerate(held or ()):
            lanes.store(emit, builder.load(slot), v, j)
        moved = builder.icmp_signed("!=", builder.load(changed), none)
        return builder.zext(builder.bitcast(moved, I32), I64)

    return types.int64(numbers, words, u, v, inexact, limits, rows, cols, wide, loose), codegen


@intrinsic(prefer_literal=True)
def restore_lanes(typing, duals, saved, chosen, count, wide):  # type: ignore[no-untyped-def]
    """Put back what was saved of `count` lane vectors, in the lanes whose bits are `chosen`."""
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        duals, saved, chosen = args[:3]
        back = builder.bitcast(builder.trunc(chosen, I32), vector(ir.IntType(1), LANES))
        with loop(builder, literal(count)) as turn:
            at = lanes.ahead(emit, duals, turn)
            old = lanes.load(emit, lanes.ahead(emit, saved, turn))
            lanes.store(emit, builder.select(back, old, lanes.load(emit, at)), at)
        return context.get_dummy_value()

    return types.none(duals, saved, chosen, count, wide), codegen


@intrinsic(prefer_literal=True)
def conclude_lanes(  # type: ignore[no-untyped-def]
    typing, u, v, slack, faults, changed, part, room, here, rows, cols, wide, loose
):
    """The bits of the first `here` blocks that are not proven.

    A block is proven where its last sweep changed nothing, it has no fault, its column duals are within the limit, and
    the largest remainders of its row and its column duals to multiples of `part` + 1, a power of two, add up to less
    than `room`. slack : if `loose`, address of a lane vector that is taken from column duals and added to row duals.
    """
    rows_, cols_, lanes, loose_ = literal(rows), literal(cols), width_of(wide), bool(literal(loose))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        u, v, slack, faults, changed, part, room, here = args[:8]
        none = lanes.splat(emit, 0)
        high = low = lanes.load(emit, v)
        for j in range(1, cols_):
            high = emit.call("llvm.smax", high, lanes.load(emit, v, j))
            low = emit.call("llvm.smin", low, lanes.load(emit, v, j))
        proven = builder.and_(
            builder.icmp_signed("<=", high, lanes.splat(emit, lanes.limit)),
            builder.icmp_signed(">=", low, lanes.splat(emit, -lanes.limit)),
        )
        for duals, lines, move in ((u, rows_, builder.add), (v, cols_, builder.sub)) if loose_ else ():
            share = lanes.load(emit, slack)
            with loop(builder, lines) as turn:
                at = lanes.ahead(emit, duals, turn)
                lanes.store(emit, move(lanes.load(emit, at), share), at)
        part, room = lanes.broadcast(emit, part), lanes.broadcast(emit, room)
        whole = builder.add(part, lanes.splat(emit, 1))
        rests = []
        for duals, lines in ((u, rows_), (v, cols_)):
            largest = emit.variable(none)
            with loop(builder, lines) as turn:
                rest = builder.and_(lanes.load(emit, lanes.ahead(emit, duals, turn)), part)
                rest = emit.call("llvm.smin", rest, builder.sub(whole, rest))
                builder.store(emit.call("llvm.smax", builder.load(largest), rest), largest)
            rests.append(builder.load(largest))
        proven = builder.and_(proven, builder.icmp_signed("<", builder.add(*rests), room))
        right = emit.load(faults, vector(I16, LANES), VECTOR)
        proven = builder.and_(proven, builder.icmp_signed("==", right, emit.splat(I16, LANES, 0)))
        still = builder.bitcast(builder.not_(builder.trunc(changed, I32)), proven.type)
        open_lanes = builder.and_(builder.not_(builder.and_(proven, still)), first_lanes(emit, here))
        return builder.zext(builder.bitcast(open_lanes, I32), I64)

    return types.int64(u, v, slack, faults, changed, part, room, here, rows, cols, wide, loose), codegen
