"""How far two masks are apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nmflow.cutting import grids
from nmflow.given import as_groups, as_mask, check_rank
from nmflow.pattern import Pattern
from nmflow.problem import Problem

__all__ = ["Divergence", "divergence"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far two masks are apart.

    Attributes
    ----------
    sad : int
        Sparse Architecture Divergence: entries kept in one mask only, the L1 distance of the masks.
    entries : int
    block_sad : ndarray of int64, shape (blocks,), or None
        The same for each block, if a pattern was given: matrices in turn, each in C order of its blocks.
    block_entries : ndarray of int64, shape (blocks,), or None
        Real entries of each block; fewer at ragged edges.
    """

    sad: int
    entries: int
    block_sad: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    block_entries: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def flip_rate(self) -> float:
        """Share of entries that differ; 0 of none."""
        return self.sad / self.entries if self.entries else 0.0

    @property
    def block_flip_rate(self) -> npt.NDArray[np.float64] | None:
        """Share of the entries of each block that differ."""
        if self.block_sad is None or self.block_entries is None:
            return None
        return self.block_sad / self.block_entries


def divergence(
    mask_a: object,
    mask_b: object,
    pattern: str | Pattern | None = None,
    *,
    layout: str | None = None,
    groups: int = 1,
) -> Divergence:
    """Compare two masks: Sparse Architecture Divergence and flip rate, in total and for each block.

    Parameters
    ----------
    mask_a, mask_b : array of bool, the same shape
    pattern : str or Pattern, optional
        Gives the blocks; without it only the total is found.
    layout, groups
        As for `solve`.

    Returns
    -------
    Divergence

    Raises
    ------
    InputTypeError, InputValueError
        If a mask is not boolean, the shapes differ, or layout or groups do not fit.
    PatternError
        If the pattern is not one.

    References
    ----------
    A. Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021 (SAD).

    Examples
    --------
    >>> import numpy as np
    >>> found = divergence(np.eye(4, dtype=bool), np.eye(4, dtype=bool)[::-1], "1:2")
    >>> found.sad, found.flip_rate, found.block_sad.tolist()
    (8, 0.5, [2, 2, 2, 2])
    """
    first = as_mask(mask_a, None, "mask_a")
    second = as_mask(mask_b, first.shape, "mask_b")
    differ = first != second
    if pattern is None:  # else they are checked with it
        if layout is not None:
            check_rank(first.shape, layout, "mask_a")
        as_groups(groups, first.shape, layout)
        return Divergence(int(np.count_nonzero(differ)), differ.size)
    chosen = pattern if isinstance(pattern, Pattern) else Pattern.parse(pattern)
    problem = Problem.build(differ.view(np.uint8), chosen, layout=layout, groups=groups, name="mask_a")
    tall, wide = chosen.block_shape
    sads, entries = [], []
    for matrix, grid in zip(problem.matrices(differ), grids(problem), strict=True):
        rows, cols = matrix.shape
        starts = np.arange(grid.cols) * wide
        counts = np.zeros((grid.rows, cols), np.int64)
        for i in range(grid.rows):  # one stripe of blocks at a time
            counts[i] = matrix.rows(i * tall, min((i + 1) * tall, rows)).sum(axis=0)
        sads.append(np.add.reduceat(counts, starts, axis=1).ravel())
        height = np.minimum(tall, rows - np.arange(grid.rows) * tall)
        entries.append(np.outer(height, np.minimum(wide, cols - starts)).ravel())
    block_sad = np.concatenate(sads)
    return Divergence(int(block_sad.sum()), differ.size, block_sad, np.concatenate(entries))
