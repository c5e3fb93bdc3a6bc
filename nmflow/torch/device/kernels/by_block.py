"""Ascent with a whole block in each lane, for 2:4 and 1:4: no lane ever talks to another."""

from __future__ import annotations

import triton
import triton.language as tl

from nmflow.torch.device.kernels.common import (
    ANY_SIZE,
    append_blocks,
    block_shift,
    half_units,
    report_bad,
    score_bits,
)
from nmflow.torch.device.kernels.lines import NARROW, columns_apart, given_duals, line_step, to_number

__all__ = ["settle_blocks"]


@triton.jit
def _all_rows(numbers, row, col, relax, NETWORK: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """New row duals of the block that each lane holds."""
    fresh = ()
    for i in tl.static_range(M):
        w = ()
        for j in tl.static_range(M):
            w = w + (numbers[i * M + j] - col[j],)
        fresh = fresh + (line_step(w, row[i], relax, 3, NETWORK, N),)
    return fresh


@triton.jit
def _all_cols(numbers, row, col, relax, NETWORK: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """New column duals of the block that each lane holds."""
    fresh = ()
    for j in tl.static_range(M):
        w = ()
        for i in tl.static_range(M):
            w = w + (numbers[i * M + j] - row[i],)
        fresh = fresh + (line_step(w, col[j], relax, 3, NETWORK, N),)
    return fresh


@triton.jit(**ANY_SIZE)
def settle_blocks(
    scores, row_stride, col_stride, mask, old_u, old_v, u, v,
    given, given_count, open_list, open_count, bad, tall, wide,
    M: tl.constexpr, N: tl.constexpr, ROUNDS: tl.constexpr, LANES: tl.constexpr, NETWORK: tl.constexpr,
    ABSOLUTE: tl.constexpr, LISTED: tl.constexpr, WARM: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Settle blocks by ascent, one to a lane.

    LISTED: the blocks of a list; else all. WARM: start from the duals old_u and old_v, which may be u and v. KEEP:
    write all duals; else only those of blocks that stay open.
    """
    total = tall * wide
    if LISTED:
        total = tl.load(given_count)
    across = tl.arange(0, M).to(tl.int64)
    per_row = wide
    wide = wide.to(tl.int64)  # so that no offset leaves 32 bits
    first = tl.program_id(0) * LANES
    while first < total:
        lane = first + tl.arange(0, LANES)
        here = lane < total
        block = lane
        if LISTED:
            block = tl.load(given + lane, mask=here, other=0)
        bi = (block // per_row).to(tl.int64)
        bj = (block % per_row).to(tl.int64)
        at = (scores + bi * M * row_stride + bj * M * col_stride)[:, None] + across[None, :] * col_stride
        raw = ()
        largest = tl.zeros([LANES, M], tl.int32)
        for i in tl.static_range(M):
            raw = raw + (score_bits(tl.load(at, mask=here[:, None], other=0.0)),)
            largest = tl.maximum(largest, raw[i] & 0x7FFFFFFF)
            at += row_stride
        size = tl.max(largest, axis=1)
        if not LISTED:
            report_bad(size, bad)
        shift = block_shift(size, NARROW)
        numbers = ()
        for i in tl.static_range(M):
            numbers = numbers + columns_apart(to_number(raw[i], shift[:, None], ABSOLUTE))
        half = half_units(shift)
        worth = half_units(-2 - shift)
        row_at = bi * M * wide + bj
        col_at = (bi * wide + bj) * M
        row = ()
        col = ()
        for i in tl.static_range(M):
            if WARM:
                row = row + (given_duals(old_u + row_at + i * wide, here, half),)
                col = col + (given_duals(old_v + col_at + i, here, half),)
            else:
                row = row + (tl.zeros([LANES], tl.int32),)
                col = col + (tl.zeros([LANES], tl.int32),)
        for k in range(ROUNDS):
            relax = tl.where(k > 0, -1, 0)
            row = _all_rows(numbers, row, col, relax, NETWORK, M, N)
            col = _all_cols(numbers, row, col, relax, NETWORK, M, N)
        row = _all_rows(numbers, row, col, 0, NETWORK, M, N)
        out = mask + (bi * M * wide + bj) * M
        wrong = tl.zeros([LANES], tl.int32)
        counts = ()
        for j in tl.static_range(M):
            counts = counts + (tl.zeros([LANES], tl.int32),)
        for i in tl.static_range(M):
            kept = ()
            more = ()
            in_row = tl.zeros([LANES], tl.int32)
            for j in tl.static_range(M):
                kept = kept + ((numbers[i * M + j] > row[i] + col[j]).to(tl.int32),)
                in_row += kept[j]
                more = more + (counts[j] + kept[j],)
            counts = more
            wrong |= in_row ^ N
            for k in tl.static_range(M // 4):
                word = kept[4 * k] | kept[4 * k + 1] << 8 | kept[4 * k + 2] << 16 | kept[4 * k + 3] << 24
                tl.store((out + i * wide * M).to(tl.pointer_type(tl.int32)) + k, word, mask=here)
        for j in tl.static_range(M):
            wrong |= counts[j] ^ N
        still = here & (wrong != 0)
        if KEEP:
            store = here
        else:
            store = still
        for i in tl.static_range(M):
            tl.store(u + row_at + i * wide, row[i].to(tl.float64) * worth, mask=store)
            tl.store(v + col_at + i, col[i].to(tl.float64) * worth, mask=store)
        append_blocks(block, still, open_list, open_count)
        first += tl.num_programs(0) * LANES
