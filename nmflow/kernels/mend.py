"""Masks mended along ties, in the lanes of `nmflow.kernels.untie`: what a line has too much goes to one that lacks it.

Where scores repeat, the ascent mostly ends with duals that are right and a mask that is not: some column keeps one too
many, and another one too few. Among entries on the threshold a path that leads from one to the other mends it, and no
dual moves; so what has been shown of the others holds on. A block takes some words for that, one for each row and
column, and no score. What is left then is left to longer paths (`nmflow.kernels.finish`), which begin from this mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from nmflow.kernels.bits import WIDTH
from nmflow.kernels.compile import once, operation
from nmflow.kernels.lanes import WORD, place_bit, words_in_row
from nmflow.kernels.memory import count_ones, pointer, read_half, trailing_zeros, write_half
from nmflow.kernels.repair import send_along_ties
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import I16, I32, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.tied import width_of

__all__ = ["faulty_lanes", "mend_kernel", "mend_room", "tie_lanes"]

LONGEST = 64
"""Most lines of a side of a block."""
NODES = 2 * LONGEST
DIGITS = LONGEST.bit_length()
"""Of the count of a column."""


@intrinsic(prefer_literal=True)
def tie_lanes(typing, numbers, words, u, v, inexact, rows, cols, wide):  # type: ignore[no-untyped-def]
    """Write as bits which numbers are u + v, and stand for no more; see `correct_lanes` for `inexact`."""
    rows_, cols_, lanes = literal(rows), literal(cols), width_of(wide)
    parts = words_in_row(cols_)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        numbers, words, u, v, inexact = args[:5]
        none = emit.splat(I16, LANES, 0)
        cut = [lanes.load(emit, inexact, k) for k in range(3)] if lanes.wide else []
        whole = builder.icmp_signed("==", cut[2], lanes.splat(emit, 0)) if cut else None
        with loop(builder, rows_) as turn:
            line, dual = lanes.ahead(emit, numbers, turn, cols_), lanes.load(emit, lanes.ahead(emit, u, turn))
            to = emit.beyond(words, turn.index, parts * VECTOR)
            for p in range(parts):
                word = none
                for t in range(min(WORD, cols_ - WORD * p)):
                    j = WORD * p + t
                    number = lanes.load(emit, line, j)
                    tied = builder.icmp_signed("==", lanes.less(emit, number, lanes.load(emit, v, j)), dual)
                    if cut:
                        outside = builder.or_(
                            builder.icmp_signed("<", number, cut[0]), builder.icmp_signed(">", number, cut[1])
                        )
                        tied = builder.and_(tied, builder.or_(outside, whole))
                    word = builder.or_(word, builder.select(tied, place_bit(emit, t), none))
                emit.store(word, emit.at(to, p * VECTOR), VECTOR)
        return context.get_dummy_value()

    return types.none(numbers, words, u, v, inexact, rows, cols, wide), codegen


@intrinsic
def faulty_lanes(typing, faults):  # type: ignore[no-untyped-def]
    """The bits of the lanes that are not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        lanes = emit.load(args[0], vector(I16, LANES), VECTOR)
        faulty = builder.icmp_signed("!=", lanes, emit.splat(I16, LANES, 0))
        return builder.zext(builder.bitcast(faulty, I32), I64)

    return types.int64(faults), codegen


def mend_room() -> int:
    """Bytes of workspace that the kernel needs."""
    return 8 * (5 * LONGEST + 3 * NODES)


@once
def mend_kernel() -> int:
    """Compile for all patterns.

    Returns
    -------
    operation (words, ties, faults, chosen, rows, cols, r, c, room) -> 0
        words, ties: as `choose_lanes` and `tie_lanes` write them: the masks, which are mended. faults: of lanes, 0
        where that is done. chosen: bits of the lanes to mend, whose duals must be right. room: of `mend_room` bytes.
    """
    lane_bytes, word_bits, vector_bytes, longest, nodes, digits = 2, WORD, VECTOR, LONGEST, NODES, DIGITS
    padded = WIDTH

    def mend(words, ties, faults, chosen, rows, cols, r, c, room):  # type: ignore[no-untyped-def]
        lines = carray(pointer(room), (5, longest), np.int64)
        others = carray(pointer(room + 8 * 5 * longest), (3, nodes), np.int64)
        kept, dropped, row_ties, col_ties, counts = lines[0], lines[1], lines[2], lines[3], lines[4]
        need, previous, queue = others[0], others[1], others[2]
        parts, first = -(-cols // word_bits), -(-rows // padded) * padded
        every = -1 if cols == longest else (1 << cols) - 1
        while chosen != 0:
            at = trailing_zeros(chosen) * lane_bytes
            chosen &= chosen - 1
            counts[:] = 0
            for j in range(cols):
                col_ties[j], need[first + j] = 0, 0
            for i in range(rows):
                kept_word, tied_word = 0, 0
                for p in range(parts):
                    place = at + (i * parts + p) * vector_bytes
                    kept_word |= read_half(words + place) << (p * word_bits)
                    tied_word |= read_half(ties + place) << (p * word_bits)
                kept[i], row_ties[i] = kept_word, tied_word
                need[i] = r - count_ones(kept_word)
                carry = kept_word
                for d in range(digits):
                    old = counts[d]
                    counts[d] = old ^ carry
                    carry &= old
                loose = kept_word & tied_word
                while loose != 0:
                    col_ties[trailing_zeros(loose)] |= 1 << i
                    loose &= loose - 1
            wrong = 0
            for d in range(digits):
                wrong |= counts[d] ^ (every if (c >> d) & 1 else 0)
            wrong &= every
            while wrong != 0:
                j = trailing_zeros(wrong)
                wrong &= wrong - 1
                for d in range(digits):
                    need[first + j] += ((counts[d] >> j) & 1) << d
                need[first + j] -= c
            dropped[:] = col_ties  # of what columns keep, all that matters are ties
            done = send_along_ties(kept, dropped, row_ties, col_ties, need, previous, queue, rows, cols)
            for i in range(rows):
                for p in range(parts):
                    write_half(words + at + (i * parts + p) * vector_bytes, kept[i] >> (p * word_bits))
            if done:
                write_half(faults + at, 0)
        return 0

    return operation(mend, 9)
