"""Triton kernels: the steps of `nmflow.torch.device.ascent` and `paths`, without leaving registers.

`settle_blocks` gives each lane a whole block (2:4, 1:4): no lane ever talks to another. `settle_lines` gives each lane
one row and one column of a block (m = 8, 16, 32): duals travel between the lanes of a warp. Both find the two order
statistics of a line by the same selection network as the CPU. `augment_blocks` gives a program a few of the blocks that
are left. `kept_score` sums what a mask keeps.

All that decides is arithmetic on integers: see `nmflow.torch.device.numbers`. Blocks that stay open are appended to a
list on the device, so no launch waits for the host; the order of a list has no influence on any block.

Scores lie at `scores + row * row_stride + col * col_stride`. The mask is contiguous. Duals are float64, in the
layout of a Solution: u of shape (rows, wide), v of shape (tall, columns), where the grid has tall x wide blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["augment_blocks", "kept_score", "settle_blocks", "settle_lines"]

LEAST = (3, 6)
"""Triton of torch 2.10. Those before stop at our kernels, some in a failed assertion of their compiler."""
if tuple(int(part) for part in triton.__version__.split(".")[:2]) < LEAST:
    raise ImportError(f"nmflow's kernels need Triton {LEAST[0]}.{LEAST[1]} or newer, not {triton.__version__}")

NARROW = tl.constexpr(25)
WIDE = tl.constexpr(54)
FAR = tl.constexpr(1 << 61)
LARGEST_DUAL = tl.constexpr(1 << 55)

# One program for all sizes and places: else Triton compiles again for a matrix that is one block wide, or whose number
# of blocks is no multiple of 16, or for a list that begins at another address.
ANY_SIZE = {
    "do_not_specialize": ["tall", "wide"],
    "do_not_specialize_on_alignment": [
        "old_u",
        "old_v",
        "u",
        "v",
        "given",
        "given_count",
        "open_list",
        "open_count",
        "bad",
    ],
}


@triton.jit
def _middle(w, NETWORK: tl.constexpr, BUDGET: tl.constexpr):
    """The BUDGET-th and the next largest of a line, the larger first.

    What no wanted wire of the network needs, the compiler drops.
    """
    for k in tl.static_range(len(NETWORK)):
        # the larger of two wires goes to the first
        w = (
            w[: NETWORK[k][0]]
            + (tl.maximum(w[NETWORK[k][0]], w[NETWORK[k][1]]),)
            + w[NETWORK[k][0] + 1 : NETWORK[k][1]]
            + (tl.minimum(w[NETWORK[k][0]], w[NETWORK[k][1]]),)
            + w[NETWORK[k][1] + 1 :]
        )
    return w[BUDGET - 1], w[BUDGET]


@triton.jit
def _line_step(w, old, relax, NETWORK: tl.constexpr, BUDGET: tl.constexpr):
    """New duals of lines, from their scores less the duals across. relax: 0, or -1 to step past the midpoint."""
    one, other = _middle(w, NETWORK, BUDGET)
    target = (one + other) >> 1
    step = (target - old) & relax
    target += step >> 2
    if len(w) > 8:
        target += step >> 3
    return target & -2


@triton.jit
def _last_step(w, NETWORK: tl.constexpr, BUDGET: tl.constexpr):
    """New duals of lines, on the midpoint; and whether a line does not keep BUDGET of what is above them."""
    one, other = _middle(w, NETWORK, BUDGET)
    target = ((one + other) >> 1) & -2
    # all before these two are above the midpoint, and all after them are not
    return target, ((one > target) == (other > target)).to(tl.int32)


@triton.jit
def _bits(values):
    """Scores as the bits of float32."""
    return values.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _number(raw, shift, ABSOLUTE: tl.constexpr):
    """A score, rounded to odd, in half units; one unit is 2**-shift.

    Whole units go to an integer and back. A product that was flushed to zero was below one unit, and does not come
    back as the score; so no flushing can hide that there is more of it.
    """
    size = raw & 0x7FFFFFFF
    whole = (size.to(tl.float32, bitcast=True) * _scale(shift)).to(tl.int32)
    back = (whole.to(tl.float32) * _scale(-shift)).to(tl.int32, bitcast=True)
    number = 2 * whole + (back != size).to(tl.int32)
    if not ABSOLUTE:
        number = tl.where(raw < 0, -number, number)
    return number


@triton.jit
def _shift(size, BITS: tl.constexpr):
    """One unit is 2**-shift, from the bits of the largest magnitude of a block."""
    return tl.minimum(BITS + 126 - tl.maximum(size >> 23, 1), 126)


@triton.jit
def _scale(shift):
    """2.0**shift as float32."""
    return ((shift + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _half_units(shift):
    """2.0**(shift + 1) as float64: half units in 1; and for -2 - shift the inverse of that."""
    return ((shift.to(tl.int64) + 1024) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _report(size, bad):
    """Say that scores are not finite, if the magnitudes of some are not: a flag, which no number of them wraps."""
    found = tl.max((size >= 0x7F800000).to(tl.int32), axis=0)
    tl.atomic_max(bad, found, mask=found != 0)


@triton.jit
def _append(blocks, chosen, block_list, count):
    """Append some blocks to a list on the device."""
    ones = chosen.to(tl.int32)
    first = tl.atomic_add(count, tl.sum(ones, axis=0))
    tl.store(block_list + first + tl.cumsum(ones, axis=0) - ones, blocks, mask=chosen)


@triton.jit
def _all_rows(numbers, row, col, relax, NETWORK: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """New row duals of the block that each lane holds."""
    fresh = ()
    for i in tl.static_range(M):
        w = ()
        for j in tl.static_range(M):
            w = w + (numbers[i * M + j] - col[j],)
        fresh = fresh + (_line_step(w, row[i], relax, NETWORK, N),)
    return fresh


@triton.jit
def _all_cols(numbers, row, col, relax, NETWORK: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """New column duals of the block that each lane holds."""
    fresh = ()
    for j in tl.static_range(M):
        w = ()
        for i in tl.static_range(M):
            w = w + (numbers[i * M + j] - row[i],)
        fresh = fresh + (_line_step(w, col[j], relax, NETWORK, N),)
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
            raw = raw + (_bits(tl.load(at, mask=here[:, None], other=0.0)),)
            largest = tl.maximum(largest, raw[i] & 0x7FFFFFFF)
            at += row_stride
        size = tl.max(largest, axis=1)
        if not LISTED:
            _report(size, bad)
        shift = _shift(size, NARROW)
        numbers = ()
        for i in tl.static_range(M):
            numbers = numbers + _apart(_number(raw[i], shift[:, None], ABSOLUTE))
        half = _half_units(shift)
        worth = _half_units(-2 - shift)
        row_at = bi * M * wide + bj
        col_at = (bi * wide + bj) * M
        row = ()
        col = ()
        for i in tl.static_range(M):
            if WARM:
                row = row + (_given(old_u + row_at + i * wide, here, half),)
                col = col + (_given(old_v + col_at + i, here, half),)
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
        _append(block, still, open_list, open_count)
        first += tl.num_programs(0) * LANES


@triton.jit
def _given(at, here, half):
    """Duals that are there, as even numbers in half units, cut off where they are far from the scores."""
    value = tl.load(at, mask=here, other=0.0) * half
    return tl.minimum(tl.maximum(value, -67108864.0), 67108864.0).to(tl.int32) & -2


@triton.jit
def _apart(table):
    """The columns of a table of shape (lanes, 4 to 32), one by one."""
    LANES: tl.constexpr = table.shape[0]
    parts = (table,)
    for level in tl.static_range(1, 6):
        if table.shape[1] >> level > 0:
            halves = ()
            for k in tl.static_range(len(parts)):
                pair = parts[k]
                if table.shape[1] >> level > 1:
                    pair = tl.permute(tl.reshape(pair, [LANES, 2, table.shape[1] >> level]), (0, 2, 1))
                first, second = tl.split(pair)
                halves = halves + (first, second)
            parts = halves
    return parts


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
        in_rows = _bits(tl.load(at, mask=here[:, None], other=0.0))
        at = (base + line.to(tl.int64) * col_stride)[:, None] + down[None, :] * row_stride
        in_cols = _bits(tl.load(at, mask=here[:, None], other=0.0))
        size = tl.max(in_rows & 0x7FFFFFFF, axis=1)
        if not LISTED:
            _report(size, bad)
        size = tl.reshape(size, [WARPS, 32])
        for k in tl.static_range(5):
            if (1 << k) < M:
                size = tl.maximum(size, tl.gather(size, in_warp ^ (1 << k), axis=1))
        shift = tl.reshape(_shift(size, NARROW), [LANES])
        in_rows = _apart(_number(in_rows, shift[:, None], ABSOLUTE))
        in_cols = _apart(_number(in_cols, shift[:, None], ABSOLUTE))
        rows = ()
        cols = ()
        for k in tl.static_range(M):
            rows = rows + (tl.reshape(in_rows[k], [WARPS, 32]),)
            cols = cols + (tl.reshape(in_cols[k], [WARPS, 32]),)
        half = _half_units(shift)
        worth = _half_units(-2 - shift)
        row_at = (bi * M + line) * wide + bj
        col_at = (bi * wide + bj) * M + line
        if WARM:
            row = tl.reshape(_given(old_u + row_at, here, half), [WARPS, 32])
            col = tl.reshape(_given(old_v + col_at, here, half), [WARPS, 32])
        else:
            row = tl.zeros([WARPS, 32], tl.int32)
            col = tl.zeros([WARPS, 32], tl.int32)
        for k in range(ROUNDS):
            relax = tl.where(k > 0, -1, 0)
            row = _line_step(_across(rows, col, home, M), row, relax, NETWORK, N)
            col = _line_step(_across(cols, row, home, M), col, relax, NETWORK, N)
        row, wrong = _last_step(_across(rows, col, home, M), NETWORK, N)
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
        _append(block, still & (line == 0), open_list, open_count)
        first += tl.num_programs(0) * (LANES // M)


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
        raw = _bits(tl.load(at, mask=live, other=0.0))
        if ABSOLUTE:
            raw &= 0x7FFFFFFF
        size = raw & 0x7FFFFFFF
        shift = _shift(tl.max(tl.max(size, axis=2), axis=1), WIDE)
        half = _half_units(shift)
        worth = _half_units(-2 - shift)[:, None]
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
        _append(block, here & (proven == 0), open_list, open_count)
        first += tl.num_programs(0) * BLOCKS


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


# a width that is a multiple of 16 is worth a program of its own: only then are wide loads whole
@triton.jit(do_not_specialize=["height"])
def kept_score(scores, row_stride, col_stride, mask, sums, height, width, ABSOLUTE: tl.constexpr, SIZE: tl.constexpr):
    """Sum what the mask keeps of a band of rows in float64, in a fixed order: one program a band, one sum each."""
    total = tl.zeros([SIZE], tl.float64)
    row = tl.program_id(0).to(tl.int64)
    width = width.to(tl.int64)
    while row < height:
        first = tl.cast(0, tl.int64)
        while first < width:
            col = first + tl.arange(0, SIZE)
            here = col < width
            kept = tl.load(mask + row * width + col, mask=here, other=0)
            value = tl.load(scores + row * row_stride + col * col_stride, mask=here, other=0.0).to(tl.float32)
            if ABSOLUTE:
                value = tl.abs(value)
            total += tl.where(kept != 0, value, 0.0).to(tl.float64)
            first += SIZE
        row += tl.num_programs(0)
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))
