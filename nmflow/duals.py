"""Duals of the blocks of a chunk, each at the precision that it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import Chunk

__all__ = ["BlockDuals", "Duals", "ldexp"]


@dataclass(frozen=True, slots=True)
class BlockDuals:
    """Duals of one block, exactly: u = row * 2**exponent, v = col * 2**exponent.

    `row` and `col` are float64, or Python integers (dtype object) where float64 cannot hold them.
    """

    row: Array
    col: Array
    exponent: int = 0

    def nearest(self) -> tuple[Array, Array]:
        """The duals as float64, rounded once, and cut off at its largest number."""
        u, v = ([ldexp(x, self.exponent) for x in side] for side in (self.row, self.col))
        largest = np.finfo(np.float64).max
        return np.clip(u, -largest, largest), np.clip(v, -largest, largest)


class Duals(NamedTuple):
    """Duals of the blocks of a chunk, at the precision that each needs.

    Attributes
    ----------
    row, col : ndarray of the work dtype, shapes (h, block columns) and (block rows, w), or None
        Row dual of each row of each block, column dual of each column of each block.
    blocks : ndarray of int64, shape (k,), ascending, or None
        Blocks whose duals stand apart because they need float64,
    block_row, block_col : ndarray of float64, shapes (k, R) and (k, C)
        and these duals.
    special : mapping from block number to BlockDuals
        Blocks whose duals are given one by one; these go before all others.
    """

    row: Array | None = None
    col: Array | None = None
    blocks: Array | None = None
    block_row: Array | None = None
    block_col: Array | None = None
    special: Mapping[int, BlockDuals] | None = None

    def apart(self) -> npt.NDArray[np.int64]:
        """Blocks whose duals do not stand in `row` and `col`, ascending."""
        special = np.fromiter(self.special or (), np.int64)
        return np.union1d(special, special if self.blocks is None else self.blocks)

    def updated(self, other: Duals) -> Duals:
        """These duals, but for the blocks that stand apart in `other`."""
        if self.blocks is None or self.block_row is None or self.block_col is None:
            return self._replace(blocks=other.blocks, block_row=other.block_row, block_col=other.block_col)
        if other.blocks is None or other.block_row is None or other.block_col is None:
            return self
        if np.array_equal(self.blocks, other.blocks):
            return self._replace(block_row=other.block_row, block_col=other.block_col)
        place, known = _find(self.blocks, other.blocks)
        if known.all():
            row, col = self.block_row.copy(), self.block_col.copy()
            row[place], col[place] = other.block_row, other.block_col
            return self._replace(block_row=row, block_col=col)
        old = ~np.isin(self.blocks, other.blocks)
        blocks = np.concatenate([self.blocks[old], other.blocks])
        order = np.argsort(blocks)
        row = np.concatenate([self.block_row[old], other.block_row])
        col = np.concatenate([self.block_col[old], other.block_col])
        return self._replace(blocks=blocks[order], block_row=row[order], block_col=col[order])

    def of(self, chunk: Chunk, blocks: Array) -> tuple[Array, Array]:
        """The same as `gather`, to be read only: no copy where these stand apart."""
        known, u, v = self.blocks, self.block_row, self.block_col
        if known is None or u is None or v is None or self.special or not np.array_equal(known, blocks):
            return self.gather(chunk, blocks)
        return u, v

    def gather(self, chunk: Chunk, blocks: Array) -> tuple[Array, Array]:
        """Duals of some blocks as float64, shapes (k, R) and (k, C); 0 where none are known."""
        rows, cols = chunk.pattern.block_shape
        wide = chunk.grid[1]
        missing = np.ones(len(blocks), np.bool_)
        if self.blocks is not None and self.block_row is not None and self.block_col is not None and len(self.blocks):
            if np.array_equal(self.blocks, blocks) and not self.special:
                return self.block_row.copy(), self.block_col.copy()
            place, known = _find(self.blocks, blocks)
            missing = ~known
            u, v = self.block_row[place], self.block_col[place]
            u[missing] = v[missing] = 0.0
        else:
            u, v = np.zeros((len(blocks), rows)), np.zeros((len(blocks), cols))
        if self.row is not None and self.col is not None and missing.any():
            from nmflow.kernels.gather import gather_duals_kernel

            few = not missing.all()
            left = np.ascontiguousarray(blocks[missing] if few else blocks, np.int64)
            to_u, to_v = (np.empty((len(left), rows)), np.empty((len(left), cols))) if few else (u, v)
            gather_duals_kernel(self.row.itemsize)(
                self.row.ctypes.data, self.col.ctypes.data, rows, cols, wide, left.ctypes.data, len(left),
                to_u.ctypes.data, to_v.ctypes.data,
            )  # fmt: skip
            if few:
                u[missing], v[missing] = to_u, to_v
        if self.special:
            for k, block in enumerate(blocks):
                duals = self.special.get(int(block))
                if duals is not None:
                    u[k], v[k] = duals.nearest()
        return u, v


def _find(blocks: Array, wanted: Array) -> tuple[Array, Array]:
    """Places of some numbers in ascending ones, and whether they are there."""
    place = np.minimum(np.searchsorted(blocks, wanted), len(blocks) - 1)
    return place, blocks[place] == wanted


def ldexp(number: float, exponent: int) -> float:
    """number * 2**exponent, rounded once; infinite if too large."""
    from fractions import Fraction

    try:
        if abs(number) <= 1 << 53:  # a float64
            return math.ldexp(number, exponent)
        return float(Fraction(number) * Fraction(2) ** exponent)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
