"""Tensors of any size in pieces of a few megabytes: which part each piece is, and its bytes in a file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import xxhash

from nmflow.arrays import Array, Layout

__all__ = [
    "TILE_BYTES",
    "Tile",
    "as_blocks",
    "combine",
    "cut",
    "cut_bytes",
    "digest",
    "in_words",
    "inside",
    "is_whole",
    "read_tile",
    "runs",
    "sha256_of",
    "squares",
    "write_tile",
]

TILE_BYTES = 4 << 20
"""Bytes of a piece: some milliseconds of solving, far above what the call costs, and a few dozen megabytes of memory
for each thread."""

Tile: TypeAlias = tuple[slice, ...]
"""A piece of a tensor: a slice of each axis."""


def as_blocks(shape: tuple[int, ...], layout: Layout | None, height: int) -> tuple[tuple[int, ...], Layout | None]:
    """The same blocks as those of one matrix where that can be: a stack whose matrices end with a whole block."""
    if layout == "batch" and shape[-2] % height == 0:
        return (math.prod(shape[:-1]), shape[-1]), None
    return shape, layout


def cut(shape: tuple[int, ...], itemsize: int, layout: Layout | None, block: tuple[int, int]) -> Iterator[Tile]:
    """Cut a tensor into pieces of whole blocks, in the order of its rows.

    Parameters
    ----------
    shape : tuple of int
    itemsize : int
        Bytes of an entry.
    layout : {None, "conv", "batch"}
        As for `nmflow.solve`; None has two axes.
    block : (int, int)
        Rows and columns of a block. At the ends of axes blocks may be ragged.

    Notes
    -----
    A piece takes at most `TILE_BYTES`, or one block row by one block column where that is more. One exception: a
    convolution whose input channels are no multiple of the block is cut between rows only, because its blocks straddle
    kernel positions.
    """
    height, width = block
    if layout == "batch":
        matrix = itemsize * math.prod(shape[-2:])
        if matrix <= TILE_BYTES:
            for start, stop in _steps(shape[0], 1, matrix):
                yield (slice(start, stop), slice(0, shape[1]), slice(0, shape[2]))
            return
        for number in range(shape[0]):
            for part in cut(shape[1:], itemsize, None, block):
                yield (slice(number, number + 1), *part)
        return
    kernel = tuple(slice(0, length) for length in shape[2:])
    column = itemsize * math.prod(shape[2:])
    if height * shape[1] * column <= TILE_BYTES or (kernel and shape[1] % width):
        across = [(0, shape[1])]
    else:
        across = list(_steps(shape[1], width, column * height))
    for top, bottom in _steps(shape[0], height, column * max(stop - start for start, stop in across)):
        for left, right in across:
            yield (slice(top, bottom), slice(left, right), *kernel)


def cut_bytes(n_bytes: int) -> Iterator[Tile]:
    """Cut a tensor of bytes, whatever they mean, at multiples of 8 bytes."""
    for start, stop in _steps(n_bytes, 8, 1):
        yield (slice(start, stop),)


def _steps(length: int, multiple: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut an axis into parts of `TILE_BYTES`, each a multiple of `multiple` but the last; `size` bytes an index."""
    step = max(1, TILE_BYTES // (size * multiple)) * multiple
    for start in range(0, length, step):
        yield start, min(start + step, length)


def squares(shape: tuple[int, ...], side: int, entries: int) -> Iterator[Tile]:
    """Cut a matrix into squares of `side` rows and columns, or one axis into stretches of `entries`."""
    steps = (side, side) if len(shape) == 2 else (entries,)
    axes = [
        [slice(start, min(start + step, length)) for start in range(0, length, step)]
        for length, step in zip(shape, steps, strict=True)
    ]
    yield from product(*axes)


def inside(tile: Tile, shape: tuple[int, ...]) -> Tile:
    """The part of a piece that lies within a shape."""
    return tuple(
        slice(min(axis.start, length), min(axis.stop, length)) for axis, length in zip(tile, shape, strict=True)
    )


def is_whole(tile: Tile, shape: tuple[int, ...]) -> bool:
    """Whether a piece is all there is."""
    return all((axis.start, axis.stop) == (0, length) for axis, length in zip(tile, shape, strict=True))


def runs(shape: tuple[int, ...], tile: Tile) -> Iterator[tuple[int, int]]:
    """The stretches of adjacent entries that a piece of a C-contiguous tensor consists of: first entry and length."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # From the last axis upwards, as long as whole axes lie side by side.
    axis = len(shape) - 1
    while axis > 0 and (tile[axis].start, tile[axis].stop) == (0, shape[axis]):
        axis -= 1
    length = (tile[axis].stop - tile[axis].start) * strides[axis]
    first = tile[axis].start * strides[axis]
    counts = [part.stop - part.start for part in tile[:axis]]
    for index in np.ndindex(*counts):
        lead = sum((part.start + i) * stride for part, i, stride in zip(tile, index, strides, strict=False))
        yield lead + first, length


def read_tile(file: int, start: int, shape: tuple[int, ...], tile: Tile, dtype: np.dtype[Any]) -> Array:
    """Read a piece of a tensor from an open file.

    Parameters
    ----------
    file : int
        File descriptor.
    start : int
        First byte of the tensor in the file.
    shape : tuple of int
        Of the tensor.
    tile : Tile
    dtype : dtype

    Returns
    -------
    ndarray of dtype, shape of the piece
        A new array, aligned and C-contiguous.

    Raises
    ------
    EOFError
        If the file ends before the piece does.
    """
    part = np.empty(tuple(axis.stop - axis.start for axis in tile), dtype)
    buffer = part.reshape(-1).view(np.uint8).data
    done = 0
    for first, length in runs(shape, tile):
        place, stop = start + first * dtype.itemsize, done + length * dtype.itemsize
        while done < stop:
            count = os.preadv(file, [buffer[done:stop]], place)
            if not count:
                raise EOFError
            done, place = done + count, place + count
    return part


def write_tile(file: int, start: int, shape: tuple[int, ...], tile: Tile, part: Array) -> None:
    """Write a piece of a tensor to its place in an open file; the inverse of `read_tile`."""
    buffer = part.reshape(-1).view(np.uint8).data
    done = 0
    for first, length in runs(shape, tile):
        place, stop = start + first * part.itemsize, done + length * part.itemsize
        while done < stop:
            count = os.pwrite(file, buffer[done:stop], place)
            done, place = done + count, place + count


def digest(*parts: Array) -> bytes:
    """Checksum of the bytes of C-contiguous arrays, 16 bytes long: it finds accidents, not forgeries."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part.reshape(-1).view(np.uint8).data)
    return state.digest()


def combine(digests: Iterable[bytes]) -> str:
    """One checksum of the checksums of all pieces, in hex."""
    state = xxhash.xxh3_128()
    for each in digests:
        state.update(each)
    return state.hexdigest()


def sha256_of(file: int, start: int, n_bytes: int) -> str:
    """SHA-256 of some bytes of an open file, in hex.

    Raises
    ------
    EOFError
        If the file ends before they do.
    """
    state, buffer, stop = hashlib.sha256(), bytearray(min(n_bytes, TILE_BYTES)), start + n_bytes
    while start < stop:
        count = os.preadv(file, [memoryview(buffer)[: stop - start]], start)
        if not count:
            raise EOFError
        state.update(memoryview(buffer)[:count])
        start += count
    return state.hexdigest()


def in_words(tile: Tile) -> str:
    """A rectangle in words."""
    names = ("rows", "columns") if len(tile) == 2 else ("entries",)
    return " and ".join(f"{name} {axis.start} to {axis.stop - 1}" for name, axis in zip(names, tile, strict=True))
