"""Which weights of a checkpoint are packed, and why the others are left dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nmflow.checkpoint.arrays import DTYPES
from nmflow.checkpoint.plan import make_plan
from nmflow.checkpoint.source import Source
from nmflow.formats import Format

__all__ = ["reasons_of"]

USUAL = "2:4"
"""The pattern of weights in a format that takes any."""


def reasons_of(
    source: Source,
    format: Format,
    masks: Mapping[str, Any] | None,
    include: Sequence[str],
    exclude: Sequence[str],
) -> dict[str, str]:
    """Why each tensor is left dense; empty if it is packed."""
    names = [entry.name for shard in source.shards for entry in shard.entries]
    if masks is not None:
        return {name: "" if name in masks else "no mask" for name in names}
    # a plan asks a pattern only for its block, to leave smaller weights alone
    known = {USUAL, *(need.pattern for need in format.requirements.values() if need.pattern)}
    plans = {pattern: make_plan(source, pattern, include=include, exclude=exclude) for pattern in sorted(known)}
    reasons = {}
    for pattern, plan in plans.items():
        for tensor in plan.tensors:
            dtype = DTYPES.get(tensor.entry.dtype)
            need = None if dtype is None else format.requirements.get(dtype.name)
            if pattern == (need.pattern if need and need.pattern else USUAL):
                stacked = tensor.layout is not None and format.two_way
                reasons[tensor.entry.name] = tensor.reason or ("not a matrix" if stacked else "")
    return {name: reasons[name] for name in names}
