"""Blocks whose scores repeat: every entry is moved a little, each by another amount, and the mask is then repaired.

Among equal scores the ascent of `nmflow.kernels.ascent` has nothing to choose by. Offsets of a few units, the same for
all blocks, decide; the mask that comes out is the best one of the moved scores, and of the true ones too if those lie
on a lattice that is coarse beside the offsets, or if only equal ones compete. Duals of the true scores follow by
Bellman-Ford from duals that are rounded to the lattice, row by row where the blocks lie, and prove it; what they do
not prove stays open.

References
----------
R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, section 5.4 (label correcting).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.ascent import ascend, clear_lanes, rounds_for
from nmflow.kernels.compile import compiled, fingerprint, once
from nmflow.kernels.proof import grade_span
from nmflow.kernels.scores import BY_CODE, KINDS
from nmflow.kernels.segments import BIAS, BITS, VECTOR, inverse, magnified, spread_over, store_duals
from nmflow.kernels.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    Emitter,
    copy_bytes,
    deinterleave,
    literal,
    loop,
    read_byte,
    read_word,
    vector,
    write_word,
)
from nmflow.kernels.spans import Lines, blocks_in_span

__all__ = ["untie_kernel", "untie_scratch"]

SWEEPS = 12
"""Most sweeps over the rows in search of duals."""
MORE_ROUNDS = 2
"""Rounds beside those of other scores: what is open then takes longer than to ascend, but in the smallest blocks."""


@intrinsic(prefer_literal=True)
def measure_spread(typing, scores, stride, scales, lows, kind, rows, cols, absolute):  # type: ignore[no-untyped-def]
    """Write the least score of each of 32 neighbouring blocks, and what one step of 16 bits is worth above it.

    Returns the largest magnitude's bits less infinity's: negative if and only if all scores are finite.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, scales, lows = args[:4]
        work, shape = kind_.work, vector(kind_.work, LANES)
        least = [emit.variable(kind_.load(emit, emit.at(scores, k * LANES * kind_.itemsize), LANES, absolute_))
                 for k in range(cols_)]  # fmt: skip
        most = [emit.variable(builder.load(slot)) for slot in least]
        row, bits = emit.variable(scores), emit.variable(emit.splat(kind_.raw, LANES, 0))
        with loop(builder, rows_):
            base = builder.load(row)
            for k in range(cols_):
                top = kind_.load_bits(emit, emit.at(base, k * LANES * kind_.itemsize), LANES)
                builder.store(emit.call("llvm.smax", builder.load(bits), top), bits)
                part = kind_.load(emit, emit.at(base, k * LANES * kind_.itemsize), LANES, absolute_)
                builder.store(emit.better(builder.load(least[k]), part, "<"), least[k])
                builder.store(emit.better(builder.load(most[k]), part, ">"), most[k])
            builder.store(builder.add(base, stride), row)

        def over_columns(slots: Any, order: str) -> Any:
            parts = deinterleave(emit, [builder.load(slot) for slot in slots])
            best = parts[0]
            for part in parts[1:]:
                best = emit.better(best, part, order)
            return best

        low = over_columns(least, "<")
        spread = builder.fsub(over_columns(most, ">"), low)
        raw, shift, _ = kind_.work_fields
        number = builder.lshr(builder.bitcast(spread, vector(raw, LANES)), emit.splat(raw, LANES, shift))
        number = emit.call("llvm.smax", number, emit.splat(raw, LANES, 32 if work == F32 else 80))
        number = builder.sub(number, emit.splat(raw, LANES, BITS - 1))
        emit.store(builder.bitcast(builder.shl(number, emit.splat(raw, LANES, shift)), shape), scales)
        emit.store(low, lows)
        worst = emit.reduce("llvm.vector.reduce.smax", builder.load(bits))
        verdict = builder.sub(worst, ir.Constant(kind_.raw, kind_.infinity))
        return builder.sext(verdict, I64) if kind_.itemsize < 8 else verdict

    return types.int64(scores, stride, scales, lows, kind, rows, cols, absolute), codegen


@intrinsic(prefer_literal=True)
def read_moved(  # type: ignore[no-untyped-def]
    typing, scores, stride, lanes, scales, lows, lattice, offsets, kind, rows, cols, absolute
):
    """Read 32 blocks into lanes of 16 bits, less their lows and moved by `offsets`; write the bits of all entries.

    offsets : address of rows x cols int16. lattice : address of a lane vector, the bits that some entry has.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales, lows, lattice, offsets = args[:7]
        shape = vector(kind_.work, LANES)
        scale, low = inverse(emit, emit.load(scales, shape), kind_), emit.load(lows, shape)
        wide = [spread_over(emit, scale, k, cols_) for k in range(cols_)]
        down = [spread_over(emit, low, k, cols_) for k in range(cols_)]
        at, target, moved = emit.variable(scores), emit.variable(lanes), emit.variable(offsets)
        bits = emit.variable(emit.splat(I16, LANES, 0))
        with loop(builder, rows_):
            base = builder.load(at)
            parts = []
            for k in range(cols_):
                value = kind_.load(emit, emit.at(base, k * LANES * kind_.itemsize), LANES, absolute_)
                value = builder.fmul(builder.fsub(value, down[k]), wide[k])
                parts.append(builder.trunc(builder.fptosi(value, vector(I32, LANES)), vector(I16, LANES)))
            out, table = builder.load(target), builder.load(moved)
            for j, part in enumerate(deinterleave(emit, parts)):
                builder.store(builder.or_(builder.load(bits), part), bits)
                offset = emit.broadcast(emit.load(emit.at(table, 2 * j), I16), LANES)
                part = builder.sub(builder.add(part, offset), emit.splat(I16, LANES, BIAS))
                emit.store(part, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(emit.at(table, 2 * cols_), moved)
            builder.store(builder.add(base, stride), at)
        emit.store(builder.load(bits), lattice)
        return context.get_dummy_value()

    arguments = (scores, stride, lanes, scales, lows, lattice, offsets, kind, rows, cols, absolute)
    return types.none(*arguments), codegen


@intrinsic(prefer_literal=True)
def read_rest(  # type: ignore[no-untyped-def]
    typing, scores, stride, lanes, scales, lows, u, u_stride, v, offsets, zoom, kind, rows, cols, absolute
):
    """Read what is left of 32 blocks, moved scores less u + v, magnified by `zoom` bits and cut off at 16.

    offsets : address of rows x cols offsets in the work dtype, in steps.
    """
    kind_, rows_, cols_, absolute_ = BY_CODE[literal(kind)], literal(rows), literal(cols), bool(literal(absolute))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, lanes, scales, lows, u, u_stride, v, offsets, zoom = args[:10]
        work, size = kind_.work, kind_.work_size
        shape = vector(work, LANES)
        unit, low = emit.load(scales, shape), emit.load(lows, shape)
        scale = inverse(emit, magnified(emit, unit, kind_, zoom), kind_)
        wide, step, down = ([spread_over(emit, x, k, cols_) for k in range(cols_)] for x in (scale, unit, low))
        half, top, zero = (emit.splat(work, LANES, x) for x in (32768.0, 65535.0, 0.0))
        at, target, moved, row_at = (emit.variable(x) for x in (scores, lanes, offsets, u))
        with loop(builder, rows_):
            base, table = builder.load(at), emit.load(builder.load(moved), vector(work, cols_))
            row_duals = emit.load(builder.load(row_at), shape)
            parts = []
            for k in range(cols_):
                value = kind_.load(emit, emit.at(base, k * LANES * kind_.itemsize), LANES, absolute_)
                offset = emit.pick(table, [(k * LANES + t) % cols_ for t in range(LANES)])
                value = builder.fadd(builder.fsub(value, down[k]), builder.fmul(offset, step[k]))
                threshold = builder.fadd(
                    spread_over(emit, row_duals, k, cols_), emit.load(emit.at(v, k * LANES * size), shape)
                )
                value = builder.fadd(builder.fmul(builder.fsub(value, threshold), wide[k]), half)
                value = emit.better(emit.better(value, zero, ">"), top, "<")
                number = builder.sub(builder.fptosi(value, vector(I32, LANES)), emit.splat(I32, LANES, 32768))
                parts.append(builder.trunc(number, vector(I16, LANES)))
            out = builder.load(target)
            for j, part in enumerate(deinterleave(emit, parts)):
                emit.store(part, emit.at(out, j * VECTOR), VECTOR)
            builder.store(emit.at(out, cols_ * VECTOR), target)
            builder.store(emit.at(builder.load(moved), size * cols_), moved)
            builder.store(builder.add(base, stride), at)
            builder.store(builder.add(builder.load(row_at), u_stride), row_at)
        return context.get_dummy_value()

    arguments = (scores, stride, lanes, scales, lows, u, u_stride, v, offsets, zoom, kind, rows, cols, absolute)
    return types.none(*arguments), codegen


@intrinsic(prefer_literal=True)
def round_duals(typing, v, scales, lattice, least, kind, cols):  # type: ignore[no-untyped-def]
    """Round column duals of 32 blocks to multiples of the lowest bit that some entry has, or of `least` if larger."""
    kind_, cols_ = BY_CODE[literal(kind)], literal(cols)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        v, scales, lattice, least = args[:4]
        shape = vector(kind_.work, LANES)
        bits, zero = emit.load(lattice, vector(I16, LANES)), emit.splat(I16, LANES, 0)
        lowest = builder.zext(builder.and_(bits, builder.sub(zero, bits)), vector(I32, LANES))
        # where all entries are equal, so coarse that every dual becomes 0
        none = builder.icmp_unsigned("==", lowest, emit.splat(I32, LANES, 0))
        lowest = builder.select(none, emit.splat(I32, LANES, 1 << 20), lowest)
        grain = builder.fmul(builder.sitofp(lowest, shape), emit.load(scales, shape))
        grain = emit.better(emit.broadcast(builder.sitofp(least, kind_.work), LANES), grain, ">")
        back = inverse(emit, grain, kind_)
        for k in range(cols_):
            at = emit.at(v, k * LANES * kind_.work_size)
            steps = emit.call("llvm.rint", builder.fmul(emit.load(at, shape), spread_over(emit, back, k, cols_)))
            emit.store(builder.fmul(steps, spread_over(emit, grain, k, cols_)), at)
        return context.get_dummy_value()

    return types.none(v, scales, lattice, least, kind, cols), codegen


@intrinsic(prefer_literal=True)
def choose_span(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, u, u_stride, v, scales, lows, offsets, kind, rows, cols, groups, r, c,
    absolute,
):  # fmt: skip
    """Write the mask of moved scores above u + v; 0 if every line keeps its budget.

    offsets : address of rows x cols offsets in the work dtype.
    """
    kind_, rows_, absolute_ = BY_CODE[literal(kind)], literal(rows), bool(literal(absolute))
    lines = Lines(literal(groups), literal(cols), literal(r), literal(c), 2, 2)
    size = kind_.work_size

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, u, u_stride, v, scales, lows, offsets = args[:10]
        col_duals = emit.load(v, vector(kind_.work, lines.width))
        unit, low = lines.spread(emit, scales, kind_), lines.spread(emit, lows, kind_)
        counts, wrong = emit.variable(emit.splat(I8, lines.width, 0)), emit.variable(ir.Constant(I64, 0))
        at, to, row_at, moved = (emit.variable(x) for x in (scores, mask, u, offsets))
        with loop(builder, rows_):
            score = builder.fsub(kind_.load(emit, builder.load(at), lines.width, absolute_), low)
            offset = emit.load(builder.load(moved), vector(kind_.work, lines.cols))
            offset = emit.pick(offset, [t % lines.cols for t in range(lines.width)])
            score = builder.fadd(score, builder.fmul(offset, unit))
            row_duals = lines.spread(emit, builder.load(row_at), kind_)
            kept = builder.fcmp_ordered(">", score, builder.fadd(row_duals, col_duals))
            as_bytes = lines.bytes_of(emit, kept)
            emit.store(as_bytes, builder.load(to))
            builder.store(builder.add(builder.load(counts), as_bytes), counts)
            over, _ = lines.rows_wrong(emit, lines.bits(emit, kept), row_duals)
            builder.store(builder.or_(builder.load(wrong), over), wrong)
            for place, step in (
                (at, stride), (to, mask_stride), (row_at, u_stride), (moved, ir.Constant(I64, lines.cols * size))
            ):  # fmt: skip
                builder.store(builder.add(builder.load(place), step), place)
        over, _ = lines.cols_wrong(emit, builder.load(counts), col_duals)
        return builder.or_(over, builder.load(wrong))

    arguments = (
        scores, stride, mask, mask_stride, u, u_stride, v, scales, lows, offsets, kind, rows, cols, groups, r, c,
        absolute,
    )  # fmt: skip
    return types.int64(*arguments), codegen


@intrinsic(prefer_literal=True)
def correct_span(  # type: ignore[no-untyped-def]
    typing, scores, stride, mask, mask_stride, u, u_stride, v, lows, kind, rows, cols, groups, absolute
):
    """One sweep over the rows: u to the least S - v that is kept, v up to every S - u that is not; 0 if v stayed.

    Duals are those of the scores less the lows; what is written to u has them added.
    """
    kind_, rows_, absolute_ = BY_CODE[literal(kind)], literal(rows), bool(literal(absolute))
    lines = Lines(literal(groups), literal(cols), 0, 0, 2, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        scores, stride, mask, mask_stride, u, u_stride, v, lows = args[:8]
        shape, width = vector(kind_.work, lines.width), lines.width
        low = lines.spread(emit, lows, kind_)
        high = emit.splat(kind_.work, width, float("inf"))
        duals = emit.variable(emit.load(v, shape))
        at, of, to = emit.variable(scores), emit.variable(mask), emit.variable(u)
        with loop(builder, rows_):
            score = builder.fsub(kind_.load(emit, builder.load(at), width, absolute_), low)
            kept = lines.truths(emit, builder.load(of))
            least = builder.select(kept, builder.fsub(score, builder.load(duals)), high)
            least = lines.least(emit, least)
            ahead = builder.fsub(score, least)
            old = builder.load(duals)
            rise = builder.and_(builder.not_(kept), builder.fcmp_ordered(">", ahead, old))
            builder.store(builder.select(rise, ahead, old), duals)
            sums = builder.fadd(least, low)
            if lines.groups == 1:
                firsts = builder.extract_element(sums, ir.Constant(I32, 0))
            else:
                firsts = emit.pick(sums, [g * lines.cols for g in range(lines.groups)])
            emit.store(firsts, builder.load(to), kind_.work_size)
            for place, step in ((at, stride), (of, mask_stride), (to, u_stride)):
                builder.store(builder.add(builder.load(place), step), place)
        changed = builder.fcmp_unordered("!=", builder.load(duals), emit.load(v, shape))
        emit.store(builder.load(duals), v)
        return lines.bits(emit, changed)

    arguments = (scores, stride, mask, mask_stride, u, u_stride, v, lows, kind, rows, cols, groups, absolute)
    return types.int64(*arguments), codegen


def untie_scratch(kind: str, block_shape: tuple[int, int]) -> int:
    """Bytes of workspace that the kernel needs."""
    rows, cols = block_shape
    item = KINDS[kind]
    lanes = (rows * cols + rows + cols + 1) * VECTOR
    return lanes + LANES * (16 + rows * cols * (item.itemsize + 1) + (rows + cols) * item.work_size + 1) + 256


@once
def untie_kernel(kind_name: str, rows: int, cols: int, row_budget: int, col_budget: int, absolute: bool) -> Any:
    """Compile for one kind of scores and one pattern with exact fill.

    Returns
    -------
    function (scores, stride, mask, mask_stride, u, v, grid_cols, scratch, blocks, block_u, block_v, count, sums,
    exact, offsets, float_offsets, grain, zoom_step, last_zoom) -> int
        As `nmflow.kernels.settle`, for the `count` blocks that `blocks` names, whatever their duals; offsets: rows x
        cols int16, in steps of 14 bits below a block's spread, and the same with fractions in the work dtype; grain: a
        power of two, of which column duals are multiples before they are corrected, or 0;
        zoom_step, last_zoom: bits by which what is left is magnified, time after time. Returns how many blocks are
        open, or -1 if a score is not finite.
    """
    kind = KINDS[kind_name]
    code, item, work, magnitude = kind.code, kind.itemsize, kind.work_size, int(absolute)
    rounds, again_rounds, _ = rounds_for(max(rows, cols))
    rounds += MORE_ROUNDS if max(rows, cols) > 4 else 0
    row_bytes, block_bytes = cols * VECTOR, cols * item
    segment_bytes, col_bytes = LANES * cols * item, cols * work
    all_rows, all_cols = LANES * work, LANES * col_bytes
    many = blocks_in_span(cols)
    while LANES % many:
        many -= 1
    version = fingerprint()
    lane_count, vector_bytes, lines, most = LANES, VECTOR, rows + cols, SWEEPS

    def untie(  # type: ignore[no-untyped-def]
        scores, stride, mask, mask_stride, u, v, grid_cols, scratch, blocks, block_u, block_v, count, sums,
        exact, offsets, float_offsets, grain, zoom_step, last_zoom,
    ):  # fmt: skip
        if version == 0:
            return -2
        lanes = (scratch + 63) & ~63
        rows_at = lanes + rows * row_bytes
        cols_at = rows_at + rows * vector_bytes
        lattice = cols_at + cols * vector_bytes
        scales = lattice + vector_bytes
        lows = scales + lane_count * 8
        gathered = lows + lane_count * 8
        rows_out = gathered + rows * segment_bytes
        cols_out = rows_out + rows * lane_count * work
        masks = cols_out + lane_count * col_bytes
        flags = masks + rows * lane_count * cols
        u_stride, out_stride, masks_stride = grid_cols * work, lane_count * work, lane_count * cols
        left = 0
        for first in range(0, count, lane_count):
            here = min(lane_count, count - first)
            b = read_word(blocks + first * 8)
            s = b // grid_cols
            j = b - s * grid_cols
            whole = here == lane_count and j + lane_count <= grid_cols
            whole = whole and read_word(blocks + (first + lane_count - 1) * 8) == b + lane_count - 1
            if whole:
                base, step = scores + s * rows * stride + j * block_bytes, stride
                to, to_step = mask + s * rows * mask_stride + j * cols, mask_stride
            else:  # side by side in a copy; lanes beyond the last block hold it again
                base, step, to, to_step = gathered, segment_bytes, masks, masks_stride
                for lane in range(lane_count):
                    b = read_word(blocks + (first + min(lane, here - 1)) * 8)
                    s = b // grid_cols
                    source = scores + s * rows * stride + (b - s * grid_cols) * block_bytes
                    for i in range(rows):
                        copy_bytes(source + i * stride, gathered + i * segment_bytes + lane * block_bytes, block_bytes)
            if measure_spread(base, step, scales, lows, code, rows, cols, magnitude) >= 0:
                return -1
            read_moved(base, step, lanes, scales, lows, lattice, offsets, code, rows, cols, magnitude)
            clear_lanes(cols_at, cols)
            ascend(lanes, rows_at, cols_at, rows_at, cols_at, rows, cols, row_budget, col_budget, rounds, 0, 0, 0)
            store_duals(rows_at, cols_at, scales, rows_out, out_stride, cols_out, 0, code, rows, cols, BIAS, 0)
            for zoom in range(zoom_step, last_zoom + 1, zoom_step):
                read_rest(
                    base, step, lanes, scales, lows, rows_out, out_stride, cols_out, float_offsets, zoom,
                    code, rows, cols, magnitude,
                )  # fmt: skip
                clear_lanes(rows_at, lines)
                ascend(
                    lanes, rows_at, cols_at, rows_at, cols_at, rows, cols, row_budget, col_budget, again_rounds, 0, 0, 1
                )
                store_duals(rows_at, cols_at, scales, rows_out, out_stride, cols_out, zoom, code, rows, cols, BIAS, 1)
            for k in range(0, lane_count, many):
                choose_span(
                    base + k * block_bytes, step, to + k * cols, to_step, rows_out + k * work,
                    out_stride, cols_out + k * col_bytes, scales + k * work, lows + k * work, float_offsets,
                    code, rows, cols, many, row_budget, col_budget, magnitude,
                )  # fmt: skip
            round_duals(cols_out, scales, lattice, grain, code, cols)
            for k in range(0, lane_count, many):
                for _ in range(most):
                    if correct_span(
                        base + k * block_bytes, step, to + k * cols, to_step, rows_out + k * work,
                        out_stride, cols_out + k * col_bytes, lows + k * work, code, rows, cols, many, magnitude,
                    ) == 0:  # fmt: skip
                        break
            # lanes beyond the last block hold it again
            even = lane_count if here == lane_count else 0
            for k in range(0, even, many):
                grade_span(
                    base + k * block_bytes, step, to + k * cols, to_step, rows_out + k * work,
                    out_stride, cols_out + k * col_bytes, flags + k, sums, exact,
                    code, rows, cols, many, row_budget, col_budget, 2, 2, magnitude, 2,
                )  # fmt: skip
            for k in range(even, here):
                grade_span(
                    base + k * block_bytes, step, to + k * cols, to_step, rows_out + k * work,
                    out_stride, cols_out + k * col_bytes, flags + k, sums + 512, exact,
                    code, rows, cols, 1, row_budget, col_budget, 2, 2, magnitude, 2,
                )  # fmt: skip
            if u and whole:
                for i in range(rows):
                    copy_bytes(rows_out + i * out_stride, u + (s * rows + i) * u_stride + j * work, all_rows)
                copy_bytes(cols_out, v + b * col_bytes, all_cols)
            for lane in range(here):
                b = read_word(blocks + (first + lane) * 8)
                s = b // grid_cols
                j = b - s * grid_cols
                if not whole:
                    target = mask + s * rows * mask_stride + j * cols
                    for i in range(rows):
                        copy_bytes(masks + i * masks_stride + lane * cols, target + i * mask_stride, cols)
                if u and not whole:
                    for i in range(rows):
                        at_u = u + (s * rows + i) * u_stride + j * work
                        copy_bytes(rows_out + i * out_stride + lane * work, at_u, work)
                    copy_bytes(cols_out + lane * col_bytes, v + b * col_bytes, col_bytes)
                if read_byte(flags + lane) != 0:
                    write_word(blocks + left * 8, b)
                    for i in range(rows):
                        at_u = block_u + (left * rows + i) * work
                        copy_bytes(rows_out + i * out_stride + lane * work, at_u, work)
                    copy_bytes(cols_out + lane * col_bytes, block_v + left * col_bytes, col_bytes)
                    left += 1
        return left

    return compiled(untie, types.int64(*[types.int64] * 19))
