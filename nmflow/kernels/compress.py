"""Compressing 2 of 4 and 1 of 2, both ways in one pass over the matrix.

The matrix is visited in units of 32 rows x 128 columns. Along rows, four vectors of 32 entries are untangled into
entry 0 .. 3 of 32 lines; down columns a row is such a vector already, and what a column stores is brought together by
a transpose in registers. Units that stick out of the matrix are done in a workspace padded with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.lines import Lines4, any_lane, pack_nibbles
from nmflow.kernels.simd import I8, I16, I32, I64, LANES, Emitter, deinterleave, interleave, literal, loop, vector

__all__ = ["UNIT_ROWS", "compress_kernel", "lanes_of", "move"]

Value = Any
UNIT_ROWS = 32


def lanes_of(itemsize: int) -> int:
    """Lines side by side: 32, or the 16 that fill a 512-bit register with 32-bit entries."""
    return min(LANES, 64 // itemsize)


@intrinsic
def move(typing, source, target, count):  # type: ignore[no-untyped-def]
    """Copy bytes between two addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from_, to = (builder.inttoptr(address, I8.as_pointer()) for address in args[:2])
        cgutils.raw_memcpy(builder, to, from_, args[2], 1)
        return context.get_dummy_value()

    return types.none(source, target, types.int64), codegen


@intrinsic(prefer_literal=True)
def compress_unit(  # type: ignore[no-untyped-def]
    typing, weight, weight_step, mask, mask_step, values, values_step, codes, codes_step,
    values_t, values_t_step, codes_t, codes_t_step, tiles, tiles_step, itemsize, code_bits,
):  # fmt: skip
    """Compress 32 rows x 128 columns both ways; not 0 where a line keeps too many. Steps are bytes between rows."""
    size, bits = literal(itemsize), literal(code_bits)
    element, lanes = ir.IntType(8 * size), lanes_of(size)
    wide, flags = vector(element, lanes), vector(I8, lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        lines = Lines4(emit, bits, lanes)
        steps = dict(
            zip(("weight", "mask", "values", "codes", "values_t", "codes_t", "tiles"), args[1:14:2], strict=True)
        )
        bases = dict(zip(steps, args[0:14:2], strict=True))
        wrong = emit.variable(ir.Constant(I32, 0))

        def at(name: str, row: Value) -> Value:
            return builder.add(bases[name], builder.mul(row, steps[name]))

        def truths(address: Value) -> Value:
            return builder.icmp_unsigned("!=", emit.load(address, flags), lines.constant(0))

        def note(many: Value) -> None:
            builder.store(builder.or_(builder.load(wrong), any_lane(emit, many)), wrong)

        with loop(builder, UNIT_ROWS // 4) as tile_row:
            nibbles = []
            for r in range(4):
                row = builder.add(builder.mul(tile_row.index, ir.Constant(I64, 4)), ir.Constant(I64, r))
                x = [emit.load(emit.at(at("weight", row), k * lanes * size), wide) for k in range(4)]
                m = [emit.load(emit.at(at("mask", row), k * lanes), flags) for k in range(4)]
                kept = [builder.icmp_unsigned("!=", part, lines.constant(0)) for part in deinterleave(emit, m, lanes)]
                first, second, code, many = lines.choose(deinterleave(emit, x, lanes), kept)
                note(many)
                for k, part in enumerate(interleave(emit, [first, second], lanes)):
                    emit.store(part, emit.at(at("values", row), k * lanes * size))
                emit.store(pack_nibbles(emit, code) if bits == 4 else code, at("codes", row))
                nibbles.append(lines.any_of([lines.where(flag, 1 << k) for k, flag in enumerate(kept)]))
            four, eight = lines.constant(4), emit.splat(I16, lanes, 8)
            low, high = (builder.or_(nibbles[k], builder.shl(nibbles[k + 1], four)) for k in (0, 2))
            low, high = (builder.zext(part, vector(I16, lanes)) for part in (low, high))
            emit.store(builder.or_(low, builder.shl(high, eight)), at("tiles", tile_row.index))
        with loop(builder, 4) as span:
            left = builder.mul(span.index, ir.Constant(I64, lanes))
            stored, coded = [], []
            for i in range(UNIT_ROWS // 4):
                rows = [ir.Constant(I64, 4 * i + r) for r in range(4)]
                offset = builder.mul(left, ir.Constant(I64, size))
                x = [emit.load(builder.add(at("weight", row), offset), wide) for row in rows]
                kept = [truths(builder.add(at("mask", row), left)) for row in rows]
                first, second, code, many = lines.choose(x, kept)
                note(many)
                stored += [first, second]
                coded.append(code)
            if bits == 4:
                pairs = zip(coded[::2], coded[1::2], strict=True)
                coded = [builder.or_(low, builder.shl(high, lines.constant(4))) for low, high in pairs]
            for name, parts in (("values_t", stored), ("codes_t", coded)):
                _store_columns(emit, interleave(emit, parts, lanes), len(parts), at(name, left), steps[name])
        return builder.zext(builder.load(wrong), I64)

    arguments = (
        weight, weight_step, mask, mask_step, values, values_step, codes, codes_step,
        values_t, values_t_step, codes_t, codes_t_step, tiles, tiles_step, itemsize, code_bits,
    )  # fmt: skip
    return types.int64(*arguments), codegen


def _store_columns(emit: Emitter, joined: list[Value], length: int, address: Value, step: Value) -> None:
    """Store `length` neighbouring lanes to each of as many rows of an output as there are lanes."""
    lanes = joined[0].type.count
    for number in range(lanes):
        part, lane = divmod(number * length, lanes)
        to = emit.builder.add(address, emit.builder.mul(step, ir.Constant(I64, number)))
        emit.store(emit.pick(joined[part], range(lane, lane + length)), to)


@once
def compress_kernel(itemsize: int, code_bits: int) -> Any:
    """Compile for entries of `itemsize` bytes and codes of 4 (2:4) or 8 (1:2) bits for four entries.

    Returns
    -------
    function (weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles) -> int
        Compresses rows start to stop (start a multiple of 32) of a matrix of rows x cols, both multiples of 4, and of
        8 at 2:4. All arrays are addresses of C-contiguous memory, and the last five are written.
        weight, mask : entries and bytes, (R, C).
        values, values_t : entries, (R, C / 2) and (C, R / 2).
        codes, codes_t : bytes, (R, C * code_bits / 32) and (C, R * code_bits / 32), lower nibble first.
        tiles : 16-bit words, (R / 4, C / 4): the mask of a 4 x 4 tile, bit = column + 4 * row.
        The result is not 0 where a line keeps too many; the outputs are worth nothing then.
    """
    size, bits, version = itemsize, code_bits, fingerprint()
    unit_rows, unit_cols = UNIT_ROWS, 4 * lanes_of(itemsize)
    full_values, full_codes = unit_cols // 2 * size, unit_cols * bits // 32
    full_values_t, full_codes_t = UNIT_ROWS // 2 * size, UNIT_ROWS * bits // 32

    def compress(  # type: ignore[no-untyped-def]
        weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles
    ):
        wrong = version & 0
        item = np.int64(size)
        values_step, codes_step = cols // 2 * item, cols * bits // 32
        values_t_step, codes_t_step = rows // 2 * item, rows * bits // 32
        room = np.empty(unit_rows * unit_cols * (2 * item + 3) + 64, np.uint8)
        weight_ = room.ctypes.data
        mask_ = weight_ + unit_rows * unit_cols * item
        values_ = mask_ + unit_rows * unit_cols
        values_t_ = values_ + unit_rows * full_values
        codes_ = values_t_ + unit_cols * full_values_t
        codes_t_ = codes_ + unit_rows * full_codes
        tiles_ = codes_t_ + unit_cols * full_codes_t
        for left in range(0, cols, unit_cols):
            width = min(unit_cols, cols - left)
            for top in range(start, stop, unit_rows):
                height = min(unit_rows, stop - top)
                from_, kept = weight + (top * cols + left) * item, mask + top * cols + left
                to, code = values + top * values_step + left // 2 * item, codes + top * codes_step + left * bits // 32
                to_t = values_t + left * values_t_step + top // 2 * item
                code_t = codes_t + left * codes_t_step + top * bits // 32
                tile = tiles + (top // 4 * (cols // 4) + left // 4) * 2
                if height == unit_rows and width == unit_cols:
                    wrong |= compress_unit(
                        from_, cols * item, kept, cols, to, values_step, code, codes_step,
                        to_t, values_t_step, code_t, codes_t_step, tile, cols // 4 * 2, size, bits,
                    )  # fmt: skip
                    continue
                room[:] = 0
                for r in range(height):
                    move(from_ + r * cols * item, weight_ + r * unit_cols * item, width * item)
                    move(kept + r * cols, mask_ + r * unit_cols, width)
                wrong |= compress_unit(
                    weight_, unit_cols * item, mask_, unit_cols, values_, full_values, codes_, full_codes,
                    values_t_, full_values_t, codes_t_, full_codes_t, tiles_, unit_cols // 4 * 2, size, bits,
                )  # fmt: skip
                for r in range(height):
                    move(values_ + r * full_values, to + r * values_step, width // 2 * item)
                    move(codes_ + r * full_codes, code + r * codes_step, width * bits // 32)
                for c in range(width):
                    move(values_t_ + c * full_values_t, to_t + c * values_t_step, height // 2 * item)
                    move(codes_t_ + c * full_codes_t, code_t + c * codes_t_step, height * bits // 32)
                for i in range(height // 4):
                    move(tiles_ + i * unit_cols // 2, tile + i * (cols // 4) * 2, width // 2)
        return wrong

    return compiled(compress, types.int64(*[types.int64] * 11))
