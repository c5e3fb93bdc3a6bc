"""What names of parameters say of their place in a model, in checkpoints and in modules alike."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

__all__ = ["ADAPTERS", "ROUTERS", "counts", "is_adapter", "is_router"]

ADAPTERS = ("*lora_*",)
"""Globs of low-rank adapters: the product of two is added to a weight, and keeps no pattern."""
GATES = ("gate.weight", "*.gate.weight")
ROUTERS = (*GATES, "router.*", "*.router.*")
"""Globs of what sends tokens to experts; gates as far as they count."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is a low-rank adapter."""
    return any(fnmatchcase(name, glob) for glob in ADAPTERS)


def is_router(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter of this name and shape sends tokens to experts: a few rows that decide over all else."""
    return any(fnmatchcase(name, glob) and counts(glob, shape) for glob in ROUTERS)


def counts(glob: str, shape: Sequence[int]) -> bool:
    """Whether a glob speaks of parameters of this shape, too.

    One of `ROUTERS` for gates does so of matrices with fewer rows than columns, one for each expert: a square gate
    scales what a layer puts out, as in RetNet and RWKV.
    """
    return glob not in GATES or (len(shape) == 2 and shape[0] < shape[1])
