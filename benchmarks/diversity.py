"""How many masks each constraint admits, counted and by the formula of the 2021 paper.

python -m benchmarks.diversity          # writes benchmarks/results/diversity.json, then docs/diversity.md and its plot
python -m benchmarks.diversity --docs   # only the tables and the plot, from the results
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.page import fill_page
from benchmarks.store import save
from benchmarks.table import HALVES, head, line
from nmflow import Pattern, count_masks, mask_diversity
from nmflow.diversity import asymptotic_log_count

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "diversity.json"
DOCS = HERE.parent / "docs"
PAGE = DOCS / "diversity.md"
PLOT = DOCS / "figures" / "diversity.svg"

SHOWN = ("1:2", *HALVES)
COUNTED = ("1:4", "2:4", "2:5", "3:6", "2:8", "4:8", "4:16", "6:16", "8:16", "1:32", "3:32")
"""Patterns whose asymptotic count is compared with the exact one."""
SIDE = 32
"""A tensor of 32 x 32 is a whole number of blocks of all patterns."""


def measure() -> dict[str, Any]:
    shape = (SIDE, SIDE)
    rows = [
        {
            "pattern": name,
            "unstructured": mask_diversity(shape, 0.5).log2,
            "rows_only": mask_diversity(shape, Pattern.parse(name, transposable=False)).log2,
            "transposable": (found := mask_diversity(shape, name)).log2,
            "method": found.method,
            "paper": mask_diversity(shape, name, bound="paper").log2,
        }
        for name in SHOWN
    ]
    errors = []
    for name in COUNTED:
        count = count_masks(name)
        error = math.expm1(asymptotic_log_count(name) - math.log(count))
        errors.append({"pattern": name, "count": str(count), "asymptotic_error": error})
    return {"shape": list(shape), "rows": rows, "asymptotic": errors}


def _number(log2: float) -> str:
    log10 = log2 * math.log10(2.0)
    if log10 < 6:
        return f"{round(10**log10)}"
    return f"{10 ** (log10 % 1):.3g}e{int(log10)}"


def tables(found: dict[str, Any]) -> dict[str, str]:
    size = math.prod(found["shape"])
    lines = head("pattern", "rows only", "transposable", "2021 formula", "bits per entry of each")
    for row in found["rows"]:
        block = int(row["pattern"].split(":")[1]) ** 2
        counts = (_number(row[key] * block / size) for key in ("rows_only", "transposable", "paper"))
        bits = ", ".join(f"{row[key] / size:.3f}" for key in ("rows_only", "transposable", "paper"))
        sign = "" if row["method"] == "exact" else " (asymptotic)"
        rows_only, transposable, paper = counts
        lines.append(line(row["pattern"], rows_only, f"{transposable}{sign}", paper, bits))
    errors = head("pattern", "exact count", "error of the asymptotic one")
    for row in found["asymptotic"]:
        count = row["count"] if len(row["count"]) <= 15 else f"{float(row['count']):.6e}"
        errors.append(line(row["pattern"], count, f"{100 * row['asymptotic_error']:+.2f}%"))
    return {"counts": "\n".join(lines), "asymptotic": "\n".join(errors)}


def plot(found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "nmflow"  # the same file for the same numbers
    from matplotlib import pyplot

    size = math.prod(found["shape"])
    names = [row["pattern"] for row in found["rows"]]
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    for key, label, style in (
        ("unstructured", "unstructured, half kept", "k:"),
        ("rows_only", "rows only", "o-"),
        ("transposable", "transposable, counted", "s-"),
        ("paper", "transposable, 2021 formula", "^--"),
    ):
        axes.plot(names, [row[key] / size for row in found["rows"]], style, label=label)
    axes.set_xlabel("pattern")
    axes.set_ylabel("bits per entry: log2(masks) / entries")
    axes.set_ylim(0.0, 1.35)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="only write the page and its plot, from the results")
    if not parser.parse_args().docs:
        save(RESULTS, measure())
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    fill_page(PAGE, tables(found))
    plot(found)


if __name__ == "__main__":
    main()
