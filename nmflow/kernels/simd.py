"""Vectors of LLVM inside Numba: the few operations that the kernels are written in.

Numba has no vector type, and LLVM's own vectoriser neither finds 16-bit lanes in Numba's 64-bit integers nor a
transpose by shuffles. So the kernels write their inner parts as vector code through these helpers; LLVM maps a vector
to whatever registers the machine has. Everything is integer or exactly rounded, so results are the same on each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

__all__ = [
    "LANES",
    "Emitter",
    "literal",
]

LANES = 32
"""Blocks side by side in a vector: 32 x 16 bits fill an AVX-512 register, or two of AVX2."""

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
PARTS = (16, 4, 1)
"""Entries of a row of a block at a time, where its length is not known."""
Value = Any


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """Type of `count` elements."""
    return ir.VectorType(element, count)


def literal(value: Any) -> int:
    """The value of an argument that Numba knows at compile time."""
    return int(value.literal_value)


def loop(builder: Any, count: int) -> Any:
    """A loop with a fixed number of turns, as a context."""
    return cgutils.for_range(builder, ir.Constant(I64, count))


class Emitter:
    """Writes vector operations at the builder's place."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        self.module = builder.module

    def splat(self, element: ir.Type, count: int, value: float) -> ir.Constant:
        """A vector of one constant."""
        return ir.Constant(vector(element, count), [value] * count)

    def broadcast(self, value: Value, count: int) -> Value:
        """A vector of one run-time value."""
        kind = vector(value.type, count)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, first, ir.Constant(vector(I32, count), [0] * count))

    def at(self, address: Value, offset: int) -> Value:
        """Address plus a constant number of bytes."""
        return self.builder.add(address, ir.Constant(I64, offset)) if offset else address

    def variable(self, value: Value) -> Value:
        """A local variable (LLVM turns it into a register)."""
        slot = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, slot)
        return slot

    def scalar(self, full_name: str, value: Value) -> Value:
        """Call an LLVM intrinsic on one number, by its full name, such as llvm.ctpop.i64."""
        kind = ir.FunctionType(value.type, [value.type])
        return self.builder.call(cgutils.get_or_insert_function(self.module, kind, full_name), [value])

    def parts(self, count: Value, sizes: Sequence[int]) -> Iterator[tuple[Value, int]]:
        """Loops that together go over `count` places, so many at a time: the first of these, and how many they are.

        sizes : from the largest to 1, each a multiple of the next.
        """
        start: Value = ir.Constant(I64, 0)
        for size in sizes:
            step = ir.Constant(I64, size)
            end = self.builder.sub(count, self.builder.srem(count, step))
            with cgutils.for_range_slice(self.builder, start, end, step, I64) as (place, _):
                yield place, size
            start = end

    def beyond(self, address: Value, place: Value, size: Value | int) -> Value:
        """Address `place` entries of `size` bytes on."""
        by = ir.Constant(I64, size) if isinstance(size, int) else size
        return self.builder.add(address, self.builder.mul(place, by))

    def trailing_zeros(self, bits: Value) -> Value:
        """Place of the lowest bit of an int64 that is set; any number where none is."""
        kind = ir.FunctionType(I64, [I64, I1])
        function = cgutils.get_or_insert_function(self.module, kind, "llvm.cttz.i64")
        return self.builder.call(function, [bits, ir.Constant(I1, 1)])

    def leading_zeros(self, numbers: Value) -> Value:
        """Zeros above the highest bit of each lane of 32 bits; any number where none is set."""
        kind = ir.FunctionType(numbers.type, [numbers.type, I1])
        function = cgutils.get_or_insert_function(self.module, kind, f"llvm.ctlz.v{numbers.type.count}i32")
        return self.builder.call(function, [numbers, ir.Constant(I1, 1)])

    def prefetch(self, address: Value, write: bool = False) -> None:
        """Ask for the line of an address, to be read or written soon; any address may be given."""
        pointer = self.builder.inttoptr(address, I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        ask = cgutils.get_or_insert_function(self.module, kind, "llvm.prefetch.p0")
        second_cache, data = ir.Constant(I32, 2), ir.Constant(I32, 1)
        self.builder.call(ask, [pointer, ir.Constant(I32, int(write)), second_cache, data])

    def load(self, address: Value, kind: ir.Type, align: int = 1) -> Value:
        """Load from an integer address."""
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        loaded = self.builder.load(pointer)
        loaded.align = align
        return loaded

    def truths(self, address: Value, count: int) -> Value:
        """Load `count` bytes of a mask as truth values."""
        return self.builder.icmp_unsigned("!=", self.load(address, vector(I8, count)), self.splat(I8, count, 0))

    def store(self, value: Value, address: Value, align: int = 1) -> None:
        """Store to an integer address."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer).align = align

    def call(self, name: str, *values: Value) -> Value:
        """Call an LLVM intrinsic that is overloaded on the type of its values, such as llvm.smax."""
        return self.declared(name, values[0].type, values)

    def reduce(self, name: str, value: Value) -> Value:
        """Call an LLVM intrinsic that folds a vector, such as llvm.vector.reduce.smax."""
        return self.declared(name, value.type.element, [value])

    def declared(self, name: str, result: ir.Type, values: Sequence[Value]) -> Value:
        """Call the overload of `name` for the type of the first value; it is declared where it was not yet."""
        kind = values[0].type
        letter = "i" if isinstance(kind.element, ir.IntType) else "f"
        bits = kind.element.width if letter == "i" else 64 if kind.element == F64 else 32
        full = f"{name}.v{kind.count}{letter}{bits}"
        function = cgutils.get_or_insert_function(self.module, ir.FunctionType(result, [v.type for v in values]), full)
        return self.builder.call(function, values)

    def better(self, a: Value, b: Value, order: str) -> Value:
        """The smaller ("<") or larger (">") of two floats, lane by lane."""
        return self.builder.select(self.builder.fcmp_ordered(order, a, b), a, b)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Pick lanes of the two vectors joined."""
        return self.builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(lanes)), list(lanes)))

    def pick(self, a: Value, lanes: Sequence[int]) -> Value:
        """Pick lanes of one vector."""
        return self.shuffle(a, ir.Constant(a.type, ir.Undefined), lanes)
