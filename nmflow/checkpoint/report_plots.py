"""The plots of a report as SVG. Weights are numbered in them; no text from a file is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from nmflow.checkpoint.report import percent
from nmflow.errors import MissingLibraryError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nmflow.checkpoint.report import TensorReport
    from nmflow.checkpoint.report_mask import MaskPicture

__all__ = ["check_library", "plot_block", "plot_counts", "plot_kept", "plot_layer", "plot_proof", "plot_seconds"]

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"
"""Told apart by most colour-blind readers (Okabe and Ito 2008)."""

STYLE: Any = {"svg.hashsalt": "nmflow", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
POINTS = 2000
"""Points beyond which a plot is drawn as pixels, so that the page stays small."""
SMALL_BLOCK = 16
"""Longest side of a block whose weights are written into it."""


def check_library() -> None:
    """Raise MissingLibraryError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingLibraryError('a report with plots needs matplotlib; pip install "nmflow[plot]"')


def plot_kept(tensors: Sequence[TensorReport]) -> str:
    """Kept score of each weight in percent of the dense one, and what the best rows-only mask would keep."""
    kept = [tensor.kept_percent for tensor in tensors]
    by_rows = [percent(tensor.rows_only, tensor.dense) for tensor in tensors]

    def draw(axes: Axes) -> None:
        axes.axhline(100.0, color=GREY, label="dense")
        _dots(axes, by_rows, ORANGE, "best by rows only")
        _dots(axes, kept, BLUE, "kept")
        axes.set_ylabel("score, % of dense")

    return _by_number(draw, len(tensors))


def plot_proof(tensors: Sequence[TensorReport]) -> str:
    """Share of blocks that are proven, and the gap in percent of the kept score."""
    proven = [percent(tensor.n_proven, tensor.n_blocks) for tensor in tensors]
    gaps = [np.nan if tensor.gap_percent is None else tensor.gap_percent for tensor in tensors]

    def draw(axes: Axes) -> None:
        _dots(axes, proven, BLUE, "blocks proven")
        axes.set_ylabel("blocks proven, %")
        axes.set_ylim(-5, 105)
        if np.isfinite(gaps).any():
            right = axes.twinx()
            _dots(right, gaps, ORANGE, "gap", marker="x")
            top = 1.05 * float(np.nanmax(gaps)) or 1.05
            right.set_ylim(-top * 5 / 105, top)  # 0 lies where it does on the left: on the edge, half a mark is cut
            right.set_ylabel("gap, % of kept")
            right.grid(False)

    return _by_number(draw, len(tensors))


def plot_seconds(tensors: Sequence[TensorReport]) -> str:
    """Seconds of each weight."""

    def draw(axes: Axes) -> None:
        seconds = [tensor.seconds for tensor in tensors]
        # Lines and not bars, of which thousands take minutes.
        axes.vlines(_numbers(tensors), 0.0, seconds, color=BLUE, linewidth=min(max(1.0, 150 / len(tensors)), 30.0))
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0.0)
        _pixels(axes, len(tensors))

    return _by_number(draw, len(tensors))


def plot_counts(both_ways: Sequence[float], by_rows: Sequence[float] | None) -> str:
    """Digits of the number of masks of each weight."""

    def draw(axes: Axes) -> None:
        if by_rows is not None:
            _dots(axes, by_rows, ORANGE, "by rows only")
        _dots(axes, both_ways, BLUE, "at this pattern")
        axes.set_ylabel("decimal digits of the number of masks")
        axes.set_ylim(bottom=0.0)

    return _by_number(draw, len(both_ways))


def plot_block(picture: MaskPicture) -> str:
    """Magnitudes of one block; what is dropped is crossed out."""
    rows, cols = picture.kept.shape

    def draw(figure: Figure, axes: Axes) -> None:
        image = axes.imshow(_finite(picture.magnitude), cmap="Blues", vmin=0.0, aspect="equal")
        figure.colorbar(image, label="magnitude", shrink=0.8)
        bright = np.nanmax(_finite(picture.magnitude), initial=0.0) * 0.6
        for i, j in zip(*np.nonzero(~picture.kept), strict=True):
            axes.plot([j - 0.4, j + 0.4], [i - 0.4, i + 0.4], color=ORANGE, linewidth=1.2, alpha=0.6)
            axes.plot([j - 0.4, j + 0.4], [i + 0.4, i - 0.4], color=ORANGE, linewidth=1.2, alpha=0.6)
        if max(rows, cols) <= SMALL_BLOCK // 2 and picture.from_source:
            for (i, j), value in np.ndenumerate(picture.magnitude):
                axes.text(j, i, f"{value:.2g}", ha="center", va="center", color="w" if value > bright else "k")
        axes.set_xticks(_ticks(cols), [str(picture.corner[1] + k) for k in _ticks(cols)])
        axes.set_yticks(_ticks(rows), [str(picture.corner[0] + k) for k in _ticks(rows)])
        axes.set_xlabel("column")
        axes.set_ylabel("row")
        axes.grid(False)

    return _draw(draw, 4.2)


def plot_layer(picture: MaskPicture) -> str:
    """The grid of a whole layer."""
    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure, axes: Axes) -> None:
        (height, width), (rows, cols) = picture.cell, picture.grid.shape
        image = axes.imshow(
            _finite(picture.grid), cmap="viridis", aspect="auto", extent=(0, cols * width, rows * height, 0)
        )
        figure.colorbar(image, label="share of score kept" if picture.from_source else "kept score, largest = 1")
        axes.plot(
            picture.corner[1] + picture.kept.shape[1] / 2, picture.corner[0] + picture.kept.shape[0] / 2, "s",
            markerfacecolor="none", markeredgecolor=ORANGE, markersize=9, markeredgewidth=2, clip_on=False,
        )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.set_xlabel("column")
        axes.set_ylabel("row")
        axes.grid(False)

    return _draw(draw, 4.2)


def _by_number(draw: Callable[[Axes], None], count: int) -> str:
    """A plot over the numbers of the weights, with a legend above."""
    from matplotlib.ticker import MaxNLocator

    def whole(figure: Figure, axes: Axes) -> None:
        draw(axes)
        axes.set_xlabel("number of the weight, as in the table")
        axes.set_xlim(0.4, count + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if any(each.get_legend_handles_labels()[0] for each in figure.axes):
            figure.legend(loc="outside upper center", ncols=3, frameon=False)

    return _draw(whole, 3.2)


def _draw(draw: Callable[[Figure, Axes], None], height: float) -> str:
    """Draw on a figure of its own, which no other thread and no setting of the caller touches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(5.2, height), layout="constrained", dpi=150)
        FigureCanvasSVG(figure)
        draw(figure, figure.add_subplot())
        out = io.StringIO()
        # The same report gives the same bytes.
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _dots(axes: Axes, values: Sequence[float], color: str, label: str, marker: str = "o") -> None:
    axes.plot(_numbers(values), values, marker, color=color, label=label, markersize=4 if len(values) < 200 else 2)
    _pixels(axes, len(values))


def _pixels(axes: Axes, count: int) -> None:
    if count > POINTS:
        for artist in (*axes.lines, *axes.collections):
            artist.set_rasterized(True)


def _numbers(values: Sequence[Any]) -> range:
    return range(1, len(values) + 1)


def _finite(values: Any) -> Any:
    # Axes cannot end close to the end of float64.
    return np.where(np.abs(values) < 1e300, values, np.nan)


def _ticks(length: int) -> range:
    return range(0, length, max(1, length // 8))
