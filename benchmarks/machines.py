"""What the targets came to on each machine that they were measured on: ``python -m benchmarks.machines``.

``python -m benchmarks.targets --out benchmarks/results/targets-NAME.json`` measures on another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import fill_page
from benchmarks.progress import tell
from benchmarks.store import load
from benchmarks.table import bound, figure, head, line

__all__ = ["PAGE", "found", "main", "tables"]

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
Results = dict[str, Any]


def found() -> list[Results]:
    """Results of the machine that the page is about, and of all others."""
    folder = HERE / "results"
    return [load(path) for path in (folder / "targets.json", *sorted(folder.glob("targets-*.json")))]


def tables(results: Sequence[Results]) -> dict[str, str]:
    """How many targets are met, and what: those that a machine misses, and all multiples of stream."""
    rows = [{row["target"]: row for row in each["rows"] if row["target"] is not None} for each in results]
    lines = head("target", "bound", *(each["machine"]["cpu"] for each in results))
    met = (f"{sum(row['met'] is True for row in each.values())} of {len(each)}" for each in rows)
    lines.append(line("met", "", *met))
    for target in dict.fromkeys(target for each in rows for target in each):
        here = [each.get(target) for each in rows]
        first = next(row for row in here if row is not None)
        if first["group"] == "stream" or any(row is not None and row["met"] is False for row in here):
            lines.append(line(target, bound(first), *map(_cell, here)))
    notes = [
        f"- {each['machine']['cpu']}: {each['machine']['usable_cores']} cores, numba {each['versions']['numba']}, "
        f"measured {each.get('finished') or each['started']}{'' if each['complete'] else ', not complete'}."
        for each in results
    ]
    return {"machines": "\n".join([*lines, "", *notes])}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"**{figure(row['measured'])}**" if row["met"] is False else figure(row["measured"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machines", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    try:
        fill_page(options.page, tables(found()))
    except (ValueError, OSError) as error:
        tell(str(error))
        return 2
    tell(f"{options.page} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
