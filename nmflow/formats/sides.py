"""Both sides of a matrix in plain order: stored values and codes of W, of its transpose, and the mask in tiles.

What `nibble` stores as it is and `cutlass-24` reorders. Kernels do the work, stripe by stripe in our threads; here
are the arrays around them, and the slow search for the first fault once a kernel has said that there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmflow.errors import FormatError, InputValueError
from nmflow.formats.base import Area, Place
from nmflow.formats.given import bits_of, first_violation
from nmflow.problem import Array

__all__ = [
    "Sides",
    "at_once",
    "compress",
    "expand",
    "in_stripes",
    "over",
    "pattern_of",
    "places",
    "shapes",
    "tile_bits",
]

STRIPE = 256
"""Rows of a piece of work: enough that the columns of a piece are whole cache lines, few enough to share out."""


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
    """

    values: Array
    codes: Array
    values_t: Array
    codes_t: Array
    tiles: Array

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


def compress(weight: Array, mask: Array, threads: int) -> Sides:
    """Compress a checked, contiguous matrix both ways.

    Raises
    ------
    InputValueError
        If the mask keeps too many in a group.
    """
    from nmflow.kernels.compress import compress_kernel

    kinds = (weight.dtype, np.uint8, weight.dtype, np.uint8, np.uint16)
    pairs = zip(shapes(weight.shape, weight.dtype), kinds, strict=True)
    sides = Sides(*(np.empty(shape, kind) for shape, kind in pairs))
    kernel = compress_kernel(weight.itemsize, tile_bits(weight.dtype))
    rows, cols = weight.shape
    where = (weight.ctypes.data, mask.ctypes.data)

    def work(start: int, stop: int) -> int:
        return int(kernel(*where, rows, cols, start, stop, *sides.addresses()))

    if any(in_stripes(work, rows, threads)):
        raise InputValueError(
            f"{first_violation(mask, pattern_of(weight.dtype))}; solve for a transposable mask of this pattern first"
        )
    return sides


def expand(sides: Sides, names: tuple[str, str], threads: int) -> tuple[Array, Array]:
    """Expand a compressed matrix, checking its two sides and its mask against each other.

    Raises
    ------
    FormatError
        If they contradict each other; `names` are what to call the two sides.
    """
    from nmflow.kernels.expand import expand_kernel

    rows, cols = sides.shape
    weight, mask = np.empty((rows, cols), sides.values.dtype), np.empty((rows, cols), np.bool_)
    kernel = expand_kernel(weight.itemsize, tile_bits(weight.dtype))
    where = (weight.ctypes.data, mask.ctypes.data)

    def work(start: int, stop: int) -> int:
        return int(kernel(*where, rows, cols, start, stop, *sides.addresses()))

    if any(in_stripes(work, rows, threads)):
        raise FormatError(_fault(sides, names))
    return weight, mask


def at_once(tasks: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
    """Run tasks that share nothing."""
    if min(threads, len(tasks)) < 2:
        return [task() for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda task: task(), tasks))


def in_stripes(work: Callable[[int, int], int], rows: int, threads: int) -> list[int]:
    """Run work(start, stop) on stripes of rows, and give what each returned."""
    starts = range(0, rows, STRIPE)
    return at_once([lambda start=start: work(start, min(rows, start + STRIPE)) for start in starts], threads)  # type: ignore[misc]


def _fault(sides: Sides, names: tuple[str, str]) -> str:
    """The first fault of a compressed matrix that has one, in words."""
    entries, indexed, undefined = _side(sides.values, sides.codes)
    entries_t, indexed_t, undefined_t = (part.T for part in _side(sides.values_t, sides.codes_t))
    rows, cols = sides.shape
    bits = sides.tiles[:, None, :, None] >> np.arange(16, dtype=np.uint16).reshape(1, 4, 1, 4)
    kept = (bits & 1).astype(np.bool_).reshape(rows, cols)
    one, two = names
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
