"""Shortest augmenting paths in 64-bit integers, a few of the blocks that are left to a program."""

from __future__ import annotations

import triton
import triton.language as tl

from nmflow.torch.device.kernels.common import ANY_SIZE, append_blocks, block_shift, half_units, score_bits

__all__ = ["augment_blocks"]

WIDE = tl.constexpr(54)
FAR = tl.constexpr(1 << 61)
LARGEST_DUAL = tl.constexpr(1 << 55)


@triton.jit
def _one_path(t, kept, row, col, row_lacks, col_lacks, active, M: tl.constexpr):
    """Send one unit in each active block; see `nmflow.torch.device.paths`."""
    ar = tl.arange(0, M)
    ri = ar[None, :, None]
    ci = ar[None, None, :]
    reduced = t - row[:, :, None] - col[:, None, :]
    far = tl.zeros_like(t) + FAR
    forth = tl.where(kept != 0, far, -reduced)
    back = tl.where(kept != 0, reduced, far)
    far_line = tl.zeros_like(row) + FAR
    to_row = tl.where((row_lacks > 0) & active[:, None], 0, far_line)
    to_col = tl.where((col_lacks < 0) & active[:, None], 0, far_line)
    row_from = tl.zeros_like(row_lacks) - 1
    col_from = tl.zeros_like(row_lacks) - 1
    final = tl.min(far_line, axis=1)
    moved = 1
    while moved > 0:
        # what is no nearer than the nearest target leads nowhere
        ways = to_row[:, :, None] + forth
        best = tl.min(ways, axis=1)
        via = tl.min(tl.where(ways == best[:, None, :], ri, M), axis=1)
        closer = (best < to_col) & (best < final[:, None])
        to_col = tl.where(closer, best, to_col)
        col_from = tl.where(closer, via, col_from)
        ways = to_col[:, None, :] + back
        best = tl.min(ways, axis=2)
        via = tl.min(tl.where(ways == best[:, :, None], ci, M), axis=2)
        nearer = (best < to_row) & (best < final[:, None])
        to_row = tl.where(nearer, best, to_row)
        row_from = tl.where(nearer, via, row_from)
        final = tl.minimum(
            tl.min(tl.where(row_lacks < 0, to_row, far_line), axis=1),
            tl.min(tl.where(col_lacks > 0, to_col, far_line), axis=1),
        )
        moved = tl.max(tl.max((closer | nearer).to(tl.int32), axis=1), axis=0)
    # sources and targets of blocks at rest stay where they are
    row += tl.where(active[:, None], tl.minimum(to_row - final[:, None], 0), 0)
    col -= tl.where(active[:, None], tl.minimum(to_col - final[:, None], 0), 0)
    row_end = tl.min(tl.where((row_lacks < 0) & (to_row == final[:, None]), ar[None, :], M), axis=1)
    col_end = tl.min(tl.where((col_lacks > 0) & (to_col == final[:, None]), ar[None, :], M), axis=1)
    at_row = (row_end < M).to(tl.int32)
    line = tl.where(row_end < M, row_end, col_end)
    moving = 1
    while moving > 0:
        # where a block is done, `before` is -1
        before = tl.where(
            at_row != 0,
            tl.sum(tl.where(ar[None, :] == line[:, None], row_from + 1, 0), axis=1) - 1,
            tl.sum(tl.where(ar[None, :] == line[:, None], col_from + 1, 0), axis=1) - 1,
        )
        going = (before >= 0) & active
        i = tl.where(at_row != 0, line, before)
        j = tl.where(at_row != 0, before, line)
        here = (ri == i[:, None, None]) & (ci == j[:, None, None]) & going[:, None, None]
        kept = tl.where(here, 1 - at_row[:, None, None], kept)
        at_row = tl.where(going, 1 - at_row, at_row)
        line = tl.where(going, before, line)
        moving = tl.max(going.to(tl.int32), axis=0)
    return kept, row, col


@triton.jit(**ANY_SIZE)
def augment_blocks(
    scores, row_stride, col_stride, mask, u, v, given, given_count, open_list, open_count, tall, wide,
    M: tl.constexpr, N: tl.constexpr, BLOCKS: tl.constexpr, PATHS: tl.constexpr, ABSOLUTE: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """Settle listed blocks by shortest augmenting paths in 64-bit integers; those that cannot be are listed again."""
    total = tl.load(given_count)
    ar = tl.arange(0, M)
    ri = ar[None, :, None]
    ci = ar[None, None, :]
    per_row = wide
    wide = wide.to(tl.int64)  # so that no offset leaves 32 bits
    first = tl.program_id(0) * BLOCKS
    while first < total:
        place = first + tl.arange(0, BLOCKS)
        here = place < total
        block = tl.load(given + place, mask=here, other=0)
        bi = (block // per_row).to(tl.int64)
        bj = (block % per_row).to(tl.int64)
        live = here[:, None, None]
        at = scores + (bi[:, None, None] * M + ri) * row_stride + (bj[:, None, None] * M + ci) * col_stride
        raw = score_bits(tl.load(at, mask=live, other=0.0))
        if ABSOLUTE:
            raw &= 0x7FFFFFFF
        size = raw & 0x7FFFFFFF
        shift = block_shift(tl.max(tl.max(size, axis=2), axis=1), WIDE)
        half = half_units(shift)
        worth = half_units(-2 - shift)[:, None]
        scaled = raw.to(tl.float32, bitcast=True).to(tl.float64) * (half * 0.5)[:, None, None]
        floor = tl.floor(scaled)
        t = 2 * floor.to(tl.int64) + (scaled != floor).to(tl.int64)
        small = tl.where(size != 0, 1 + 2 * (raw >> 31), 0).to(tl.int64)
        t = tl.where(tl.abs(scaled) < 1.0, small, t)
        row_at = u + (bi[:, None] * M + ar[None, :]) * wide + bj[:, None]
        col_at = v + (bi * wide + bj)[:, None] * M + ar[None, :]
        limit = LARGEST_DUAL * 1.0
        row = tl.load(row_at, mask=here[:, None], other=0.0) * half[:, None]
        col = tl.load(col_at, mask=here[:, None], other=0.0) * half[:, None]
        row = tl.minimum(tl.maximum(row, -limit), limit).to(tl.int64)
        col = tl.minimum(tl.maximum(col, -limit), limit).to(tl.int64)

        reduced = t - row[:, :, None] - col[:, None, :]
        kept = (reduced > 0).to(tl.int32)
        room = N - tl.sum(kept, axis=1)
        lacks = N - tl.sum(kept, axis=2)
        ties = (reduced == 0).to(tl.int32)
        if tl.max(tl.max(tl.max(ties, axis=2), axis=1), axis=0) > 0:
            # entries on the threshold cost nothing: fill them in, row by row, where they fit
            for i in range(M):
                tied = tl.sum(tl.where(ri == i, ties, 0), axis=1)
                fits = tied * (room > 0).to(tl.int32)
                lack = tl.sum(tl.where(ar[None, :] == i, lacks, 0), axis=1)
                fits = fits * (tl.cumsum(fits, axis=1) <= lack[:, None]).to(tl.int32)
                kept = tl.where(ri == i, kept | fits[:, None, :], kept)
                room -= fits

        path = 0
        busy = 1
        while busy > 0:
            row_lacks = N - tl.sum(kept, axis=2)
            col_lacks = N - tl.sum(kept, axis=1)
            waits = tl.maximum(tl.max(tl.abs(row_lacks), axis=1), tl.max(tl.abs(col_lacks), axis=1)) > 0
            far_off = tl.maximum(tl.max(tl.abs(row), axis=1), tl.max(tl.abs(col), axis=1)) > LARGEST_DUAL
            active = waits & (far_off == 0) & here
            busy = tl.max(active.to(tl.int32), axis=0)
            if path >= PATHS:
                busy = 0
            if busy > 0:
                kept, row, col = _one_path(t, kept, row, col, row_lacks, col_lacks, active, M)
            path += 1

        reduced = t - row[:, :, None] - col[:, None, :]
        fine = ((kept != 0) & (reduced > 0)) | ((kept == 0) & (reduced < 0)) | ((reduced == 0) & ((t & 1) == 0))
        proven = tl.min(tl.min(fine.to(tl.int32), axis=2), axis=1)
        full = (tl.sum(kept, axis=2) == N) & (tl.sum(kept, axis=1) == N)
        proven = proven * tl.min(full.to(tl.int32), axis=1)
        out = mask + (bi[:, None, None] * M + ri) * (wide * M) + bj[:, None, None] * M + ci
        tl.store(out, kept.to(tl.uint8), mask=live)
        if KEEP:
            tl.store(row_at, row.to(tl.float64) * worth, mask=here[:, None])
            tl.store(col_at, col.to(tl.float64) * worth, mask=here[:, None])
        append_blocks(block, here & (proven == 0), open_list, open_count)
        first += tl.num_programs(0) * BLOCKS
