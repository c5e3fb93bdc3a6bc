"""The short table of the README: how long the exact answer takes, beside approximations and other exact solvers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.plots import gaussian
from benchmarks.table import HALVES, figure, head, line

__all__ = ["headline"]

Row = dict[str, Any]
USUAL, LARGE = 4096, 8192
SHOWN = {
    "dual": "**`dual`: exact, every block proven**",
    "greedy": "`greedy`",
    "local-search": "`local-search`",
    "entropic": "`entropic`",
    "torch, 90 patterns": "torch, the best of all 90 masks",
    "OR-Tools SimpleMinCostFlow": "OR-Tools, exact, one thread",
    "networkx network_simplex": "networkx, exact, one thread",
}
"""Solvers and peers in the table, and what they are called there. Each pattern's fastest exact peer is among them."""


def headline(rows: Sequence[Row]) -> str:
    """Time for the matrix of the table of solvers, and the loss of those that lose something.

    Parameters
    ----------
    rows : sequence of dict
        Of the results.
    """
    chosen = {
        (row["solver"], row["pattern"]): row
        for row in rows
        if row["group"] == "solvers" and row["pattern"] in HALVES and row["status"] == "ok" and row["rows"] == USUAL
    }
    lines = head("", *HALVES)
    for solver, name in SHOWN.items():
        cells = [_cell(chosen.get((solver, pattern))) for pattern in HALVES]
        if any(cells):
            lines.append(line(name, *cells))
    wanted = "8:16", LARGE, LARGE, "ok"  # for which others have reported a time
    names = "pattern", "rows", "cols", "status"
    large = [row for row in gaussian(rows) if tuple(row[name] for name in names) == wanted]
    if large:
        ours = _time(large[0]["ns_per_entry"] * LARGE * LARGE)
        lines += ["", f"8192×8192 at 8:16 takes `dual` {ours}; TSENOR's authors report .12 s for that, on an H100."]
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    text = _time(row["ns_per_entry"] * row["rows"] * row["cols"])
    return f"{text}, loses {figure(100 * row['loss'])}%" if row["loss"] else text


def _time(nanoseconds: float) -> str:
    ms = nanoseconds * 1e-6
    return f"{figure(ms)} ms" if ms < 1000 else f"{figure(ms / 1000)} s"
