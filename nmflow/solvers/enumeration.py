"""All masks of a small block, and the best of them: the oracle that nothing can be wrong with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.blocks import DROP, KEEP
from nmflow.errors import SolverLimitError
from nmflow.pattern import Pattern
from nmflow.problem import Problem
from nmflow.solvers.base import BlockDuals, BlockSolver
from nmflow.solvers.flow import contradiction, exact_duals, network_of

__all__ = ["Enumerate", "all_masks"]

MOST_MASKS = 1 << 17
"""Masks beyond which a block is refused: 131072 masks of 64 entries are 8 MiB, and 1:8 (40320) still fits."""
LIMB_BITS = 40
"""Bits of a score that are summed at a time: 64 entries of 40 bits stay well within 63."""


@dataclass(frozen=True)
class Enumerate(BlockSolver):
    """Try every mask of the pattern.

    Notes
    -----
    Time and memory: masks * entries for each block, in exact integers. The masks of a pattern are listed once for each
    process. Ties: the first in the order of the list, which is lexicographic by rows with early columns kept first.
    """

    name = "enumerate"
    exact = True
    guarantee = "optimal and proven, by trying every mask"

    def check(self, problem: Problem) -> None:
        """Raise SolverLimitError if the pattern has too many masks."""
        super().check(problem)
        all_masks(problem.pattern)

    def solve_block(
        self, numbers: Array, exponent: int, pattern: Pattern, state: Array | None
    ) -> tuple[Array, BlockDuals | None]:
        """Score all masks; prove the best by duals as well."""
        net = network_of(numbers, exponent, pattern, state)
        masks = all_masks(pattern)
        if state is not None:
            flat = state.ravel()
            masks = masks[(masks[:, flat == KEEP] == 1).all(1) & (masks[:, flat == DROP] == 0).all(1)]
            if not len(masks):
                raise contradiction(pattern)
        best = masks[int(np.argmax(_totals(masks, numbers.ravel())))].reshape(numbers.shape)
        mask = best.astype(np.bool_)
        return mask, exact_duals(net, net.flow_of(mask))


@lru_cache(maxsize=8)
def all_masks(pattern: Pattern) -> npt.NDArray[np.uint8]:
    """List all masks of a pattern.

    Parameters
    ----------
    pattern : Pattern

    Returns
    -------
    ndarray of uint8, shape (masks, R*C), read-only
        One mask in each row, 1 = kept, in C order of the block.

    Raises
    ------
    SolverLimitError
        If there are more than 131072.

    Examples
    --------
    >>> len(all_masks(Pattern(2, 4)))
    90
    """
    rows, cols = pattern.block_shape
    counts = [pattern.row_budget] if pattern.row_exact else list(range(pattern.row_budget, -1, -1))
    # Every beginning can be completed, so no list on the way is longer than the last one.
    if sum(math.comb(cols, count) for count in counts) > MOST_MASKS:
        raise _too_large(pattern)
    lines = [kept for count in counts for kept in itertools.combinations(range(cols), count)]
    choices = np.array([[j in kept for j in range(cols)] for kept in lines], np.uint8)
    masks = np.zeros((1, 0), np.uint8)
    for row in range(rows):
        longer: list[npt.NDArray[np.uint8]] = []
        found = 0
        step = max(1, MOST_MASKS // len(choices))  # keeps the pairs below to megabytes
        for start in range(0, len(masks), step):
            part = masks[start : start + step]
            kept_so_far = part.reshape(len(part), row, cols).sum(1, dtype=np.uint8)
            sums = kept_so_far[:, None, :] + choices  # a beginning, and each row that may come next
            ok = (sums <= pattern.col_budget).all(2)
            if pattern.col_exact:
                ok &= (sums + (rows - row - 1) >= pattern.col_budget).all(2)
            beginning, choice = np.nonzero(ok)
            longer.append(np.concatenate([part[beginning], choices[choice]], axis=1))
            found += len(beginning)
            if found > MOST_MASKS:
                raise _too_large(pattern)
        masks = np.concatenate(longer)
    masks.setflags(write=False)
    return masks


def _too_large(pattern: Pattern) -> SolverLimitError:
    rows, cols = pattern.block_shape
    return SolverLimitError(
        f'pattern must have at most {MOST_MASKS} masks for solver="enumerate", not those of {pattern} '
        f'on a {rows}x{cols} block; use solver="dual"'
    )


def _totals(masks: npt.NDArray[np.uint8], numbers: Array) -> Array:
    """Score of each mask, exactly: int64 where that holds it, Python integers elsewhere."""
    chosen = masks.astype(np.int64)
    if int(abs(numbers).sum()) < 1 << 63:
        exact: Array = chosen @ numbers.astype(np.int64)
        return exact
    total: Array = np.zeros(len(masks), object)
    shift = 0
    while any(abs(number) >> LIMB_BITS for number in numbers):
        low = numbers & ((1 << LIMB_BITS) - 1)  # the remainder is nonnegative, the quotient rounds down
        total = total + ((chosen @ low.astype(np.int64)).astype(object) << shift)
        numbers, shift = numbers >> LIMB_BITS, shift + LIMB_BITS
    total = total + ((chosen @ numbers.astype(np.int64)).astype(object) << shift)
    return total
