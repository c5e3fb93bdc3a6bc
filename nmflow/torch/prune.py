"""Prune a model in place, all of it or nothing; and the mask of one tensor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from nmflow.arrays import Array
from nmflow.errors import NmflowError, NonFiniteError
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import as_pattern, solve
from nmflow.solution import Certificate
from nmflow.torch.aside import aside
from nmflow.torch.by_name import Scores, check_values, scores_of
from nmflow.torch.convert import arrays, to_array, to_mask
from nmflow.torch.device import on_device, solve_on_device
from nmflow.torch.device.plain import magnitude
from nmflow.torch.report import LayerReport, PruneReport
from nmflow.torch.select import Filter, Layer, select, unwrapped
from nmflow.torch.wholly import write_zeros

__all__ = ["layer_report", "mask_for", "named_error", "naming", "prune_"]


@aside
def mask_for(
    tensor: torch.Tensor,
    n: int | None = None,
    m: int | None = None,
    *,
    scores: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Find the best N:M mask of one tensor.

    Parameters
    ----------
    tensor : Tensor, shape (R, C) or as ``layout=`` says
        float16, bfloat16, float32, float64 or integers, on any device; not modified.
    n, m : int
        Keep n of m. Instead: ``pattern="2:4"`` or a Pattern.
    scores : Tensor of the same shape, optional
        What an entry is worth. Default: absolute values.
    **options
        As for `nmflow.solve`: pattern, solver, fill, transposable, layout, groups, threads, keep, drop, previous, ...

    Returns
    -------
    Tensor of bool
        True = kept; shape and device of `tensor`. A CUDA tensor of 16 or 32 bits is solved on its device under exact
        fill and ``solver="dual"``; see `solve_on_device`.

    Examples
    --------
    >>> mask_for(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), 1, 2).tolist()
    [[True, False], [False, True]]
    """
    names = ("pattern", "row", "col", "fill", "transposable")
    chosen = as_pattern(n, m, **{"pattern": None} | {name: options[name] for name in names if name in options})
    others = {name: value for name, value in options.items() if name not in names}
    together = scores is None or (isinstance(scores, torch.Tensor) and scores.is_cuda)
    if together and on_device(tensor, chosen, **others):
        told = {name: others[name] for name in ("layout", "groups", "threads", "warm_start") if name in others}
        found: Any = solve_on_device(tensor, pattern=chosen, scores=scores, **told).mask
        return cast("torch.Tensor", found)
    array = to_array(tensor)
    values = None if scores is None else to_array(scores, "scores")
    return to_mask(solve(array, n, m, scores=values, **options).mask, tensor.device)


@aside
def prune_(
    model: nn.Module,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    scores: Scores | None = None,
    solver: str | Any = "dual",
    fill: Fill = "exact",
    strict: bool = False,
    threads: int | None = None,
) -> PruneReport:
    """Prune the Linear, Conv1d and Conv2d layers of a model in place, and the Conv1D of transformers.

    Pruned entries become +0 and kept ones keep their bits. Every mask is found before the first weight is changed, so
    after an error the model is as it was, and after an interrupt as it was or pruned whole.

    Parameters
    ----------
    model : Module
        On any device; modified.
    n, m : int
        Keep n of m. Instead: ``pattern="2:4"`` or a Pattern.
    include, exclude : iterable of str, optional
        Globs over names of parameters or modules; see `nmflow.torch.select.select`.
    filter_fn : callable (module name, module) -> bool or None, optional
        True takes a module of any type, False leaves it, None lets the other rules decide.
    scores : mapping from parameter names to tensors, or callable (parameter name, module) -> tensor or None, optional
        What an entry is worth; where there is none, its absolute value.
    solver, fill, threads
        As for `nmflow.solve`.
    strict : bool
        Refuse a layer that is not made of whole blocks, instead of padding its edges.

    Returns
    -------
    PruneReport
        Prints as a table.

    Raises
    ------
    InputValueError
        If no layer is eligible, a glob or a name in `scores` matches nothing, or a layer is ragged under `strict`.
    NonFiniteError
        If a score is NaN or infinite, or a weight that is given none; the parameter is named.

    Notes
    -----
    Convolutions are seen as out x (kernel . in), each group on its own. Depthwise convolutions and routers of experts
    are skipped unless they are named. A parameter that modules share is masked once and stays shared. Masks take a byte
    for each entry until all layers are solved.

    Examples
    --------
    >>> print(prune_(nn.Linear(4, 4, dtype=torch.float64), 2, 4).layers[0].n_proven)
    1
    """
    started = time.perf_counter()
    chosen = as_pattern(n, m, pattern, fill=fill)
    inner = unwrapped(model)
    selection = select(inner, chosen, include=include, exclude=exclude, filter_fn=filter_fn, strict=strict)
    check_values(inner, scores, "scores")
    values = [scores_of(layer, scores) for layer in selection.layers]
    masks: list[Any] = []
    reports, used = [], str(solver)
    here = [
        given is None and on_device(layer.parameters[0], chosen, solver=solver)
        for layer, given in zip(selection.layers, values, strict=True)
    ]
    travelling = arrays(
        (layer.name, layer.parameters[0]) for layer, stays in zip(selection.layers, here, strict=True) if not stays
    )
    for layer, given, stays in zip(selection.layers, values, here, strict=True):
        begun = time.perf_counter()
        array: Any = layer.parameters[0].detach() if stays else next(travelling)
        with naming(layer.name):
            solution = (
                solve_on_device(array, pattern=chosen, threads=threads, layout=layer.layout, groups=layer.groups)
                if stays
                else solve(
                    array, pattern=chosen, threads=threads, layout=layer.layout, groups=layer.groups,
                    scores=given, solver=solver, certify=True,
                )
            )  # fmt: skip
        assert solution.certificate is not None  # as it was asked for
        masks.append(solution.mask)
        seconds = time.perf_counter() - begun
        reports.append(
            layer_report(
                layer,
                layer.parameters[0],
                array if given is None else given,
                solution.mask,
                solution.certificate,
                seconds,
                absolute=given is None,
            )
        )
        used = solution.solver
    with torch.no_grad():
        dropped = [
            mask.logical_not_() if isinstance(mask, torch.Tensor) else to_mask(~mask, layer.parameters[0].device)
            for layer, mask in zip(selection.layers, masks, strict=True)
        ]
    write_zeros((layer.parameters[0] for layer in selection.layers), dropped)
    return PruneReport(str(chosen), used, tuple(reports), selection.skipped, time.perf_counter() - started)


def layer_report(
    layer: Layer,
    parameter: nn.Parameter,
    scores: Array | torch.Tensor,
    mask: Any,
    certificate: Certificate,
    seconds: float,
    *,
    absolute: bool,
) -> LayerReport:
    """Put together what is known of one layer; scores and mask are arrays, or tensors of absolute scores."""
    if isinstance(scores, torch.Tensor):
        dense = float(magnitude(scores))
        share = float(mask.sum()) / scores.numel()
    else:
        parts = (row.astype(np.float64) for row in scores)
        dense = sum(float((np.abs(part) if absolute else part).sum()) for part in parts)
        share = float(np.count_nonzero(mask)) / scores.size
    return LayerReport(
        layer.name, layer.also, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), layer.layout,
        dense, certificate.objective, certificate.gap, share,
        certificate.n_blocks, certificate.n_proven, seconds,
    )  # fmt: skip


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors of ours say first which parameter they are about."""
    try:
        yield
    except NmflowError as error:
        raise named_error(error, name) from None


def named_error(error: NmflowError, name: str) -> NmflowError:
    """The same error, which says first which parameter it is about."""
    text = f"{name}: {error}"
    if isinstance(error, NonFiniteError):
        return NonFiniteError(text, error.count, error.first)
    return type(error)(text)
