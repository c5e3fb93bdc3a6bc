"""Write docs/post-training.md's tables and plot from the results: ``python -m benchmarks.post_training.report``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.page import fill
from benchmarks.post_training import layers, run
from benchmarks.progress import tell
from benchmarks.table import HALVES, head, line

__all__ = ["PAGE", "main", "page_with"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "post-training.md"
BEGIN, END = "<!-- results: written by python -m benchmarks.post_training.report -->", "<!-- end of results -->"
TARGET = 0.97
Rows = dict[tuple[str, ...], dict[str, Any]]


def minilm_table(rows: Rows) -> list[str]:
    """Mean cosine and rank correlation of held-out sentences, by method."""
    lines = head("", *run.METHODS)
    for pattern in HALVES:
        for kind in run.KINDS:
            found = (rows.get(("MiniLM", pattern, kind, method)) for method in run.METHODS)
            lines.append(line(f"{pattern} {kind}", *(_pair(row) if row else "" for row in found)))
    return lines


def _pair(row: dict[str, Any]) -> str:
    near, far = row["near"], row["far"]
    return (
        f"{near['cosine']:.3f} / {near['rank_correlation']:.3f} ({far['cosine']:.3f} / {far['rank_correlation']:.3f})"
    )


def parts_table(rows: Rows) -> list[str]:
    """What each part of the reconstruction brings, at 8:16 transposable."""
    lines = head("method", "cosine / rank correlation (unseen topics)", "error of a layer")
    for method in (*run.METHODS, *run.LAYERWISE):
        row = rows.get(("MiniLM", "8:16", "transposable", method))
        if row:
            error = f"{100 * row['error']:.2f}%" if "error" in row else ""
            lines.append(line(method, _pair(row), error))
    return lines


def verdicts(rows: Rows) -> list[str]:
    """Whether the targets are met, in words."""
    lines = []
    best = [
        (min(row["near"].values()), method)
        for method in (*run.METHODS, *run.LAYERWISE)
        if (row := rows.get(("MiniLM", "8:16", "transposable", method)))
    ]
    for method in ("adaprune", "alps", *(name for name in run.LAYERWISE if "twice" in name or "dense" in name)):
        row = rows.get(("MiniLM", "8:16", "transposable", method))
        if row:
            near = row["near"]
            met = "met" if min(near.values()) >= TARGET else "**not met**"
            lines.append(
                f"- Transposable 8:16, {method}: cosine {near['cosine']:.4f}, rank correlation "
                f"{near['rank_correlation']:.4f}; at least {TARGET} both: {met}."
            )
    lines.append(f"- The best at transposable 8:16 is {max(best)[1]}.")
    for method in ("sparsegpt", "adaprune", "alps"):
        pairs = [
            (f"{pattern} {kind}", rows[key], rows[base])
            for pattern in HALVES
            for kind in run.KINDS
            if (key := ("MiniLM", pattern, kind, method)) in rows
            and (base := ("MiniLM", pattern, kind, "magnitude")) in rows
        ]
        worse = [name for name, one, other in pairs if one["near"]["cosine"] <= other["near"]["cosine"]]
        lines.append(
            f"- {method} is closer to the dense embeddings than magnitude in {len(pairs) - len(worse)} of {len(pairs)} "
            f"cases{': not at ' + ', '.join(worse) if worse else ''}."
        )
    pairs = [
        (f"{pattern} {method}", rows[key], rows[other])
        for pattern in HALVES
        for method in run.METHODS
        if (key := ("MiniLM", pattern, "transposable", method)) in rows
        and (other := ("MiniLM", pattern, "transposable, greedy masks", method)) in rows
    ]
    worse = [name for name, one, other in pairs if one["near"]["cosine"] <= other["near"]["cosine"]]
    lines.append(
        f"- Exact masks give a higher cosine than greedy masks, method and pattern being the same, in "
        f"{len(pairs) - len(worse)} of {len(pairs)} cases{'; not for ' + ', '.join(worse) if worse else ''}."
    )
    return lines


def cnn_table(rows: Rows) -> list[str]:
    """Mean test accuracy over seeds, and with batch normalisation estimated anew."""
    lines = head("", *run.METHODS)
    for pattern in HALVES:
        for kind in run.KINDS:
            cells = []
            for method in run.METHODS:
                found = _seeds(rows, pattern, kind, method)
                accuracy, again = ([row[key] for row in found] for key in ("accuracy", "accuracy_reestimated"))
                cells.append(f"{statistics.mean(accuracy):.2f} ({statistics.mean(again):.2f})" if found else "")
            lines.append(line(f"{pattern} {kind}", *cells))
    return lines


def _seeds(rows: Rows, pattern: str, kind: str, method: str) -> list[dict[str, Any]]:
    return [row for key, row in rows.items() if key[0].startswith("CNN") and key[1:] == (pattern, kind, method)]


def plot(rows: Rows, path: Path) -> None:
    """Cosine by pattern, a panel for each kind of mask."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(run.KINDS), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, kind in zip(axes, run.KINDS, strict=True):
        for place, method in enumerate(run.METHODS):
            found = [
                (pattern, rows[key]["near"]["cosine"], rows[key]["far"]["cosine"])
                for pattern in HALVES
                if (key := ("MiniLM", pattern, kind, method)) in rows
            ]
            names = [one[0] for one in found]
            axis.plot(names, [one[1] for one in found], "o-", color=f"C{place}", label=method)
            axis.plot(names, [one[2] for one in found], "x:", color=f"C{place}")
        axis.axhline(TARGET, color="grey", lw=0.7, label=f"{TARGET:g}, asked for")
        axis.set(title=kind, xlabel="pattern")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="mean cosine with dense (x: unseen topics)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def results(found: dict[str, Any]) -> str:
    """What stands between the two marks of the page."""
    options = found["options"]
    rows: Rows = {tuple(row["key"]): row for row in found["rows"]}
    versions = ", ".join(f"{name} {version}" for name, version in options["versions"].items())
    dense = [row["dense_accuracy"] for key, row in rows.items() if key[0].startswith("CNN")]
    sample = next((row["rows"] for key, row in rows.items() if key[0] == "MiniLM" and "rows" in row), 0)
    parts = [
        f"### all-MiniLM-L6-v2\n\n36 weights pruned; {options['calibration']} sentences ({sample:,} tokens) to "
        f"calibrate on, {options['held_out']} held out of the same topics and {options['held_out']} of unseen ones. "
        f"Mean cosine / rank correlation; in brackets those of unseen topics.\n",
        "\n".join(minilm_table(rows)) + "\n",
        "![cosine by pattern and method](post-training.png)\n",
        "What each part brings, at 8:16 transposable. Errors are those of a layer's outputs: against what the dense "
        "layer gives for the inputs that this one gets (sparsegpt; follow=own; each layer alone), or against the best "
        "that weights without a mask could do for the dense model's outputs (the others). They cannot be compared "
        "across.\n",
        "\n".join(parts_table(rows)) + "\n",
        "\n".join(verdicts(rows)) + "\n",
    ]
    if dense:
        seeds = len({key[0] for key in rows if key[0].startswith("CNN")})
        parts += [
            f"### The digits CNN\n\nTest accuracy in percent, mean of {seeds} seeds; dense "
            f"{statistics.mean(dense):.2f}. In brackets with batch normalisation estimated anew. "
            f"One image is 0.22 points.\n",
            "\n".join(cnn_table(rows)) + "\n",
        ]
    parts.append(f"{len(rows)} runs; {versions}.\n")
    return "\n".join(parts)


def page_with(page: str, found: dict[str, Any]) -> str:
    """The page with its results replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{results(found)}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Write the page and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=run.RESULTS)
    parser.add_argument("--layers", type=Path, default=layers.RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if not options.results.exists():
        tell(f"{options.results} must exist; python -m benchmarks.post_training.run writes it")
        return 2
    found = json.loads(options.results.read_text(encoding="utf-8"))
    plot({tuple(row["key"]): row for row in found["rows"]}, options.page.with_suffix(".png"))
    page = page_with(options.page.read_text(encoding="utf-8"), found)
    if options.layers.exists():
        page = fill(page, {"layers": layers.table(json.loads(options.layers.read_text(encoding="utf-8")))})
    options.page.write_text(page, encoding="utf-8")
    tell(f"{options.page} and its plot written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
