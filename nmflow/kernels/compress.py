"""Compressing 2 of 4 and 1 of 2, both ways in one pass over the matrix.

The matrix is visited in units of 32 rows x 128 columns (64 for 32-bit entries), down a stripe of rows and then to the
right. Four rows of a unit at a time are read and compressed both ways: along rows, four vectors are untangled into
entry 0 .. 3 of 32 lines; down columns a row is such a vector already, and what a column stores is brought together by
a transpose in registers once the unit is read. What a unit makes goes to a workspace in the core's own cache and from
there to the arrays in whole lines (`nmflow.kernels.carry`); what columns store waits there until the stripe's end, so
that each column gets one long piece. Units that stick out of the matrix are read through a workspace padded with zeros.
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
from nmflow.kernels.lines import Lines4, any_lane, pack_nibbles
from nmflow.kernels.pairs import compress_pairs
from nmflow.kernels.simd import I8, I16, I32, I64, LANES, Emitter, literal, loop, vector
from nmflow.kernels.swizzle import CHUNK, LINES, put_tiles, put_words, word_size
from nmflow.kernels.transpose import deinterleave, interleave

__all__ = ["BLOCK", "UNIT_ROWS", "compress_kernel", "lanes_of", "room_size"]

Value = Any
UNIT_ROWS = 32
BLOCK = 4
"""Units side by side before going down: pieces of a row are then long enough that few of them share a cache line."""


def lanes_of(itemsize: int) -> int:
    """Lines side by side: 32, or the 16 that fill a 512-bit register with 32-bit entries."""
    return min(LANES, 64 // itemsize)


def room_size(itemsize: int, code_bits: int, height: int) -> int:
    """Bytes of workspace that compressing and expanding need for so many rows."""
    block_cols = BLOCK * 4 * lanes_of(itemsize)
    column = (height + UNIT_ROWS) * (16 * itemsize + code_bits) // 32 + 80  # what a column stores, and what parts them
    return UNIT_ROWS * block_cols * (2 * itemsize + 2) + block_cols * column + 1024


@intrinsic(prefer_literal=True)
def compress_unit(  # type: ignore[no-untyped-def]
    typing, weight, weight_step, mask, mask_step, values, codes, tiles, values_t, values_t_step, codes_t, codes_t_step,
    stash, itemsize, code_bits,
):  # fmt: skip
    """Compress a unit both ways; not 0 where a line keeps too many. Steps are bytes between rows; others are full."""
    size, bits = literal(itemsize), literal(code_bits)
    element, lanes = ir.IntType(8 * size), lanes_of(size)
    wide, flags = vector(element, lanes), vector(I8, lanes)
    width = 4 * lanes
    stash_row = width * (2 * size + 1)  # of four rows: the two stored entries and the code of each column

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (weight_, weight_step_, mask_, mask_step_, values_, codes_, tiles_, values_t_, values_t_step_, codes_t_,
         codes_t_step_, stash_, *_) = args  # fmt: skip
        emit = Emitter(builder)
        lines = Lines4(emit, lanes)
        wrong = emit.variable(ir.Constant(I64, 0))

        with loop(builder, UNIT_ROWS // 4) as tile_row:
            numbers = [
                builder.add(builder.mul(tile_row.index, ir.Constant(I64, 4)), ir.Constant(I64, r)) for r in range(4)
            ]
            rows = [
                (
                    emit.beyond(weight_, row, weight_step_),
                    emit.beyond(mask_, row, mask_step_),
                    emit.beyond(values_, row, BLOCK * width // 2 * size),
                    emit.beyond(codes_, row, BLOCK * width * bits // 32),
                )
                for row in numbers
            ]
            tile, stash_to = (
                emit.beyond(tiles_, tile_row.index, BLOCK * width // 2),
                emit.beyond(stash_, tile_row.index, stash_row),
            )
            found = (_compress_lines if bits == 4 else compress_pairs)(lines, element, rows, tile, stash_to)
            builder.store(builder.or_(builder.load(wrong), found), wrong)
        with loop(builder, 4) as span:
            left = builder.mul(span.index, ir.Constant(I64, lanes))
            stored, coded = [], []
            for i in range(UNIT_ROWS // 4):
                from_ = emit.at(emit.beyond(stash_, left, size), i * stash_row)
                stored += [emit.load(emit.at(from_, number * width * size), wide) for number in range(2)]
                coded.append(emit.load(emit.at(builder.add(stash_, left), i * stash_row + 2 * width * size), flags))
            if bits == 4:
                pairs = zip(coded[::2], coded[1::2], strict=True)
                coded = [builder.or_(low, builder.shl(high, lines.constant(4))) for low, high in pairs]
            for parts, base, step in ((stored, values_t_, values_t_step_), (coded, codes_t_, codes_t_step_)):
                _store_columns(emit, interleave(emit, parts, lanes), len(parts), emit.beyond(base, left, step), step)
        return builder.load(wrong)

    arguments = (
        weight, weight_step, mask, mask_step, values, codes, tiles, values_t, values_t_step, codes_t, codes_t_step,
        stash, itemsize, code_bits,
    )  # fmt: skip
    return types.int64(*arguments), codegen


def _compress_lines(
    lines: Lines4, element: Any, rows: Sequence[tuple[Value, Value, Value, Value]], tile_at: Value, stash_at: Value
) -> Value:
    """Compress four rows at 2:4; as `compress_pairs`."""
    emit, b, lanes = lines.emit, lines.emit.builder, lines.count
    size, width, wide, flags = element.width // 8, 4 * lanes, vector(element, lanes), vector(I8, lanes)
    nibbles, violations = [], []
    for weight, mask, values, codes in rows:
        x = [emit.load(emit.at(weight, k * lanes * size), wide) for k in range(4)]
        kept = lines.flags_of(emit.load(mask, vector(I32, lanes)))
        first, second, code, many = lines.choose(deinterleave(emit, x, lanes), kept)
        violations.append(many)
        for k, part in enumerate(interleave(emit, [first, second], lanes)):
            emit.store(part, emit.at(values, k * lanes * size))
        emit.store(pack_nibbles(emit, code), codes)
        nibbles.append(lines.any_of([lines.where(flag, 1 << k) for k, flag in enumerate(kept)]))
    four, eight = lines.constant(4), emit.splat(I16, lanes, 8)
    low, high = (b.or_(nibbles[k], b.shl(nibbles[k + 1], four)) for k in (0, 2))
    low, high = (b.zext(part, vector(I16, lanes)) for part in (low, high))
    emit.store(b.or_(low, b.shl(high, eight)), tile_at)
    for k in range(4):
        x = [emit.load(emit.at(weight, k * lanes * size), wide) for weight, *_ in rows]
        masks = [emit.load(emit.at(mask, k * lanes), flags) for _, mask, *_ in rows]
        kept = [b.icmp_unsigned("!=", part, lines.constant(0)) for part in masks]
        first, second, code, many = lines.choose(x, kept)
        violations.append(many)
        for number, part in enumerate((first, second)):
            emit.store(part, emit.at(stash_at, (number * width + k * lanes) * size))
        emit.store(code, emit.at(stash_at, 2 * width * size + k * lanes))
    return b.zext(any_lane(emit, lines.any_of(violations)), I64)


def _store_columns(emit: Emitter, joined: list[Value], length: int, address: Value, step: Value) -> None:
    """Store `length` neighbouring lanes to each of as many rows of an output as there are lanes."""
    lanes = joined[0].type.count
    for number in range(lanes):
        part, lane = divmod(number * length, lanes)
        to = emit.builder.add(address, emit.builder.mul(step, ir.Constant(I64, number)))
        emit.store(emit.pick(joined[part], range(lane, lane + length)), to)


@once
def compress_kernel(itemsize: int, code_bits: int, swizzled: bool) -> Any:
    """Compile for entries of `itemsize` bytes and codes of 4 (2:4) or 8 (1:2) bits for four entries.

    Returns
    -------
    function (weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles, room) -> int
        Compresses rows start to stop (start a multiple of 32) of a matrix of rows x cols, both multiples of 4, and of
        8 at 2:4. All arrays are addresses of C-contiguous memory, and the last five are written.
        weight, mask : entries and bytes, (R, C).
        values, values_t : entries, (R, C / 2) and (C, R / 2).
        codes, codes_t : bytes, (R, C * code_bits / 32) and (C, R * code_bits / 32), lower nibble first.
        tiles : 16-bit words, (R / 4, C / 4): the mask of a 4 x 4 tile, bit = column + 4 * row.
        `swizzled`: codes and tiles are in the order of `nmflow.kernels.swizzle`; rows and cols are multiples of 32
        and of what fills two metadata words, and of tiles each row has room for whole multiples of 64 columns.
        room : a workspace of `room_size` bytes, for one call at a time.
        The result is not 0 where a line keeps too many; the outputs are worth nothing then.
    """
    size, bits = itemsize, code_bits
    unit_rows, unit_cols = UNIT_ROWS, 4 * lanes_of(itemsize)
    block_cols, word, pair = BLOCK * unit_cols, word_size(itemsize), 2 * word_size(itemsize)
    full_values, full_codes, full_tiles = block_cols // 2 * size, block_cols * bits // 32, block_cols // 2

    def compress(  # type: ignore[no-untyped-def]
        weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles, room
    ):
        wrong, item = 0, np.int64(size)
        large = rows * cols * item >= LARGE
        weight_step, values_step, codes_step, tiles_step = cols * item, cols // 2 * item, cols * bits // 32, cols // 2
        values_t_step, codes_t_step, tiles_8_step = rows // 2 * item, rows * bits // 32, -(-cols // 64) * 64
        # Columns of the workspace lie a little more than a power of two apart: those share few places of a cache.
        height = stop - start
        full_values_t = (height + unit_rows) // 2 * item + 64
        full_codes_t = (height + unit_rows) * bits // 32 + 16
        values_ = (room + 63) // 64 * 64
        codes_ = values_ + unit_rows * full_values
        tiles_ = codes_ + unit_rows * full_codes
        chunk = tiles_ + unit_rows // 4 * full_tiles
        stash = chunk + CHUNK
        weight_ = stash + unit_rows // 4 * unit_cols * (2 * item + 1)
        mask_ = weight_ + unit_rows * unit_cols * item
        values_t_ = mask_ + unit_rows * unit_cols
        codes_t_ = values_t_ + block_cols * full_values_t
        for edge in range(0, cols, block_cols):
            end = min(edge + block_cols, cols)
            span, n_codes, n_codes_t = end - edge, (end - edge) * bits // 32, height * bits // 32
            for top in range(start, stop, unit_rows):
                tall = min(unit_rows, stop - top)
                for left in range(edge, end, unit_cols):
                    width = min(unit_cols, end - left)
                    down, right = top, left + unit_cols
                    if right >= end:
                        down, right = (top + unit_rows, edge) if top + unit_rows < stop else (start, end)
                    ask(weight + down * weight_step + right * item, weight_step, unit_rows, unit_cols * item)
                    ask(mask + down * cols + right, cols, unit_rows, unit_cols)
                    from_, from_step = weight + top * weight_step + left * item, weight_step
                    kept, kept_step = mask + top * cols + left, cols
                    if tall < unit_rows or width < unit_cols:
                        fill(weight_, unit_rows * unit_cols * (item + 1), 0)
                        put(from_, from_step, weight_, unit_cols * item, tall, width * item, False)
                        put(kept, kept_step, mask_, unit_cols, tall, width, False)
                        from_, from_step, kept, kept_step = weight_, unit_cols * item, mask_, unit_cols
                    col, row = left - edge, top - start
                    wrong |= compress_unit(
                        from_, from_step, kept, kept_step,
                        values_ + col // 2 * item, codes_ + col * bits // 32, tiles_ + col // 2,
                        values_t_ + col * full_values_t + row // 2 * item, full_values_t,
                        codes_t_ + col * full_codes_t + row * bits // 32, full_codes_t, stash, size, bits,
                    )  # fmt: skip
                to = values + top * values_step + edge // 2 * item
                put(values_, full_values, to, values_step, tall, span // 2 * item, large)
                if swizzled:
                    for k in range(0, n_codes, 16):
                        to = codes + (edge * bits // 32 + k) * rows + top * pair
                        put_words(codes_ + k, full_codes, chunk, to, rows, min(16, n_codes - k), word, large)
                    to = tiles + top // 8 * tiles_8_step + edge
                    put_tiles(tiles_, full_tiles, chunk, to, tiles_8_step, tall // 4, span // 2, large)
                else:
                    to = codes + top * codes_step + edge * bits // 32
                    put(codes_, full_codes, to, codes_step, tall, n_codes, large)
                    to = tiles + top // 4 * tiles_step + edge // 2
                    put(tiles_, full_tiles, to, tiles_step, tall // 4, span // 2, large)
            to = values_t + edge * values_t_step + start // 2 * item
            put(values_t_, full_values_t, to, values_t_step, span, height // 2 * item, large)
            if swizzled:
                for col in range(0, span, LINES):
                    for k in range(0, n_codes_t, 16):
                        to = codes_t + (start * bits // 32 + k) * cols + (edge + col) * pair
                        from_ = codes_t_ + col * full_codes_t + k
                        put_words(from_, full_codes_t, chunk, to, cols, min(16, n_codes_t - k), word, large)
            else:
                to = codes_t + edge * codes_t_step + start * bits // 32
                put(codes_t_, full_codes_t, to, codes_t_step, span, n_codes_t, large)
        drain()
        return wrong

    return compiled(compress, types.int64(*[types.int64] * 12))
