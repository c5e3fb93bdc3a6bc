"""Gathering blocks: some blocks of a matrix, and their duals, as float64 one after another."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.carry import SOON, ask_block, block_at
from nmflow.kernels.compile import compiled, once, operation
from nmflow.kernels.memory import read_word
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.simd import F32, F64, PARTS, Emitter, literal

__all__ = ["gather_duals_kernel", "gather_scores_kernel", "widen_block", "widen_number"]


@intrinsic(prefer_literal=True)
def widen_row(typing, source, target, count, kind, absolute):  # type: ignore[no-untyped-def]
    """Copy `count` scores as float64, exactly."""
    kind_, absolute_ = BY_CODE[literal(kind)], bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        source, target, count = args[:3]
        for place, some in emit.parts(count, PARTS):
            value = kind_.load_doubles(emit, emit.beyond(source, place, kind_.itemsize), some, absolute_)
            emit.store(value, emit.beyond(target, place, 8))
        return context.get_dummy_value()

    return types.none(source, target, types.int64, kind, absolute), codegen


@intrinsic(prefer_literal=True)
def widen_number(typing, source, target, size):  # type: ignore[no-untyped-def]
    """Copy one float of `size` bytes as float64."""
    size_ = literal(size)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        value = emit.load(args[0], F64 if size_ == 8 else F32)
        emit.store(value if size_ == 8 else builder.fpext(value, ir.DoubleType()), args[1])
        return context.get_dummy_value()

    return types.none(source, target, size), codegen


@once
def gather_scores_kernel(kind_name: str, absolute: bool) -> Any:
    """Compile the gathering of scores for one kind of scores.

    Returns
    -------
    function (scores, stride, grid_cols, blocks, values) -> None
        scores: an address, with `stride` bytes between rows. blocks: (k,) int64. values: (k, rows, cols) float64,
        output.
    """
    kind = KINDS[kind_name]
    code, item, magnitude = kind.code, kind.itemsize, int(absolute)

    def gather(scores, stride, grid_cols, blocks, values):  # type: ignore[no-untyped-def]
        count, rows, cols = values.shape
        target = values.ctypes.data
        for k in range(count):
            if k + SOON < count:
                ask_block(scores, stride, grid_cols, blocks[k + SOON], rows, cols * item)
            source = block_at(scores, stride, grid_cols, blocks[k], rows, cols * item)
            for i in range(rows):
                widen_row(source + i * stride, target + (k * rows + i) * cols * 8, cols, code, magnitude)

    i8 = types.int64
    return compiled(gather, types.none(i8, i8, i8, types.int64[::1], types.float64[:, :, ::1]))


@once
def widen_block(kind_name: str, absolute: bool) -> int:
    """Compile the copying of one block for one kind of scores.

    Returns
    -------
    operation (source, step, rows, cols, target, target_step) -> 0
        Addresses, and bytes between rows; float64 come out.
    """
    code, magnitude = KINDS[kind_name].code, int(absolute)

    def widen(source, step, rows, cols, target, target_step):  # type: ignore[no-untyped-def]
        for i in range(rows):
            widen_row(source + i * step, target + i * target_step, cols, code, magnitude)
        return 0

    return operation(widen, 6)


@once
def gather_duals_kernel(size: int) -> Any:
    """Compile the gathering of duals of `size` bytes each.

    Returns
    -------
    function (u, v, rows, cols, grid_cols, blocks, count, block_u, block_v) -> None
        Addresses as int64. u, v: as `nmflow.kernels.settle` writes them; block_u: (count, rows) and block_v: (count,
        cols) float64, output.
    """

    def gather_duals(u, v, rows, cols, grid_cols, blocks, count, block_u, block_v):  # type: ignore[no-untyped-def]
        for k in range(count):
            b = read_word(blocks + k * 8)
            s = b // grid_cols
            j = b - s * grid_cols
            for i in range(rows):
                widen_number(u + ((s * rows + i) * grid_cols + j) * size, block_u + (k * rows + i) * 8, size)
            for t in range(cols):
                widen_number(v + (b * cols + t) * size, block_v + (k * cols + t) * 8, size)

    return compiled(gather_duals, types.none(*[types.int64] * 9))
