"""One page about a pruned checkpoint that needs nothing but itself: no script, no server, nothing from elsewhere."""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from nmflow.checkpoint import report_plots as plots
from nmflow.checkpoint.report import Report, TensorReport
from nmflow.checkpoint.report_card import model_card, pattern_in_words, proof_in_words
from nmflow.checkpoint.report_counts import mask_digits
from nmflow.checkpoint.report_file import pattern_of, read_record, report_path, run_of, write_text
from nmflow.checkpoint.report_mask import MaskPicture, picture_mask
from nmflow.checkpoint.report_page import PAGE, text_of
from nmflow.errors import CheckpointError, InputTypeError, InputValueError
from nmflow.pattern import Pattern

__all__ = ["html_page", "parse_block", "write_reports"]

ROWS = 5000
"""Longest table; of more weights those are listed that lose most."""


def write_reports(
    dst: str | os.PathLike[str],
    *,
    report: Report | None = None,
    source: str | os.PathLike[str] | None = None,
    tensor: str | None = None,
    block: tuple[int, ...] = (0, 0),
) -> tuple[Path, Path]:
    """Write the page and the section for a model card beside the report of a pruned checkpoint.

    Parameters
    ----------
    dst : path
        What `prune_checkpoint` wrote.
    report : Report, optional
        What it returned. Default: ``nmflow-report.json`` in the folder that it wrote.
    source : path, optional
        The checkpoint before pruning, for the picture of a mask. Default: where the report says it was. The picture
        does without it where it is not there or has changed.
    tensor : str, optional
        Which weight's mask is shown. Default: the largest.
    block : tuple of int
        Which block of it: block row and block column; before them the matrix, in a stack.

    Returns
    -------
    page, card : Path
        ``nmflow-report.html`` and ``nmflow-report.md`` in `dst`; beside it, with its name, if it is a file.

    Raises
    ------
    MissingLibraryError
        Without matplotlib.
    CheckpointError, SourceNotFoundError
        If the report or the checkpoint is not there, or does not fit the other; or if `source` was given and is not
        what it was pruned from.
    InputValueError
        If `tensor` or `block` is not in it.
    """
    plots.check_library()
    strict = source is not None
    if report is None:
        report, record = read_record(dst)
        with contextlib.suppress(CheckpointError):  # a report of before has the path only as it was given
            source = source if strict else run_of(dst, record)[0]
    if not isinstance(report, Report):
        raise InputTypeError(f"report must be a Report, not {report!r}; leave it out to read that of dst")
    chosen = _choose(report, tensor)
    origin = report.source if source is None else source
    picture = picture_mask(dst, chosen, pattern_of(report).block_shape, source=origin, strict=strict, block=block)
    page, card = report_path(dst, "html"), report_path(dst, "md")
    text = html_page(report, picture)
    write_text(Path(dst), card, model_card(report))
    write_text(Path(dst), page, text)
    return page, card


def parse_block(text: str) -> tuple[int, ...]:
    """Read "row,column" or "matrix,row,column".

    Raises
    ------
    InputValueError
        If it is neither.
    """
    if not re.fullmatch(r"\d{1,9}(,\d{1,9}){1,2}", text, re.ASCII):
        raise InputValueError(f"block must be a block row and a block column, for example 0,3, not {text!r}")
    return tuple(map(int, text.split(",")))


def _choose(report: Report, name: str | None) -> TensorReport:
    if not report.tensors:
        raise InputValueError(
            "report must have a pruned weight, and every weight was skipped; there is nothing to plot"
        )
    if name is None:
        return max(report.tensors, key=lambda each: each.n_blocks)
    named = {tensor.name: tensor for tensor in report.tensors}
    if isinstance(name, str) and name in named:
        return named[name]
    raise InputValueError(f"tensor must be a pruned weight, such as {report.tensors[0].name!r}, not {name!r}")


def html_page(report: Report, picture: MaskPicture) -> str:
    """The page as text.

    Notes
    -----
    Whatever comes from a file is escaped, and a policy in the page forbids scripts and anything from elsewhere.
    """
    pattern = pattern_of(report)
    title = f"{Path(report.destination).name} at {report.pattern}"
    parts = [
        f"<h1>{text_of(title)}</h1>",
        f"<p>{text_of(pattern_in_words(report))}. Pruned from <code>{text_of(report.source)}</code>.</p>",
        _facts(report),
        '<div class="plots">',
        *_figures(report, pattern, picture),
        "</div>",
        _table(report, mask_digits(pattern, report.tensors)),
        _left(report),
    ]
    return PAGE.format(title=text_of(title), body="\n".join(parts))


def _facts(report: Report) -> str:
    total = report.total
    facts = [
        (f"{total.kept_percent:.2f}%", "of the score is kept"),
        (f"{total.loss_percent:.2f}%", "lost against the best masks by rows only"),
        (f"{total.n_proven:,}", f"of {total.n_blocks:,} blocks proven"),
        (f"{len(report.tensors):,}", f"weight{'s' * (len(report.tensors) != 1)}, {total.shape[0]:,} entries"),
        (f"{report.seconds:,.1f} s", f"with solver {report.solver}"),
    ]
    cells = "".join(f"<div><dt>{text_of(value)}</dt><dd>{text_of(what)}</dd></div>" for value, what in facts)
    proof = proof_in_words(report)
    return f'<dl class="facts">{cells}</dl>\n<p>{text_of(proof[0].upper() + proof[1:])}.</p>'


def _figures(report: Report, pattern: Pattern, picture: MaskPicture) -> list[str]:
    tensors = report.tensors
    digits = mask_digits(pattern, tensors)
    by_rows = None
    if pattern.col is not None and digits is not None:
        by_rows = mask_digits(Pattern(pattern.n, pattern.m, transposable=False), tensors)
    name = picture.tensor if picture.matrix is None else f"{picture.tensor}, matrix {picture.matrix}"
    where = f"{name}: block {picture.block[0]},{picture.block[1]}"
    weights = "Weights before pruning" if picture.from_source else "Weights after pruning (those before are not there)"
    share = (
        "the share of its score that is kept"
        if picture.from_source
        else "the score that is kept, against the largest cell"
    )
    height, width = picture.cell
    figures = [
        _figure(
            plots.plot_kept(tensors),
            "Score kept",
            "Sum of magnitudes in percent of the dense weights. The distance between the two is what the columns cost.",
        ),
        _figure(plots.plot_block(picture), where, f"{weights}; what is dropped is crossed out."),
        _figure(
            plots.plot_layer(picture),
            f"{name}: the whole layer",
            f"Each cell is {height} × {width} entries and shows {share}. The square marks the block.",
        ),
        _figure(plots.plot_proof(tensors), "Proof", "What the best mask could keep more is at most the gap."),
        _figure(plots.plot_seconds(tensors), "Time", "Reading, solving, proving and writing each weight."),
    ]
    if digits is not None:
        text = "How many masks the whole blocks of each weight admit. Fewer to choose from is what the columns cost."
        figures.append(_figure(plots.plot_counts(digits, by_rows), "Number of masks", text))
    return figures


def _figure(svg: str, title: str, text: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><h2>{text_of(title)}</h2><img alt="{text_of(title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{text_of(text)}</figcaption></figure>"
    )


def _table(report: Report, digits: list[float] | None) -> str:
    counts: list[float] | list[None] = digits or [None] * len(report.tensors)
    numbered = list(enumerate(zip(report.tensors, counts, strict=True), 1))
    note = ""
    if len(numbered) > ROWS:
        numbered = sorted(numbered, key=lambda row: -row[1][0].loss_percent)[:ROWS]
        note = f"<p>The {ROWS:,} that lose most, of {len(report.tensors):,}; the JSON report has all.</p>"
    heads = ["", "weight", "shape", "dtype", "kept %", "loss against rows only %", "gap %", "blocks proven"]
    heads += ["digits of the number of masks", "seconds"]
    lines = [
        "<h2>Weights</h2>",
        note,
        '<div class="wide"><table><thead><tr>',
        "".join(f"<th>{head}</th>" for head in heads),
        "</tr></thead><tbody>",
    ]
    for number, (tensor, count) in numbered:
        cells = (
            str(number),
            f"<code>{text_of(tensor.name)}</code>",
            " × ".join(map(str, tensor.shape)),
            text_of(tensor.dtype),
            f"{tensor.kept_percent:.3f}",
            f"{tensor.loss_percent:.3f}",
            "–" if tensor.gap_percent is None else f"{tensor.gap_percent:.3g}",
            f"{tensor.n_proven:,} of {tensor.n_blocks:,}",
            "–" if count is None else f"{count:,.0f}",
            f"{tensor.seconds:.3f}",
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def _left(report: Report) -> str:
    reasons = Counter(reason for _, reason in report.skipped)
    items = [f"{count:,} × {reason}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))]
    if report.copied_files:
        items.append(f"{len(report.copied_files):,} files beside the weights")
    items += [f"{path} may hold weights too, and is not pruned" for path in report.unpruned_files]
    if not items:
        return ""
    return "<h2>Copied as it was</h2>\n<ul>" + "".join(f"<li>{text_of(item)}</li>" for item in items) + "</ul>"
