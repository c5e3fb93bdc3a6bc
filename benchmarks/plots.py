"""The plots of docs/performance.md, from the results in JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.families import GAUSSIAN
from benchmarks.table import HALVES

__all__ = ["gaussian", "plots"]

Row = dict[str, Any]
Results = dict[str, Any]
LABELLED = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Group lengths with a label on the axis."""


def plots(bench: Results, folder: Path) -> list[Path]:
    """Draw the plots as SVG; the same results give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    rows = [row for row in bench["rows"] if row["status"] == "ok"]
    with pyplot.rc_context({"svg.hashsalt": "nmflow", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}):
        for name, draw in (("time-m", _plot_m), ("time-size", _plot_size), ("gap-time", _plot_gap)):
            figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
            if draw(axes, rows):
                path = folder / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None})
                written.append(path)
            pyplot.close(figure)
    return written


def gaussian(rows: Sequence[Row]) -> list[Row]:
    """Rows of our solver on Gaussian float32 weights, at patterns that keep half."""
    wanted = {"solver": "dual", "family": GAUSSIAN, "dtype": "float32"}
    return [row for row in rows if row["pattern"] in HALVES and all(row[name] == wanted[name] for name in wanted)]


def _plot_m(axes: Any, rows: Sequence[Row]) -> bool:
    """Time per entry against m, for patterns that keep half: our solver's as the table of group lengths has it."""
    half = [row for row in rows if row["group"] in ("solvers", "m") and 2 * row["n"] == row["m"]]
    if any(row["group"] == "m" for row in half):
        half = [row for row in half if row["group"] == "m" or row["solver"] != "dual"]
    for number, solver in enumerate(sorted({row["solver"] for row in half}, key=_first(rows))):
        points = sorted((row["m"], row["ns_per_entry"]) for row in half if row["solver"] == solver)
        size = next(f"{row['rows']}²" for row in half if row["solver"] == solver)
        width = 2.5 if solver == "dual" else 1
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{solver}, {size}", linewidth=width, **_look(number))
    stream = {row["m"]: row["stream_ns_per_entry"] for row in half if row["solver"] == "dual"}
    if stream:
        axes.plot(*zip(*sorted(stream.items()), strict=True), "k--", label="stream")
    lengths = sorted({row["m"] for row in half} & set(LABELLED))
    axes.set(xscale="log", yscale="log", xlabel="m (half is kept)", ylabel="ns per entry")
    axes.set_title("Time per entry against m")
    axes.set_xticks(lengths, [str(m) for m in lengths])
    axes.minorticks_off()
    _legend(axes)
    return bool(half)


def _plot_size(axes: Any, rows: Sequence[Row]) -> bool:
    """Time against size, of our solver and the stream."""
    ours = [row for row in gaussian(rows) if row["group"] in ("sizes", "solvers")]
    for pattern in HALVES:
        points = sorted((row["rows"], row["seconds"]) for row in ours if row["pattern"] == pattern)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=pattern)
    stream = {row["rows"]: row["stream_ns_per_entry"] * row["rows"] * row["cols"] * 1e-9 for row in ours}
    if stream:
        axes.plot(*zip(*sorted(stream.items()), strict=True), "k--", label="stream")
    sides = sorted({row["rows"] for row in ours})
    axes.set(xscale="log", yscale="log", xlabel="side of a square matrix", ylabel="seconds", title="Time against size")
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    axes.legend()
    return bool(ours)


def _plot_gap(axes: Any, rows: Sequence[Row]) -> bool:
    """Loss against time for every solver and peer."""
    chosen = [row for row in rows if row["group"] == "solvers" and row["pattern"] in HALVES and row["loss"] is not None]
    solvers = sorted({row["solver"] for row in chosen}, key=_first(rows))
    for number, solver in enumerate(solvers):
        first = next(row["pattern"] for row in chosen if row["solver"] == solver)
        for pattern, marker in zip(HALVES, "osD^", strict=True):
            points = [row for row in chosen if row["solver"] == solver and row["pattern"] == pattern]
            if points:
                axes.plot(
                    [row["ns_per_entry"] for row in points],
                    [max(0.0, 100 * row["loss"]) for row in points],
                    marker,
                    label=solver if pattern == first else None,
                    **_look(number),
                )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=-2e-4, top=2 * max([0.01, *(100 * row["loss"] for row in chosen)]))
    axes.set(xlabel="ns per entry", ylabel="loss of kept score, %")
    axes.set_title("Gap against time (○ 2:4, □ 4:8, ◇ 8:16, △ 16:32)")
    _legend(axes)
    return bool(chosen)


def _first(rows: Sequence[Row]) -> Callable[[str], int]:
    """The order of solvers, the same in all plots: that of the rows."""
    return list(dict.fromkeys(row["solver"] for row in rows)).index


def _look(number: int) -> dict[str, str]:
    """Colour and filling of the markers of a solver: there are ten colours, and more solvers."""
    return {"color": f"C{number % 10}", "fillstyle": "full" if number < 10 else "none"}


def _legend(axes: Any) -> None:
    """Beside the plot, where it hides nothing."""
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
