"""From the results in JSON to the tables of docs/performance.md and the README: ``python -m benchmarks.report``.

Tables go between markers; what is written by hand around them stays.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.families import FAMILIES, GAUSSIAN
from benchmarks.headline import headline
from benchmarks.page import fill
from benchmarks.plots import gaussian, plots
from benchmarks.progress import tell
from benchmarks.store import load
from benchmarks.table import HALVES, bound, figure, head, line, named, proven_share, side_by_side

__all__ = ["main", "pages", "tables"]

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
Row = dict[str, Any]
Results = dict[str, Any]
NOTHING = "Not measured yet."


def tables(bench: Results | None, targets: Results | None) -> dict[str, str]:
    """The Markdown of each section that the results can fill, by the name of its markers."""
    out = {}
    if bench is not None:
        rows = bench["rows"]
        out["environment"] = _environment(bench)
        for name, make in (
            ("solvers", _solvers),
            ("m", _group_lengths),
            ("sizes", _sizes),
            ("families", _families),
            ("dtypes", _dtypes),
        ):
            out[name] = make(rows)
    if targets is not None:
        out["targets"] = _targets(targets, bench)
    return out


def pages(bench: Results | None, targets: Results | None) -> dict[str, dict[str, str]]:
    """The sections that the results can fill, by the page that they stand in: the README by a whole run alone."""
    out = {"docs/performance.md": tables(bench, targets)}
    if bench is not None and bench["complete"] and not bench["options"].get("quick"):
        out["README.md"] = {"speed": headline(bench["rows"])}
    return out


def _environment(results: Results) -> str:
    quick = " This is a quick run: sizes are small." if results["options"].get("quick") else ""
    return f"{_where(results)} Measured {_when(results)}.{quick}{_part(results)}"


def _where(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    listed = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    cores = f"{machine['usable_cores']} of {machine['cores']} cores"
    return f"{machine['cpu']}, {cores}, {machine['system']} on {machine['architecture']}; {listed}."


def _when(results: Results) -> str:
    return f"{results.get('finished') or results['started']}{_busy(results)}"


def _part(results: Results) -> str:
    return "" if results["complete"] else " The run is not complete."


def _busy(results: Results) -> str:
    """How busy the machine was: with other work on it, times say less."""
    loads = [row["load"] for row in results["rows"] if row.get("load") is not None]
    return f"; load average while measuring {min(loads):.1f} to {max(loads):.1f}" if loads else ""


def _targets(results: Results, bench: Results | None) -> str:
    """The table, and what it is of: where that is not what the rest of the page is of, machine and versions too."""
    rows = [row for row in results["rows"] if row["target"] is not None]
    lines = head("group", "target", "bound", "measured", "met", "passes")
    for row in rows:
        met = ", ".join(filter(None, ({True: "yes", False: "**no**", None: ""}[row["met"]], row["note"])))
        passes = " / ".join(figure(one["measured"]) for one in row.get("passes", ()))
        lines.append(line(row["group"], row["target"], bound(row), figure(row["measured"]), met, passes))
    counts = [sum(row["met"] is value for row in rows) for value in (True, False, None)]
    summary = f"{counts[0]} of {len(rows)} met, {counts[1]} not met, {counts[2]} not available."
    same = bench is not None and all(bench[name] == results[name] for name in ("machine", "versions", "source"))
    where = "" if same else f" {_where(results)}"
    if bench is not None and bench["source"] != results["source"]:
        where += " The source of nmflow is not that of the tables below."
    turns = "{threads} threads, {repeats} turns, {passes} passes".format(**results["options"])
    return "\n".join([f"{summary} {turns}. Measured {_when(results)}.{where}{_part(results)}", "", *lines])


def _solvers(rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if row["group"] == "solvers"]
    lines = head("pattern", "solver", "threads", "ns per entry", "× stream", "loss %", "proven", "note")
    lines += [
        line(row["pattern"], named(row), row["threads"], *_cells(row))
        for row in sorted(chosen, key=lambda row: (row["m"], row["n"]))
    ]
    return "\n".join([_instance(chosen), "", *lines]) if chosen else NOTHING


def _group_lengths(rows: Sequence[Row]) -> str:
    chosen = sorted(
        (row for row in rows if row["group"] == "m"), key=lambda row: (row["m"], row["n"])
    )  # fmt: skip
    return _ours(chosen, "pattern", lambda row: row["pattern"])


def _sizes(rows: Sequence[Row]) -> str:
    square = [row for row in gaussian(rows) if row["rows"] == row["cols"] and row["group"] in ("sizes", "solvers")]
    table = _pivot(square, "size", _size, lambda row: row["rows"])
    others = [
        row for row in rows if row["pattern"] in HALVES and (row["family"], row["dtype"]) == (GAUSSIAN, "float32")
    ]
    return "\n".join([table, *side_by_side(others, "size", _size, lambda row: row["rows"])])


def _size(row: Row) -> str:
    return f"{row['rows']}×{row['cols']}"


def _families(rows: Sequence[Row]) -> str:
    ours = [row for row in rows if row["group"] == "families" and row["solver"] == "dual"]
    shapes, patterns = {(row["rows"], row["cols"]) for row in ours}, {row["pattern"] for row in ours}
    ours += [
        row
        for row in gaussian(rows)
        if row not in ours and (row["rows"], row["cols"]) in shapes and row["pattern"] in patterns
    ]
    if not ours:
        return NOTHING
    names = list(FAMILIES)
    table = _pivot(ours, "family", lambda row: row["family"], lambda row: names.index(row["family"]))
    others = [row for row in rows if row["group"] == "families" or row in ours]
    everyone = side_by_side(others, "family", lambda row: row["family"], lambda row: names.index(row["family"]))
    return "\n".join([_instance(ours), "", table, *everyone])


def _dtypes(rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if row["group"] == "dtypes"]
    shapes = {(row["rows"], row["cols"]) for row in chosen}
    chosen += [row for row in gaussian(rows) if (row["rows"], row["cols"]) in shapes]
    return _pivot(chosen, "dtype", lambda row: row["dtype"], lambda row: row["dtype"])


def _ours(rows: Sequence[Row], what: str, name: Callable[[Row], str]) -> str:
    lines = head(what, "ns per entry", "× stream", "loss %", "proven", "note")
    lines += [line(name(row), *_cells(row)) for row in rows]
    return "\n".join([_instance(rows), "", *lines]) if rows else NOTHING


def _pivot(rows: Sequence[Row], what: str, name: Callable[[Row], str], order: Callable[[Row], Any]) -> str:
    """Nanoseconds per entry (and multiple of stream) of our solver, a column for each pattern."""
    rows = sorted(rows, key=order)
    patterns = list(dict.fromkeys(row["pattern"] for row in sorted(rows, key=lambda row: (row["m"], row["n"]))))
    lines = head(what, *patterns)
    for label in dict.fromkeys(name(row) for row in rows):
        cells = []
        for pattern in patterns:
            found = next((row for row in rows if name(row) == label and row["pattern"] == pattern), None)
            cells.append("" if found is None else _cell(found))
        lines.append(line(label, *cells))
    legend = "ns per entry, and in brackets the multiple of stream."
    return "\n".join([legend, "", *lines]) if rows else NOTHING


def _cell(row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    text = f"{figure(row['ns_per_entry'])} ({figure(row['times_stream'])}×)"
    unproven = row["blocks_measured"] - row["proven"]
    return f"{text}, {unproven:,} unproven" if unproven else text


def _cells(row: Row) -> Iterator[str]:
    if row["status"] != "ok":
        yield from ("", "", "", "", f"{row['status']}: {row['note']}")
        return
    yield figure(row["ns_per_entry"])
    yield figure(row["times_stream"])
    yield "" if row["loss"] is None else figure(100 * row["loss"])
    yield "all" if row["proven"] == row["blocks_measured"] else proven_share(row)
    yield row["note"]


def _instance(rows: Sequence[Row]) -> str:
    shapes = sorted({(row["rows"], row["cols"]) for row in rows})
    listed = ", ".join(f"{height}×{width}" for height, width in shapes)
    families = {row["family"] for row in rows}
    return f"{next(iter(families)).capitalize()}, {listed}." if len(families) == 1 else f"{listed}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        bench, targets = (load(path) if path.exists() else None for path in (options.bench, options.targets))
        if bench is None and targets is None:
            raise FileNotFoundError(f"{options.bench} or {options.targets} must exist; `make bench` writes them")
        files = {"docs/performance.md": options.page, "README.md": options.readme}
        sections = {files[name]: made for name, made in pages(bench, targets).items()}
        old = {page: page.read_text(encoding="utf-8") for page in sections}
        new = {page: fill(old[page], made) for page, made in sections.items()}
    except (ValueError, OSError) as error:
        tell(str(error))
        return 2
    if options.readme not in new:
        tell(f"{options.readme} is left as it is: it shows a complete run of full size")
    for page, text in new.items():
        page.write_text(text, encoding="utf-8")
        tell(f"{page}: tables are {'new' if text != old[page] else 'as they were'}")
    if bench is not None:
        if find_spec("matplotlib") is None:
            tell("plots need matplotlib, which is not installed; pip install matplotlib")
            return 0
        for path in plots(bench, options.page.parent / "figures"):
            tell(str(path))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--bench", type=Path, default=HERE / "results" / "bench.json", metavar="FILE")
    parser.add_argument("--targets", type=Path, default=HERE / "results" / "targets.json", metavar="FILE")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md", metavar="FILE")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
