"""cutlass-24: what torch's SparseSemiStructuredTensorCUTLASS holds (sm80), W and its transpose from one mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nmflow.arrays import Array
from nmflow.errors import FormatError
from nmflow.formats.base import Format
from nmflow.formats.layout import Area, Place, Requirement, Spec
from nmflow.formats.sides import Sides, compress, expand, fault, over, places, tile_bits

__all__ = ["Cutlass24"]

_ARRAYS = ("packed", "meta", "packed_t", "meta_t", "threads_masks")


class Cutlass24(Format):
    """The layout of CUTLASS for sparse tensor cores of compute capability 8.x, as torch 2.13 keeps it.

    Notes
    -----
    =============  ============  ================================  ==============================================
    packed         dtype         (R, C / 2)                        stored entries of each row
    meta           int16, int32  (R, C / 16); (R, C / 32) for      4 nibbles a word (8 in int32), nibble j at bit
                                 int8; (R, C / 8) for float32      4 j; words permuted (`nmflow.kernels.swizzle`)
    packed_t       dtype         (C, R / 2)                        the same of the transpose
    meta_t         int16, int32  as meta, with R and C exchanged
    threads_masks  uint8         (⌈R/32⌉ 4, ⌈C/64⌉ 8, 8)           kept entries of each 8 x 8 tile: four uint16 for
                                                                   its 4 x 4 quadrants (top left, top right, bottom
                                                                   left, bottom right), bit = column + 4 * row
    =============  ============  ================================  ==============================================

    An even number of metadata words a row is required, both ways: with an odd one the permutation leaves the array,
    which torch's own check lets pass. Hence the multiples: the least columns that torch's class takes, asked of rows
    too, as the transpose is stored.

    References
    ----------
    torch 2.13, torch/sparse/_semi_structured_conversions.py and torch/sparse/semi_structured.py;
    CUTLASS, tools/util/include/cutlass/util/host_reorder.h.
    """

    name = "cutlass-24"
    version = 1
    summary = "torch's SparseSemiStructuredTensorCUTLASS (sm80 layout), W and its transpose"
    two_way = True
    keeps_mask = True
    requirements: Mapping[str, Requirement] = {
        "int8": Requirement("2:4", 128, 128),
        "float16": Requirement("2:4", 64, 64),
        "bfloat16": Requirement("2:4", 64, 64),
        "float32": Requirement("1:2", 32, 32),
    }

    def _specs(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Spec]:
        """The five arrays."""
        rows, cols = shape
        word = _word(dtype)
        per_word = 32 * word.itemsize // tile_bits(dtype)  # entries of the matrix whose nibbles fill a word
        return {
            "packed": Spec(dtype, (rows, cols // 2)),
            "meta": Spec(word, (rows, cols // per_word)),
            "packed_t": Spec(dtype, (cols, rows // 2)),
            "meta_t": Spec(word, (cols, rows // per_word)),
            "threads_masks": Spec(np.dtype(np.uint8), (*_tiles(rows, cols), 8)),
        }

    def places(self, shape: tuple[int, ...], dtype: np.dtype[Any], area: Area) -> dict[str, Place]:
        """Rows and columns of each array; metadata lies in pairs of words, each pair's rows side by side.

        Rows move within groups of 32 or 16, and pairs of columns stay pairs (`nmflow.kernels.swizzle`).
        """
        values, _, values_t, _, _ = places(shape, dtype, area)
        (rows, cols), (high, wide) = area, shape
        pair = 2 * 32 * _word(dtype).itemsize // tile_bits(dtype)  # entries behind two words
        tall, across = _tiles(high, wide)
        down, right = _tiles(rows.stop, cols.stop)
        return {
            "packed": values,
            "meta": Place((wide // pair, high, 2), (over(cols, pair), rows, slice(0, 2))),
            "packed_t": values_t,
            "meta_t": Place((high // pair, wide, 2), (over(rows, pair), cols, slice(0, 2))),
            "threads_masks": Place(
                (tall, across, 8), (slice(rows.start // 8, down), slice(cols.start // 8, right), slice(0, 8))
            ),
        }

    def source_of(self, arrays: Mapping[str, Spec]) -> Spec:
        """Read off `packed`."""
        packed = arrays.get("packed")
        if packed is None or len(packed.shape) != 2:
            raise FormatError("cutlass-24: array 'packed' must be there, with 2 axes")
        return Spec(packed.dtype, (packed.shape[0], 2 * packed.shape[1]))

    def _encode(self, weight: Array, mask: Array, out: Mapping[str, Array], threads: int) -> None:
        out["threads_masks"][:, weight.shape[1] // 8 :] = 0
        compress(weight, mask, _sides(out), threads)

    def _decode(self, arrays: Mapping[str, Array], weight: Array, mask: Array, threads: int) -> None:
        cols = weight.shape[1]
        if arrays["threads_masks"][:, cols // 8 :].any():
            raise FormatError(f"threads_masks must keep nothing beyond column {cols}; the data was changed")
        if not expand(_sides(arrays), weight, mask, threads):
            raise FormatError(fault(_plain_sides(arrays), "packed and meta", "packed_t and meta_t"))


def _sides(arrays: Mapping[str, Array]) -> Sides:
    return Sides(*(arrays[name] for name in _ARRAYS), swizzled=True)


def _plain_sides(arrays: Mapping[str, Array]) -> Sides:
    """The same in plain order, the slow way."""
    packed, packed_t = arrays["packed"], arrays["packed_t"]
    codes, codes_t = (_plain_words(arrays[name]).view(np.uint8) for name in ("meta", "meta_t"))
    rows, cols = packed.shape[0], packed_t.shape[0]
    tall, wide = _tiles(rows, cols)
    quadrants = arrays["threads_masks"].view(np.uint16).reshape(tall, wide, 2, 2)
    tiles = quadrants.transpose(0, 2, 1, 3).reshape(2 * tall, 2 * wide)
    return Sides(packed, codes, packed_t, codes_t, tiles[: rows // 4, : cols // 4])


def _plain_words(meta: Array) -> Array:
    """Metadata in row-major order: the formula of `nmflow.kernels.swizzle`, word by word."""
    group, step = (32, 4) if meta.itemsize == 2 else (16, 2)
    row, word = np.indices(meta.shape)
    moved = row // group * group + row % 8 * step + row % group // 8
    odd, side = moved % 2, word % 2
    plain: Array = meta.ravel()[word // 2 * 2 * len(meta) + 2 * (moved - odd + side) + odd]
    return plain


def _word(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype of a metadata word."""
    return np.dtype(np.int32 if dtype.itemsize == 1 else np.int16)


def _tiles(rows: int, cols: int) -> tuple[int, int]:
    """8 x 8 tiles down and across: whole thread blocks of 32 x 64."""
    return math.ceil(rows / 32) * 4, math.ceil(cols / 64) * 8
