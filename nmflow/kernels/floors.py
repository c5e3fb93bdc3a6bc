"""How far duals may fall in an ascent under at-most fill, and lanes that are all alike."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE
from nmflow.kernels.segments import VECTOR, inverse, magnified, spread_over
from nmflow.kernels.simd import I16, LANES, Emitter, literal, vector
from nmflow.kernels.transpose import deinterleave

__all__ = ["LOWEST", "set_floors", "set_lanes"]

LOWEST = -32768
"""The least number of a lane: a floor that stops no dual."""


@intrinsic(prefer_literal=True)
def set_floors(  # type: ignore[no-untyped-def]
    typing, row_floors, col_floors, scales, u, u_stride, v, zoom, kind, rows, cols, bias, given
):
    """How far duals may fall: to 0 in all, from 0 at first (less the bias, in rows) or from those given."""
    kind_, rows_, cols_ = BY_CODE[literal(kind)], literal(rows), literal(cols)
    bias_, given_ = literal(bias), literal(given)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        row_floors, col_floors, scales, u, u_stride, v, zoom = args[:7]
        unit = emit.load(scales, vector(kind_.work, LANES))
        scale = inverse(emit, magnified(emit, unit, kind_, zoom), kind_)
        least = emit.splat(kind_.work, LANES, -32768.0)

        def floor(duals: Any, scale: Any) -> Any:
            value = emit.better(builder.fmul(builder.fneg(duals), scale), least, ">")
            return builder.fptosi(value, vector(I16, LANES))

        for i in range(rows_):
            value = emit.splat(I16, LANES, -bias_)
            if given_:
                at = emit.beyond(u, u_stride, i)
                value = floor(emit.load(at, vector(kind_.work, LANES)), scale)
            emit.store(value, emit.at(row_floors, i * VECTOR), VECTOR)
        parts = [emit.splat(I16, LANES, 0)] * cols_
        if given_:
            loads = [
                emit.load(emit.at(v, k * LANES * kind_.work_size), vector(kind_.work, LANES)) for k in range(cols_)
            ]
            parts = deinterleave(
                emit, [floor(part, spread_over(emit, scale, k, cols_)) for k, part in enumerate(loads)]
            )
        for j, part in enumerate(parts):
            emit.store(part, emit.at(col_floors, j * VECTOR), VECTOR)
        return context.get_dummy_value()

    arguments = (row_floors, col_floors, scales, u, u_stride, v, zoom, kind, rows, cols, bias, given)
    return types.none(*arguments), codegen


@intrinsic(prefer_literal=True)
def set_lanes(typing, address, count, value):  # type: ignore[no-untyped-def]
    """Store a number to all lanes of `count` vectors."""
    count_, value_ = literal(count), literal(value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        for t in range(count_):
            emit.store(emit.splat(I16, LANES, value_), emit.at(args[0], t * VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(address, count, value), codegen
