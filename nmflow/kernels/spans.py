"""Spans: a few neighbouring blocks where they lie in the matrix, a vector wide, and the counts of their lines.

Counting needs no transpose here: a column's count adds up down the rows, and a row's count is a population count of
the comparison's bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from nmflow.kernels.lanes import WORD, words_in_row
from nmflow.kernels.scores import ScoreKind
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import I1, I8, I16, I64, LANES, Emitter, vector

__all__ = ["Lines", "blocks_in_span"]

Value = Any


def blocks_in_span(cols: int) -> int:
    """Blocks side by side that fill a vector of 32 entries."""
    return max(1, 32 // cols)


@dataclass(frozen=True)
class Lines:
    """The lines of `groups` blocks side by side, and what their counts must be.

    `row_fill` and `col_fill` are 2 for exact, 1 for at most, 0 for free.
    """

    groups: int
    cols: int
    row_budget: int
    col_budget: int
    row_fill: int
    col_fill: int

    @property
    def width(self) -> int:
        """Entries of a row of the blocks together."""
        return self.groups * self.cols

    def spread(self, emit: Emitter, address: Value, kind: ScoreKind) -> Value:
        """Load a number for each block and repeat it over the block's columns."""
        numbers = emit.load(address, vector(kind.work, self.groups))
        return emit.pick(numbers, [t // self.cols for t in range(self.width)])

    def spread_words(self, emit: Emitter, address: Value, row: Value) -> Value:
        """Truth values of a row of the mask, from bits in lanes as `nmflow.kernels.lanes` lays them out."""
        builder, parts = emit.builder, words_in_row(self.cols)
        at = emit.beyond(address, row, parts * VECTOR)
        # LLVM can't shift vectors of just any length
        size = 64 if self.width > LANES else LANES
        places = [divmod(t if t < self.width else 0, self.cols) for t in range(size)]
        chosen = None
        for p in range(parts):
            word = emit.load(emit.at(at, p * VECTOR), vector(I16, self.groups))
            word = emit.pick(word, [block for block, _ in places])
            lanes = [t + size * (j // WORD == p) for t, (_, j) in enumerate(places)]
            chosen = word if chosen is None else emit.shuffle(chosen, word, lanes)
        moved = builder.lshr(chosen, ir.Constant(vector(I16, size), [j % WORD for _, j in places]))
        kept = builder.trunc(moved, vector(I1, size))
        return kept if size == self.width else emit.pick(kept, range(self.width))

    def faulty(self, emit: Emitter, address: Value) -> Value:
        """Truth values of the entries of blocks whose 16 bits there are not 0."""
        faults = emit.load(address, vector(I16, self.groups))
        faults = emit.pick(faults, [t // self.cols for t in range(self.width)])
        return emit.builder.icmp_signed("!=", faults, emit.splat(I16, self.width, 0))

    def bits(self, emit: Emitter, flags: Value) -> Value:
        """A vector of truth values as the bits of a 64-bit integer; each block owns a field of `cols` bits."""
        packed = emit.builder.bitcast(flags, ir.IntType(flags.type.count))
        if flags.type.count == 64:
            return packed
        return emit.builder.zext(packed, I64)

    def field(self, emit: Emitter, bits: Value, group: int) -> Value:
        """One block's bits."""
        moved = emit.builder.lshr(bits, ir.Constant(I64, group * self.cols)) if group else bits
        return emit.builder.and_(moved, ir.Constant(I64, (1 << self.cols) - 1)) if self.groups > 1 else moved

    def every(self, value: int) -> ir.Constant:
        """An integer with `value` in each block's field."""
        return ir.Constant(I64, sum(value << (g * self.cols) for g in range(self.groups)))

    def rows_wrong(self, emit: Emitter, kept: Value, duals: Value) -> tuple[Value, Value]:
        """Fields that are not 0 where a row's count breaks the pattern, and where it is slack though its dual is not 0.

        kept : bits of one row of the mask. duals : row duals, spread.
        """
        builder, none = emit.builder, ir.Constant(I64, 0)
        power_of_two = self.cols & (self.cols - 1) == 0
        if self.row_fill == 2 and self.groups > 1 and power_of_two:
            return builder.xor(self._field_counts(emit, kept), self.every(self.row_budget)), none
        over = slack = none
        for g in range(self.groups):
            count = emit.scalar("llvm.ctpop.i64", self.field(emit, kept, g))
            budget = ir.Constant(I64, self.row_budget)
            place = ir.Constant(I64, g * self.cols)
            test = "!=" if self.row_fill == 2 else ">"
            over = builder.or_(over, builder.shl(builder.zext(builder.icmp_unsigned(test, count, budget), I64), place))
            if self.row_fill == 1:
                room = builder.icmp_unsigned("<", count, budget)
                slack = builder.or_(slack, builder.shl(builder.zext(room, I64), place))
        if self.row_fill == 1:
            zero = emit.splat(duals.type.element, self.width, 0.0)
            free = self.bits(emit, builder.fcmp_unordered("!=", duals, zero))
            negative = self.bits(emit, builder.fcmp_unordered("<", duals, zero))
            slack = builder.or_(builder.and_(slack, free), negative)
        return over, slack

    def cols_wrong(self, emit: Emitter, counts: Value, duals: Value) -> tuple[Value, Value]:
        """The same for columns; counts : vector of bytes. duals : column duals."""
        builder, none = emit.builder, ir.Constant(I64, 0)
        if self.col_fill == 0:
            zero = emit.splat(duals.type.element, self.width, 0.0)
            return none, self.bits(emit, builder.fcmp_unordered("!=", duals, zero))
        budget = emit.splat(I8, self.width, self.col_budget)
        if self.col_fill == 2:
            return self.bits(emit, builder.icmp_unsigned("!=", counts, budget)), none
        zero = emit.splat(duals.type.element, self.width, 0.0)
        room = builder.icmp_unsigned("<", counts, budget)
        slack = builder.and_(room, builder.fcmp_unordered("!=", duals, zero))
        slack = builder.or_(slack, builder.fcmp_unordered("<", duals, zero))
        return self.bits(emit, builder.icmp_unsigned(">", counts, budget)), self.bits(emit, slack)

    def _field_counts(self, emit: Emitter, bits: Value) -> Value:
        """Population count of each field, in the field (fields of 2, 4, 8 or 16 bits), by adding halves."""
        builder = emit.builder

        def constant(pattern: int) -> ir.Constant:
            return ir.Constant(I64, pattern)

        half = 1
        masks = {1: 0x5555555555555555, 2: 0x3333333333333333, 4: 0x0F0F0F0F0F0F0F0F, 8: 0x00FF00FF00FF00FF}
        while half < self.cols:
            low = builder.and_(bits, constant(masks[half]))
            high = builder.and_(builder.lshr(bits, constant(half)), constant(masks[half]))
            bits = builder.add(low, high)
            half *= 2
        return bits

    def write_flags(self, emit: Emitter, address: Value, wrong: Value, unsure: Value) -> None:
        """A byte for each block: 2 where `wrong` has a bit in its field, else 1 where `unsure` has, else 0."""
        builder = emit.builder
        none = ir.Constant(I64, 0)
        emit.store(emit.splat(I8, self.groups, 0), address)
        any_bit = builder.icmp_unsigned("!=", builder.or_(wrong, unsure), none)
        with builder.if_then(any_bit, likely=False):
            for g in range(self.groups):
                two = builder.icmp_unsigned("!=", self.field(emit, wrong, g), none)
                one = builder.icmp_unsigned("!=", self.field(emit, unsure, g), none)
                flag = builder.select(two, ir.Constant(I8, 2), builder.zext(one, I8))
                emit.store(flag, emit.at(address, g))

    def proven(self, emit: Emitter, faults: Value) -> Value:
        """Truth values of the entries whose block's field in `faults` is 0."""
        builder = emit.builder
        good = ir.Constant(I64, 0)
        for g in range(self.groups):
            clean = builder.icmp_unsigned("==", self.field(emit, faults, g), ir.Constant(I64, 0))
            every = ir.Constant(I64, ((1 << self.cols) - 1) << (g * self.cols))
            good = builder.or_(good, builder.select(clean, every, ir.Constant(I64, 0)))
        if self.width < 64:
            good = builder.trunc(good, ir.IntType(self.width))
        return builder.bitcast(good, vector(I1, self.width))

    def truths(self, emit: Emitter, address: Value) -> Value:
        """Load a row of the mask as truth values."""
        return emit.truths(address, self.width)

    def bytes_of(self, emit: Emitter, flags: Value) -> Value:
        """Truth values as bytes 0 and 1."""
        return emit.builder.zext(flags, vector(I8, self.width))
