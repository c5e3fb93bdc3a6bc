"""From duals to a mask: keep what is above u + v, and say which blocks are settled by that.

A block is settled if every line keeps what its budget asks. Rounding never changes an order, so a score above the
rounded u + v is not below the exact one: see `nmflow.kernels.proof`, which grades what is written here.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.scores import BY_CODE
from nmflow.kernels.simd import I8, I64, Emitter, literal, loop, vector
from nmflow.kernels.spans import Lines

__all__ = ["threshold_span"]


@intrinsic(prefer_literal=True)
def threshold_span(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, u, u_stride, v, flags,
    kind, rows, cols, groups, r, c, row_fill, col_fill, absolute,
):  # fmt: skip
    """Write the mask of `groups` blocks side by side, and a flag for each: 0 settled."""
    kind_, rows_, absolute_ = BY_CODE[literal(kind)], literal(rows), bool(literal(absolute))
    lines = Lines(literal(groups), literal(cols), literal(r), literal(c), literal(row_fill), literal(col_fill))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, u, u_stride, v, flags = args[:8]
        col_duals = emit.load(v, vector(kind_.work, lines.width))
        counts = emit.variable(emit.splat(I8, lines.width, 0))
        wrong, unsure = emit.variable(ir.Constant(I64, 0)), emit.variable(ir.Constant(I64, 0))
        at, to, row_at = emit.variable(scores), emit.variable(mask), emit.variable(u)
        with loop(builder, rows_):
            score = kind_.load(emit, builder.load(at), lines.width, absolute_)
            row_duals = lines.spread(emit, builder.load(row_at), kind_)
            kept = builder.fcmp_ordered(">", score, builder.fadd(row_duals, col_duals))
            as_bytes = lines.bytes_of(emit, kept)
            emit.store(as_bytes, builder.load(to))
            builder.store(builder.add(builder.load(counts), as_bytes), counts)
            over, slack = lines.rows_wrong(emit, lines.bits(emit, kept), row_duals)
            builder.store(builder.or_(builder.load(wrong), over), wrong)
            builder.store(builder.or_(builder.load(unsure), slack), unsure)
            for place, step in ((at, stride), (to, mask_stride), (row_at, u_stride)):
                builder.store(builder.add(builder.load(place), step), place)
        over, slack = lines.cols_wrong(emit, builder.load(counts), col_duals)
        over, slack = builder.or_(over, builder.load(wrong)), builder.or_(slack, builder.load(unsure))
        lines.write_flags(emit, flags, over, slack)
        return context.get_dummy_value()

    arguments = (
        scores, stride, mask, mask_stride, u, u_stride, v, flags,
        kind, rows, cols, groups, r, c, row_fill, col_fill, absolute,
    )  # fmt: skip
    return types.none(*arguments), codegen
