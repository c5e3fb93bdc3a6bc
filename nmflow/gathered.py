"""What is known of the chunks of a problem put together: blocks without a mask, the certificate, sums."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from nmflow.certificate import ChunkGrade
from nmflow.cutting import Place, Places, block_numbers
from nmflow.errors import InfeasibleError
from nmflow.problem import Problem
from nmflow.solution import Certificate
from nmflow.sums import total

__all__ = ["Part", "certificate_of", "check_feasible", "kept_score"]


class Part(NamedTuple):
    """What is known of a chunk: its grade, and what it keeps; or the blocks that have no mask.

    beyond : what it keeps, times 2**-64, where that went beyond float64; `objective` is 0 then.
    """

    place: Place
    grade: ChunkGrade | None = None
    counts: Mapping[str, int] = MappingProxyType({})
    objective: float = 0.0
    beyond: float = 0.0
    infeasible: Sequence[int] = ()


def kept_score(parts: Sequence[Part], more: Sequence[float] = ()) -> float:
    """What all chunks keep, and more."""
    return total([*(part.objective for part in parts), *more], [part.beyond for part in parts if part.beyond])


def check_feasible(problem: Problem, cut: Places, parts: Sequence[Part]) -> None:
    """Raise InfeasibleError if some block has no mask."""
    if not any(part.infeasible for part in parts):
        return
    numbers = sorted(
        int(number)
        for part in parts
        if part.infeasible
        for number in block_numbers(part.place, cut.grids[part.place.matrix])[list(part.infeasible)]
    )
    starts = list(accumulate((tall * wide for tall, wide in cut.shapes), initial=0))
    matrix = bisect_right(starts, numbers[0]) - 1
    i, j = divmod(numbers[0] - starts[matrix], cut.shapes[matrix][1])
    rows, cols = problem.pattern.block_shape
    where = f"rows {i * rows} to {(i + 1) * rows - 1}, columns {j * cols} to {(j + 1) * cols - 1} of matrix {matrix}"
    # what is dropped can leave lines too little to be full; what is kept is too much under either fill
    easier = "" if problem.pattern.fill == "at-most" or problem.drop is None else ', or use fill="at-most"'
    raise InfeasibleError(
        f"keep and drop must leave a mask of pattern {problem.pattern}, not contradict it as in {len(numbers)} of "
        f"{cut.n_blocks} blocks, the first at {where}; mark fewer entries there{easier}"
    )


def certificate_of(problem: Problem, cut: Places, parts: Sequence[Part]) -> Certificate:
    """Put the grades of all chunks together; sums are taken in a fixed order."""
    # untouched where all is proven: then the system gives it no memory
    status = np.zeros(cut.n_blocks, np.uint8)
    numbers, gaps = [], []
    for part in parts:
        graded = part.grade
        if graded is None or graded.status is None or not len(graded.unproven):
            continue
        place, grid = part.place, cut.grids[part.place.matrix]
        view = status[grid.start : grid.start + grid.rows * grid.cols].reshape(grid.rows, grid.cols)
        target = view[place.block_rows, place.block_cols]
        target[...] = graded.status.reshape(target.shape)
        numbers.append(block_numbers(place, grid)[graded.unproven])
        gaps.append(graded.gaps)
    unproven, all_gaps, gap = np.empty(0, np.int64), np.empty(0), 0.0
    if numbers:
        unproven, all_gaps = np.concatenate(numbers), np.concatenate(gaps)
        order = np.argsort(unproven, kind="stable")
        unproven, all_gaps = unproven[order], all_gaps[order]
        gap = total(all_gaps)
    objective = kept_score(parts)
    # an infeasible mask has no gap, but what its feasible blocks could gain is still known: the bound is left open
    bound = objective + gap
    if math.isinf(objective):  # the bound need not be beyond float64
        bound = kept_score(parts, [gap])
    return Certificate(problem.pattern, objective, gap, bound, status, unproven, all_gaps, cut.shapes)
