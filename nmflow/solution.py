"""Results: Status, Certificate, Switch, Solution. Frozen values, no algorithms."""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nmflow.errors import InputTypeError, InputValueError, NotCertifiedError
from nmflow.given import viewed
from nmflow.pattern import Pattern

__all__ = ["Certificate", "Solution", "Status", "Switch"]


class Status(enum.IntEnum):
    """What is known of one block."""

    PROVEN = 0
    """Feasible, and no feasible mask keeps a larger score."""
    UNPROVEN = 1
    """Feasible; the gap says how far it can be from the best."""
    INFEASIBLE = 2
    """Breaks the pattern, or a keep or drop constraint."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """A grade of a mask, block by block, made without asking the solver how it got there.

    Attributes
    ----------
    pattern : Pattern
    objective : float
        Kept score.
    gap : float
        Upper bound on what the best mask keeps more, up to the rounding of a sum; 0.0 where proven, NaN if the mask
        is infeasible.
    bound : float
        Upper bound on the score of any feasible mask, up to the rounding of sums in float64, which no `status` depends
        on; NaN if the mask is infeasible; infinite, of its sign, where it is beyond float64, and inf where the gap is.
    status : ndarray of uint8, shape (n_blocks,)
        A Status for each block: matrices in turn, each in C order of its blocks.
    unproven : ndarray of int64
        Numbers of the blocks that are not proven.
    gaps : ndarray of float64
        Their gaps (NaN where infeasible).
    grids : tuple of (int, int)
        Rows and columns of blocks of each matrix.
    """

    pattern: Pattern
    objective: float
    gap: float
    bound: float
    status: npt.NDArray[np.uint8] = field(repr=False)
    unproven: npt.NDArray[np.int64] = field(repr=False)
    gaps: npt.NDArray[np.float64] = field(repr=False)
    grids: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return int(self.status.size)

    @property
    def n_proven(self) -> int:
        """Number of blocks that are proven optimal."""
        return self.n_blocks - int(self.unproven.size)

    @property
    def proven(self) -> bool:
        """Whether every block is proven optimal."""
        return not self.unproven.size

    @property
    def feasible(self) -> bool:
        """Whether every block keeps to the pattern and to keep and drop."""
        return not bool((self.status[self.unproven] == Status.INFEASIBLE).any())

    @property
    def relative_gap(self) -> float:
        """Gap over the bound's magnitude; 0/0 is 0; infinite if the gap is beyond float64, NaN if only the bound is."""
        if self.gap == 0.0:
            return 0.0
        if not math.isfinite(self.gap):
            return self.gap
        if math.isinf(self.bound):
            return math.nan
        return self.gap / abs(self.bound) if self.bound else math.inf

    def where(self, number: int) -> tuple[int, int, int]:
        """Matrix, block row and block column of block `number`."""
        try:
            left = operator.index(number)
        except TypeError:
            raise InputTypeError(f"number must be a whole number, not {number!r}") from None
        if not 0 <= left < self.n_blocks:
            raise InputValueError(f"number must be from 0 to {self.n_blocks - 1}, not {number}")
        for matrix, (rows, cols) in enumerate(self.grids):
            if left < rows * cols:
                return matrix, *divmod(left, cols)
            left -= rows * cols
        raise AssertionError("grids have as many blocks as there are statuses")


@dataclass(frozen=True, slots=True)
class Switch:
    """What a mask changed against the one before it.

    Attributes
    ----------
    flips : int
        Entries kept in one of the two masks only.
    kept_again : int
        Entries kept in both.
    bonus : float
        What keeping an entry again was worth: switch_cost times the mean magnitude of a score.
    kept_score : float
        Sum of the scores kept, without any bonus.
    """

    flips: int
    kept_again: int
    bonus: float
    kept_score: float


@dataclass(frozen=True, eq=False)
class Solution:
    """A mask, its certificate, and how it was made.

    Attributes
    ----------
    mask : ndarray of bool, shape of the weights
        True = kept.
    objective : float
        Kept score, float64; with the bonuses of entries kept again where `previous` was given.
    certificate : Certificate or None
        None if the solver is not exact and ``certify=True`` was not asked for.
    solver : str
        Name of the solver.
    pattern : Pattern
    switch : Switch or None
        With `previous`: what changed, and the kept score without bonuses.
    row_duals, col_duals : tuple of ndarray of float32 or float64, or ndarray, or None
        With ``duals=True``: u of shape (R, block columns) and v of shape (block rows, C) for each matrix,
        C and R padded to whole blocks; a plain array where there is one matrix. float32 for scores of at most 32 bits
        (16 of integers), unless some block needs more. They prove each block as real numbers, but for
        ``stats["integers"]`` and ``stats["rounded"]`` blocks: those were proven by duals of more bits, and these are
        rounded.
    stats : mapping
        Counts and seconds: blocks by the arithmetic that proved them, threads, wall time. A count of 0 may be missing.
    """

    mask: npt.NDArray[np.bool_] = field(repr=False)
    objective: float
    certificate: Certificate | None
    solver: str
    pattern: Pattern
    switch: Switch | None = None
    row_duals: Any = field(default=None, repr=False)
    col_duals: Any = field(default=None, repr=False)
    stats: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def bound(self) -> float:
        """Upper bound on the kept score of any feasible mask, up to the rounding of sums in float64."""
        return self._certified("bound").bound

    @property
    def gap(self) -> float:
        """Bound minus objective, without cancellation."""
        return self._certified("gap").gap

    @property
    def relative_gap(self) -> float:
        """Gap over the bound."""
        return self._certified("relative_gap").relative_gap

    @property
    def proven(self) -> bool:
        """Whether every block is proven to be optimal."""
        return self._certified("proven").proven

    def _certified(self, name: str) -> Certificate:
        if self.certificate is None:
            raise NotCertifiedError(
                f'{name} must be proven before it is read: solver="{self.solver}" is not exact and was not certified; '
                f"call solve with certify=True, or nmflow.certify on the mask"
            )
        return self.certificate

    def prune(self, weights: npt.ArrayLike) -> npt.NDArray[Any]:
        """Weights with +0 where the mask drops them; the bits of kept entries are untouched.

        Parameters
        ----------
        weights : array of the mask's shape, any supported dtype

        Returns
        -------
        ndarray
            A new array of the same shape and dtype.

        Raises
        ------
        InputValueError, InputTypeError
            If the shape is not that of the mask, NumPy cannot view the array, or its dtype is not one of numbers.
        """
        array = viewed(weights, "weights")
        if array.shape != self.mask.shape:
            raise InputValueError(f"weights must have the shape of the mask, {self.mask.shape}, not {array.shape}")
        if array.dtype.kind in "OSTUMm" or array.dtype.names is not None:
            raise InputTypeError(f"weights must be numbers, not {array.dtype}")
        pruned = np.zeros_like(array, subok=False)
        np.copyto(pruned, array, where=self.mask)
        return pruned
