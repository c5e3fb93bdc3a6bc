"""Lines of four entries, many at once: which two are stored and under which code, and back.

A line holds one group at 2:4, two at 1:2 (`nmflow.kernels.pairs`), so both patterns keep two of its four entries. Entry
k of every line is one vector; a code is 4 bits a group, and at 1:2 the second group's is the upper half of a byte.
Codes are those of PTX (mma.sp, ordered metadata). A group that keeps fewer than it may is given the code that torch
2.13 gives it (torch.sparse._semi_structured_conversions), and zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from llvmlite import ir

from nmflow.kernels.simd import I8, I16, I32, Emitter, vector

__all__ = ["Lines4", "any_lane", "pack_nibbles", "unpack_nibbles"]

Value = Any


@dataclass(frozen=True)
class Lines4:
    """Operations on `count` lines of four entries."""

    emit: Emitter
    count: int

    def constant(self, value: int) -> ir.Constant:
        """A byte for each line."""
        return self.emit.splat(I8, self.count, value)

    def where(self, flags: Value, value: int) -> Value:
        """`value` as a byte where a flag is set, else 0."""
        return self.emit.builder.select(flags, self.constant(value), self.constant(0))

    def any_of(self, values: Sequence[Value]) -> Value:
        """The union of bits."""
        return reduce(self.emit.builder.or_, values)

    def flags_of(self, kept: Value) -> list[Value]:
        """Four flags a line from four bytes, each read as one 32-bit number."""
        b, none = self.emit.builder, self.emit.splat(I32, self.count, 0)
        return [
            b.icmp_unsigned("!=", b.and_(kept, self.emit.splat(I32, self.count, 0xFF << 8 * k)), none) for k in range(4)
        ]

    def bytes_of(self, tiles: Value, first: int) -> Value:
        """Four bytes a line, 0 or 1, as one 32-bit number: bits `first` to `first` + 3 of a 16-bit number."""
        b = self.emit.builder

        def constant(value: int) -> Value:
            return self.emit.splat(I32, self.count, value)

        line = b.and_(b.lshr(b.zext(tiles, vector(I32, self.count)), constant(first)), constant(15))
        spread = self.any_of([b.shl(line, constant(7 * k)) for k in range(4)])  # bit k to bit 8 k
        return b.and_(spread, constant(0x01010101))

    def choose(self, x: Sequence[Value], kept: Sequence[Value]) -> tuple[Value, Value, Value, Value]:
        """Compress at 2:4: the two stored entries, the code, and whether the line keeps too many."""
        b, zero = self.emit.builder, ir.Constant(x[0].type, None)
        k0, k1, k2, k3 = kept
        both, either = b.and_(k0, k1), b.or_(k0, k1)
        first = b.select(k0, x[0], b.select(k1, x[1], b.select(k2, x[2], zero)))
        second = b.select(k3, x[3], b.select(both, x[1], b.select(b.and_(k2, either), x[2], zero)))
        bit0, bit1 = b.and_(b.not_(k0), k1), b.not_(either)
        bit2, bit3 = self.any_of((both, bit1, k3)), b.or_(bit0, b.not_(k1))
        code = self.any_of([self.where(bit, 1 << place) for place, bit in enumerate((bit0, bit1, bit2, bit3))])
        many = b.or_(b.and_(both, b.or_(k2, k3)), b.and_(b.and_(k2, k3), either))
        return first, second, code, many

    def place(self, first: Value, second: Value, code: Value) -> tuple[list[Value], list[Value], Value]:
        """Expand at 2:4: the four entries, which of them the code indexes, and whether the code is undefined."""
        b, zero = self.emit.builder, ir.Constant(first.type, None)
        one, two = b.and_(code, self.constant(3)), b.lshr(code, self.constant(2))
        entries, at = [], []
        for k in range(4):
            at_one = b.icmp_unsigned("==", one, self.constant(k))
            at_two = b.icmp_unsigned("==", two, self.constant(k))
            entries.append(b.select(at_one, first, b.select(at_two, second, zero)))
            at.append(b.or_(at_one, at_two))
        return entries, at, b.icmp_unsigned(">=", one, two)


def any_lane(emit: Emitter, flags: Value) -> Value:
    """Flags as the bits of a 32-bit integer (32 lanes at most)."""
    count = flags.type.count
    packed = emit.builder.bitcast(flags, ir.IntType(count))
    return packed if count == 32 else emit.builder.zext(packed, I32)


def pack_nibbles(emit: Emitter, codes: Value) -> Value:
    """Two neighbouring 4-bit codes to a byte, the first in its lower half."""
    b, half = emit.builder, codes.type.count // 2
    pairs = b.bitcast(codes, vector(I16, half))
    return b.trunc(b.or_(pairs, b.lshr(pairs, emit.splat(I16, half, 4))), vector(I8, half))


def unpack_nibbles(emit: Emitter, packed: Value) -> Value:
    """Inverse of `pack_nibbles`."""
    b, half = emit.builder, packed.type.count
    wide = b.zext(packed, vector(I16, half))
    pairs = b.and_(b.or_(wide, b.shl(wide, emit.splat(I16, half, 4))), emit.splat(I16, half, 0x0F0F))
    return b.bitcast(pairs, vector(I8, 2 * half))
