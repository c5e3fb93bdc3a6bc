"""What leaves the lanes of `nmflow.kernels.untie` block by block: numbers, duals and masks of those that stay open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.lanes import WORD, words_in_row
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import F64, I1, I8, I16, Emitter, literal, loop, vector
from nmflow.kernels.tied import Width, width_of

__all__ = ["copy_duals", "copy_lane", "copy_words"]


def _copy(emit: Emitter, lanes: Width, count: int, size: int, args: Any, change: Callable[[Any], Any]) -> None:
    """Store what `change` makes of one lane of `count` vectors, `size` bytes each; args: source, lane, target, ..."""
    builder = emit.builder
    source = emit.beyond(args[0], args[1], lanes.item)
    with loop(builder, count) as turn:
        value = change(emit.load(lanes.ahead(emit, source, turn), lanes.element))
        emit.store(value, emit.beyond(args[2], turn.index, size))


@intrinsic(prefer_literal=True)
def copy_lane(typing, source, lane, target, bias, down, count, wide):  # type: ignore[no-untyped-def]
    """Write what one lane of `count` vectors holds, plus `bias`, less its `down` lowest bits, as lanes hold it."""
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        bias, down = (builder.trunc(number, lanes.element) for number in args[3:5])
        _copy(emit, lanes, literal(count), lanes.item, args, lambda value: builder.ashr(builder.add(value, bias), down))
        return context.get_dummy_value()

    return types.none(source, lane, target, bias, down, count, wide), codegen


@intrinsic(prefer_literal=True)
def copy_duals(typing, source, lane, target, unit, plus, count, wide):  # type: ignore[no-untyped-def]
    """Write what one lane of `count` vectors holds, times `unit`, plus `plus`, as float64: exactly."""
    lanes = width_of(wide)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        unit, plus = args[3:5]
        _copy(
            emit, lanes, literal(count), 8, args,
            lambda value: builder.fadd(builder.fmul(builder.sitofp(value, F64), unit), plus),
        )  # fmt: skip
        return context.get_dummy_value()

    return types.none(source, lane, target, unit, plus, count, wide), codegen


@intrinsic(prefer_literal=True)
def copy_words(typing, words, lane, mask, stride, rows, cols):  # type: ignore[no-untyped-def]
    """Write the mask of one lane."""
    rows_, cols_ = literal(rows), literal(cols)
    parts = words_in_row(cols_)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        words, lane, mask, stride = args[:4]
        source = emit.beyond(words, lane, 2)
        with loop(builder, rows_) as turn:
            to = emit.beyond(mask, turn.index, stride)
            at = emit.beyond(source, turn.index, parts * VECTOR)
            for p in range(parts):
                width = min(WORD, cols_ - WORD * p)
                bits = emit.load(emit.at(at, p * VECTOR), I16)
                bits = bits if width == WORD else builder.trunc(bits, ir.IntType(width))
                truths = builder.bitcast(bits, vector(I1, width))
                emit.store(builder.zext(truths, vector(I8, width)), emit.at(to, p * WORD))
        return context.get_dummy_value()

    return types.none(words, lane, mask, stride, rows, cols), codegen
