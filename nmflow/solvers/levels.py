"""Scores on a lattice or near one, such as whole numbers times a scale that rounds: solved as small whole numbers.

Each score is S = coarse * L + fine * d, exactly, with whole L and small whole d: what rounding left beside the lattice.
Which mask is best is decided by the L and, where they tie, by the d; how much coarse is larger than fine matters no
more than that. So T = step * L + d, with a step that is small, stands for S: it has few bits, and what hides in the
last bits of S is in its middle.

What proves a mask of T proves it of S. Write the duals of T as U = step * a + x and V = step * b + y, with whole a and
b and the least |x| and |y|; those of S are u = coarse * a + fine * x and v = coarse * b + fine * y. Then with
A = L - a - b and B = d - x - y

    T - U - V = step * A + B    and    S - u - v = coarse * A + fine * B,

which have the same sign if |B| < step <= coarse / fine, A being whole. Blocks where |d| + |x| + |y| may reach a step
stay open. Where coarse = step * fine the second line is the first one times fine, and nothing has to be small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.integers import integers_of

__all__ = ["Lattice", "lattice_of"]

MOST_LEVELS = 1 << 11
"""Most levels of a lattice that is worth it: more are no ties."""
WHOLE = 1 << 22
"""Whole numbers below it have room for a fraction, and for a sum, in float32."""
EXACT = {4: 1 << 24, 8: 1 << 52}
"""Whole numbers below it are floats of that many bytes, and so are sums with the duals of some that are near."""
LARGEST = {4: 120, 8: 900}
"""Bits of the largest scale, and of the smallest, whose inverse is a number of that many bytes too."""
FEW_LEVELS, FEWER = 64, 4
"""Levels that are few, whatever the numbers; and how many times fewer others must be that numbers are only near."""
ROOM = 6
"""Steps are so many times as large as any d: duals of blocks take some of it."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Numbers are coarse * L + fine * d with |d| <= `largest`; as T = step * L + d they lie from `low` on.

    `low` is a multiple of `step`; the largest T is at most low + spread.
    """

    coarse: float
    fine: float
    largest: int
    step: int
    low: int
    spread: int

    @property
    def linear(self) -> bool:
        """Whether the numbers are their T times `fine`."""
        return self.coarse == self.step * self.fine

    def to_scores(self, duals: Array, lost: Array) -> None:
        """Make duals of S from those of T, shape (k, lines), in place; lost, (k,) uint8: set to 1 where some rounds."""
        from nmflow.kernels.lattice_duals import lattice_duals_kernel

        if self.linear:
            duals *= self.fine
        else:
            lattice_duals_kernel()(duals, float(self.step), *self._halves, self.fine, lost)

    @property
    def _halves(self) -> tuple[float, float]:
        """`coarse` in two parts of few bits: their products with small whole numbers are exact."""
        fraction, exponent = math.frexp(self.coarse)
        high = math.ldexp(round(math.ldexp(fraction, 26)), exponent - 26)
        return high, self.coarse - high

    def near(self, u: Array, v: Array, largest: int) -> Array:
        """Whether what duals of T prove is proven of S, shape (k,); a shift from u to v may see to it, in place."""
        shifts = np.arange(0, self.step, max(1, self.step // 16))
        found = self.is_near(u, v, largest)
        for k in np.flatnonzero(~found):
            moved_u, moved_v = u[k] - shifts[:, None], v[k] + shifts[:, None]
            rests = self._rests(moved_u) + self._rests(moved_v)
            best = int(rests.argmin())
            u[k], v[k], found[k] = moved_u[best], moved_v[best], rests[best] + largest < self.step
        return found

    def is_near(self, u: Array, v: Array, largest: int) -> Array:
        """The same without a shift."""
        near: Array = self._rests(u) + self._rests(v) + largest < self.step
        return near | self.linear

    def _rests(self, duals: Array) -> Array:
        """The largest remainder of the duals of each block, shape (k, lines), to a multiple of a step."""
        rests: Array = _turned(np.abs(duals - np.rint(duals / self.step) * self.step)).max(axis=0, initial=0.0)
        return rests


def lattice_of(values: Array, dtype: npt.DTypeLike) -> Lattice | None:
    """The lattice on which some finite float64 lie, or near which, if there is one that is coarse.

    dtype : float32 or float64, of which `coarse` is a number.

    Examples
    --------
    >>> lattice_of(np.array([0.0, 0.5, 2.0, 1.0]), np.float64)
    Lattice(coarse=0.5, fine=0.5, largest=0, step=1, low=0, spread=4)
    >>> near = lattice_of((np.arange(5, dtype=np.float32) * np.float32(0.1)).astype(np.float64), np.float32)
    >>> near.largest, near.step, near.spread
    (1, 8, 32)
    """
    return _lattice(np.unique(values).tobytes(), np.dtype(dtype), ROOM)


@lru_cache(64)
def _lattice(values: bytes, dtype: np.dtype[Any], room: int) -> Lattice | None:
    """The same of numbers that are distinct and ascending; chunks of a matrix have the same ones again and again."""
    distinct, bits = np.frombuffer(values), LARGEST[dtype.itemsize]
    numbers, exponent = integers_of(distinct)
    top = max(abs(int(numbers[0])), abs(int(numbers[-1])))
    if not -bits < exponent < bits:
        return None
    exact = None
    if top < EXACT[dtype.itemsize] and numbers[-1] - numbers[0] <= MOST_LEVELS:
        fine = 2.0**exponent
        exact = Lattice(fine, fine, 0, 1, int(numbers[0]), int(numbers[-1] - numbers[0]))
        if exact.spread < FEW_LEVELS:
            return exact
    near = _near_lattice(distinct, numbers, dtype, room)
    return near if near is not None and (exact is None or near.spread * FEWER <= exact.spread) else exact


def _near_lattice(distinct: Array, numbers: Array, dtype: np.dtype[Any], room: int) -> Lattice | None:
    """A lattice near some distinct and ascending numbers, given as whole ones too."""
    top, bits = max(abs(int(numbers[0])), abs(int(numbers[-1]))), LARGEST[dtype.itemsize]
    least = int(np.diff(numbers).min()) if len(numbers) > 1 else top
    count = (2 * top + least) // (2 * least)  # rounded; of any size
    if count > MOST_LEVELS:
        return None
    about = np.array(max(abs(float(distinct[0])), abs(float(distinct[-1]))) / count, dtype)
    if not 2.0**-bits < float(about) < 2.0**bits:
        return None
    # the largest number was rounded, so the scale may be the one beside
    scales = about, np.nextafter(about, dtype.type(0)), np.nextafter(about, dtype.type(math.inf))
    found = [_beside(distinct, float(coarse), count, bits, room) for coarse in scales]
    return min((near for near in found if near), key=lambda near: (near.step, near.largest * near.fine), default=None)


def _beside(distinct: Array, coarse: float, count: int, bits: int, room: int) -> Lattice | None:
    """The same for a scale; count : levels of the largest number."""
    numbers, exponent = integers_of(np.append(distinct, coarse))
    if not -bits < exponent < bits:
        return None
    levels = np.rint(distinct / coarse).astype(np.int64).astype(object)
    rests = numbers[:-1] - levels * numbers[-1]
    largest = int(max(abs(rests)))
    step = 1 << (room * largest - 1).bit_length() if largest else 1
    whole = levels * step + rests
    low = int(whole.min()) // step * step
    spread = int(whole.max()) - low
    if step * (count + 1) >= WHOLE or step * 4 > numbers[-1]:
        return None
    return Lattice(coarse, 2.0**exponent, largest, step, low, spread)


def _turned(lines: Array) -> Array:
    """A row for each line of a block: NumPy takes far longer to fold many short rows than a few long ones."""
    return np.ascontiguousarray(lines.T)
