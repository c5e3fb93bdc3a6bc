"""Truths of a line of a block as the bits of a word, a vector of them at a time; bytes to words, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.simd import I8, I64, Emitter, vector

__all__ = ["WIDTH", "bits_of", "each_vector", "read_bits", "truths_of", "write_bits"]

WIDTH = 8
"""float64 of a vector."""


def each_vector(builder: Any, chunks: Any, body: Callable[[Any, Any], None]) -> None:
    """A loop over the vectors of a line: their number, and their place in bytes."""
    with cgutils.for_range(builder, chunks) as turn:
        body(turn.index, builder.mul(turn.index, ir.Constant(I64, 8 * WIDTH)))


def bits_of(builder: Any, truths: Any, number: Any) -> Any:
    """Truths of one vector as their bits of the line's word."""
    bits = builder.zext(builder.bitcast(truths, I8), I64)
    return builder.shl(bits, builder.mul(number, ir.Constant(I64, WIDTH)))


def truths_of(builder: Any, word: Any, number: Any) -> Any:
    """The bits of a line's word that belong to one vector."""
    part = builder.lshr(word, builder.mul(number, ir.Constant(I64, WIDTH)))
    return builder.bitcast(builder.trunc(part, I8), vector(ir.IntType(1), WIDTH))


@intrinsic
def write_bits(typing, word, address, count):  # type: ignore[no-untyped-def]
    """Store the lowest bits of a word as so many bytes of 0 and 1."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        word, address, count = args
        whole = builder.udiv(count, ir.Constant(I64, WIDTH))

        def write(number: Any, _: Any) -> None:
            truths = builder.zext(truths_of(builder, word, number), vector(I8, WIDTH))
            emit.store(truths, emit.beyond(address, number, WIDTH))

        each_vector(builder, whole, write)
        with cgutils.for_range(builder, builder.urem(count, ir.Constant(I64, WIDTH))) as turn:
            place = builder.add(builder.mul(whole, ir.Constant(I64, WIDTH)), turn.index)
            bit = builder.and_(builder.lshr(word, place), ir.Constant(I64, 1))
            emit.store(builder.trunc(bit, I8), builder.add(address, place))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


@intrinsic
def read_bits(typing, address, count):  # type: ignore[no-untyped-def]
    """The lowest bits of so many bytes as a word."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        address, count = args
        whole = builder.udiv(count, ir.Constant(I64, WIDTH))
        word = emit.variable(ir.Constant(I64, 0))

        def add(bits: Any) -> None:
            builder.store(builder.or_(builder.load(word), bits), word)

        def read(number: Any, _: Any) -> None:
            at = emit.beyond(address, number, WIDTH)
            truths = builder.trunc(emit.load(at, vector(I8, WIDTH)), vector(ir.IntType(1), WIDTH))
            add(bits_of(builder, truths, number))

        each_vector(builder, whole, read)
        with cgutils.for_range(builder, builder.urem(count, ir.Constant(I64, WIDTH))) as turn:
            place = builder.add(builder.mul(whole, ir.Constant(I64, WIDTH)), turn.index)
            bit = builder.and_(emit.load(builder.add(address, place), I8), ir.Constant(I8, 1))
            add(builder.shl(builder.zext(bit, I64), place))
        return builder.load(word)

    return types.int64(types.int64, types.int64), codegen
