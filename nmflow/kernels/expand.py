"""Expanding what `nmflow.kernels.compress` wrote: both sides are read, and each is checked against the other.

Units, their order and their workspace are those of compressing. What columns store is untangled first, by a transpose
in registers, and waits in the workspace; then four rows at a time are expanded and compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.carry import LARGE, ask, drain, fill, put
from nmflow.kernels.compile import compiled, once
from nmflow.kernels.compress import BLOCK, UNIT_ROWS, lanes_of
from nmflow.kernels.lines import Lines4, any_lane, unpack_nibbles
from nmflow.kernels.pairs import expand_pairs
from nmflow.kernels.simd import I8, I16, I64, Emitter, literal, loop, vector
from nmflow.kernels.swizzle import CHUNK, EMPTY, LINES, get_tiles, get_words, word_size
from nmflow.kernels.transpose import deinterleave, interleave

__all__ = ["expand_kernel"]

Value = Any


@intrinsic(prefer_literal=True)
def expand_unit(  # type: ignore[no-untyped-def]
    typing, weight, mask, values, values_step, codes, tiles, values_t, values_t_step, codes_t, codes_t_step,
    stash, itemsize, code_bits,
):  # fmt: skip
    """Expand a unit; not 0 where the two sides or the mask do not agree, or a code is undefined."""
    size, bits = literal(itemsize), literal(code_bits)
    element, lanes = ir.IntType(8 * size), lanes_of(size)
    width = 4 * lanes
    stash_row = width * (2 * size + 1)  # of four rows: the two stored entries and the code of each column

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (weight_, mask_, values_, values_step_, codes_, tiles_, values_t_, values_t_step_, codes_t_, codes_t_step_,
         stash_, *_) = args  # fmt: skip
        emit = Emitter(builder)
        lines = Lines4(emit, lanes)
        fault = emit.variable(ir.Constant(I64, 0))

        with loop(builder, 4) as span:
            left = builder.mul(span.index, ir.Constant(I64, lanes))
            n_codes = UNIT_ROWS * bits // 32
            from_, code_from = emit.beyond(values_t_, left, values_t_step_), emit.beyond(codes_t_, left, codes_t_step_)
            stored = _load_columns(emit, element, UNIT_ROWS // 2, lanes, from_, values_t_step_)
            coded = _load_columns(emit, I8, n_codes, lanes, code_from, codes_t_step_)
            if bits == 4:
                halves = [(builder.and_(c, lines.constant(15)), builder.lshr(c, lines.constant(4))) for c in coded]
                coded = [half for pair in halves for half in pair]
            for i in range(UNIT_ROWS // 4):
                to = emit.at(emit.beyond(stash_, left, size), i * stash_row)
                for number in range(2):
                    emit.store(stored[2 * i + number], emit.at(to, number * width * size))
                emit.store(coded[i], emit.at(builder.add(stash_, left), i * stash_row + 2 * width * size))
        with loop(builder, UNIT_ROWS // 4) as tile_row:
            numbers = [
                builder.add(builder.mul(tile_row.index, ir.Constant(I64, 4)), ir.Constant(I64, r)) for r in range(4)
            ]
            rows = [
                (
                    emit.beyond(weight_, row, BLOCK * width * size),
                    emit.beyond(mask_, row, BLOCK * width),
                    emit.beyond(values_, row, values_step_),
                    emit.beyond(codes_, row, BLOCK * width * bits // 32),
                )
                for row in numbers
            ]
            tile = emit.load(emit.beyond(tiles_, tile_row.index, BLOCK * width // 2), vector(I16, lanes))
            stash_from = emit.beyond(stash_, tile_row.index, stash_row)
            found = (_expand_lines if bits == 4 else expand_pairs)(lines, element, rows, tile, stash_from)
            builder.store(builder.or_(builder.load(fault), found), fault)
        return builder.load(fault)

    arguments = (
        weight, mask, values, values_step, codes, tiles, values_t, values_t_step, codes_t, codes_t_step,
        stash, itemsize, code_bits,
    )  # fmt: skip
    return types.int64(*arguments), codegen


def _expand_lines(
    lines: Lines4, element: Any, rows: Sequence[tuple[Value, Value, Value, Value]], tile: Value, stash_at: Value
) -> Value:
    """Expand four rows at 2:4; as `expand_pairs`."""
    emit, b, lanes = lines.emit, lines.emit.builder, lines.count
    size, width, wide, none = element.width // 8, 4 * lanes, vector(element, lanes), emit.splat(element, lanes, 0)
    faults = []
    for r, (weight, mask, values, codes) in enumerate(rows):
        packed = [emit.load(emit.at(values, k * lanes * size), wide) for k in range(2)]
        first, second = deinterleave(emit, packed, lanes)
        code = unpack_nibbles(emit, emit.load(codes, vector(I8, lanes // 2)))
        x, indexed, undefined = lines.place(first, second, code)
        faults.append(undefined)
        for k in range(4):
            bit = b.and_(tile, emit.splat(I16, lanes, 1 << (4 * r + k)))
            kept = b.icmp_unsigned("!=", bit, emit.splat(I16, lanes, 0))
            stray = b.and_(b.icmp_unsigned("!=", x[k], none), b.not_(kept))
            faults += [stray, b.and_(kept, b.not_(indexed[k]))]
        for k, part in enumerate(interleave(emit, x, lanes)):
            emit.store(part, emit.at(weight, k * lanes * size))
        emit.store(lines.bytes_of(tile, 4 * r), mask)
    for k in range(4):
        first, second = (emit.load(emit.at(stash_at, (n * width + k * lanes) * size), wide) for n in range(2))
        code = emit.load(emit.at(stash_at, 2 * width * size + k * lanes), vector(I8, lanes))
        x, indexed, undefined = lines.place(first, second, code)
        faults.append(undefined)
        for r, (weight, mask, *_) in enumerate(rows):
            kept = b.icmp_unsigned("!=", emit.load(emit.at(mask, k * lanes), vector(I8, lanes)), lines.constant(0))
            other = emit.load(emit.at(weight, k * lanes * size), wide)
            faults += [b.icmp_unsigned("!=", other, x[r]), b.and_(kept, b.not_(indexed[r]))]
    return b.zext(any_lane(emit, lines.any_of(faults)), I64)


def _load_columns(emit: Emitter, element: Any, length: int, lanes: int, address: Value, step: Value) -> list[Value]:
    """Load `length` neighbouring entries of each of `lanes` rows, as one vector for each of the entries."""
    rows = [
        emit.load(emit.builder.add(address, emit.builder.mul(step, ir.Constant(I64, number))), vector(element, length))
        for number in range(lanes)
    ]
    while rows[0].type.count < lanes:
        count = 2 * rows[0].type.count
        rows = [emit.shuffle(a, b, range(count)) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    return deinterleave(emit, rows, lanes)


@once
def expand_kernel(itemsize: int, code_bits: int, swizzled: bool) -> Any:
    """Compile for entries of `itemsize` bytes and codes of 4 (2:4) or 8 (1:2) bits for four entries.

    Returns
    -------
    function (weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles, room) -> int
        As `compress_kernel`, with weight and mask written and the others read. The result is not 0 where a code is
        undefined, a kept entry is not indexed, a value other than +0 is not kept, or the two sides differ.
    """
    size, bits = itemsize, code_bits
    unit_rows, unit_cols = UNIT_ROWS, 4 * lanes_of(itemsize)
    block_cols, word, pair = BLOCK * unit_cols, word_size(itemsize), 2 * word_size(itemsize)
    full_values, full_codes, full_tiles = unit_cols // 2 * size, block_cols * bits // 32, block_cols // 2
    full_values_t = unit_rows // 2 * size

    def expand(  # type: ignore[no-untyped-def]
        weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles, room
    ):
        fault, item = 0, np.int64(size)
        large = rows * cols * item >= LARGE
        weight_step, values_step, codes_step, tiles_step = cols * item, cols // 2 * item, cols * bits // 32, cols // 2
        values_t_step, codes_t_step, tiles_8_step = rows // 2 * item, rows * bits // 32, -(-cols // 64) * 64
        height = stop - start
        full_codes_t = (height + unit_rows) * bits // 32 + 16
        weight_ = (room + 63) // 64 * 64
        mask_ = weight_ + unit_rows * block_cols * item
        codes_ = mask_ + unit_rows * block_cols
        tiles_ = codes_ + unit_rows * full_codes
        chunk = tiles_ + unit_rows // 4 * full_tiles
        stash = chunk + CHUNK
        values_ = stash + unit_rows // 4 * unit_cols * (2 * item + 1)
        values_t_ = values_ + unit_rows * full_values
        codes_t_ = values_t_ + unit_cols * full_values_t
        for edge in range(0, cols, block_cols):
            end = min(edge + block_cols, cols)
            span, n_codes, n_codes_t = end - edge, (end - edge) * bits // 32, height * bits // 32
            # Where a unit sticks out of the matrix, the rest is a compressed matrix of zeros.
            fill(codes_t_, block_cols * full_codes_t, EMPTY)
            if swizzled:
                for col in range(0, span, LINES):
                    for k in range(0, n_codes_t, 16):
                        from_ = codes_t + (start * bits // 32 + k) * cols + (edge + col) * pair
                        to = codes_t_ + col * full_codes_t + k
                        get_words(to, full_codes_t, chunk, from_, cols, min(16, n_codes_t - k), word)
            else:
                from_ = codes_t + edge * codes_t_step + start * bits // 32
                put(from_, codes_t_step, codes_t_, full_codes_t, span, n_codes_t, False)
            for top in range(start, stop, unit_rows):
                tall = min(unit_rows, stop - top)
                if tall < unit_rows or span % unit_cols:
                    fill(codes_, unit_rows * full_codes, EMPTY)
                    fill(tiles_, unit_rows // 4 * full_tiles, 0)
                if swizzled:
                    for k in range(0, n_codes, 16):
                        from_ = codes + (edge * bits // 32 + k) * rows + top * pair
                        get_words(codes_ + k, full_codes, chunk, from_, rows, min(16, n_codes - k), word)
                    from_ = tiles + top // 8 * tiles_8_step + edge
                    get_tiles(tiles_, full_tiles, from_, tiles_8_step, tall // 4, span // 2)
                else:
                    from_ = codes + top * codes_step + edge * bits // 32
                    put(from_, codes_step, codes_, full_codes, tall, n_codes, False)
                    from_ = tiles + top // 4 * tiles_step + edge // 2
                    put(from_, tiles_step, tiles_, full_tiles, tall // 4, span // 2, False)
                for left in range(edge, end, unit_cols):
                    width = min(unit_cols, end - left)
                    down, right = top, left + unit_cols
                    if right >= end:
                        down, right = (top + unit_rows, edge) if top + unit_rows < stop else (start, end)
                    ask(values + down * values_step + right // 2 * item, values_step, unit_rows, full_values)
                    ask(values_t + right * values_t_step + down // 2 * item, values_t_step, unit_cols, full_values_t)
                    from_, from_step = values + top * values_step + left // 2 * item, values_step
                    from_t, from_t_step = values_t + left * values_t_step + top // 2 * item, values_t_step
                    if tall < unit_rows or width < unit_cols:
                        fill(values_, unit_rows * full_values + unit_cols * full_values_t, 0)
                        put(from_, from_step, values_, full_values, tall, width // 2 * item, False)
                        put(from_t, from_t_step, values_t_, full_values_t, width, tall // 2 * item, False)
                        from_, from_step, from_t, from_t_step = values_, full_values, values_t_, full_values_t
                    col, row = left - edge, top - start
                    fault |= expand_unit(
                        weight_ + col * item, mask_ + col, from_, from_step,
                        codes_ + col * bits // 32, tiles_ + col // 2, from_t, from_t_step,
                        codes_t_ + col * full_codes_t + row * bits // 32, full_codes_t, stash, size, bits,
                    )  # fmt: skip
                to, kept = weight + top * weight_step + edge * item, mask + top * cols + edge
                put(weight_, block_cols * item, to, weight_step, tall, span * item, large)
                put(mask_, block_cols, kept, cols, tall, span, large)
        drain()
        return fault

    return compiled(expand, types.int64(*[types.int64] * 12))
