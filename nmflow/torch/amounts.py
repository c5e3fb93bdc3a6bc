"""Numbers that a user gives: whole ones of a least size, and amounts that are finite and not negative."""

from __future__ import annotations

import math
import operator
from typing import Any

from nmflow.errors import InputTypeError, InputValueError

__all__ = ["amount", "whole"]


def whole(value: Any, name: str, least: int) -> int:
    """A whole number of at least `least`; an error says what it is called."""
    try:
        if isinstance(value, bool):  # a flag in the wrong place
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputTypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise InputValueError(f"{name} must be at least {least}, not {number}")
    return number


def amount(value: Any, name: str) -> float:
    """A finite number that is not negative; an error says what it is called."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise InputTypeError(f"{name} must be a number, not {value!r}") from None
    if not (math.isfinite(number) and number >= 0):
        raise InputValueError(f"{name} must be finite and not negative, not {value!r}")
    return number
