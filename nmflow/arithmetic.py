"""Arithmetic as IEEE 754 has it, whatever a thread was told: rounded to the nearest, nothing flushed to zero, no traps.

Some libraries make a processor flush subnormal numbers to zero (``torch.set_flush_denormal``, code compiled with
-ffast-math), and threads hand that on. Comparisons of what was flushed prove nothing. And where a program asked for
errors of floating point (``np.seterr``, ``feenableexcept`` of C, which PETSc and Fortran compilers have options for),
sums that may overflow or underflow on the way would end in one, or end the process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

__all__ = ["in_plain_arithmetic"]

Given = ParamSpec("Given")
Result = TypeVar("Result")
_ONE, _SMALL, _TINY = 1.0, 2.0**-53, 5e-324


def in_plain_arithmetic(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """The same work, in plain arithmetic; the thread's own is there again afterwards."""

    @wraps(work)
    def plainly(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with np.errstate(all="ignore"):
            return _plainly(*args, **kwargs)

    def _plainly(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        from nmflow.kernels.control_register import DEFAULTS, default_control, exchange_kernel

        if platform.machine() not in DEFAULTS and _is_plain():  # nothing shows there whether there are traps
            return work(*args, **kwargs)
        plain, exchange = default_control(), exchange_kernel()
        before = exchange(plain)
        try:
            return work(*args, **kwargs)
        finally:
            exchange(before)

    return plainly


def _is_plain() -> bool:
    """Whether subnormal numbers count, and sums are rounded to the nearest, on this thread."""
    # names, since the interpreter computes with constants beforehand
    rounded = _ONE + _SMALL == _ONE and -_ONE - _SMALL == -_ONE and _ONE + 3.0 * _SMALL > _ONE + 2.0 * _SMALL
    return rounded and _TINY * _ONE != 0.0
