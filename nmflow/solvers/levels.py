"""Scores near a lattice, such as whole numbers times a scale that rounds: solved as small whole numbers.

Each score is S = coarse * L + fine * d, exactly, with whole L and small whole d: what rounding left beside the lattice.
Which mask is best is decided by the L and, where they tie, by the d; how much coarse is larger than fine matters no
more than that. So T = step * L + d, with a step that is small, stands for S: it has few bits, and what hides in the
last bits of S is in its middle.

What proves a mask of T proves it of S. Write the duals of T as U = step * a + x and V = step * b + y, with whole a and
b and the least |x| and |y|; those of S are u = coarse * a + fine * x and v = coarse * b + fine * y. Then with
A = L - a - b and B = d - x - y

    T - U - V = step * A + B    and    S - u - v = coarse * A + fine * B,

which have the same sign if |B| < step <= coarse / fine, A being whole. Blocks where |d| + |x| + |y| may reach a step
stay open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nmflow.blocks import Chunk, integers_of
from nmflow.certificate import Duals, Proven, block_scores
from nmflow.problem import Array
from nmflow.solvers.base import ChunkSolution
from nmflow.solvers.open_blocks import workspace

__all__ = ["Lattice", "Levels", "lattice_of", "levels_of"]

MOST_LEVELS = 1 << 11
"""Most levels of a lattice that is worth it: more are no ties."""
LARGEST = {4: 120, 8: 900}
"""Bits of the largest scale, and of the smallest, whose inverse is a number of that many bytes too."""
ROOM = 6
"""Steps are so many times as large as any d: duals of blocks take some of it."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Numbers are coarse * L + fine * d; `largest` bounds |d|, `spread` the numbers' spread as T, in whole numbers."""

    coarse: float
    fine: float
    largest: int
    step: int
    spread: int


def lattice_of(values: Array, dtype: npt.DTypeLike) -> Lattice | None:
    """The lattice on which some finite float64 lie, or near which, if there is one that is coarse.

    dtype : float32 or float64, of which `coarse` is a number.

    Examples
    --------
    >>> lattice_of(np.array([0.0, 0.5, 2.0, 1.0]), np.float64).spread
    4
    >>> near = lattice_of((np.arange(5, dtype=np.float32) * np.float32(0.1)).astype(np.float64), np.float32)
    >>> near.largest, near.step, near.spread
    (1, 8, 32)
    """
    return _lattice(np.unique(values).tobytes(), np.dtype(dtype), ROOM)


@lru_cache(64)
def _lattice(values: bytes, dtype: np.dtype[Any], room: int) -> Lattice | None:
    """The same of numbers that are distinct and ascending; chunks of a matrix have the same ones again and again."""
    distinct = np.frombuffer(values)
    if len(distinct) == 1:
        return Lattice(1.0, 1.0, 0, 1, 0)
    low, high = float(distinct[0]), float(distinct[-1])
    top = max(abs(low), abs(high))
    if not math.isfinite(high - low):
        return None
    least = float(np.diff(distinct).min())
    if high - low > MOST_LEVELS * least:
        return None
    levels = np.rint((distinct - low) / least)
    if (levels * least == distinct - low).all():
        return Lattice(least, least, 0, 1, int(levels[-1]))
    count, bits = round(top / least), LARGEST[dtype.itemsize]
    if count > MOST_LEVELS or not 2.0**-bits < top / count < 2.0**bits:
        return None
    coarse = float(np.array(top / count, dtype))
    numbers, exponent = integers_of(np.append(distinct, coarse))
    if not -bits < exponent < bits:
        return None
    whole = np.rint(distinct / coarse).astype(np.int64).astype(object)
    largest = int(max(abs(numbers[:-1] - whole * numbers[-1])))
    step = 1 << (room * largest - 1).bit_length()
    if largest == 0 or step * count >= 1 << 22 or step * 4 > numbers[-1]:
        return None
    spread = int(whole[-1] - whole[0]) * step
    return Lattice(coarse, 2.0**exponent, largest, step, spread)


@dataclass(frozen=True, slots=True)
class Levels:
    """A chunk as whole numbers: `chunk` holds T, `worst` is the largest |d| in it."""

    lattice: Lattice
    worst: float
    chunk: Chunk

    def back(self, true: Chunk, solution: ChunkSolution) -> ChunkSolution:
        """What a solution of T says of the true scores; its mask is theirs."""
        from nmflow.kernels.levels import beyond_kernel, kept_kernel

        duals, proven = solution.duals, solution.proven
        if proven is None or duals.row is None or duals.col is None:
            raise AssertionError("a solution of whole numbers must have dense duals, and say what it proves")
        beyond = np.empty(true.n_blocks, np.uint8)
        beyond_kernel()(duals.row, duals.col, float(self.lattice.step), self.worst, beyond.reshape(true.grid))
        if duals.blocks is not None and duals.block_row is not None and duals.block_col is not None:
            sides = duals.block_row, duals.block_col
            rests = sum(np.abs(self._parts(side)[1]).max(axis=1, initial=0.0) for side in sides)
            beyond[duals.blocks] = ~(rests + self.worst < self.lattice.step)
        beyond[proven.others] = 1
        others = np.flatnonzero(beyond)
        kept = kept_kernel(true.kind, true.absolute)(
            true.scores.ctypes.data, true.scores.strides[0], true.mask.ctypes.data, true.mask.strides[0],
            *true.mask.shape,
        )  # fmt: skip
        if len(others):
            kept -= float(np.sum(block_scores(true, others), where=true.gather(true.mask, others)))
        elif true.duals is None:
            return replace(solution, duals=Duals(), proven=Proven(kept, others))
        # where nobody asks for duals, only those to go on from
        blocks = others if true.duals is None else np.arange(true.n_blocks)
        (u, u_rounded), (v, v_rounded) = (self._dual(side) for side in duals.gather(self.chunk, blocks))
        rounded = int((u_rounded.any(axis=1) | v_rounded.any(axis=1)).sum())
        counts = {**solution.counts, "rounded": rounded} if rounded else solution.counts
        duals = Duals(blocks=blocks, block_row=u, block_col=v)
        return replace(solution, duals=duals, proven=Proven(kept, others), counts=counts)

    def _parts(self, duals: Array) -> tuple[Array, Array]:
        """Whole steps of duals of T, and what is left of them."""
        steps = np.rint(duals / self.lattice.step)
        return steps, duals - steps * self.lattice.step

    def _dual(self, duals: Array) -> tuple[Array, Array]:
        """Duals of S from those of T, and where they are rounded."""
        steps, rest = self._parts(duals)
        fraction, exponent = math.frexp(self.lattice.coarse)
        high = math.ldexp(round(math.ldexp(fraction, 26)), exponent - 26)  # halves of so few bits have exact products
        both, lost = _two_sum(steps * (self.lattice.coarse - high), rest * self.lattice.fine)
        total, lost_too = _two_sum(steps * high, both)
        return total, (lost != 0) | (lost_too != 0)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Sum, and its rounding error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def levels_of(chunk: Chunk, lattice: Lattice) -> Levels | None:
    """A chunk as whole numbers; None if some score is not near the lattice."""
    from nmflow.kernels.levels import LEAST_WIDTH, level_kernel

    height, width = chunk.mask.shape
    if width < LEAST_WIDTH:
        return None
    whole = workspace("levels", height * width, np.float32).reshape(height, width)
    worst = level_kernel(chunk.kind, chunk.absolute)(
        chunk.scores.ctypes.data, chunk.scores.strides[0], height, width, lattice.coarse, lattice.fine,
        float(lattice.step), whole.ctypes.data, lattice.step / 2,
    )  # fmt: skip
    if not worst <= lattice.step / 2:
        return None
    tall, wide = chunk.grid
    room = (
        workspace("level rows", height * wide, np.float32).reshape(height, wide),
        workspace("level cols", tall * width, np.float32).reshape(tall, width),
    )
    as_whole = replace(chunk, scores=whole, source=whole, kind="float32", absolute=False, warm=None, duals=room)
    return Levels(lattice, worst, as_whole)
