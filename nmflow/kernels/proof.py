"""Grading masks, given or made here: signs of S - u - v without rounding error, counts of lines, kept score.

A mask is made from duals by keeping what is above u + v. It is graded in the same pass over the scores, by the same
code that grades the mask of anyone else.

Signs. With h the float nearest to u + v and l = u + v - h exactly (TwoSum): rounding never changes an order, so
S > h proves S >= u + v and S < h proves S <= u + v, for every float S; and where S = h the sign of S - u - v is that
of -l. So one addition and one comparison settle almost every entry, and TwoSum the rest. h may be infinite, which is
beyond every score, as u + v is; u and v may not.

References
----------
D. Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B (TwoSum).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import once, operation
from nmflow.kernels.memory import add_word, read_words
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.share import SUMS
from nmflow.kernels.simd import F64, I1, I8, I64, Emitter, literal, loop, vector
from nmflow.kernels.spans import Lines, blocks_in_span

__all__ = ["grade_span", "proof_kernel"]


@intrinsic(prefer_literal=True)
def grade_span(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, u, u_stride, v, flags, sums, exact, words, faults,
    kind, rows, cols, groups, r, c, row_fill, col_fill, absolute, make,
):  # fmt: skip
    """Grade `groups` blocks side by side: 0 proven, 1 not proven, 2 infeasible; add kept scores to `sums`.

    exact : 0 where a tie proves nothing, 2 where no u + v is rounded, 1 else. make : 0 the mask is read; 1 it is made
    from the duals and written, and only proven blocks are added to `sums`; 2 the same, but it is read from lanes at
    `words`, and under exact fill its lines were counted: `faults` has 16 bits for each block, not 0 where one is wrong.
    """
    kind_, rows_, absolute_, make_ = BY_CODE[literal(kind)], literal(rows), bool(literal(absolute)), literal(make)
    lines = Lines(literal(groups), literal(cols), literal(r), literal(c), literal(row_fill), literal(col_fill))
    width = lines.width
    counted = make_ == 2 and lines.row_fill == 2 and lines.col_fill != 1

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, u, u_stride, v, flags, sums, exact, words, faults = args[:12]
        none, zero = ir.Constant(I64, 0), emit.splat(kind_.work, width, 0.0)
        no_sums = emit.splat(F64, width, 0.0)
        col_duals = emit.load(v, vector(kind_.work, width))
        wrong, unsure = emit.variable(none), emit.variable(none)

        def infinite(duals: Any) -> Any:
            most = emit.splat(kind_.work, width, kind_.largest)
            return builder.fcmp_unordered(">", emit.call("llvm.fabs", duals), most)

        endless = infinite(col_duals)
        signs = emit.variable(endless)

        def note(bad: Any) -> None:
            builder.store(builder.or_(builder.load(signs), bad), signs)

        def each_row() -> tuple[Any, Any]:
            """Scores and row duals of the row at hand."""
            score = kind_.load(emit, builder.load(at), width, absolute_)
            row_duals = lines.spread(emit, builder.load(row_at), kind_)
            note(infinite(row_duals))
            return score, row_duals

        def next_row() -> None:
            for place, step in ((at, stride), (of, mask_stride), (row_at, u_stride)):
                builder.store(builder.add(builder.load(place), step), place)

        at, of, row_at = emit.variable(scores), emit.variable(mask), emit.variable(u)
        counts = emit.variable(emit.splat(I8, width, 0))
        total = emit.variable(no_sums)
        tied = emit.variable(emit.splat(I1, width, 0))
        with loop(builder, rows_) as turn:
            score, row_duals = each_row()
            threshold = builder.fadd(row_duals, col_duals)
            above = builder.fcmp_ordered(">", score, threshold)
            if make_ == 2:
                kept = lines.spread_words(emit, words, turn.index)
                note(builder.select(kept, builder.fcmp_ordered("<", score, threshold), above))
                on = builder.fcmp_unordered("==", score, threshold)
                builder.store(builder.or_(builder.load(tied), on), tied)
            elif make_ == 1:
                kept = above
                note(builder.fcmp_unordered("==", score, threshold))  # not above and not below
            else:
                kept = lines.truths(emit, builder.load(of))
                note(builder.not_(builder.select(kept, above, builder.fcmp_ordered("<", score, threshold))))
            if make_:
                emit.store(lines.bytes_of(emit, kept), builder.load(of))
            if not counted:
                builder.store(builder.add(builder.load(counts), lines.bytes_of(emit, kept)), counts)
                over, slack = lines.rows_wrong(emit, lines.bits(emit, kept), row_duals)
                builder.store(builder.or_(builder.load(wrong), over), wrong)
                builder.store(builder.or_(builder.load(unsure), slack), unsure)
            share = builder.select(kept, score, zero)
            share = share if kind_.work == F64 else builder.fpext(share, vector(F64, width))
            builder.store(builder.fadd(builder.load(total), share), total)
            next_row()
        signs_bits = emit.variable(lines.bits(emit, builder.load(signs)))
        ties = builder.load(signs_bits)
        over, slack = lines.cols_wrong(emit, builder.load(counts), col_duals)
        over, slack = builder.or_(over, builder.load(wrong)), builder.or_(slack, builder.load(unsure))
        if counted:
            over = lines.bits(emit, lines.faulty(emit, faults))
        if make_ == 2:
            sure = builder.icmp_signed("==", exact, ir.Constant(I64, 2))
            ties = builder.select(sure, none, lines.bits(emit, builder.load(tied)))
            builder.store(builder.or_(builder.load(signs_bits), ties), signs_bits)
        doubt = builder.and_(builder.icmp_unsigned("!=", ties, none), builder.icmp_signed("!=", exact, none))
        with builder.if_then(doubt, likely=False):
            # some score lies on its threshold: once more, with the rounding error of u + v
            builder.store(endless, signs)
            for place, start in ((at, scores), (of, mask), (row_at, u)):
                builder.store(start, place)
            with loop(builder, rows_):
                score, row_duals = each_row()
                kept = lines.truths(emit, builder.load(of))
                high = builder.fadd(row_duals, col_duals)
                part = builder.fsub(high, row_duals)
                low = builder.fadd(builder.fsub(row_duals, builder.fsub(high, part)), builder.fsub(col_duals, part))
                tie = builder.fcmp_ordered("==", score, high)
                fits = builder.select(
                    kept, builder.fcmp_ordered("<=", low, zero), builder.fcmp_ordered(">=", low, zero)
                )
                clear = builder.select(
                    kept, builder.fcmp_ordered(">", score, high), builder.fcmp_ordered("<", score, high)
                )
                note(builder.not_(builder.select(tie, fits, clear)))
                next_row()
            builder.store(lines.bits(emit, builder.load(signs)), signs_bits)
        unsure_bits = builder.or_(slack, builder.load(signs_bits))
        lines.write_flags(emit, flags, over, unsure_bits)
        if make_:
            with builder.if_then(builder.icmp_unsigned("!=", builder.or_(over, unsure_bits), none), likely=False):
                proven = lines.proven(emit, builder.or_(over, unsure_bits))
                builder.store(builder.select(proven, builder.load(total), no_sums), total)
        emit.store(builder.fadd(emit.load(sums, vector(F64, width)), builder.load(total)), sums)
        return context.get_dummy_value()

    arguments = (
        scores, stride, mask, mask_stride, u, u_stride, v, flags, sums, exact, words, faults,
        kind, rows, cols, groups, r, c, row_fill, col_fill, absolute, make,
    )  # fmt: skip
    return types.none(*arguments), codegen


JOB = (
    "scores", "stride", "mask", "mask_stride", "u", "v", "flags", "sums", "exact", "grid_rows", "grid_cols",
    "share_rows",
)  # fmt: skip
"""What a job says; the next share to take follows."""


@once
def proof_kernel(
    kind_name: str, rows: int, cols: int, r: int, c: int, row_fill: int, col_fill: int, absolute: bool
) -> int:
    """Compile the grading of a chunk for one kind of scores and one pattern; fills are 2 exact, 1 at most, 0 free.

    Returns
    -------
    operation (job, number) -> 0, for `nmflow.crew.call_on_threads`
        job : address of int64, as `JOB` names them, and room for one. scores, mask : addresses, with `stride` and
        `mask_stride` bytes between rows. u, v: in the work dtype, as `nmflow.kernels.ascent` writes them. flags: a
        byte for each block, 0 proven, 1 feasible and not proven, 2 infeasible. sums: `SUMS` float64 for each share of
        `share_rows` rows of blocks, added to: the kept scores. exact: 0 where scores were rounded, so that a tie
        proves nothing.
    """
    kind = KINDS[kind_name]
    code, item, work, magnitude = kind.code, kind.itemsize, kind.work_size, int(absolute)
    many, job_size, sum_bytes = blocks_in_span(cols), len(JOB), 8 * SUMS

    def prove(job, number):  # type: ignore[no-untyped-def]
        (
            scores, stride, mask, mask_stride, u, v, flags, all_sums, exact, grid_rows, grid_cols, share_rows,
        ) = read_words(job, job_size)  # fmt: skip
        u_stride, whole = grid_cols * work, grid_cols // many * many
        shares = -(-grid_rows // share_rows)
        while True:
            share = add_word(job + 8 * job_size, 1)
            if share >= shares:
                return 0
            sums = all_sums + share * sum_bytes
            for s in range(share * share_rows, min((share + 1) * share_rows, grid_rows)):
                base, kept = scores + s * rows * stride, mask + s * rows * mask_stride
                u_base, v_base, flag = u + s * rows * u_stride, v + s * grid_cols * cols * work, flags + s * grid_cols
                for j in range(0, whole, many):
                    grade_span(
                        base + j * cols * item, stride, kept + j * cols, mask_stride, u_base + j * work, u_stride,
                        v_base + j * cols * work, flag + j, sums, exact, 0, 0,
                        code, rows, cols, many, r, c, row_fill, col_fill, magnitude, 0,
                    )  # fmt: skip
                for j in range(whole, grid_cols):
                    grade_span(
                        base + j * cols * item, stride, kept + j * cols, mask_stride, u_base + j * work, u_stride,
                        v_base + j * cols * work, flag + j, sums + 512, exact, 0, 0,
                        code, rows, cols, 1, r, c, row_fill, col_fill, magnitude, 0,
                    )  # fmt: skip

    return operation(prove, 2)
