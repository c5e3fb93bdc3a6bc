"""Bytes carried between a matrix and the workspace of a kernel, past the caches where that pays.

An output that is larger than the caches costs its memory traffic twice if it is stored as usual: a line is read before
it is written. A nontemporal store of whole lines does not read them; measured here, it doubles what two threads write.
It needs whole lines, hence arrays that begin at one (`nmflow.formats` allocates such), and only pays for arrays that
no cache would have kept.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.compile import part
from nmflow.kernels.memory import LINE, move_bytes
from nmflow.kernels.simd import I8, I32, Emitter, literal, vector

__all__ = ["LARGE", "SOON", "ask", "ask_block", "block_at", "drain", "fill", "put"]

LARGE = 1 << 22
"""Bytes of a matrix from which its outputs go past the caches: more than a core's own cache holds."""
SOON = 2
"""Blocks ahead of the one at hand that are asked for, where blocks lie apart."""


@intrinsic
def fill(typing, target, count, value):  # type: ignore[no-untyped-def]
    """Set bytes at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], I8.as_pointer()), args[1], builder.trunc(args[2], I8))
        return context.get_dummy_value()

    return types.none(target, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def _copy(typing, source, target, count, past):  # type: ignore[no-untyped-def]
    """Copy 16 or 64 bytes; `past` the caches if that is 1, to an address that is a multiple of `LINE`."""
    n_words, past_ = literal(count) // 4, literal(past)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        value = emit.load(args[0], vector(I32, n_words))
        pointer = builder.inttoptr(args[1], value.type.as_pointer())
        stored = builder.store(value, pointer, align=LINE if past_ else 1)
        if past_:
            stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.none(source, target, count, past), codegen


@intrinsic
def _ask_line(typing, address):  # type: ignore[no-untyped-def]
    """Fetch a line that is read soon; any address may be given."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder).prefetch(args[0])
        return context.get_dummy_value()

    return types.none(address), codegen


@intrinsic
def drain(typing):  # type: ignore[no-untyped-def]
    """Make stores past the caches visible to other threads before what follows."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@part
def put(source, source_step, target, target_step, lines, count, large):  # type: ignore[no-untyped-def]
    """Copy `count` bytes for each of `lines` rows; steps are bytes between rows."""
    for r in range(lines):
        from_, to = source + r * source_step, target + r * target_step
        done = 0
        if large and count >= 64:
            first = -to % 64  # where the first whole line begins
            while done + 16 <= first:
                _copy(from_ + done, to + done, 16, 0)
                done += 16
            if done < first:
                move_bytes(from_ + done, to + done, first - done)
                done = first
            while done + 64 <= count:
                _copy(from_ + done, to + done, 64, 1)
                done += 64
        while done + 64 <= count:
            _copy(from_ + done, to + done, 64, 0)
            done += 64
        while done + 16 <= count:
            _copy(from_ + done, to + done, 16, 0)
            done += 16
        if done < count:
            move_bytes(from_ + done, to + done, count - done)


@part
def ask(source, step, lines, count):  # type: ignore[no-untyped-def]
    """Fetch `count` bytes of each of `lines` rows that are read soon."""
    for r in range(lines):
        row = source + r * step
        for line in range(row & -LINE, row + count, LINE):
            _ask_line(line)


@part
def block_at(matrix, step, grid_cols, block, rows, count):  # type: ignore[no-untyped-def]
    """Where a block begins whose rows have `count` bytes, in a matrix with `grid_cols` blocks across."""
    stripe = block // grid_cols
    return matrix + stripe * rows * step + (block - stripe * grid_cols) * count


@part
def ask_block(matrix, step, grid_cols, block, rows, count):  # type: ignore[no-untyped-def]
    """Fetch a block that is read soon."""
    ask(block_at(matrix, step, grid_cols, block, rows, count), step, rows, count)
