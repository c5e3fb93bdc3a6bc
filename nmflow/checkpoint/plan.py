"""Which tensors of a checkpoint are pruned, how each is seen as a matrix, and why the others are left alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from nmflow.arrays import Layout
from nmflow.asked import as_globs
from nmflow.checkpoint.header import Entry, Header
from nmflow.checkpoint.inspection import check_unpacked
from nmflow.checkpoint.rules import EXCLUDED, LEFT_OUT, WEIGHTS, impossible, layout_of, too_small, unwanted
from nmflow.checkpoint.source import Source, open_source
from nmflow.errors import InputValueError, PatternError
from nmflow.pattern import Pattern
from nmflow.pipeline import as_pattern

__all__ = ["Plan", "PlannedTensor", "counted", "make_plan"]


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
            return "a stack of matrices (out, in)"
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
    include : tuple of str
        Globs of what was asked for.
    """

    source: Source
    pattern: Pattern
    tensors: tuple[PlannedTensor, ...]
    include: tuple[str, ...] = ()

    @property
    def pruned(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are pruned."""
        return tuple(tensor for tensor in self.tensors if tensor.pruned)

    @property
    def skipped(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are left alone."""
        return tuple(tensor for tensor in self.tensors if not tensor.pruned)

    def check(self) -> None:
        """Raise PatternError if no tensor is to be pruned, InputValueError if none of those that a glob asked for."""
        for glob in self.include:
            asked = [tensor for tensor in self.tensors if fnmatchcase(tensor.entry.name, glob)]
            if not any(tensor.pruned or tensor.reason.startswith(LEFT_OUT) for tensor in asked):
                seen = counted(tensor.reason for tensor in asked)
                raise InputValueError(
                    f"include must match a tensor that {self.pattern} can prune, and {glob!r} matches none ({seen})"
                )
        if self.pruned:
            return
        # what names or dtypes leave alone would be left alone at any size
        small = [
            tensor.entry
            for tensor in self.tensors
            if tensor.reason == too_small(self.pattern) and not unwanted(tensor.entry, (), ())
        ]
        if small and not any(self._fits(tensor.entry) for tensor in self.tensors):
            largest = max(small, key=lambda entry: math.prod(entry.shape))
            raise PatternError(
                f"pattern must fit at least one weight of {self.source.path}, not {self.pattern}: the largest, "
                f"{largest.name!r}, has shape {largest.shape}; choose smaller groups"
            )
        seen = counted(tensor.reason for tensor in self.tensors)
        raise PatternError(
            f"{self.source.path} must hold a weight that {self.pattern} can prune, and all {len(self.tensors)} tensors "
            f"are left alone ({seen}); nmflow prune --dry-run says more. Include globs bring back what names leave "
            f"alone, not other dtypes: prune before quantising, and the model rather than an adapter"
        )

    def _fits(self, entry: Entry) -> bool:
        """Whether a tensor is large enough, whatever its dtype."""
        return not impossible(replace(entry, dtype="F32"), layout_of(entry), self.pattern)

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON, with the default exclusions."""
        return {
            "source": str(self.source.path),
            "pattern": str(self.pattern),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "copied_files": [str(path) for path in self.source.others],
            "weights": list(WEIGHTS),
            "default_exclusions": [{"glob": glob, "reason": reason} for glob, reason in EXCLUDED],
        }


def counted(reasons: Iterable[str]) -> str:
    """How often which reason was found, the most frequent four."""
    found = Counter(reasons).most_common(4)
    return ", ".join(f"{count} x {reason}" for reason, count in found) or "there is none"


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
    taken, left = as_globs(include, "include"), as_globs(exclude, "exclude")
    names = [entry.name for shard in source.shards for entry in shard.entries]
    for argument, globs in (("include", taken), ("exclude", left)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                example = f"; its names look like {names[len(names) // 2]!r}" if names else ""
                raise InputValueError(
                    f"{argument} must match the name of a tensor of {source.path}, not {glob!r}{example}"
                )
    gained = {name.removesuffix("gain") + "weight" for name in names if name.endswith(".gain")}
    tensors = []
    for shard in source.shards:
        for entry in shard.entries:
            layout = layout_of(entry)
            reason = impossible(entry, layout, pattern) or unwanted(entry, taken, left, entry.name in gained)
            tensors.append(PlannedTensor(shard, entry, reason, None if reason else layout))
    return Plan(source, pattern, tuple(tensors), taken)
