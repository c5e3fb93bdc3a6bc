"""Kept out of torch.compile: what waits for a solver, and would be traced into it line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch

__all__ = ["aside"]

Given = ParamSpec("Given")
Result = TypeVar("Result")


def aside(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The same function, at which Dynamo breaks its graph. It is loaded by who compiles, not by this."""
    made: list[Callable[Given, Result]] = []

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not made:
            made.append(cast("Callable[Given, Result]", torch.compiler.disable(function)))  # type: ignore[no-untyped-call]
        return made[0](*args, **kwargs)

    return called
