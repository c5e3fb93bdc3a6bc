"""Ascent with one row and one column of a block in each lane, for m = 8, 16, 32: duals travel within a warp."""

from __future__ import annotations

import triton
import triton.language as tl

from nmflow.torch.device.ascent import EARLY
from nmflow.torch.device.kernels.common import (
    ANY_SIZE,
    append_blocks,
    block_shift,
    half_units,
    report_bad,
    score_bits,
)
from nmflow.torch.device.kernels.lines import (
    NARROW,
    columns_apart,
    given_duals,
    last_step,
    line_step,
    to_number,
)

__all__ = ["settle_lines"]

LATE = tl.constexpr(EARLY)


@triton.jit
def _across(lines, across, home, M: tl.constexpr):
    """The scores of lines less the duals across, which other lanes hold: those from `home` on."""
    w = ()
    for k in tl.static_range(M):
        w = w + (lines[k] - tl.gather(across, home + k, axis=1),)
    return w


@triton.jit(**ANY_SIZE)
def settle_lines(
    scores, row_stride, col_stride, mask, old_u, old_v, u, v,
    given, given_count, open_list, open_count, bad, tall, wide,
    M: tl.constexpr, N: tl.constexpr, ROUNDS: tl.constexpr, LANES: tl.constexpr, NETWORK: tl.constexpr,
    ABSOLUTE: tl.constexpr, LISTED: tl.constexpr, WARM: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Settle blocks by ascent, one row and one column to a lane; M is 8, 16 or 32. See `settle_blocks`.

    Memory is addressed by lanes in a line, arithmetic is on (warps, 32): so that what one lane has of another is a
    shuffle within a warp; only scores go through shared memory, once.
    """
    WARPS: tl.constexpr = LANES // 32
    total = tall * wide
    if LISTED:
        total = tl.load(given_count)
    lane = tl.arange(0, LANES)
    line = lane % M
    in_warp = tl.arange(0, 32)[None, :] + tl.zeros([WARPS, 1], tl.int32)
    home = in_warp // M * M  # the first lane of the same block
    down = tl.arange(0, M).to(tl.int64)
    per_row = wide
    wide = wide.to(tl.int64)  # so that no offset leaves 32 bits
    first = tl.program_id(0) * (LANES // M)
    while first < total:
        number = first + lane // M
        here = number < total
        block = number
        if LISTED:
            block = tl.load(given + number, mask=here, other=0)
        bi = (block // per_row).to(tl.int64)
        bj = (block % per_row).to(tl.int64)
        base = scores + bi * M * row_stride + bj * M * col_stride
        at = (base + line.to(tl.int64) * row_stride)[:, None] + down[None, :] * col_stride
        in_rows = score_bits(tl.load(at, mask=here[:, None], other=0.0))
        at = (base + line.to(tl.int64) * col_stride)[:, None] + down[None, :] * row_stride
        in_cols = score_bits(tl.load(at, mask=here[:, None], other=0.0))
        size = tl.max(in_rows & 0x7FFFFFFF, axis=1)
        if not LISTED:
            report_bad(size, bad)
        size = tl.reshape(size, [WARPS, 32])
        for k in tl.static_range(5):
            if (1 << k) < M:
                size = tl.maximum(size, tl.gather(size, in_warp ^ (1 << k), axis=1))
        shift = tl.reshape(block_shift(size, NARROW), [LANES])
        in_rows = columns_apart(to_number(in_rows, shift[:, None], ABSOLUTE))
        in_cols = columns_apart(to_number(in_cols, shift[:, None], ABSOLUTE))
        rows = ()
        cols = ()
        for k in tl.static_range(M):
            rows = rows + (tl.reshape(in_rows[k], [WARPS, 32]),)
            cols = cols + (tl.reshape(in_cols[k], [WARPS, 32]),)
        half = half_units(shift)
        worth = half_units(-2 - shift)
        row_at = (bi * M + line) * wide + bj
        col_at = (bi * wide + bj) * M + line
        if WARM:
            row = tl.reshape(given_duals(old_u + row_at, here, half), [WARPS, 32])
            col = tl.reshape(given_duals(old_v + col_at, here, half), [WARPS, 32])
        else:
            row = tl.zeros([WARPS, 32], tl.int32)
            col = tl.zeros([WARPS, 32], tl.int32)
        for k in range(ROUNDS):
            relax = tl.where(k > 0, -1, 0)
            less = tl.where(k > LATE, 2, 3)
            row = line_step(_across(rows, col, home, M), row, relax, less, NETWORK, N)
            col = line_step(_across(cols, row, home, M), col, relax, less, NETWORK, N)
        row, wrong = last_step(_across(rows, col, home, M), NETWORK, N)
        in_col = tl.zeros([WARPS, 32], tl.int32)
        bits = tl.zeros([WARPS, 32], tl.int32)
        w = _across(cols, row, home, M)
        for k in tl.static_range(M):
            kept = w[k] > col
            in_col += kept.to(tl.int32)
            bits |= tl.where(kept, 1 << k, 0)
        out = (mask + (bi * M * wide + bj) * M + line)[:, None] + down[None, :] * (wide * M)
        tl.store(out, (tl.reshape(bits, [LANES])[:, None] >> down[None, :]).to(tl.uint8) & 1, mask=here[:, None])
        wrong |= in_col ^ N
        for k in tl.static_range(5):
            if (1 << k) < M:
                wrong |= tl.gather(wrong, in_warp ^ (1 << k), axis=1)
        still = here & (tl.reshape(wrong, [LANES]) != 0)
        if KEEP:
            store = here
        else:
            store = still
        tl.store(u + row_at, tl.reshape(row, [LANES]).to(tl.float64) * worth, mask=store)
        tl.store(v + col_at, tl.reshape(col, [LANES]).to(tl.float64) * worth, mask=store)
        append_blocks(block, still & (line == 0), open_list, open_count)
        first += tl.num_programs(0) * (LANES // M)
