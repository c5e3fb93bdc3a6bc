"""Vectors of LLVM inside Numba: the few operations that the kernels are written in.

Numba has no vector type, and LLVM's own vectoriser neither finds 16-bit lanes in Numba's 64-bit integers nor a
transpose by shuffles. So the kernels write their inner parts as vector code through these helpers; LLVM maps a vector
to whatever registers the machine has. Everything is integer or exactly rounded, so results are the same on each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "LANES",
    "Emitter",
    "copy_bytes",
    "count_ones",
    "deinterleave",
    "deinterleave_narrow",
    "interleave",
    "literal",
    "read_byte",
    "read_float",
    "read_short",
    "read_word",
    "read_words",
    "trailing_zeros",
    "write_word",
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


def _strided(emit: Emitter, parts: Sequence[Value], count: int, lane_of: list[int]) -> Value:
    """Gather lanes of several vectors joined, by one two-input shuffle for each vector after the first."""
    joined = parts[0]
    done = [index if index < count else 0 for index in lane_of]
    if len(parts) == 1:
        return emit.pick(joined, done)
    for number in range(1, len(parts)):
        low = number * count
        lanes = []
        for place, index in enumerate(lane_of):
            if number == 1:
                lanes.append(index if index < 2 * count else place)
            else:
                lanes.append(index - low + count if low <= index < low + count else place)
        joined = emit.shuffle(joined, parts[number], lanes)
    return joined


def _factor(count: int) -> int:
    return next((f for f in (2, 3, 5, 7) if count % f == 0), count)


def deinterleave(emit: Emitter, parts: Sequence[Value], count: int = LANES) -> list[Value]:
    """Transpose: from vectors that hold x[b][j] in turn (b of `count`, j of len(parts)) to one vector for each j."""
    groups = len(parts)
    if groups == 1:
        return list(parts)
    f = _factor(groups)
    split = [
        [_strided(emit, parts[k : k + f], count, [lane * f + r for lane in range(count)]) for k in range(0, groups, f)]
        for r in range(f)
    ]
    out: list[Value] = [None] * groups
    for r in range(f):
        out[r::f] = deinterleave(emit, split[r], count)
    return out


def deinterleave_narrow(emit: Emitter, parts: Sequence[Value]) -> list[Value]:
    """The same of lanes of 32 bits, of which the lower 16 are kept.

    Cutting off is a choice of halves: where it also puts even entries before odd ones, what is left to do is cheaper.
    """
    builder = emit.builder
    if len(parts) % 2:
        return deinterleave(emit, [builder.trunc(part, vector(I16, LANES)) for part in parts])
    order = [*range(0, 2 * LANES, 4), *range(2, 2 * LANES, 4)]
    sorted_ = [emit.pick(builder.bitcast(part, vector(I16, 2 * LANES)), order) for part in parts]
    half = LANES // 2
    out: list[Value] = [None] * len(parts)
    for r in range(2):
        lanes = [*range(r * half, (r + 1) * half), *range(LANES + r * half, LANES + (r + 1) * half)]
        joined = [emit.shuffle(sorted_[k], sorted_[k + 1], lanes) for k in range(0, len(parts), 2)]
        out[r::2] = deinterleave(emit, joined)
    return out


def interleave(emit: Emitter, parts: Sequence[Value], count: int = LANES) -> list[Value]:
    """Inverse of `deinterleave`."""
    groups = len(parts)
    if groups == 1:
        return list(parts)
    f = _factor(groups)
    split = [interleave(emit, parts[r::f], count) for r in range(f)]
    out = []
    for k in range(groups // f):
        piece = [split[r][k] for r in range(f)]
        for part in range(f):
            flat = range(part * count, (part + 1) * count)
            out.append(_strided(emit, piece, count, [(t % f) * count + t // f for t in flat]))
    return out


@intrinsic(prefer_literal=True)
def copy_bytes(typing, source, target, count):  # type: ignore[no-untyped-def]
    """Copy a fixed number of bytes between two addresses."""
    count_ = literal(count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from_, to = (builder.inttoptr(address, I8.as_pointer()) for address in args[:2])
        cgutils.raw_memcpy(builder, to, from_, ir.Constant(I64, count_), 1)
        return context.get_dummy_value()

    return types.none(source, target, count), codegen


@intrinsic
def read_byte(typing, address):  # type: ignore[no-untyped-def]
    """Load one byte from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).load(args[0], I8)

    return types.uint8(address), codegen


@intrinsic
def read_word(typing, address):  # type: ignore[no-untyped-def]
    """Load an int64 from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).load(args[0], I64)

    return types.int64(address), codegen


@intrinsic(prefer_literal=True)
def read_words(typing, address, count):  # type: ignore[no-untyped-def]
    """Load `count` int64 from an address, as a tuple."""
    kind = types.UniTuple(types.int64, literal(count))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        words = [emit.load(emit.at(args[0], 8 * k), I64) for k in range(kind.count)]
        return context.make_tuple(builder, kind, words)

    return kind(address, count), codegen


@intrinsic
def read_short(typing, address):  # type: ignore[no-untyped-def]
    """Load an int32 from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(Emitter(builder).load(args[0], I32), I64)

    return types.int64(address), codegen


@intrinsic
def read_float(typing, address):  # type: ignore[no-untyped-def]
    """Load a float64 from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).load(args[0], F64)

    return types.float64(address), codegen


@intrinsic
def write_word(typing, address, value):  # type: ignore[no-untyped-def]
    """Store an int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder).store(args[1], args[0])
        return context.get_dummy_value()

    return types.none(address, types.int64), codegen


@intrinsic
def trailing_zeros(typing, bits):  # type: ignore[no-untyped-def]
    """Place of the lowest bit of an int64 that is set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).trailing_zeros(args[0])

    return types.int64(types.int64), codegen


@intrinsic
def count_ones(typing, bits):  # type: ignore[no-untyped-def]
    """Number of bits of an int64 that are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).scalar("llvm.ctpop.i64", args[0])

    return types.int64(types.int64), codegen
