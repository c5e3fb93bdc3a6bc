"""Ties dropped from masks that keep too many, in the lanes of `nmflow.kernels.lanes`.

What lies on the thresholds is kept there. Where a block has several best masks, its lines may then keep one too many
each, though its duals are right. Lines that keep their budget can neither gain nor lose, so nothing is open but which
ties the others drop: each row one, in a column that must drop one too. A tie that is dropped must be one of the scores
themselves, of which lanes hold the floor: those of half precision have few bits, all of them in a lane that has more.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import once, operation
from nmflow.kernels.lanes import WORD, words_in_row
from nmflow.kernels.memory import read_half, trailing_zeros, write_half
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import I16, I32, I64, LANES, Emitter, literal, loop, vector

__all__ = ["drop_kernel", "surplus_lanes"]


@intrinsic(prefer_literal=True)
def surplus_lanes(typing, words, marks, rows, cols, r, c):  # type: ignore[no-untyped-def]
    """The bits of lanes whose lines all keep their budget or one more, and some more.

    words : address of rows x words_in_row lane vectors. marks : of `words_in_row` of rows and of columns, output: the
    lines that keep more, as bits.
    """
    rows_, cols_, r_, c_ = (literal(x) for x in (rows, cols, r, c))
    parts = words_in_row(cols_)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        words, marks = args[:2]
        shape, none = vector(I16, LANES), emit.splat(I16, LANES, 0)
        faults, some = emit.variable(none), emit.variable(none)
        counts = [[emit.variable(none) for _ in range(rows_.bit_length())] for _ in range(parts)]
        for first in range(0, rows_, WORD):
            size = min(WORD, rows_ - first)
            mark = emit.variable(none)
            with loop(builder, size) as turn:
                count = none
                for p in range(parts):
                    at = emit.at(emit.beyond(words, turn.index, parts * VECTOR), (first * parts + p) * VECTOR)
                    carry = emit.load(at, shape, VECTOR)
                    count = builder.add(count, emit.call("llvm.ctpop", carry))
                    for digit in counts[p]:
                        old = builder.load(digit)
                        builder.store(builder.xor(old, carry), digit)
                        carry = builder.and_(old, carry)
                over = builder.sub(count, emit.splat(I16, LANES, r_))
                wrong = builder.and_(over, emit.splat(I16, LANES, -2))
                builder.store(builder.or_(builder.load(faults), wrong), faults)
                over = builder.zext(builder.icmp_signed("!=", over, none), shape)
                # bits come in from above
                moved = builder.lshr(builder.load(mark), emit.splat(I16, LANES, 1))
                over = builder.shl(over, emit.splat(I16, LANES, WORD - 1))
                builder.store(builder.or_(moved, over), mark)
            found = builder.lshr(builder.load(mark), emit.splat(I16, LANES, WORD - size))
            builder.store(builder.or_(builder.load(some), found), some)
            emit.store(found, emit.at(marks, first // WORD * VECTOR), VECTOR)
        for p in range(parts):
            right, more = (_counts_are(emit, counts[p], number) for number in (c_, c_ + 1))
            within = (1 << min(WORD, cols_ - WORD * p)) - 1
            within -= (1 << 16) if within >> 15 else 0
            wrong = builder.and_(builder.not_(builder.or_(right, more)), emit.splat(I16, LANES, within))
            builder.store(builder.or_(builder.load(faults), wrong), faults)
            more = builder.and_(more, emit.splat(I16, LANES, within))
            emit.store(more, emit.at(marks, (words_in_row(rows_) + p) * VECTOR), VECTOR)
        good = builder.icmp_signed("==", builder.load(faults), none)
        good = builder.and_(good, builder.icmp_signed("!=", builder.load(some), none))
        return builder.zext(builder.bitcast(good, I32), I64)

    return types.int64(words, marks, rows, cols, r, c), codegen


def _counts_are(emit: Emitter, digits: list[Any], number: int) -> Any:
    """Bits of the columns whose count, given by its digits, is this number."""
    same = emit.splat(I16, LANES, -1)
    for d, digit in enumerate(digits):
        bits = emit.builder.load(digit)
        same = emit.builder.and_(same, bits if number >> d & 1 else emit.builder.not_(bits))
    return same


@once
def drop_kernel() -> int:
    """Compile for all patterns and kinds.

    Returns
    -------
    operation (words, marks, faults, lanes, rows_at, cols_at, chosen, rows, cols, bias, least) -> 0
        words, marks: as `surplus_lanes` has them; masks, which are changed. faults: of lanes, 0 where that is done.
        lanes, rows_at, cols_at: scores and duals, in lanes. chosen: bits of the lanes to change, of those that
        `surplus_lanes` gives; what becomes of a mask that cannot be mended is of no use. bias: what
        scores in lanes lack. least: magnitudes above this are whole as they were before they were cut.
    """
    lane_bytes, word_bits, vector_bytes = VECTOR // LANES, WORD, VECTOR
    sign = 1 << (WORD - 1)

    def drop(words, marks, faults, lanes, rows_at, cols_at, chosen, rows, cols, bias, least):  # type: ignore[no-untyped-def]
        parts, row_parts = -(-cols // word_bits), -(-rows // word_bits)
        while chosen != 0:
            at = trailing_zeros(chosen) * lane_bytes
            chosen &= chosen - 1
            rows_over, cols_over = 0, 0
            for p in range(row_parts):
                rows_over |= read_half(marks + p * vector_bytes + at) << (p * word_bits)
            for p in range(parts):
                cols_over |= read_half(marks + (row_parts + p) * vector_bytes + at) << (p * word_bits)
            while rows_over != 0:
                i = trailing_zeros(rows_over)
                rows_over &= rows_over - 1
                kept, dropped = 0, 0
                for p in range(parts):
                    kept |= read_half(words + (i * parts + p) * vector_bytes + at) << (p * word_bits)
                found = kept & cols_over
                dual = (read_half(rows_at + i * vector_bytes + at) ^ sign) - sign
                while found != 0 and dropped == 0:
                    j = trailing_zeros(found)
                    found &= found - 1
                    number = (read_half(lanes + (i * cols + j) * vector_bytes + at) ^ sign) - sign
                    other = (read_half(cols_at + j * vector_bytes + at) ^ sign) - sign
                    if number == dual + other and abs(number + bias) > least:
                        dropped = 1 << j
                cols_over &= ~dropped
                for p in range(parts):
                    write_half(words + (i * parts + p) * vector_bytes + at, (kept & ~dropped) >> (p * word_bits))
            if cols_over == 0:  # as many lines of both sides keep one more, so no row is left either
                write_half(faults + at, 0)
        return 0

    return operation(drop, 11)
