"""Commands that measure one section of docs/performance.md, and write it there and to a results file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import fill_page
from benchmarks.progress import counted, tell
from benchmarks.report import DOCS, HERE
from benchmarks.store import INTERRUPTED, save

__all__ = ["section"]


def section(
    name: str, description: str | None, measure: Callable[[int, int], dict[str, Any]],
    table: Callable[[dict[str, Any]], str], *, side: int, repeats: int, multiple: int = 1,
    arguments: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Measure a matrix whose side is a multiple of `multiple`, over some turns, as the arguments say; exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--side", type=counted, default=side)
    parser.add_argument("--repeats", type=counted, default=repeats)
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"{name}.json")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md")
    options = parser.parse_args(arguments)
    if options.side % multiple:
        parser.error(f"--side must be a multiple of {multiple}, not {options.side}")
    tell(f"measuring {name}: a minute or two")
    try:
        results = measure(options.side, options.repeats)
    except KeyboardInterrupt:
        tell("interrupted; nothing was written")
        return INTERRUPTED
    save(options.out, results)
    fill_page(options.page, {name: table(results)})
    return 0
