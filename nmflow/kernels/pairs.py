"""Four rows at 1:2, both ways at once: what the mask drops is zero, so a group is the bits of its two entries together.

Neither rows nor columns have to be untangled for that. Along a row, the flags of a line of four entries are the four
bytes of a 32-bit number; down columns they are four vectors of bytes. Codes and tiles are as in `nmflow.kernels.lines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from nmflow.kernels.lines import Lines4
from nmflow.kernels.simd import I8, I16, I32, I64, Emitter, vector

__all__ = ["compress_pairs", "expand_pairs"]

Value = Any
FIRST, SECOND = 0b0100, 0b1110
"""Codes of a group that stores its first entry, and its second (or none)."""


def compress_pairs(
    lines: Lines4, element: Any, rows: Sequence[tuple[Value, Value, Value, Value]], tile_at: Value, stash_at: Value
) -> Value:
    """Compress four rows, each given by the addresses of weight, mask, values and codes; not 0 if a group is too full.

    Of the columns, two stored entries each and then their codes go to the stash.
    """
    emit, b, lanes = lines.emit, lines.emit.builder, lines.count
    size, width, kind = element.width // 8, 4 * lanes, vector(element, lanes)
    zero, tile, full = ir.Constant(kind, None), emit.splat(I32, lanes, 0), emit.splat(I32, lanes, 0)
    entries, flags = [], []
    for r, (weight, mask, values, codes) in enumerate(rows):
        kept = _truths(emit, mask, width)
        # A byte of 0 or 1 for each entry, whatever the mask's own say.
        line = b.bitcast(b.zext(kept, vector(I8, width)), vector(I32, lanes))
        x = [
            b.select(
                _truths(emit, emit.at(mask, k * lanes), lanes), emit.load(emit.at(weight, k * lanes * size), kind), zero
            )
            for k in range(4)
        ]
        for k in range(2):
            even, odd = (emit.shuffle(x[2 * k], x[2 * k + 1], range(side, 2 * lanes, 2)) for side in range(2))
            emit.store(b.or_(even, odd), emit.at(values, k * lanes * size))
        groups = [b.icmp_unsigned("!=", b.and_(line, emit.splat(I32, lanes, 1 << at)), zero) for at in (0, 16)]
        emit.store(b.trunc(_code(emit, groups, I32), vector(I8, lanes)), codes)
        nibble = lines.any_of([b.lshr(line, emit.splat(I32, lanes, 7 * k)) for k in range(4)])  # bit 8 k to bit k
        nibble = b.and_(nibble, emit.splat(I32, lanes, 15))
        tile = b.or_(tile, b.shl(nibble, emit.splat(I32, lanes, 4 * r)))
        both = b.and_(b.and_(line, b.lshr(line, emit.splat(I32, lanes, 8))), emit.splat(I32, lanes, 0x00010001))
        full = b.or_(full, both)
        entries.append(x)
        flags.append(kept)
    emit.store(b.trunc(tile, vector(I16, lanes)), tile_at)
    for half in range(2):
        for k in range(4):
            place = emit.at(stash_at, (half * width + k * lanes) * size)
            emit.store(b.or_(entries[2 * half][k], entries[2 * half + 1][k]), place)
    emit.store(_code(emit, flags[::2], I8), emit.at(stash_at, 2 * width * size))
    fuller = b.or_(b.and_(flags[0], flags[1]), b.and_(flags[2], flags[3]))
    return b.or_(_any(emit, b.icmp_unsigned("!=", full, emit.splat(I32, lanes, 0))), _any(emit, fuller))


def expand_pairs(
    lines: Lines4, element: Any, rows: Sequence[tuple[Value, Value, Value, Value]], tile: Value, stash_at: Value
) -> Value:
    """Inverse of `compress_pairs`; not 0 where the sides or the mask do not agree, or a code is undefined."""
    emit, b, lanes = lines.emit, lines.emit.builder, lines.count
    size, width, kind = element.width // 8, 4 * lanes, vector(element, lanes)
    zero, astray = ir.Constant(kind, None), emit.splat(I32, lanes, 0)
    entries, flags, faults = [], [], []
    for r, (weight, mask, values, codes) in enumerate(rows):
        line = lines.bytes_of(tile, 4 * r)
        emit.store(line, mask)
        code = b.zext(emit.load(codes, vector(I8, lanes)), vector(I32, lanes))
        seconds, undefined = _sides(emit, code, I32)
        places = [
            b.select(second, emit.splat(I32, lanes, 0x100 << at), emit.splat(I32, lanes, 1 << at))
            for second, at in zip(seconds, (0, 16), strict=True)
        ]
        astray = b.or_(astray, b.and_(line, b.not_(b.or_(*places))))
        kept = b.icmp_unsigned("!=", b.bitcast(line, vector(I8, width)), emit.splat(I8, width, 0))
        used = b.icmp_unsigned("!=", b.bitcast(line, vector(I16, 2 * lanes)), emit.splat(I16, 2 * lanes, 0))
        faults.append(undefined)
        x = []
        for k in range(2):
            stored = emit.load(emit.at(values, k * lanes * size), kind)
            empty = b.not_(emit.pick(used, range(k * lanes, (k + 1) * lanes)))
            faults.append(b.and_(b.icmp_unsigned("!=", stored, zero), empty))
            for half in range(2):
                at = 2 * k + half
                twice = emit.pick(stored, [(half * lanes + lane) // 2 for lane in range(lanes)])
                x.append(b.select(emit.pick(kept, range(at * lanes, (at + 1) * lanes)), twice, zero))
                emit.store(x[-1], emit.at(weight, at * lanes * size))
        entries.append(x)
        flags.append(kept)
    seconds, undefined = _sides(emit, emit.load(emit.at(stash_at, 2 * width * size), vector(I8, width)), I8)
    absent = [undefined]
    for half, second in enumerate(seconds):
        absent += [b.and_(flags[2 * half], second), b.and_(flags[2 * half + 1], b.not_(second))]
        for k in range(4):
            stored = emit.load(emit.at(stash_at, (half * width + k * lanes) * size), kind)
            both = b.or_(entries[2 * half][k], entries[2 * half + 1][k])
            faults.append(b.icmp_unsigned("!=", stored, both))
    faults.append(b.icmp_unsigned("!=", astray, emit.splat(I32, lanes, 0)))
    return b.or_(_any(emit, lines.any_of(faults)), _any(emit, lines.any_of(absent)))


def _truths(emit: Emitter, address: Value, count: int) -> Value:
    return emit.builder.icmp_unsigned("!=", emit.load(address, vector(I8, count)), emit.splat(I8, count, 0))


def _code(emit: Emitter, firsts: Sequence[Value], kind: Any) -> Value:
    """The code of two groups, from whether each keeps its first entry."""
    count = firsts[0].type.count
    halves = [
        emit.builder.select(first, emit.splat(kind, count, FIRST << at), emit.splat(kind, count, SECOND << at))
        for first, at in zip(firsts, (0, 4), strict=True)
    ]
    return emit.builder.or_(*halves)


def _sides(emit: Emitter, code: Value, kind: Any) -> tuple[list[Value], Value]:
    """Whether each of two groups stores its second entry, and whether the code is none."""
    b, count = emit.builder, code.type.count
    none = emit.splat(kind, count, 0)
    seconds = [b.icmp_unsigned("!=", b.and_(code, emit.splat(kind, count, 8 << at)), none) for at in (0, 4)]
    return seconds, b.icmp_unsigned("!=", code, _code(emit, [b.not_(second) for second in seconds], kind))


def _any(emit: Emitter, flags: Value) -> Value:
    """Flags as the bits of a 64-bit number."""
    packed = emit.builder.bitcast(flags, ir.IntType(flags.type.count))
    return packed if flags.type.count == 64 else emit.builder.zext(packed, I64)
