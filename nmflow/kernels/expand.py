"""Expanding what `nmflow.kernels.compress` wrote: both sides are read, and each is checked against the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.compress import UNIT_ROWS, lanes_of, move
from nmflow.kernels.lines import Lines4, any_lane, unpack_nibbles
from nmflow.kernels.simd import I8, I16, I32, I64, Emitter, deinterleave, interleave, literal, loop, vector

__all__ = ["expand_kernel"]

Value = Any


@intrinsic(prefer_literal=True)
def expand_unit(  # type: ignore[no-untyped-def]
    typing, weight, weight_step, mask, mask_step, values, values_step, codes, codes_step,
    values_t, values_t_step, codes_t, codes_t_step, tiles, tiles_step, itemsize, code_bits,
):  # fmt: skip
    """Expand 32 rows x 128 columns; not 0 where the two sides or the mask do not agree, or a code is undefined."""
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
        fault = emit.variable(ir.Constant(I32, 0))
        none = emit.splat(element, lanes, 0)

        def at(name: str, row: Value) -> Value:
            return builder.add(bases[name], builder.mul(row, steps[name]))

        def note(*found: Value) -> None:
            builder.store(builder.or_(builder.load(fault), any_lane(emit, lines.any_of(found))), fault)

        with loop(builder, UNIT_ROWS // 4) as tile_row:
            tile = emit.load(at("tiles", tile_row.index), vector(I16, lanes))
            for r in range(4):
                row = builder.add(builder.mul(tile_row.index, ir.Constant(I64, 4)), ir.Constant(I64, r))
                stored = [emit.load(emit.at(at("values", row), k * lanes * size), wide) for k in range(2)]
                first, second = deinterleave(emit, stored, lanes)
                code = emit.load(at("codes", row), vector(I8, lanes * bits // 8))
                x, indexed, undefined = lines.place(first, second, unpack_nibbles(emit, code) if bits == 4 else code)
                kept = [
                    builder.icmp_unsigned(
                        "!=", builder.and_(tile, emit.splat(I16, lanes, 1 << (4 * r + k))), emit.splat(I16, lanes, 0)
                    )
                    for k in range(4)
                ]
                note(undefined)
                for k in range(4):
                    stray = builder.and_(builder.icmp_unsigned("!=", x[k], none), builder.not_(kept[k]))
                    note(stray, builder.and_(kept[k], builder.not_(indexed[k])))
                for k, part in enumerate(interleave(emit, x, lanes)):
                    emit.store(part, emit.at(at("weight", row), k * lanes * size))
                for k, part in enumerate(interleave(emit, [lines.where(flag, 1) for flag in kept], lanes)):
                    emit.store(part, emit.at(at("mask", row), k * lanes))
        with loop(builder, 4) as span:
            left = builder.mul(span.index, ir.Constant(I64, lanes))
            n_codes = UNIT_ROWS * bits // 32
            stored = _load_columns(emit, element, UNIT_ROWS // 2, lanes, at("values_t", left), steps["values_t"])
            coded = _load_columns(emit, I8, n_codes, lanes, at("codes_t", left), steps["codes_t"])
            if bits == 4:
                halves = [(builder.and_(c, lines.constant(15)), builder.lshr(c, lines.constant(4))) for c in coded]
                coded = [half for pair in halves for half in pair]
            offset = builder.mul(left, ir.Constant(I64, size))
            for i in range(UNIT_ROWS // 4):
                x, indexed, undefined = lines.place(stored[2 * i], stored[2 * i + 1], coded[i])
                note(undefined)
                for r in range(4):
                    row = ir.Constant(I64, 4 * i + r)
                    along = emit.load(builder.add(at("weight", row), offset), wide)
                    kept = emit.load(builder.add(at("mask", row), left), flags)
                    kept = builder.icmp_unsigned("!=", kept, lines.constant(0))
                    differs = builder.icmp_unsigned("!=", along, x[r])
                    note(differs, builder.and_(kept, builder.not_(indexed[r])))
        return builder.zext(builder.load(fault), I64)

    arguments = (
        weight, weight_step, mask, mask_step, values, values_step, codes, codes_step,
        values_t, values_t_step, codes_t, codes_t_step, tiles, tiles_step, itemsize, code_bits,
    )  # fmt: skip
    return types.int64(*arguments), codegen


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
def expand_kernel(itemsize: int, code_bits: int) -> Any:
    """Compile for entries of `itemsize` bytes and codes of 4 (2:4) or 8 (1:2) bits for four entries.

    Returns
    -------
    function (weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles) -> int
        As `compress_kernel`, with weight and mask written and the others read. The result is not 0 where a code is
        undefined, a kept entry is not indexed, a value other than +0 is not kept, or the two sides differ.
    """
    size, bits, version = itemsize, code_bits, fingerprint()
    unit_rows, unit_cols = UNIT_ROWS, 4 * lanes_of(itemsize)
    full_values, full_codes = unit_cols // 2 * size, unit_cols * bits // 32
    full_values_t, full_codes_t = UNIT_ROWS // 2 * size, UNIT_ROWS * bits // 32

    def expand(  # type: ignore[no-untyped-def]
        weight, mask, rows, cols, start, stop, values, codes, values_t, codes_t, tiles
    ):
        fault = version & 0
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
                to, kept = weight + (top * cols + left) * item, mask + top * cols + left
                from_, code = (
                    values + top * values_step + left // 2 * item,
                    codes + top * codes_step + left * bits // 32,
                )
                from_t = values_t + left * values_t_step + top // 2 * item
                code_t = codes_t + left * codes_t_step + top * bits // 32
                tile = tiles + (top // 4 * (cols // 4) + left // 4) * 2
                if height == unit_rows and width == unit_cols:
                    fault |= expand_unit(
                        to, cols * item, kept, cols, from_, values_step, code, codes_step,
                        from_t, values_t_step, code_t, codes_t_step, tile, cols // 4 * 2, size, bits,
                    )  # fmt: skip
                    continue
                # The workspace starts as a compressed matrix of zeros: 0xEE is the code of two empty groups.
                room[:] = 0
                for k in range(codes_ - weight_, tiles_ - weight_):
                    room[k] = 0xEE
                for r in range(height):
                    move(from_ + r * values_step, values_ + r * full_values, width // 2 * item)
                    move(code + r * codes_step, codes_ + r * full_codes, width * bits // 32)
                for c in range(width):
                    move(from_t + c * values_t_step, values_t_ + c * full_values_t, height // 2 * item)
                    move(code_t + c * codes_t_step, codes_t_ + c * full_codes_t, height * bits // 32)
                for i in range(height // 4):
                    move(tile + i * (cols // 4) * 2, tiles_ + i * unit_cols // 2, width // 2)
                fault |= expand_unit(
                    weight_, unit_cols * item, mask_, unit_cols, values_, full_values, codes_, full_codes,
                    values_t_, full_values_t, codes_t_, full_codes_t, tiles_, unit_cols // 4 * 2, size, bits,
                )  # fmt: skip
                for r in range(height):
                    move(weight_ + r * unit_cols * item, to + r * cols * item, width * item)
                    move(mask_ + r * unit_cols, kept + r * cols, width)
        return fault

    return compiled(expand, types.int64(*[types.int64] * 11))
