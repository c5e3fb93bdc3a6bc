"""Turning: a matrix whose columns lie side by side in memory, copied so that its rows do.

Entry by entry that takes several times as long as to solve, since each touches another cache line. Here whole lines are
read and written: a square of them goes through vector registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, once, part
from nmflow.kernels.memory import LINE, copy_bytes
from nmflow.kernels.simd import Emitter, literal, vector
from nmflow.kernels.transpose import interleave

__all__ = ["turn_floats", "turn_kernel"]

MOST = 32
"""Most entries of a side of a square: beyond that registers do not hold it."""


@intrinsic(prefer_literal=True)
def turn_square(typing, source, source_stride, target, target_stride, side, item):  # type: ignore[no-untyped-def]
    """Transpose a square of `side` entries of `item` bytes each."""
    side_, item_ = literal(side), literal(item)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, kind = Emitter(builder), vector(ir.IntType(8 * item_), side_)
        source, source_stride, target, target_stride = args[:4]

        lines = [emit.load(emit.beyond(source, source_stride, k), kind) for k in range(side_)]
        for k, line in enumerate(interleave(emit, lines, side_)):
            emit.store(line, emit.beyond(target, target_stride, k))
        return context.get_dummy_value()

    return types.none(source, source_stride, target, target_stride, side, item), codegen


def _turning(item: int) -> Any:
    """Turning entries of `item` bytes, as `turn_kernel` has it, to be compiled."""
    side = min(LINE // item, MOST)

    def turn(source, source_stride, target, target_stride, rows, cols):  # type: ignore[no-untyped-def]
        if rows < side or cols < side:
            for i in range(rows):
                for j in range(cols):
                    copy_bytes(source + j * source_stride + i * item, target + i * target_stride + j * item, item)
            return
        for at_j in range(0, cols, side):
            j = min(at_j, cols - side)  # the last square lies over the one before it
            for at_i in range(0, rows, side):
                i = min(at_i, rows - side)
                turn_square(
                    source + j * source_stride + i * item, source_stride, target + i * target_stride + j * item,
                    target_stride, side, item,
                )  # fmt: skip

    return turn


turn_floats = part(_turning(8))
"""The same in a kernel, of entries of 8 bytes."""


@once
def turn_kernel(item: int) -> Any:
    """Compile for entries of `item` bytes.

    Returns
    -------
    function (source, source_stride, target, target_stride, rows, cols) -> None
        Addresses as int64; target: rows x cols entries, those of a row side by side; source: cols x rows.
    """
    return compiled(_turning(item), types.none(*[types.int64] * 6))
