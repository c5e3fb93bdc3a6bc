"""Both sides of a matrix in plain order: stored values and codes of W, of its transpose, and the mask in tiles.

What `nibble` stores as it is and `cutlass-24` in another order. Kernels do the work, stripe by stripe in our threads;
here are the arrays around them, and the slow search for the first fault once a kernel has said that there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nmflow.arrays import Array
from nmflow.crew import map_on_threads
from nmflow.errors import InputValueError
from nmflow.formats.given import bits_of, first_violation
from nmflow.formats.layout import Area, Place

__all__ = [
    "Sides",
    "compress",
    "expand",
    "fault",
    "over",
    "pattern_of",
    "places",
    "shapes",
    "tile_bits",
]

STRIPES = (64, 512)
"""Fewest and most rows of a piece of work, both powers of two. The most are enough that the codes of a column fill a
cache line; the fewest are whole pairs of metadata words (`nmflow.kernels.swizzle`)."""


@dataclass(frozen=True, slots=True)
class Sides:
    """A compressed matrix.

    Attributes
    ----------
    values, values_t : ndarray, shapes (R, C / 2) and (C, R / 2)
        Stored entries of each row, of each column, in order.
    codes, codes_t : ndarray of uint8, shapes (R, C b / 32) and (C, R b / 32)
        PTX nibbles, the first in the lower half of a byte; b = 4 at 2:4 and 8 at 1:2.
    tiles : ndarray of uint16, shape (R / 4, C / 4)
        The mask of each tile of 4 x 4 entries, bit = column + 4 * row.
    swizzled : bool
        Whether codes and tiles have the order, and the shapes, of `cutlass-24` instead.
    """

    values: Array
    codes: Array
    values_t: Array
    codes_t: Array
    tiles: Array
    swizzled: bool = field(default=False, kw_only=True)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.values.shape[0], self.values_t.shape[0]

    def addresses(self) -> tuple[int, ...]:
        """Where the arrays lie, in the order of the kernels' arguments."""
        parts = (self.values, self.codes, self.values_t, self.codes_t, self.tiles)
        return tuple(part.ctypes.data for part in parts)


def pattern_of(dtype: np.dtype[Any]) -> str:
    """The pattern in which hardware takes a dtype: 1:2 for 32 bits, 2:4 below."""
    return "1:2" if dtype.itemsize == 4 else "2:4"


def tile_bits(dtype: np.dtype[Any]) -> int:
    """Bits of the codes of four entries: two nibbles at 1:2, one at 2:4."""
    return 8 if dtype.itemsize == 4 else 4


def shapes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[tuple[int, int], ...]:
    """Shapes of the arrays of `Sides`, in order."""
    rows, cols = shape
    bits = tile_bits(dtype)
    return (
        (rows, cols // 2),
        (rows, cols * bits // 32),
        (cols, rows // 2),
        (cols, rows * bits // 32),
        (rows // 4, cols // 4),
    )


def places(shape: tuple[int, ...], dtype: np.dtype[Any], area: Area) -> tuple[Place, ...]:
    """Where the arrays of a part lie within those of `Sides`, in order."""
    rows, cols = area
    byte = 32 // tile_bits(dtype)  # entries whose codes fill a byte
    parts = (
        (rows, over(cols, 2)),
        (rows, over(cols, byte)),
        (cols, over(rows, 2)),
        (cols, over(rows, byte)),
        (over(rows, 4), over(cols, 4)),
    )
    return tuple(Place(whole, part) for whole, part in zip(shapes(shape, dtype), parts, strict=True))


def over(part: slice, entries: int) -> slice:
    """A slice of an axis that holds so many entries in one."""
    return slice(part.start // entries, part.stop // entries)


def compress(weight: Array, mask: Array, sides: Sides, threads: int) -> None:
    """Compress a checked, contiguous matrix both ways, into the arrays of `sides`.

    Raises
    ------
    InputValueError
        If the mask keeps too many in a group.
    """
    from nmflow.kernels.compress import compress_kernel

    kernel = compress_kernel(weight.itemsize, tile_bits(weight.dtype), sides.swizzled)
    if _any_stripe(kernel, weight, mask, sides, threads):
        pattern = pattern_of(weight.dtype)
        raise InputValueError(
            f"{first_violation(mask, pattern)}; {weight.dtype} is stored at {pattern}, solve for a transposable mask "
            f"of that first"
        )


def expand(sides: Sides, weight: Array, mask: Array, threads: int) -> bool:
    """Expand a compressed matrix; False if its two sides and its mask contradict each other."""
    from nmflow.kernels.expand import expand_kernel

    kernel = expand_kernel(weight.itemsize, tile_bits(weight.dtype), sides.swizzled)
    return not _any_stripe(kernel, weight, mask, sides, threads)


def _any_stripe(kernel: Callable[..., int], weight: Array, mask: Array, sides: Sides, threads: int) -> bool:
    """Run a kernel on stripes of rows, each in one of our threads; whether any returned something else than 0."""
    from nmflow.kernels.compress import room_size

    rows, cols = weight.shape
    where = (weight.ctypes.data, mask.ctypes.data, rows, cols)
    step = max(STRIPES[0], min(STRIPES[1], rows // (2 * threads) // STRIPES[0] * STRIPES[0]))
    starts = iter(range(0, rows, step))  # the interpreter's lock makes taking the next one atomic
    addresses = sides.addresses()

    def run() -> int:
        room = np.empty(room_size(weight.itemsize, tile_bits(weight.dtype), step), np.uint8)
        more = (*addresses, room.ctypes.data)
        return sum(kernel(*where, start, min(rows, start + step), *more) for start in starts)

    count = min(threads, -(-rows // step))
    return any(map_on_threads(lambda number: run(), range(count), count))


def fault(sides: Sides, one: str, two: str) -> str:
    """The first fault of a compressed matrix in plain order that has one, in words; the sides are called as given."""
    entries, indexed, undefined = _side(sides.values, sides.codes)
    entries_t, indexed_t, undefined_t = (part.T for part in _side(sides.values_t, sides.codes_t))
    rows, cols = sides.shape
    bits = sides.tiles[:, None, :, None] >> np.arange(16, dtype=np.uint16).reshape(1, 4, 1, 4)
    kept = (bits & 1).astype(np.bool_).reshape(rows, cols)
    for found, what in (
        (undefined, f"an index in {one} that hardware does not define"),
        (undefined_t, f"an index in {two} that hardware does not define"),
        (kept & ~indexed, f"a kept entry that {one} does not index"),
        (kept & ~indexed_t, f"a kept entry that {two} does not index"),
        ((entries != 0) & ~kept, f"a number in {one} where the mask drops the entry"),
        (entries != entries_t, f"an entry that differs between {one} and {two}"),
    ):
        if found.any():
            row, col = (int(index) // 4 * 4 for index in np.argwhere(found)[0])
            return f"rows {row} to {row + 3}, columns {col} to {col + 3} hold {what}; the data was changed"
    raise AssertionError("a kernel reported a fault that is not there")  # pragma: no cover


def _side(values: Array, codes: Array) -> tuple[Array, Array, Array]:
    """One side, the slow way: the bits of its entries, which are indexed, and which lie in an undefined group."""
    lines, length = values.shape
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(lines, -1)
    entries, indexed = (
        np.zeros((lines, length // 2, 4), bits_of(values).dtype),
        np.zeros((lines, length // 2, 4), np.bool_),
    )
    if tile_bits(values.dtype) == 8:
        undefined = (nibbles != 0b0100) & (nibbles != 0b1110)
        places = [(nibbles[:, k::2] == 0b1110) + 2 * k for k in range(2)]
        undefined = np.repeat(undefined, 2, axis=1)
    else:
        places = [nibbles & 3, nibbles >> 2]
        undefined = np.repeat(places[0] >= places[1], 4, axis=1)
    for k, place in enumerate(places):
        np.put_along_axis(entries, place[..., None].astype(np.int64), bits_of(values)[:, k::2, None], axis=2)
        np.put_along_axis(indexed, place[..., None].astype(np.int64), True, axis=2)
    return entries.reshape(lines, -1), indexed.reshape(lines, -1), undefined
