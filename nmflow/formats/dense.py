"""dense: the matrix itself with exact zeros. What export makes by default: every tool starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nmflow.arrays import Array
from nmflow.errors import FormatError
from nmflow.formats.base import Format
from nmflow.formats.given import bits_of
from nmflow.formats.layout import Area, Place, Requirement, Spec

__all__ = ["Dense"]

_DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


class Dense(Format):
    """One array `weight` of the shape and dtype of the matrix: kept bits as they were, +0 elsewhere.

    Notes
    -----
    It keeps no mask beside the zeros: decoding calls kept what is not +0, so -0.0 is and a kept +0 is not. Any mask,
    any number of axes.
    """

    name = "dense"
    version = 1
    summary = "the matrix itself with exact zeros: what every library reads"
    two_way = False
    keeps_mask = False
    requirements: Mapping[str, Requirement] = dict.fromkeys(_DTYPES, Requirement(None, 1, 1))

    def _specs(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Spec]:
        """One array."""
        return {"weight": Spec(dtype, shape)}

    def places(self, shape: tuple[int, ...], dtype: np.dtype[Any], area: Area) -> dict[str, Place]:
        """The part itself."""
        return {"weight": Place(shape, area)}

    def source_of(self, arrays: Mapping[str, Spec]) -> Spec:
        """The array itself."""
        if "weight" not in arrays:
            raise FormatError("dense: array 'weight' must be there")
        return arrays["weight"]

    def _encode(self, weight: Array, mask: Array, out: Mapping[str, Array], threads: int) -> None:
        target = bits_of(out["weight"])  # as integers: no NaN or zero can change its bits
        target[...] = 0
        np.copyto(target, bits_of(weight), where=mask)

    def _decode(self, arrays: Mapping[str, Array], weight: Array, mask: Array, threads: int) -> None:
        weight[...] = arrays["weight"]
        np.not_equal(bits_of(weight), 0, out=mask)
