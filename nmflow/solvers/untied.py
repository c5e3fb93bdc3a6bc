"""Blocks whose scores repeat, settled with each score moved a little: how `nmflow.kernels.untie` is called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from nmflow.arrays import Array
from nmflow.blocks import Chunk
from nmflow.crew import call_on_threads
from nmflow.solvers.judge import by_side, fillable, likely_full
from nmflow.solvers.levels import Lattice
from nmflow.solvers.offsets import offsets_of
from nmflow.solvers.open_blocks import LONG_ENTRIES
from nmflow.sums import added
from nmflow.workspace import held, workspace

__all__ = ["Untied", "untie", "untie_on"]

NARROW, WIDE, UNSEEN = 14, 30, 16
"""Bits of a number in lanes of 16 and of 32 bits (`nmflow.kernels.tied`), and those that come after the first 14."""
LONGEST = 23
"""Bits of whole numbers above the least one, so that they are floats in all kernels: all are below 2**24 then."""
BELOW, MOST = 2, 9
"""Bits by which the offsets are smaller than the grain of a lattice, and bits that they have at most, of 14."""
AMONG = {4: 4, 8: 2, 64: 1}
"""The same where scores lie on none, by the longer side of a block."""
ONE_ZOOM = 4
"""More bits than these, or blocks of up to 8 lines, need to be magnified only once."""


@dataclass(frozen=True, slots=True)
class Untied:
    """What became of some blocks.

    Attributes
    ----------
    kept : float
        What those that are proven keep.
    blocks : ndarray of int64, shape (k,)
        The others, whose masks say which ties to keep.
    u, v : ndarray of float64, shapes (k, R) and (k, C)
        Their duals to go on from.
    every : pair of ndarray of float64, shapes (n_blocks, R) and (n_blocks, C)
        Duals of all, where the chunk asks for them, else of none; on a lattice those of T.
    numbers : ndarray of int, shape (k, R, C)
        On a lattice, T - low of the blocks that are open.
    largest : int
        Bound on |d| there.
    """

    kept: float
    blocks: Array
    u: Array
    v: Array
    every: tuple[Array, Array]
    numbers: Array
    largest: int = 0


def untie(chunk: Chunk) -> Untied | None:
    """Settle all blocks by their scores; None if one is not finite."""
    shape = chunk.pattern.block_shape
    offsets = _offsets(*shape, by_side(AMONG, chunk.pattern) + UNSEEN, wide=True)
    return _untie(chunk, None, offsets, 0, 0, 1 if max(shape) <= 8 else 2, wide=True)


def untie_on(lattice: Lattice, chunk: Chunk) -> Untied | None:
    """Settle all blocks by small whole numbers; None if some score is not near the lattice."""
    shape, bits = chunk.pattern.block_shape, max(lattice.step, lattice.spread).bit_length()
    # others have room for larger scores than a sample held, and for some that lie further beside the lattice
    roomy, beside = max(min(bits + 2, LONGEST), NARROW - BELOW), min(lattice.largest, 1) * lattice.step
    attempts = (bits, lattice.largest), (roomy, beside // 4), *([(roomy, beside // 2)] if beside else [])
    for size, largest in attempts[bits > NARROW - BELOW :]:
        wide = size > NARROW - BELOW
        shift = (WIDE if wide else NARROW) - size
        offset_bits = min(MOST + UNSEEN if wide else MOST, shift - BELOW)
        zooms = 1 if not wide and (offset_bits > ONE_ZOOM or max(shape) <= 8) else 2
        offsets = _offsets(*shape, offset_bits, wide=wide)
        untied = _untie(chunk, lattice, offsets, shift, largest, zooms, wide=wide)
        if untied is not None:
            return untied
    return None


def _untie(
    chunk: Chunk, lattice: Lattice | None, offsets: Array, shift: int, largest: int, zooms: int, *, wide: bool
) -> Untied | None:
    from nmflow.kernels.share import PART, SUMS
    from nmflow.kernels.untie import untie_kernel, untie_scratch

    pattern, count, keep = chunk.pattern, chunk.n_blocks, chunk.duals is not None
    shape = rows, cols = pattern.block_shape
    if keep:
        u, v = np.empty((count, rows)), np.empty((count, cols))
    else:
        u = workspace("untied row", count * rows, np.float64).reshape(count, rows)
        v = workspace("untied col", count * cols, np.float64).reshape(count, cols)
    numbers = workspace("numbers", count * rows * cols if lattice else 0, np.int32 if wide else np.int16)
    left, parts, share_rows = np.empty(count, np.int64), *chunk.shares
    sums, least, spared, spare = np.zeros(SUMS * parts), 1, 0, 1
    numeric = (1.0, 1.0, 1.0, 0.0, 0.0)
    if lattice is not None:
        least = lattice.step << shift
        if not lattice.linear:
            spared, spare = least - 1, (lattice.step - largest) << shift
        numeric = lattice.coarse, lattice.fine, float(lattice.step), float(lattice.low), float(largest)
    operation, plan = untie_kernel(
        chunk.kind, *shape, pattern.row_budget, pattern.col_budget, pattern.fill == "at-most", chunk.absolute,
        lattice is not None, wide,
    )  # fmt: skip
    fill_first = fillable(pattern) and likely_full(chunk, tied=True)
    threads, scratch_size = min(chunk.threads, parts), untie_scratch(chunk.kind, shape)
    _, scratch = held("scratch", threads * scratch_size)
    job = (
        plan, chunk.scores.ctypes.data, chunk.scores.strides[0], chunk.mask.ctypes.data,
        chunk.mask.strides[0], *chunk.grid, left.ctypes.data, u.ctypes.data, v.ctypes.data, numbers.ctypes.data,
        sums.ctypes.data, offsets.ctypes.data, offsets[1:].ctypes.data, shift, least, spared, spare, zooms, fill_first,
        keep, share_rows, scratch, scratch_size, *np.array(numeric).view(np.int64), 0,
    )  # fmt: skip
    still = call_on_threads(operation, job, PART * parts, threads, wake=count * rows * cols >= LONG_ENTRIES)
    if still < 0:
        return None
    kept = added(sums)
    left = left[:still]
    every = (u, v) if keep else (u[:0], v[:0])
    u, v = (u[left], v[left]) if keep else (u[:still].copy(), v[:still].copy())
    numbers = numbers.reshape(-1, rows, cols)[:still]
    return Untied(kept, left, u, v, every, numbers, largest)


@cache
def _offsets(rows: int, cols: int, bits: int, *, wide: bool) -> Array:
    """Offsets for the entries of a block, all different, below 2**bits; from their places alone.

    Narrow: whole steps, 64ths, and 4096ths of one.
    """
    if wide:
        return offsets_of(rows, cols, bits).astype(np.int32)
    parts = offsets_of(rows, cols, bits + 12)
    return np.stack([parts >> 12, (parts >> 6) & 63, parts & 63]).astype(np.int16)
