"""What names of parameters say of their place in a model, in checkpoints and in modules alike."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

__all__ = ["ADAPTERS", "GATES", "ROUTERS", "is_adapter", "is_narrow", "is_router"]

ADAPTERS = ("*lora_*",)
"""Globs of low-rank adapters: the product of two is added to a weight, and keeps no pattern."""
ROUTERS = ("router.*", "*.router.*")
"""Globs of what sends tokens to experts."""
GATES = ("gate.weight", "*.gate.weight")
"""The same where the matrix is narrow: a square gate scales what a layer puts out, as in RetNet and RWKV."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is a low-rank adapter."""
    return _matches(name, ADAPTERS)


def is_narrow(shape: Sequence[int]) -> bool:
    """Whether a matrix has fewer rows than columns, as one that has a row for each expert."""
    return len(shape) == 2 and shape[0] < shape[1]


def is_router(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter of this name and shape sends tokens to experts: a few rows that decide over all else."""
    return _matches(name, ROUTERS) or (is_narrow(shape) and _matches(name, GATES))


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
