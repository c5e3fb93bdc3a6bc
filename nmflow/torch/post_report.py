"""What pruning after training did, layer by layer: as `prune_` reports it, and how far outputs moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nmflow.torch.report import LayerReport, PruneReport, table

__all__ = ["PostLayer", "PostReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostLayer(LayerReport):
    """What was done to one parameter.

    Attributes
    ----------
    pattern : str
    rows : int
        Rows of input that were seen, for each group of a convolution.
    inputs : int
        Columns: inputs of each output.
    damping : float
        As it was given to `adaprune_`, or more where XᵀX could not be factorised with it.
    masked_error, error : float
        Squared error of the layer's outputs relative to the outputs themselves (both without their mean where a bias
        absorbs it), over all rows that were seen: by the mask alone, and in the end. Where the dense model is followed,
        outputs are those of the weights that would come closest to it without a mask: what earlier layers have lost
        for good is no part of the error.
    """

    pattern: str
    rows: int
    inputs: int
    damping: float
    masked_error: float
    error: float

    @property
    def note(self) -> str:
        """What to know before trusting the layer; empty if nothing."""
        if not self.rows:
            return "no token came to this expert: pruned by magnitude, give more samples"
        if self.rows < self.inputs:
            return f"only {self.rows} rows for {self.inputs} inputs: damped by {self.damping:g}, give more samples"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PostLayer:
        """The inverse of `to_dict`, after a way through JSON, which has no tuples."""
        plain: dict[str, Any] = {key: tuple(it) if isinstance(it, list) else it for key, it in values.items()}
        return cls(**plain)


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class PostReport(PruneReport):
    """What was done to a model; ``print(report)`` shows a table.

    Attributes
    ----------
    layers : tuple of PostLayer
    method : str
    """

    layers: tuple[PostLayer, ...]
    method: str

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        """(name, note) of layers that have one."""
        return tuple((layer.name, layer.note) for layer in self.layers if layer.note)

    def __repr__(self) -> str:
        return f"<PostReport {self.method} {self.pattern}: {len(self.layers)} pruned, {len(self.skipped)} skipped>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **super(PostReport, self).to_dict(),
            "notes": [{"name": name, "note": note} for name, note in self.notes],
        }

    def __str__(self) -> str:
        rows = [
            (
                layer.name + "".join(f" = {name}" for name in layer.also), layer.pattern,
                "x".join(map(str, layer.shape)), f"{100 * layer.density:.2f}%", f"{100 * layer.masked_error:.3f}%",
                f"{100 * layer.error:.3f}%", str(layer.rows), f"{layer.n_proven}/{layer.n_blocks}",
            )
            for layer in self.layers
        ]  # fmt: skip
        entries = sum(math.prod(layer.shape) for layer in self.layers)
        density = sum(layer.density * math.prod(layer.shape) for layer in self.layers) / max(1, entries)
        blocks, proven = sum(layer.n_blocks for layer in self.layers), sum(layer.n_proven for layer in self.layers)
        head = (
            f"{self.method} by {self.solver}", "pattern", "shape", "density", "error, masked", "error", "rows",
            "proven blocks",
        )  # fmt: skip
        total = ("total", "", str(entries), f"{100 * density:.2f}%", "", "", "", f"{proven}/{blocks}")
        text = table([head, *rows, total], left=(0, 1, 2), rules=(1, -1))
        parts: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (("note", self.notes), ("skipped", self.skipped))
        for title, pairs in parts:
            if pairs:
                text += "\n\n" + table([(title, "why"), *pairs], left=(0, 1), rules=(1,))
        return text
