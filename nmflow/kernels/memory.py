"""Numbers at addresses, and the bits of words: what kernels read and write one at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.simd import F64, I8, I16, I32, I64, Emitter, literal

__all__ = [
    "LINE",
    "add_word",
    "copy_bytes",
    "count_ones",
    "move_bytes",
    "pointer",
    "read_byte",
    "read_float",
    "read_short",
    "read_word",
    "read_words",
    "trailing_zeros",
    "write_byte",
    "write_float",
    "write_word",
]

LINE = 64
"""Bytes of a cache line."""


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
def pointer(typing, address):  # type: ignore[no-untyped-def]
    """An address as a pointer, of which `numba.carray` makes an array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I8.as_pointer())

    return types.voidptr(types.int64), codegen


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
def write_byte(typing, address, value):  # type: ignore[no-untyped-def]
    """Store the lowest byte of an int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder).store(builder.trunc(args[1], I8), args[0])
        return context.get_dummy_value()

    return types.none(address, types.int64), codegen


@intrinsic
def read_half(typing, address):  # type: ignore[no-untyped-def]
    """Load 16 bits from an address, as they are."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(Emitter(builder).load(args[0], I16), I64)

    return types.int64(address), codegen


@intrinsic
def write_half(typing, address, value):  # type: ignore[no-untyped-def]
    """Store the lowest 16 bits of an int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder).store(builder.trunc(args[1], I16), args[0])
        return context.get_dummy_value()

    return types.none(address, types.int64), codegen


@intrinsic
def write_word(typing, address, value):  # type: ignore[no-untyped-def]
    """Store an int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder).store(args[1], args[0])
        return context.get_dummy_value()

    return types.none(address, types.int64), codegen


@intrinsic
def write_float(typing, address, value):  # type: ignore[no-untyped-def]
    """Store a float64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder).store(args[1], args[0])
        return context.get_dummy_value()

    return types.none(address, types.float64), codegen


@intrinsic
def add_word(typing, address, value):  # type: ignore[no-untyped-def]
    """Add to an int64 at an address, which other threads do at a time; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(address, types.int64), codegen


@intrinsic
def trailing_zeros(typing, bits):  # type: ignore[no-untyped-def]
    """Place of the lowest bit of an int64 that is set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).trailing_zeros(args[0])

    return types.int64(types.int64), codegen


@intrinsic
def move_bytes(typing, source, target, count):  # type: ignore[no-untyped-def]
    """Copy bytes between two addresses, which may overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from_, to = (builder.inttoptr(address, I8.as_pointer()) for address in args[:2])
        cgutils.raw_memmove(builder, to, from_, args[2], 1)
        return context.get_dummy_value()

    return types.none(source, target, types.int64), codegen


@intrinsic
def count_ones(typing, bits):  # type: ignore[no-untyped-def]
    """Number of bits of an int64 that are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emitter(builder).scalar("llvm.ctpop.i64", args[0])

    return types.int64(types.int64), codegen
