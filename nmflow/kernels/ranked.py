"""Rows alone: the largest entries of each, 32 blocks side by side, and the threshold that proves them.

Where columns are free nothing ties the rows of a block to each other. The n-th largest entry of a row is its dual:
what is larger is kept, what is smaller is not, and of what equals it, whatever comes first while there is room. Scores
are compared as integers that are ordered as they are, whole as they stand, so that no score is too close to another.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.ahead import Ahead
from nmflow.kernels.carry import fill
from nmflow.kernels.compile import once, operation
from nmflow.kernels.lanes import WORD, first_lanes, words_in_row, write_masks
from nmflow.kernels.memory import LINE, copy_bytes
from nmflow.kernels.networks import select_wires
from nmflow.kernels.room import Room
from nmflow.kernels.scores import BY_CODE, KINDS, ScoreKind
from nmflow.kernels.segments import VECTOR
from nmflow.kernels.simd import I16, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.transpose import deinterleave

__all__ = ["rank_duals", "rank_pass"]

REGISTER = 64
"""Bytes of a vector: of scores of more than 16 bits fewer than 32 blocks stand side by side, to stay in registers."""
NEAR = 8192
"""Bytes of rows that are asked for ahead: rows that are a power of two apart share few places of a cache."""


@intrinsic(prefer_literal=True)
def rank_lanes(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, words, duals, sums, here, ahead, kind, rows, cols, r, row_fill, absolute
):
    """Write the masks of 32 neighbouring blocks and their row duals; 0, or -1 if a score is not finite.

    scores, mask : addresses where the blocks lie side by side. words : room for `rows` x `words_in_row` lane vectors.
    duals : address of (rows, 32) numbers in the work type. sums : address of 32 float64, to which the kept scores of
    the first `here` blocks are added. ahead : see `nmflow.kernels.ahead`.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))
    r_, loose = literal(r), literal(row_fill) == 1
    parts, size = words_in_row(cols_), kind_.itemsize
    width = REGISTER // size  # blocks at a time
    near = min(rows_, max(1, NEAR // (LANES * cols_ * size)))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, words, duals, sums, here, ahead = args[:9]
        raw, zeros = vector(kind_.raw, width), ir.Constant(vector(kind_.raw, width), None)
        largest, at = emit.variable(zeros), emit.variable(scores)
        errand = Ahead(emit, ahead, cols_, 1)
        with loop(builder, rows_) as row:
            errand.mask_row(row.index)
            base = builder.load(at)
            # some rows on, which may be in the next group
            later = builder.add(row.index, ir.Constant(I64, near - rows_))
            soon = builder.select(
                builder.icmp_signed("<", later, ir.Constant(I64, 0)), emit.beyond(base, stride, near),
                emit.beyond(emit.load(ahead, I64), later, emit.load(emit.at(ahead, 16), I64)),
            )  # fmt: skip
            with loop(builder, LANES // width) as part:
                passed = builder.mul(part.index, ir.Constant(I64, width * cols_ * size))
                for k in range(0, width * cols_ * size, LINE):
                    emit.prefetch(emit.at(builder.add(soon, passed), k))
                some = builder.add(base, passed)
                entries = [emit.load(emit.at(some, k * width * size), raw) for k in range(cols_)]
                top = builder.load(largest)
                for k, entry in enumerate(entries):
                    bits = builder.and_(entry, emit.splat(kind_.raw, width, kind_.sign_mask))
                    top = emit.call("llvm.smax", top, bits)
                    entries[k] = bits if absolute_ else _turned(emit, entry, kind_)
                builder.store(top, largest)
                entries = deinterleave(emit, entries, width)
                dual, after = _ranked(emit, entries, r_)
                if loose:
                    dual = emit.call("llvm.smax", dual, zeros)
                to = emit.beyond(words, row.index, parts * VECTOR)
                to = emit.beyond(to, part.index, 2 * width)
                if after is None or loose:
                    _keep(emit, to, entries, dual, r_, loose)
                else:
                    tied = builder.sext(builder.icmp_signed("==", dual, after), vector(I16, width))
                    some = emit.reduce("llvm.vector.reduce.or", tied)
                    with builder.if_else(builder.icmp_signed("!=", some, ir.Constant(I16, 0))) as (ties, none):
                        with ties:
                            _keep(emit, to, entries, dual, r_, loose)
                        with none:
                            _write(emit, to, [builder.icmp_signed(">=", entry, dual) for entry in entries], raw)
                number = kind_.widened(emit, dual if absolute_ else _turned(emit, dual, kind_), width)
                place = emit.beyond(duals, row.index, LANES * kind_.work_size)
                emit.store(number, emit.beyond(place, part.index, width * kind_.work_size))
            builder.store(builder.add(base, stride), at)
        worst = emit.reduce("llvm.vector.reduce.smax", builder.load(largest))
        finite = builder.icmp_signed("<", worst, ir.Constant(kind_.raw, kind_.infinity))
        with builder.if_then(finite):
            good = builder.sext(first_lanes(emit, here), vector(I16, LANES))
            write_masks(emit, scores, stride, mask, mask_stride, words, sums, good, kind_, rows_, cols_, absolute_)
        return builder.select(finite, ir.Constant(I64, 0), ir.Constant(I64, -1))

    arguments = (
        scores, stride, mask, mask_stride, words, duals, sums, here, ahead, kind, rows, cols, r, row_fill, absolute
    )  # fmt: skip
    return types.int64(*arguments), codegen


def _turned(emit: Emitter, bits: Any, kind: ScoreKind) -> Any:
    """Bits of floats as integers in their order, or back: those of negative ones go the other way."""
    count = bits.type.count
    negative = emit.builder.ashr(bits, emit.splat(kind.raw, count, 8 * kind.itemsize - 1))
    return emit.builder.xor(bits, emit.builder.and_(negative, emit.splat(kind.raw, count, kind.sign_mask)))


def _ranked(emit: Emitter, entries: list[Any], n: int) -> tuple[Any, Any]:
    """The n-th largest, and the next; None where there is none."""
    count, wires = len(entries), list(entries)
    ranks = (n - 1, n) if n < count else (n - 1,)
    select_wires(emit, wires, ranks)
    if n == count:
        return wires[n - 1], None
    a, b = wires[n - 1], wires[n]
    return emit.call("llvm.smax", a, b), emit.call("llvm.smin", a, b)


def _keep(emit: Emitter, to: Any, entries: list[Any], dual: Any, n: int, loose: bool) -> None:
    """Write as bits what is larger than the dual, and what equals it while fewer than n are kept.

    loose : whether a line may keep fewer; what equals 0 is then left out.
    """
    builder, zeros = emit.builder, ir.Constant(dual.type, None)
    one = emit.splat(dual.type.element, dual.type.count, 1)
    above = [builder.icmp_signed(">", entry, dual) for entry in entries]
    room = emit.splat(dual.type.element, dual.type.count, n)
    for larger in above:
        room = builder.select(larger, builder.sub(room, one), room)
    if loose:
        room = builder.select(builder.icmp_signed(">", dual, zeros), room, zeros)
    kept = []
    for entry, larger in zip(entries, above, strict=True):
        fits = builder.and_(builder.icmp_signed("==", entry, dual), builder.icmp_signed(">", room, zeros))
        room = builder.select(fits, builder.sub(room, one), room)
        kept.append(builder.or_(larger, fits))
    _write(emit, to, kept, dual.type)


def _write(emit: Emitter, to: Any, kept: list[Any], shape: Any) -> None:
    """Write truth values of the columns of a row as bits; shape : of the scores, whose lanes are as wide as any."""
    builder, none = emit.builder, ir.Constant(shape, None)
    for first in range(0, len(kept), WORD):
        word = none
        for t, chosen in enumerate(kept[first : first + WORD]):
            bit = (1 << t) - (1 << 16 if shape.element == I16 and t == WORD - 1 else 0)
            word = builder.select(chosen, builder.or_(word, emit.splat(shape.element, shape.count, bit)), word)
        word = word if shape.element == I16 else builder.trunc(word, vector(I16, shape.count))
        emit.store(word, emit.at(to, first // WORD * VECTOR))


@once
def rank_pass(kind_name: str, rows: int, cols: int, row_budget: int, row_fill: int, absolute: bool) -> int:
    """Compile what takes the place of `first_pass` where columns are free; it leaves no block open.

    Returns
    -------
    operation (room, base, step, to, to_step, warm_v, here, sums, ascent, rounds, filled, dropping) -> 0
        -1 if a score is not finite. What is not named in `rank_lanes` is not read.
    """
    code, magnitude, room_of = KINDS[kind_name].code, int(absolute), Room.of(kind_name, rows, cols)
    words_in, u_in, ahead_in = room_of.words, room_of.u, room_of.ahead

    def rank(room, base, step, to, to_step, warm_v, here, sums, ascent, rounds, filled, dropping):  # type: ignore[no-untyped-def]
        return rank_lanes(
            base, step, to, to_step, room + words_in, room + u_in, sums, here, room + ahead_in,
            code, rows, cols, row_budget, row_fill, magnitude,
        )  # fmt: skip

    return operation(rank, 12)


def rank_duals(kind_name: str, rows: int, cols: int) -> int:
    """Compile the writing of the duals that this leaves in the room.

    Returns
    -------
    operation (room, u, u_stride, v) -> 0
    """
    return int(_duals_out(Room.of(kind_name, rows, cols).u, rows, cols, KINDS[kind_name].work_size))


@once
def _duals_out(u_in: int, rows: int, cols: int, work: int) -> int:
    u_bytes, v_bytes = LANES * work, LANES * cols * work

    def out(room, u, u_stride, v):  # type: ignore[no-untyped-def]
        for i in range(rows if u != room + u_in else 0):
            copy_bytes(room + u_in + i * u_bytes, u + i * u_stride, u_bytes)
        fill(v, v_bytes, 0)
        return 0

    return operation(out, 4)
