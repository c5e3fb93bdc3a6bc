"""Arrays of other libraries, as far as NumPy and nmflow see them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


class Viewed:
    """One that NumPy can view, by ``__array__``."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Array:
        return self.array


class OverDLPack:
    """One that speaks DLPack only, on the CPU."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()
