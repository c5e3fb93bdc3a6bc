"""Tables of measured rows, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["HALVES", "bound", "figure", "head", "line", "named", "proven_share", "side_by_side"]

Row = dict[str, Any]
HALVES = ("2:4", "4:8", "8:16", "16:32")
"""Patterns that keep half of the entries."""


def head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [line(*names), line(*("---" for _ in names))]


def line(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def figure(value: float | None) -> str:
    """Three significant figures, without exponents."""
    if value is None:
        return ""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.1e}"


def bound(row: Row) -> str:
    """What a target asks for."""
    sign = {"<=": "≤", ">=": "≥"}[row["sign"]]
    return f"{sign} {row['bound']:g}"


def named(row: Row) -> str:
    """Who a row is of."""
    return f"{row['solver']} (peer)" if row["peer"] else f"`{row['solver']}`"


def proven_share(row: Row) -> str:
    """The share of the blocks that are proven, rounded down: 100% would be all of them."""
    return f"{1000 * row['proven'] // row['blocks_measured'] / 10:.1f}%"


def side_by_side(
    rows: Sequence[Row], what: str, column: Callable[[Row], str], order: Callable[[Row], Any]
) -> list[str]:
    """For each pattern a table to unfold: a line for each solver and peer, a column for each `what`.

    In brackets are the loss, and how many of the blocks are proven, where something is lost or not proven; a dagger
    marks masks that break the pattern in some blocks.

    Parameters
    ----------
    rows : sequence of dict
        Of the results. Columns of our own solver alone are left out.
    what : str
        What the columns are, in a word.
    column, order : function
        The column that a row is in, and where that stands.
    """
    shared = {column(row) for row in rows if row["solver"] != "dual"}
    rows = sorted((row for row in rows if column(row) in shared), key=order)
    columns, solvers = dict.fromkeys(map(column, rows)), dict.fromkeys(map(named, rows))
    out = []
    for pattern in dict.fromkeys(row["pattern"] for row in sorted(rows, key=lambda row: (row["m"], row["n"]))):
        here = {(named(row), column(row)): row for row in rows if row["pattern"] == pattern}
        out += ["", f'<details markdown="1"><summary>All solvers and peers at {pattern}, ns per entry</summary>', ""]
        out += head(f"solver, by {what}", *columns)
        out += [line(name, *(_brief(here.get((name, each))) for each in columns)) for name in solvers]
        reasons = dict.fromkeys(f"- {name}: {row['note']}" for (name, _), row in here.items() if row["status"] != "ok")
        out += ["", *reasons, *([""] if reasons else []), "</details>"]
    return out


def _brief(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return str(row["status"])
    text = figure(row["ns_per_entry"])
    lost, proven = row["loss"] or 0.0, row["proven"] == row["blocks_measured"]
    if not proven:
        text += f" ({figure(100 * lost)}%, {proven_share(row)})"
    elif lost:
        text += f" ({figure(100 * lost)}%)"
    return f"{text}†" if row["infeasible"] else text
