"""Groups: up to 32 blocks that do not lie side by side, copied so that they do, and what is found of them put back.

These are blocks that wait, or the end of one stripe of a matrix and the start of the next; and in the same way the
rows of a table, which is a matrix with one block across. Side by side, `lane` * `size` bytes on, they have 32 * `size`
bytes between rows. Both are operations (`nmflow.kernels.compile`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.compile import once, operation
from nmflow.kernels.simd import I1, I8, I64, LANES, Emitter, literal, loop

__all__ = ["gather_blocks", "put_blocks"]


@once
def gather_blocks(size: int) -> int:
    """Copy blocks with rows of `size` bytes side by side; lanes beyond the last of `here` blocks hold it again.

    Returns
    -------
    operation (matrix, stride, rows, grid_cols, named, first, here, target) -> 0
        named: address of the blocks' numbers, int64, from place `first` on; if 0 they are blocks `first` and after.
    """

    def gather(matrix, stride, rows, grid_cols, named, first, here, target):  # type: ignore[no-untyped-def]
        return copy_blocks(matrix, stride, rows, grid_cols, named, first, here, -1, target, size, 0)

    return operation(gather, 8)


@once
def put_blocks(size: int) -> int:
    """Copy those of `here` blocks whose bit is in `chosen` to where they belong.

    Returns
    -------
    operation (source, matrix, stride, rows, grid_cols, named, first, here, chosen) -> 0
        named: see `gather_blocks`.
    """

    def put(source, matrix, stride, rows, grid_cols, named, first, here, chosen):  # type: ignore[no-untyped-def]
        return copy_blocks(matrix, stride, rows, grid_cols, named, first, here, chosen, source, size, 1)

    return operation(put, 9)


@intrinsic(prefer_literal=True)
def copy_blocks(  # type: ignore[no-untyped-def]
    typing, matrix, stride, rows, grid_cols, named, first, here, chosen, group, size, back
):
    """Copy between a matrix and a group, `back` or not."""
    size_, back_ = literal(size), literal(back)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        matrix, stride, rows, grid_cols, named, first, here, chosen, group = args[:9]
        stripe_bytes = builder.mul(stride, rows)
        with _lanes(emit, here, chosen if back_ else None) as (lane, block):
            place = builder.add(first, block)
            number, stripe = emit.variable(place), emit.variable(place)
            with builder.if_then(builder.icmp_unsigned("!=", named, ir.Constant(I64, 0))):
                found = emit.load(emit.beyond(named, place, 8), I64)
                builder.store(found, number)
                builder.store(found, stripe)
            number = builder.load(number)
            with builder.if_then(builder.icmp_unsigned("!=", grid_cols, ir.Constant(I64, 1))):  # a division takes long
                builder.store(builder.sdiv(number, grid_cols), stripe)
            stripe = builder.load(stripe)
            column = builder.sub(number, builder.mul(stripe, grid_cols))
            there = emit.beyond(matrix, stripe, stripe_bytes)
            there = emit.beyond(there, column, size_)
            here_ = emit.beyond(group, lane, size_)
            with cgutils.for_range(builder, rows) as turn:
                places = (
                    emit.beyond(here_, turn.index, LANES * size_),
                    emit.beyond(there, turn.index, stride),
                )
                to, from_ = (builder.inttoptr(at, I8.as_pointer()) for at in places[:: -1 if back_ else 1])
                cgutils.raw_memcpy(builder, to, from_, ir.Constant(I64, size_), 1)
        return ir.Constant(I64, 0)

    arguments = (matrix, stride, rows, grid_cols, named, first, here, chosen, group, size, back)
    return types.int64(*arguments), codegen


@contextmanager
def _lanes(emit: Emitter, here: Any, chosen: Any) -> Iterator[tuple[Any, Any]]:
    """A loop over the lanes that are chosen, or over all, with the block in each."""
    builder = emit.builder
    if chosen is None:
        last = builder.sub(here, ir.Constant(I64, 1))
        with loop(builder, LANES) as turn:
            yield turn.index, builder.select(builder.icmp_signed("<", turn.index, last), turn.index, last)
    else:
        with cgutils.for_range(builder, here) as turn:
            is_chosen = builder.trunc(builder.lshr(chosen, turn.index), I1)
            with builder.if_then(is_chosen):
                yield turn.index, turn.index
