"""nibble: plain PTX order, W and its transpose, for kernels of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nmflow.arrays import Array
from nmflow.errors import FormatError
from nmflow.formats.base import Format
from nmflow.formats.layout import Area, Place, Requirement, Spec
from nmflow.formats.sides import Sides, compress, expand, fault, places, shapes

__all__ = ["Nibble"]

_ARRAYS = ("values", "meta", "values_t", "meta_t", "mask")


class Nibble(Format):
    """Values row-major, one nibble a group row-major, nothing permuted.

    Notes
    -----
    A nibble is `first | second << 2` of the two stored positions of four, ascending; at 1:2 it is 0100 for the first
    of two entries and 1110 for the second (a 32-bit entry is two halves to the hardware).

    ========  ======  ==================  =============================================================
    values    dtype   (R, C / 2)          stored entries of each row
    meta      uint8   (R, C / 8), (R, C / 4) at 1:2   nibbles of each row, the first in the lower half
    values_t  dtype   (C, R / 2)          the same of the transpose
    meta_t    uint8   (C, R / 8), (C, R / 4) at 1:2
    mask      uint16  (R / 4, C / 4)      kept entries of each 4 x 4 tile, bit = column + 4 * row
    ========  ======  ==================  =============================================================

    `mask` says which of the stored entries are kept; the others are +0 and fill a group up.

    References
    ----------
    NVIDIA, PTX ISA 8.5, "Warp-level matrix instructions for sparse mma", sparse matrix storage.
    """

    name = "nibble"
    version = 1
    summary = "plain PTX order: values and 2-bit indices row-major, W and its transpose"
    two_way = True
    keeps_mask = True
    requirements: Mapping[str, Requirement] = {
        **{
            dtype: Requirement("2:4", 8, 8)
            for dtype in ("int8", "uint8", "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16")
        },
        "float32": Requirement("1:2", 4, 4),
    }

    def _specs(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Spec]:
        """The five arrays."""
        kinds: tuple[np.dtype[Any], ...] = (dtype, np.dtype(np.uint8), dtype, np.dtype(np.uint8), np.dtype(np.uint16))
        parts = zip(_ARRAYS, kinds, shapes(shape, dtype), strict=True)
        return {name: Spec(kind, part) for name, kind, part in parts}

    def places(self, shape: tuple[int, ...], dtype: np.dtype[Any], area: Area) -> dict[str, Place]:
        """Rows and columns of each array."""
        return dict(zip(_ARRAYS, places(shape, dtype, area), strict=True))

    def source_of(self, arrays: Mapping[str, Spec]) -> Spec:
        """Read off `values`."""
        values = arrays.get("values")
        if values is None or len(values.shape) != 2:
            raise FormatError("nibble: array 'values' must be there, with 2 axes")
        return Spec(values.dtype, (values.shape[0], 2 * values.shape[1]))

    def _encode(self, weight: Array, mask: Array, out: Mapping[str, Array], threads: int) -> None:
        compress(weight, mask, _sides(out), threads)

    def _decode(self, arrays: Mapping[str, Array], weight: Array, mask: Array, threads: int) -> None:
        if not expand(_sides(arrays), weight, mask, threads):
            raise FormatError(fault(_sides(arrays), "values and meta", "values_t and meta_t"))


def _sides(arrays: Mapping[str, Array]) -> Sides:
    return Sides(*(arrays[name] for name in _ARRAYS))
