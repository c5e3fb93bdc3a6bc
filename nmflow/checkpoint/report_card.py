"""A section for a model card: what was pruned, what it lost and what is proven, in Markdown."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import PurePath

from nmflow.checkpoint.report import Report, TensorReport
from nmflow.checkpoint.report_file import pattern_of
from nmflow.pattern import Pattern

__all__ = ["model_card", "pattern_in_words", "proof_in_words"]

ROWS = 1000
"""Longest table."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:-]+")


def model_card(report: Report) -> str:
    """Write the section.

    Notes
    -----
    Names from the checkpoint are shown as code; whatever in them could mean something to a reader of Markdown or HTML
    is written as a character reference.
    """
    total = report.total
    rows = [
        ("Pattern", pattern_in_words(report)),
        ("Weights pruned", f"{len(report.tensors):,}, with {total.shape[0]:,} entries"),
        ("Score kept (sum of magnitudes)", f"{total.kept_percent:.3f}% of the dense weights"),
        ("Lost against the best rows-only mask", f"{total.loss_percent:.3f}%"),
        ("Proof", proof_in_words(report)),
        ("Made from", _code(PurePath(report.source).name or report.source)),
        ("Made with", f"nmflow, solver {_code(report.solver)}, in {report.seconds:,.1f} s"),
    ]
    left = Counter(reason for _, reason in report.skipped)
    lines = [
        "## Sparsity",
        "",
        "The weights of linear and convolution layers are pruned with masks from "
        "nmflow. Pruned entries are +0; all others, and all other tensors, are those of the model "
        "it was made from. Nothing was trained afterwards by this tool.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    if left:
        listed = ", ".join(f"{count:,} × {_text(reason)}" for reason, count in sorted(left.items()))
        lines += [f"Left as they were: {listed}.", ""]
    shown, summary = report.tensors, "Each weight"
    if len(shown) > ROWS:
        shown = tuple(sorted(shown, key=lambda tensor: -tensor.loss_percent)[:ROWS])
        summary = f"The {ROWS:,} weights that lose most"
    lines += [
        f"<details><summary>{summary}</summary>",
        "",
        "| weight | shape | kept % | lost against rows only % | blocks proven |",
        "|---|--:|--:|--:|--:|",
        *(_row(tensor) for tensor in shown),
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def pattern_in_words(report: Report) -> str:
    """The pattern for readers who do not know its notation."""
    pattern = pattern_of(report)
    edges = any(_is_ragged(pattern, tensor) for tensor in report.tensors)
    return _in_words(pattern) + (", fewer at edges that are no whole group" if edges else "")


def _in_words(pattern: Pattern) -> str:
    some = "exactly" if pattern.fill == "exact" else "at most"
    row, col = pattern.row, pattern.col
    if col is None:
        return f"{row}: {some} {row.n} of {row.m} consecutive entries along each row"
    if row == col:
        return f"{row} transposable: {some} {row.n} of {row.m} consecutive entries, along rows and along columns"
    return (
        f"{row} by {col}: {some} {row.n} of {row.m} consecutive entries along each row, "
        f"{col.n} of {col.m} along each column"
    )


def _is_ragged(pattern: Pattern, tensor: TensorReport) -> bool:
    """Whether some lines end within a group, and keep fewer there."""
    _, rows, cols = tensor.matrices
    height = 1 if pattern.col is None else pattern.block_shape[0]
    return pattern.fill == "exact" and bool(rows % height or cols % pattern.block_shape[1])


def proof_in_words(report: Report) -> str:
    """What is proven of all masks together."""
    total = report.total
    if report.proven:
        return f"each of {total.n_blocks:,} blocks is proven to be the best"
    if total.gap_percent is None:
        return f"not asked for; {report.solver} is not exact"
    return (
        f"{total.n_proven:,} of {total.n_blocks:,} blocks are proven to be the best; the best masks would keep at most "
        f"{total.gap_percent:.3g}% more"
    )


def _row(tensor: TensorReport) -> str:
    shape = " × ".join(map(str, tensor.shape))
    proven = f"{tensor.n_proven:,} of {tensor.n_blocks:,}"
    return f"| {_code(tensor.name)} | {shape} | {tensor.kept_percent:.3f} | {tensor.loss_percent:.3f} | {proven} |"


def _code(text: str) -> str:
    return f"`{text}`" if _PLAIN.fullmatch(text) else f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    """Text that is nothing but text in Markdown, HTML and their tables."""
    return "".join(
        char
        if char.isalnum() or char in " ,/()-"  # nor . and : of an address, which would become a link
        else f"&#{ord(char)};"
        if char.isprintable()
        else html.escape(repr(char)[1:-1])
        for char in text
    )
