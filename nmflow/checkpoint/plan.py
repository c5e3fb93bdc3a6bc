"""Which tensors of a checkpoint are pruned, how each is seen as a matrix, and why the others are left alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from nmflow.arrays import Layout
from nmflow.asked import as_globs
from nmflow.checkpoint.header import Entry, Header
from nmflow.checkpoint.inspection import check_unpacked
from nmflow.checkpoint.source import Source, open_source
from nmflow.errors import InputValueError, PatternError
from nmflow.names import ADAPTERS, ROUTERS, counts
from nmflow.pattern import Pattern
from nmflow.pipeline import as_pattern

__all__ = ["EXCLUDED", "FLOATS", "STACKED", "WEIGHTS", "Plan", "PlannedTensor", "make_plan"]

FLOATS = ("F16", "BF16", "F32", "F64")
"""Dtypes that are pruned; integers, booleans, 8-bit floats and packed numbers are copied."""

WEIGHTS = ("weight", "*.weight", "*_weight", "*.weight_v", "*.experts.*_proj")
"""Names of what a linear or convolution layer multiplies by (weight_v: the direction under weight normalisation)."""

STACKED = ("*.experts.*",)
"""Names of tensors that are a stack of matrices, and not a convolution, when they have three axes."""

EXCLUDED: tuple[tuple[str, str], ...] = (
    ("*embed*", "embedding"),
    ("*.wte.weight", "embedding"),
    ("wte.weight", "embedding"),
    ("*.wpe.weight", "embedding"),
    ("wpe.weight", "embedding"),
    ("shared.weight", "embedding"),
    ("*position*", "position"),
    ("*rel_pos*", "position"),
    ("*norm*", "norm"),
    ("*Norm*", "norm"),
    ("*.ln_*", "norm"),
    ("*.bn*", "norm"),
    ("*bias*", "bias"),
    ("*_scale*", "quantisation scale"),
    ("lm_head.*", "output head"),
    ("*.lm_head.*", "output head"),
    ("classifier.*", "output head"),
    ("*.classifier.*", "output head"),
    ("score.*", "output head"),
    ("*.score.*", "output head"),
    ("head.*", "output head"),
    ("*.head.*", "output head"),
    ("heads.*", "output head"),
    ("*_head.*", "output head"),
    ("qa_outputs.*", "output head"),
    ("cls.*", "output head"),
    ("fc.weight", "output head"),
    ("output.weight", "output head"),
    *((glob, "adapter") for glob in ADAPTERS),
    *((glob, "router of experts") for glob in ROUTERS),
)
"""Name globs that are left alone unless an include glob asks for them, each with what it stands for. A gate is a router
where it has fewer rows than columns."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor in a shard: the unit of work.

    Attributes
    ----------
    shard : Header
    entry : Entry
    reason : str
        Why it is left alone; empty if it is pruned.
    layout : {None, "conv", "batch"}
        How its axes are seen as matrices.
    """

    shard: Header
    entry: Entry
    reason: str = ""
    layout: Layout | None = None

    @property
    def pruned(self) -> bool:
        """Whether a mask is made for it."""
        return not self.reason

    @property
    def assumption(self) -> str:
        """What the file cannot say and is taken for granted."""
        if self.layout == "conv":
            return "a convolution (out, in, *kernel) with groups=1, as a matrix out x (kernel . in)"
        if self.layout == "batch":
            return "a stack of matrices"
        return "a matrix (out, in)"

    def to_dict(self) -> dict[str, Any]:
        """Name, dtype, shape, and what happens to it, for JSON."""
        entry = self.entry
        return {
            "name": entry.name,
            "shard": self.shard.path.name,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "pruned": self.pruned,
            "reason": self.reason or None,
            "assumption": self.assumption if self.pruned else None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done with each tensor of a checkpoint.

    Attributes
    ----------
    source : Source
    pattern : Pattern
    tensors : tuple of PlannedTensor
        Every tensor, by shard and then in the order of their data.
    """

    source: Source
    pattern: Pattern
    tensors: tuple[PlannedTensor, ...]

    @property
    def pruned(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are pruned."""
        return tuple(tensor for tensor in self.tensors if tensor.pruned)

    @property
    def skipped(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are left alone."""
        return tuple(tensor for tensor in self.tensors if not tensor.pruned)

    def check(self) -> None:
        """Raise PatternError if no tensor is to be pruned."""
        if self.pruned:
            return
        small = [tensor.entry for tensor in self.tensors if tensor.reason == _too_small(self.pattern)]
        if small:
            largest = max(small, key=lambda entry: math.prod(entry.shape))
            raise PatternError(
                f"pattern must fit at least one weight of {self.source.path}, not {self.pattern}: the largest, "
                f"{largest.name!r}, has shape {largest.shape}; choose smaller groups"
            )
        raise PatternError(
            f"{self.source.path} must hold a weight that {self.pattern} can prune, and all {len(self.tensors)} tensors "
            f"are left alone; nmflow prune --dry-run says why, and include globs can bring some back"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON, with the default exclusions."""
        return {
            "source": str(self.source.path),
            "pattern": str(self.pattern),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "copied_files": [str(path) for path in self.source.others],
            "default_exclusions": [{"glob": glob, "reason": reason} for glob, reason in EXCLUDED],
        }


def make_plan(
    src: str | os.PathLike[str] | Source,
    pattern: str | Pattern,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Plan:
    """Decide for each tensor of a checkpoint whether it is pruned.

    Parameters
    ----------
    src : path or Source
    pattern : str or Pattern
    include, exclude : iterable of str
        Globs over whole tensor names (``*`` also matches dots). `include` brings back what a name rule leaves alone;
        `exclude` wins over `include`, which wins over the defaults (`EXCLUDED`). No glob brings back a tensor whose
        dtype, rank or size cannot take the pattern.

    Raises
    ------
    CheckpointError, SourceNotFoundError
        As open_source.
    InputValueError
        If a glob matches no tensor, or `src` is an export with packed weights.
    InputTypeError
        If `src` is no path, or globs are no list of text.
    """
    source = src if isinstance(src, Source) else open_source(src)
    check_unpacked(source)  # before names are looked at: those of packed arrays are no weights
    pattern = as_pattern(None, None, pattern)
    wanted, unwanted = as_globs(include, "include"), as_globs(exclude, "exclude")
    names = [entry.name for shard in source.shards for entry in shard.entries]
    for argument, globs in (("include", wanted), ("exclude", unwanted)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                example = f"; its names look like {names[len(names) // 2]!r}" if names else ""
                raise InputValueError(
                    f"{argument} must match the name of a tensor of {source.path}, not {glob!r}{example}"
                )
    tensors = []
    for shard in source.shards:
        for entry in shard.entries:
            layout = _layout(entry)
            reason = _impossible(entry, layout, pattern) or _unwanted(entry, wanted, unwanted)
            tensors.append(PlannedTensor(shard, entry, reason, None if reason else layout))
    return Plan(source, pattern, tuple(tensors))


def _layout(entry: Entry) -> Layout | None:
    if len(entry.shape) < 3:
        return None
    stacked = len(entry.shape) == 3 and any(fnmatchcase(entry.name, glob) for glob in STACKED)
    return "batch" if stacked else "conv"


def _too_small(pattern: Pattern) -> str:
    rows, cols = pattern.block_shape if pattern.transposable else (1, pattern.m)
    return f"smaller than a block of {rows} x {cols}"


def _impossible(entry: Entry, layout: Layout | None, pattern: Pattern) -> str:
    """Why no mask can be made for a tensor, whatever its name; empty if one can."""
    if entry.dtype not in FLOATS:
        return f"dtype {entry.dtype}"
    if len(entry.shape) < 2:
        return f"{len(entry.shape)}-D"
    if not math.prod(entry.shape):
        return "empty"
    rows, cols = entry.shape[-2:] if layout == "batch" else (entry.shape[0], math.prod(entry.shape[1:]))
    # Whole blocks are where hardware gains; without one there is nothing but a ragged edge.
    if cols < pattern.m or (pattern.transposable and rows < pattern.block_shape[0]):
        return _too_small(pattern)
    return ""


def _unwanted(entry: Entry, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> str:
    """Why a tensor that could be pruned is not; empty if it is."""
    for glob in unwanted:
        if fnmatchcase(entry.name, glob):
            return f"excluded by {glob!r}"
    if any(fnmatchcase(entry.name, glob) for glob in wanted):
        return ""
    for glob, meaning in EXCLUDED:
        if fnmatchcase(entry.name, glob) and counts(glob, entry.shape):
            return f"{meaning} ({glob})"
    if not any(fnmatchcase(entry.name, glob) for glob in WEIGHTS):
        return "not named as a weight of a linear or convolution layer"
    if len(entry.shape) >= 3 and entry.shape[1] == 1:
        return "depthwise convolution"
    return ""
