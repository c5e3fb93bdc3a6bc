"""The table of ``nmflow diversity``."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from nmflow.cli.show import _console
from nmflow.cli.table import print_table
from nmflow.diversity import Diversity, mask_diversity
from nmflow.errors import InputValueError
from nmflow.pattern import Budget, Pattern

__all__ = ["diversity_rows", "print_diversity"]


def diversity_rows(text: str, shape: str | None) -> list[dict[str, Any]]:
    """Count the masks of a tensor under each constraint of the same density."""
    budget = Budget.parse(text)  # a text that says more has no such table
    pattern, rows_only = Pattern(row=budget, col=budget), Pattern(row=budget, transposable=False)
    size = pattern.block_shape if shape is None else _shape(shape)
    both = mask_diversity(size, pattern)  # what fits it fits the others
    counted = [
        ("unstructured", mask_diversity(size, pattern.n / pattern.m)),
        (f"{pattern} rows only", mask_diversity(size, rows_only)),
        (f"{pattern} transposable", both),
        (f"{pattern} transposable, formula of the 2021 paper", mask_diversity(size, pattern, bound="paper")),
    ]
    return [_row(name, found) for name, found in counted]


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise InputValueError(f'shape must be "ROWSxCOLS", for example 64x64, not {text!r}') from None


def _row(name: str, found: Diversity) -> dict[str, Any]:
    return {
        "constraint": name,
        "shape": list(found.shape),
        "log2": found.log2,
        "log10": found.log10,
        "bits_per_entry": found.bits_per_entry,
        "masks_of_a_block": None if found.block_count is None else str(found.block_count),
        "blocks": found.blocks,
        "count": {"exact": "exact", "asymptotic": "asymptotic", "paper": "2021 formula"}[found.method],
    }


def print_diversity(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    console = _console()
    shape = "x".join(str(length) for length in rows[0]["shape"])
    table = Table(title=f"masks of a {shape} tensor", title_justify="left")
    table.add_column("constraint", overflow="fold")
    for name in ("masks", "bits per entry", "count"):
        table.add_column(name, justify="right")
    for row in rows:
        masks = f"~1e{round(row['log10'])}" if row["count"] == "asymptotic" else _power(row["log10"])
        table.add_row(row["constraint"], masks, f"{row['bits_per_entry']:.4f}", row["count"])
    print_table(console, table)


def _power(log10: float) -> str:
    """A number as it is written, from its logarithm."""
    if log10 < 6:
        return f"{round(10**log10):,}"
    exponent = int(log10)
    digits = f"{10 ** (log10 - exponent):.3f}"
    return f"1.000e{exponent + 1}" if digits == "10.000" else f"{digits}e{exponent}"
