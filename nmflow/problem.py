"""Problem: what is to be solved, of arrays that are checked here as they come in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nmflow.arrays import Array, Layout, Matrix, follow_one_another
from nmflow.errors import InputValueError, NonFiniteError
from nmflow.given import as_array, as_groups, as_mask, check_disjoint, check_out, check_rank, count_marked
from nmflow.pattern import Pattern

__all__ = ["Problem"]


@dataclass(eq=False)
class Problem:
    """Scores, pattern and fixed entries, checked; never changed, but a frozen one takes thrice as long to make.

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
        Column duals of each matrix of the caller's array, to start from; None where that would save nothing too.
    name : str
        What the caller knows `scores` as.
    stack : int
        How many matrices of the caller's array are seen as one tall matrix, which has the same blocks in the same
        order: all, or 1. That takes whole blocks down each, and arrays whose matrices follow one another in memory.
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
    name: str = "weights"
    stack: int = field(init=False)

    def __post_init__(self) -> None:
        self.stack = 1 if self.layout is None else self._stack()

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
        name: str = "weights",
    ) -> Problem:
        """Check a caller's arguments and make a Problem of them.

        name : what the caller knows `weights` as.

        Raises
        ------
        InputTypeError
            If an array cannot be viewed or has a dtype without scores, or keep or drop is not boolean.
        InputValueError
            If a rank, shape, layout or number of groups does not fit, or an array is empty.
        InfeasibleError
            If an entry is marked in both keep and drop.
        """
        array = as_array(weights, name)
        check_rank(array.shape, layout, name)
        if array.size == 0:
            raise InputValueError(f"{name} must not be empty, not of shape {array.shape}")
        absolute = scores is None
        if scores is not None:
            given = as_array(scores, "scores")
            if given.shape != array.shape:
                raise InputValueError(f"scores must have the shape of weights, {array.shape}, not {given.shape}")
            array, name = given, "scores"
        groups = as_groups(groups, array.shape, layout)
        kept = None if keep is None else as_mask(keep, array.shape, "keep")
        dropped = None if drop is None else as_mask(drop, array.shape, "drop")
        if kept is not None and dropped is not None:
            check_disjoint(kept, dropped)
        begun = None if start is None else as_mask(start, array.shape, "start")
        read = {"the scores": array, "keep": kept, "drop": dropped, "start": begun}
        return cls(
            array,
            absolute,
            pattern,
            layout,  # type: ignore[arg-type]  # checked by check_rank
            groups,
            kept,
            dropped,
            start=begun,
            out=None if out is None else check_out(out, array, read, layout),
            name=name,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the caller's array."""
        return self.scores.shape

    @property
    def count(self) -> int:
        """How many matrices the caller's array holds; all have one shape."""
        if self.layout is None:
            return 1
        return self.groups if self.layout == "conv" else math.prod(self.shape[:-2])

    def _stack(self) -> int:
        count = self.count
        tall = self.shape[0] // self.groups if self.layout == "conv" else self.shape[-2]
        if tall % self.pattern.block_shape[0]:
            return 1
        arrays = (self.scores, self.keep, self.drop, self.previous, self.start, self.out)
        together = all(array is None or follow_one_another(array) for array in arrays)
        return count if self.layout == "conv" or together else 1

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of each matrix that `matrices` gives."""
        return self.scores.shape if self.layout is None else self.matrix(self.scores, 0).shape

    def matrices(self, array: Array) -> tuple[Matrix, ...]:
        """Cut an array of this problem's shape into its matrices, or see them as one: views."""
        if self.layout is None:
            return (Matrix(array),)
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
        count, first = count_marked(~np.isfinite(part) for part in self.scores)
        return NonFiniteError.among(self.name, count, self.scores.size, first)
