"""Prune SmolLM2-135M by every method, and measure its perplexity: ``python -m benchmarks.language.run``.

Writes a JSON file after each run, so that an interrupted one goes on where it was, and at the end the table of
docs/post-training.md (``--report`` writes that alone).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nmflow.torch as nt
from benchmarks.language.smollm import FOLDER, WINDOW, Language
from benchmarks.page import fill_page
from benchmarks.post_training import layers
from benchmarks.post_training.run import options_of
from benchmarks.progress import counted, tell
from benchmarks.rows import measure_rows
from benchmarks.store import load
from benchmarks.table import HALVES, head, line
from nmflow.bench.machine import digest_of

__all__ = ["KINDS", "METHODS", "PAGE", "RESULTS", "main", "table"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "language.json"
PAGE = HERE.parents[1] / "docs" / "post-training.md"
PATTERNS, KINDS = ("8:16", "2:4"), ("transposable", "rows only")
METHODS: dict[str, Callable[..., Any]] = layers.METHODS | {
    "alps, follow=own": partial(layers.METHODS["alps"], follow="own"),
    "alps, damping=0.3": partial(layers.METHODS["alps"], damping=0.3),
}
CALIBRATION, HELD_OUT = 32, 16
"""Windows of text."""


def pruned(language: Language, pattern: str, kind: str, method: str) -> dict[str, Any]:
    """A row: a copy of the model pruned, and its perplexity."""
    model = copy.deepcopy(language.model)
    begun = time.perf_counter()
    # without the head, whose weights are those of the embedding and stay dense
    report = METHODS[method](model.model, language.batches, **options_of(pattern, kind))
    seconds = time.perf_counter() - begun
    row = {"layers": len(report.layers), "proven": report.proven, "seconds": seconds, **language.perplexity(model)}
    if isinstance(report, nt.PostReport):
        row["error"] = sum(layer.error for layer in report.layers) / len(report.layers)
    return row


def table(found: dict[str, Any]) -> str:
    """The section of the page."""
    rows, options, versions = {row["key"]: row for row in found["rows"]}, found["options"], found["versions"]
    dense = rows["dense"]
    lines, whole = head("", *METHODS), True
    for pattern in HALVES:
        for kind in KINDS:
            here = [rows.get(f"{pattern} | {kind} | {method}") for method in METHODS]
            if any(here):
                whole = whole and all(here)
                lines.append(line(f"{pattern} {kind}", *(_pair(row) if row else "" for row in here)))
    weights = max(row.get("layers", 0) for row in rows.values())
    return "\n".join(
        [
            f"{weights} weights pruned, all linear layers but the head; {options['calibration'] * WINDOW:,} tokens to "
            f"calibrate on, of newspaper articles. Perplexity on {options['held_out'] * WINDOW:,} tokens of other "
            f"articles, and in brackets on as many of Python's language reference, a text of quite another kind. "
            f"Dense: {_pair(dense)}.",
            "", *lines, "",
            *([] if found["complete"] else ["- Not complete: the run was interrupted."]),
            *([] if whole else ["- Empty cells were not measured."]),
            f"- {len(rows)} runs; torch {versions['torch']}, Python {versions['python']}, nmflow {versions['nmflow']}.",
        ]
    )  # fmt: skip


def _pair(row: dict[str, Any]) -> str:
    return f"{row['near']:,.1f} ({row['far']:,.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing in the file of results, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language.run", description=__doc__)
    parser.add_argument("--patterns", nargs="+", choices=HALVES, default=PATTERNS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:1])
    parser.add_argument("--calibration", type=counted, default=CALIBRATION, help=f"windows of {WINDOW} tokens")
    parser.add_argument("--held-out", type=counted, default=HELD_OUT, help="windows of each held-out text")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if not options.report:
        status = _measure(options)
        if status:
            return status
    if not options.out.exists():
        tell(f"{options.out} must exist; make language writes it")
        return 2
    found = load(options.out)
    fill_page(options.page, {"language": table(found)})
    tell(f"{len(found['rows'])} rows of {options.out} are in {options.page}")
    return 0


def _measure(options: argparse.Namespace) -> int:
    if not FOLDER.exists():
        tell(f"{FOLDER} must exist; make language unpacks it")
        return 2
    try:
        language = Language.load(options.calibration, options.held_out)
    except ValueError as error:
        tell(str(error))
        return 2
    cases: dict[str, Callable[[], dict[str, Any]]] = {"dense": partial(language.perplexity, language.model)}
    for case in itertools.product(options.patterns, options.kinds, METHODS):
        cases[" | ".join(case)] = partial(pruned, language, *case)
    return measure_rows(
        options.out, {"calibration": options.calibration, "held_out": options.held_out}, cases,
        also={"code": digest_of(HERE, list(HERE.glob("*.py"))), "text": language.digest}, fresh=options.fresh,
        verb="pruning",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
