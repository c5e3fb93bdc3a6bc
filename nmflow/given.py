"""What a caller gave, checked: an array, a mask, a place to write."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nmflow.arrays import Array, is_bfloat16
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError

__all__ = [
    "as_array",
    "as_groups",
    "as_mask",
    "check_disjoint",
    "check_dtype",
    "check_out",
    "check_rank",
    "count_marked",
    "viewed",
]

_SIZES = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}


def as_array(value: object, name: str) -> Array:
    """View `value` as a NumPy array: an array, ``__array__``, or DLPack on the CPU.

    Raises
    ------
    InputTypeError
        If it cannot be viewed, or its dtype has no scores (object, complex, string, bool, ...).
    """
    array = viewed(value, name)
    check_dtype(array.dtype, name)
    return array


def viewed(value: object, name: str) -> Array:
    """The same of any dtype: `as_array` without asking for scores."""
    if type(value) is np.ndarray:
        return value
    masked = sys.modules.get("numpy.ma")  # loaded where there is one
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise InputTypeError(f"{name} must be a plain array, not a masked one, whose mask would be lost; use .filled()")
    try:
        if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
            return np.asarray(value)
        return np.from_dlpack(value)
    except MemoryError:
        raise
    except Exception as error:
        raise InputTypeError(
            f"{name} must be an array that NumPy can view, not {type(value).__name__} ({error}); "
            f"move it to the CPU and pass an array, or use nmflow.torch for tensors"
        ) from error


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raise InputTypeError unless `dtype` is a real float of 16 to 64 bits, bfloat16, or an integer."""
    if is_bfloat16(dtype) or dtype.itemsize in _SIZES.get(dtype.kind, ()):
        return
    raise InputTypeError(
        f"{name} must be float16, bfloat16, float32, float64 or an integer of 8 to 64 bits, not {dtype}; "
        f"convert it first, for example with .astype('float32')"
    )


def as_mask(value: object, shape: tuple[int, ...] | None, name: str) -> Array:
    """View `value` as a boolean array of `shape`, or of any."""
    mask = viewed(value, name)
    if mask.dtype != np.bool_:
        raise InputTypeError(f"{name} must be boolean, not {mask.dtype}; write {name} != 0 if that is meant")
    if shape is not None and mask.shape != shape:
        raise InputValueError(f"{name} must have shape {shape}, not {mask.shape}")
    return mask


def as_groups(groups: object, shape: tuple[int, ...], layout: str | None) -> int:
    """A number of groups that fits an array of a layout, or InputValueError."""
    try:
        count = operator.index(groups)  # type: ignore[arg-type]
    except TypeError:
        raise InputValueError(f"groups must be a whole number, not {groups!r}") from None
    if count != 1 and layout != "conv":
        raise InputValueError('groups must be 1 unless layout="conv"')
    if count < 1 or (layout == "conv" and shape[0] % count):
        raise InputValueError(f"groups must divide the {shape[0]} output channels, not {count}")
    return count


def check_out(out: object, scores: Array, read: Mapping[str, Array | None], layout: str | None) -> Array:
    """Check where a caller wants the mask: entries of a row adjacent, shape of the scores, not with layout="conv".

    read : all that is read while the mask is written, by its name.
    """
    if isinstance(out, np.ndarray):  # what a subclass does or says of its own, such as a masked one, would come between
        out = np.asarray(out)
    if not isinstance(out, np.ndarray) or out.dtype.char != "?" or out.shape != scores.shape:
        found = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputValueError(f"out must be a NumPy array of bool of shape {scores.shape}, not {found}")
    if not out.flags.writeable or out.strides[-1] != 1:
        raise InputValueError("out must be writeable and have the entries of a row side by side; pass np.empty")
    if layout == "conv":
        raise InputValueError('out must be None for layout="conv", whose masks are laid out another way in memory')
    if not out.flags.c_contiguous and _overlaps_itself(out):
        raise InputValueError("out must have entries of its own in memory, none twice; pass np.empty")
    for name, array in read.items():
        if array is not None and np.may_share_memory(out, array):
            raise InputValueError(f"out must not share memory with {name}; pass an array of its own")
    return out


def _overlaps_itself(array: Array) -> bool:
    """Whether two entries may lie in the same place: told by each stride, which must step over what is within it."""
    extent = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < extent:
            return True
        extent += stride * (length - 1)
    return False


def check_disjoint(keep: Array, drop: Array) -> None:
    """Raise InfeasibleError if an entry is marked in both: how many are, and where the first is."""
    count, first = count_marked(here & there for here, there in zip(keep, drop, strict=True))
    if count:
        raise InfeasibleError(
            f"keep and drop must not mark the same entry, as they do at {first} and at {count} in all; clear one"
        )


def count_marked(parts: Iterable[Array]) -> tuple[int, tuple[int, ...]]:
    """How many entries are True, and where the first is, of an array that comes one leading slice at a time."""
    count = 0
    first: tuple[int, ...] = ()
    for lead, part in enumerate(parts):
        found = int(np.count_nonzero(part))
        if found and not count:
            first = (lead, *(int(i) for i in np.argwhere(part)[0]))
        count += found
    return count, first


def check_rank(shape: tuple[int, ...], layout: str | None, name: str) -> None:
    """Raise InputValueError unless an array has the axes of its layout, which must be one."""
    if layout is not None and not (isinstance(layout, str) and layout in ("conv", "batch")):
        raise InputValueError(f'layout must be None, "conv" or "batch", not {layout!r}')
    if layout is None and len(shape) != 2:
        hint = (
            'say layout="conv" for (out, in/groups, *kernel) or layout="batch" for a stack of matrices'
            if len(shape) > 2
            else "a mask needs rows and columns"
        )
        raise InputValueError(f"{name} must have 2 axes, not {len(shape)}; {hint}")
    if layout is not None and len(shape) < 3:
        raise InputValueError(f'{name} must have at least 3 axes for layout="{layout}", not {len(shape)}')
