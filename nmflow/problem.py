"""Problem: what is to be solved, and the door where a caller's arrays are checked."""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from nmflow.errors import InfeasibleError, InputTypeError, InputValueError, NonFiniteError
from nmflow.pattern import Pattern

__all__ = [
    "Array",
    "Layout",
    "Matrix",
    "Problem",
    "as_array",
    "as_mask",
    "check_dtype",
    "is_bfloat16",
    "thread_count",
    "viewed",
]

Array: TypeAlias = npt.NDArray[Any]
Layout = Literal["conv", "batch"]
_SIZES = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}


@cache
def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is ml_dtypes' bfloat16, without importing ml_dtypes."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


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


def thread_count(threads: int | None) -> int:
    """Threads to use: by default the cores that this process may use.

    Raises
    ------
    InputValueError
        If `threads` is not a whole number of at least 1; NumPy's are whole numbers too.
    """
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        count = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = 0
    if count < 1:
        raise InputValueError(f"threads must be a whole number of at least 1, not {threads!r}")
    return count


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a problem, read a few rows at a time so that no layout needs a copy of the whole.

    `array` is (R, C), or (R, in, *kernel) seen as R x (kernel . in) when it has more than two axes.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows = self.array.shape[0]
        return rows, self.array.size // rows

    def rows(self, start: int, stop: int) -> Array:
        """Rows start to stop as a two-dimensional array: a view if the layout allows it."""
        part = self.array[start:stop]
        return part if part.ndim == 2 else np.moveaxis(part, 1, -1).reshape(len(part), -1)

    def part(self, rows: slice, cols: slice) -> Array:
        """A rectangle as a two-dimensional array: a view if the layout allows it, else a copy of about its size."""
        width = self.shape[1]
        if self.array.ndim == 2 or 2 * (cols.stop - cols.start) >= width:
            return self.rows(rows.start, rows.stop)[:, cols]
        # A narrow edge of a convolution: gathered, because rows() would copy the whole width for it.
        moved = np.moveaxis(self.array[rows], 1, -1)
        entry = np.unravel_index(np.arange(cols.start, cols.stop), moved.shape[1:])
        index: tuple[Any, ...] = (slice(None), *entry)
        gathered: Array = moved[index]
        return gathered


@dataclass(frozen=True)
class Problem:
    """Scores, pattern and fixed entries, checked.

    Attributes
    ----------
    scores : ndarray
        The array whose entries (their absolute values, if `absolute`) are the scores.
    absolute : bool
        Whether a score is the absolute value of the entry, widened before it is taken.
    pattern : Pattern
    layout : {None, "conv", "batch"}
    groups : int
        Convolution groups: row bands that blocks do not straddle.
    keep, drop : ndarray of bool or None
        Entries that must be kept, must be dropped; shape of `scores`.
    previous : ndarray of bool or None
        Entries of an earlier mask, each worth `bonus` more; shape of `scores`.
    bonus : float
    start : ndarray of bool or None
        A mask for the solver to improve; shape of `scores`.
    out : ndarray of bool or None
        Where the mask is written; shape of `scores`.
    warm : tuple of ndarray, or None
        Column duals of each matrix that `matrices` gives, to start from.
    """

    scores: Array
    absolute: bool
    pattern: Pattern
    layout: Layout | None = None
    groups: int = 1
    keep: Array | None = None
    drop: Array | None = None
    previous: Array | None = None
    bonus: float = 0.0
    start: Array | None = None
    out: Array | None = None
    warm: tuple[Array, ...] | None = None

    @classmethod
    def build(
        cls,
        weights: object,
        pattern: Pattern,
        *,
        scores: object | None = None,
        layout: str | None = None,
        groups: int = 1,
        keep: object | None = None,
        drop: object | None = None,
        start: object | None = None,
        out: object | None = None,
    ) -> Problem:
        """Check a caller's arguments and make a Problem of them.

        Raises
        ------
        InputTypeError
            If an array cannot be viewed or has a dtype without scores, or keep or drop is not boolean.
        InputValueError
            If a rank, shape, layout or number of groups does not fit, or an array is empty.
        InfeasibleError
            If an entry is marked in both keep and drop.
        """
        array = as_array(weights, "weights")
        _check_rank(array.shape, layout, "weights")
        if array.size == 0:
            raise InputValueError(f"weights must not be empty, not of shape {array.shape}")
        absolute = scores is None
        if scores is not None:
            given = as_array(scores, "scores")
            if given.shape != array.shape:
                raise InputValueError(f"scores must have the shape of weights, {array.shape}, not {given.shape}")
            array = given
        try:
            groups = operator.index(groups)
        except TypeError:
            raise InputValueError(f"groups must be a whole number, not {groups!r}") from None
        if groups != 1 and layout != "conv":
            raise InputValueError('groups must be 1 unless layout="conv"')
        if groups < 1 or (layout == "conv" and array.shape[0] % groups):
            raise InputValueError(f"groups must divide the {array.shape[0]} output channels, not {groups}")
        kept = None if keep is None else as_mask(keep, array.shape, "keep")
        dropped = None if drop is None else as_mask(drop, array.shape, "drop")
        if kept is not None and dropped is not None:
            _check_disjoint(kept, dropped)
        begun = None if start is None else as_mask(start, array.shape, "start")
        others = {"keep": kept, "drop": dropped, "start": begun}
        return cls(
            array,
            absolute,
            pattern,
            layout,  # type: ignore[arg-type]  # checked by _check_rank
            groups,
            kept,
            dropped,
            start=begun,
            out=None if out is None else _check_out(out, array, others, layout),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the caller's array."""
        return self.scores.shape

    @property
    def count(self) -> int:
        """How many matrices the caller's array holds; all have one shape."""
        return self.groups if self.layout == "conv" else math.prod(self.shape[:-2])

    @cached_property
    def stack(self) -> int:
        """How many of them are seen as one tall matrix, which has the same blocks in the same order: all, or 1.

        That takes whole blocks down each, and arrays whose matrices follow one another in memory.
        """
        if self.count == 1:
            return 1
        tall = self.shape[0] // self.groups if self.layout == "conv" else self.shape[-2]
        if tall % self.pattern.block_shape[0]:
            return 1
        arrays = (self.scores, self.keep, self.drop, self.previous, self.start, self.out)
        return self.count if self.layout == "conv" or all(array is None or _stacked(array) for array in arrays) else 1

    @cached_property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of each matrix that `matrices` gives."""
        return self.matrix(self.scores, 0).shape

    def matrices(self, array: Array) -> tuple[Matrix, ...]:
        """Cut an array of this problem's shape into its matrices, or see them as one: views."""
        return tuple(self.matrix(array, number) for number in range(self.count // self.stack))

    def matrix(self, array: Array, number: int) -> Matrix:
        """One of these."""
        if self.layout is None or (self.layout == "conv" and self.stack == self.groups):
            return Matrix(array)
        if self.layout == "conv":
            size = array.shape[0] // self.groups
            return Matrix(array[number * size : (number + 1) * size])
        if self.stack == self.count:
            return Matrix(array.reshape(-1, array.shape[-1]))
        return Matrix(array[np.unravel_index(number, array.shape[:-2])])

    def new_mask(self) -> tuple[Array, tuple[Array, ...]]:
        """The mask to write, of this problem's shape: `out` or a new array; and its matrices, two-dimensional views."""
        if self.layout != "conv":
            mask = np.empty(self.shape, np.bool_) if self.out is None else self.out
            return mask, tuple(matrix.array for matrix in self.matrices(mask))
        out, channels, *kernel = self.shape
        store = np.empty((out, *kernel, channels), np.bool_)
        bands = self.groups // self.stack
        return np.moveaxis(store, -1, 1), tuple(store.reshape(bands, out // bands, -1))

    def non_finite_error(self) -> NonFiniteError:
        """The error for scores that are NaN or infinite: how many, and where the first is."""
        count, first = 0, None
        for lead in range(self.shape[0]):  # one leading slice at a time keeps memory small
            bad = ~np.isfinite(self.scores[lead])
            found = int(np.count_nonzero(bad))
            if found and first is None:
                first = (lead, *(int(i) for i in np.argwhere(bad)[0]))
            count += found
        name = "weights" if self.absolute else "scores"
        return NonFiniteError(
            f"{name} must be finite, not NaN or infinite at {count} of {self.scores.size} entries, the first at "
            f"{first}; repair them, or give finite scores= that say how they rank",
            count,
            first or (),
        )


def _stacked(array: Array) -> bool:
    """Whether the matrices of a batch follow one another in memory as the rows of each do."""
    shape, strides = array.shape[:-1], array.strides[:-1]
    return all(
        here == following * length for here, following, length in zip(strides, strides[1:], shape[1:], strict=False)
    )


def _check_out(out: object, scores: Array, others: Mapping[str, Array | None], layout: str | None) -> Array:
    """Check where a caller wants the mask: entries of a row adjacent, shape of the scores, not with layout="conv".

    others : what else is read while the mask is written, by its name.
    """
    if not isinstance(out, np.ndarray) or out.dtype != np.bool_ or out.shape != scores.shape:
        found = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputValueError(f"out must be a NumPy array of bool of shape {scores.shape}, not {found}")
    if type(out) is not np.ndarray:  # what a subclass does of its own, such as a masked array, would come between
        out = out.view(np.ndarray)
    if not out.flags.writeable or out.strides[-1] != 1:
        raise InputValueError("out must be writeable and have the entries of a row side by side; pass np.empty")
    if layout == "conv":
        raise InputValueError('out must be None for layout="conv", whose masks are laid out another way in memory')
    if _overlaps_itself(out):
        raise InputValueError("out must have entries of its own in memory, none twice; pass np.empty")
    for name, array in {"the scores": scores, **others}.items():
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


def _check_disjoint(keep: Array, drop: Array) -> None:
    count, first = 0, None
    for lead in range(len(keep)):  # one leading slice at a time keeps memory small
        both = keep[lead] & drop[lead]
        found = int(np.count_nonzero(both))
        if found and first is None:
            first = (lead, *(int(i) for i in np.argwhere(both)[0]))
        count += found
    if first is not None:
        raise InfeasibleError(
            f"keep and drop must not mark the same entry, as they do at {first} and at {count} in all; clear one"
        )


def _check_rank(shape: tuple[int, ...], layout: str | None, name: str) -> None:
    if layout not in (None, "conv", "batch"):
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
