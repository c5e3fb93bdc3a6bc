"""Numbers in lanes that are moved by offsets, the same for all blocks, and what 16-bit lanes hold of them.

That is their upper 14 bits at first, then what is left of them beside their duals, magnified: `nmflow.kernels.ascent`
works on those.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import I16, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.tied import Width, width_of

__all__ = ["ZOOM", "add_duals", "ends", "magnify_lanes", "move_lanes"]

ZOOM = 6
"""Bits by which what is left of moved numbers is magnified each time."""
SHAPE = vector(I16, LANES)


@intrinsic(prefer_literal=True)
def move_lanes(typing, numbers, moved, offsets, count, wide):  # type: ignore[no-untyped-def]
    """Write the upper 14 bits of `count` lane vectors, each plus its offset, less the bias; offsets : as numbers."""
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        numbers, moved, offsets = args[:3]
        with loop(builder, literal(count)) as turn:
            at = emit.beyond(offsets, turn.index, lanes.item)
            value = builder.add(lanes.load(emit, lanes.ahead(emit, numbers, turn)), _offset(emit, lanes, at))
            if lanes.wide:
                value = lanes.early(emit, value)
            emit.store(value, emit.beyond(moved, turn.index, VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(numbers, moved, offsets, count, wide), codegen


def _offset(emit: Emitter, lanes: Width, address: Any) -> Any:
    """An offset in all lanes."""
    return emit.broadcast(emit.load(address, lanes.element), LANES)


@intrinsic(prefer_literal=True)
def magnify_lanes(typing, numbers, moved, u, v, offsets, down, bits, rows, cols, wide):  # type: ignore[no-untyped-def]
    """Write what is left of moved numbers beside their duals, magnified and cut off at `bits`.

    Wide: numbers plus offsets less u + v, `down` bits of them dropped. Narrow: what is left is in `moved` already, but
    for duals u and v of it, 16 bits each; offsets : the part of them that had no room before.
    """
    rows_, cols_, lanes = literal(rows), literal(cols), width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        numbers, moved, u, v, offsets, down, bits = args[:7]
        high, low = ends(emit, lanes, bits)
        down = lanes.broadcast(emit, down)
        with loop(builder, rows_) as turn:
            source = lanes.ahead(emit, numbers if lanes.wide else moved, turn, cols_)
            to = emit.beyond(moved, turn.index, cols_ * VECTOR)
            table = emit.beyond(offsets, turn.index, cols_ * lanes.item)
            dual = lanes.load(emit, lanes.ahead(emit, u, turn))
            for j in range(cols_):
                offset = _offset(emit, lanes, emit.at(table, j * lanes.item))
                rest = lanes.less(emit, lanes.less(emit, lanes.load(emit, source, j), lanes.load(emit, v, j)), dual)
                if lanes.wide:
                    rest = builder.ashr(builder.add(rest, offset), down)
                rest = emit.call("llvm.smax", emit.call("llvm.smin", rest, high), low)
                if lanes.wide:
                    rest = builder.trunc(rest, SHAPE)
                else:
                    rest = builder.add(builder.shl(rest, lanes.splat(emit, ZOOM)), offset)
                emit.store(rest, emit.at(to, j * VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(numbers, moved, u, v, offsets, down, bits, rows, cols, wide), codegen


def ends(emit: Emitter, lanes: Width, bits: Any) -> tuple[Any, Any]:
    """The largest and the least number of so many bits and a sign, before it is magnified where lanes are narrow."""
    builder = emit.builder
    top = builder.shl(ir.Constant(I64, 1), bits if lanes.wide else builder.sub(bits, ir.Constant(I64, ZOOM)))
    high = builder.sub(top, ir.Constant(I64, 1))
    return lanes.broadcast(emit, high), lanes.broadcast(emit, builder.neg(top))


@intrinsic(prefer_literal=True)
def add_duals(typing, duals, base, up, bias, count, wide):  # type: ignore[no-untyped-def]
    """Add `count` vectors of 16-bit duals, plus `bias`, to those in `base`: `up` bits higher, or lower if negative."""
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        duals, base, up, bias = args[:4]
        zero = ir.Constant(I64, 0)
        high = builder.icmp_signed(">", up, zero)
        left = lanes.broadcast(emit, builder.select(high, up, zero))
        right = lanes.broadcast(emit, builder.select(high, zero, builder.neg(up)))
        half = builder.ashr(builder.shl(lanes.splat(emit, 1), right), lanes.splat(emit, 1))
        bias = lanes.broadcast(emit, bias)
        with loop(builder, literal(count)) as turn:
            at = emit.beyond(duals, turn.index, VECTOR)
            step = emit.load(at, SHAPE, VECTOR)
            step = builder.add(builder.sext(step, lanes.shape) if lanes.wide else step, bias)
            step = builder.ashr(builder.add(builder.shl(step, left), half), right)
            to = lanes.ahead(emit, base, turn)
            lanes.store(emit, builder.add(lanes.load(emit, to), step), to)
        return context.get_dummy_value()

    return types.none(duals, base, up, bias, count, wide), codegen
