"""What was done to a model, layer by layer: frozen values that print as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LayerReport", "PruneReport", "table"]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What was done to one parameter.

    Attributes
    ----------
    name : str
        Name of the parameter in the model.
    also : tuple of str
        Its other names, where modules share it.
    shape : tuple of int
    dtype : str
    layout : str or None
        How its axes are seen as matrices.
    dense, kept : float
        Sum of all scores, and of those kept.
    gap : float
        What the best mask could keep more, at most; 0.0 where proven.
    density : float
        Share of entries kept.
    n_blocks, n_proven : int
    seconds : float
        Wall time of the solve.
    """

    name: str
    also: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    layout: str | None
    dense: float
    kept: float
    gap: float
    density: float
    n_blocks: int
    n_proven: int
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether every block is proven to be the best."""
        return self.n_proven == self.n_blocks

    @property
    def kept_percent(self) -> float:
        """Kept score in percent of all; of nothing, all is kept."""
        return 100.0 * self.kept / self.dense if self.dense else 100.0


@dataclass(frozen=True, slots=True, repr=False)
class PruneReport:
    """What was done to a model; ``print(report)`` shows a table.

    Attributes
    ----------
    pattern, solver : str
    layers : tuple of LayerReport
    skipped : tuple of (str, str)
        Name of each parameter or module that was left alone, and why.
    seconds : float
        Wall time of the whole.
    """

    pattern: str
    solver: str
    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether every block of every layer is proven to be the best."""
        return all(layer.proven for layer in self.layers)

    @property
    def kept_percent(self) -> float:
        """Kept score of all layers in percent of all their scores."""
        dense = math.fsum(layer.dense for layer in self.layers)
        return 100.0 * math.fsum(layer.kept for layer in self.layers) / dense if dense else 100.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "proven": self.proven,
            "kept_percent": self.kept_percent,
        }

    def __repr__(self) -> str:
        return f"<PruneReport {self.pattern}: {len(self.layers)} pruned, {len(self.skipped)} skipped>"

    def __str__(self) -> str:
        rows = [
            (
                layer.name + "".join(f" = {name}" for name in layer.also),
                "x".join(map(str, layer.shape)),
                f"{layer.kept_percent:.2f}%",
                f"{100 * layer.density:.2f}%",
                f"{layer.gap:.3g}",
                f"{layer.n_proven}/{layer.n_blocks}",
            )
            for layer in self.layers
        ]
        entries = sum(math.prod(layer.shape) for layer in self.layers)
        density = sum(layer.density * math.prod(layer.shape) for layer in self.layers) / max(1, entries)
        blocks, proven = sum(layer.n_blocks for layer in self.layers), sum(layer.n_proven for layer in self.layers)
        gap = math.fsum(layer.gap for layer in self.layers)
        total = ("total", str(entries), f"{self.kept_percent:.2f}%", f"{100 * density:.2f}%", f"{gap:.3g}")
        head = (f"{self.pattern} by {self.solver}", "shape", "kept score", "density", "gap", "proven blocks")
        text = table([head, *rows, (*total, f"{proven}/{blocks}")], left=(0, 1), rules=(1, -1))
        if self.skipped:
            text += "\n\n" + table([("skipped", "why"), *self.skipped], left=(0, 1), rules=(1,))
        return text


def table(rows: Sequence[Sequence[str]], *, left: Sequence[int], rules: Sequence[int]) -> str:
    """Align rows of text in columns; `left` are flush left, a rule goes above each row in `rules`."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for place in sorted((rule % len(rows) for rule in rules), reverse=True):
        lines.insert(place, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
