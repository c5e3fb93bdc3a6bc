"""Finite numbers as Python integers times one power of two: what arithmetic of any size begins with."""

from __future__ import annotations

import numpy as np

from nmflow.arrays import Array

__all__ = ["integers_of"]


def integers_of(values: Array) -> tuple[Array, int]:
    """Write finite numbers as Python integers times one power of two.

    Returns
    -------
    numbers : ndarray of object
        Python integers.
    exponent : int
        values = numbers * 2**exponent, exactly.

    Examples
    --------
    >>> integers_of(np.array([0.5, 3.0]))
    (array([1, 6], dtype=object), -1)
    """
    if values.dtype.kind in "iu":
        return values.astype(object), 0
    fraction, powers = np.frexp(values.astype(np.float64))
    nonzero = fraction != 0
    if not nonzero.any():
        return np.zeros(values.shape, object), 0
    lowest = int(powers[nonzero].min())
    shift = np.where(nonzero, powers - lowest, 0)
    # A float64 has 53 bits, so fraction * 2**53 is whole.
    numbers = (fraction * 2.0**53).astype(np.int64).astype(object) << shift.astype(object)
    # Drop the zero bits that all of them end with: small integers are what the reference solvers can hold.
    bits = int(np.bitwise_or.reduce(numbers, axis=None))
    trailing = (bits & -bits).bit_length() - 1
    return numbers >> trailing, lowest - 53 + trailing
