"""What names of parameters say of their place in a model, in checkpoints and in modules alike."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

__all__ = ["ADAPTERS", "HEADS", "ROUTERS", "counts", "is_adapter", "is_head", "is_router", "is_spare"]

ADAPTERS = ("*lora_*", "*.oft_R.*", "prompt_encoder.*.mlp_head.*", "prompt_encoder.*.transform.*")
"""Globs of PEFT's adapters: what a weight becomes with one is a sum or product, and keeps no pattern."""
SPARES = ("*.original_module.*",)
"""Globs of what PEFT keeps aside while a copy of it is trained (``modules_to_save``)."""
HEADS = ("lm_head.*", "*.lm_head.*", "embed_out.*")
"""Globs of what a language model gives a score to each word by: methods of pruning leave it alone."""
GATES = ("gate.weight", "*.gate.weight")
ROUTERS = (*GATES, "router.*", "*.router.*", "*_router.*")
"""Globs of what sends tokens to experts; gates as far as they count."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter."""
    return any(fnmatchcase(name, glob) for glob in ADAPTERS)


def is_spare(name: str) -> bool:
    """Whether a parameter of this name is kept aside, and nothing calls it."""
    return any(fnmatchcase(name, glob) for glob in SPARES)


def is_head(name: str) -> bool:
    """Whether a parameter of this name is the output head of a language model."""
    return any(fnmatchcase(name, glob) for glob in HEADS)


def is_router(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter of this name and shape sends tokens to experts: a few rows that decide over all else."""
    return any(fnmatchcase(name, glob) and counts(glob, shape) for glob in ROUTERS)


def counts(glob: str, shape: Sequence[int]) -> bool:
    """Whether a glob speaks of parameters of this shape, too.

    One of `ROUTERS` for gates does so of matrices with fewer rows than columns, one for each expert: a square gate
    scales what a layer puts out, as in RetNet and RWKV.
    """
    return glob not in GATES or (len(shape) == 2 and shape[0] < shape[1])
