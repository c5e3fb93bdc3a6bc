"""From a model that has zeros already, wherever from, to N:M masks; and the n that suits each layer's zeros."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from nmflow.arrays import Array
from nmflow.asked import amount, check_flags
from nmflow.errors import InputValueError
from nmflow.given import as_mask
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import solve
from nmflow.torch.by_name import Counts, Scores, check_names, check_values, given_for, patterns_of
from nmflow.torch.by_name import scores_of as given_scores
from nmflow.torch.convert import to_array, to_mask
from nmflow.torch.moments import matrices
from nmflow.torch.prune import layer_report, naming
from nmflow.torch.report import LayerReport, PruneReport
from nmflow.torch.select import Filter, Layer, select, unwrapped
from nmflow.torch.wholly import write_zeros

__all__ = ["Zeros", "choose_n", "from_unstructured_"]

Zeros: TypeAlias = Mapping[str, torch.Tensor] | Callable[[str, nn.Module], torch.Tensor | None]
"""Which entries count as zero: boolean tensors by parameter name, or (parameter name, module) -> tensor or None."""


def from_unstructured_(
    model: nn.Module,
    n: Counts = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    zeros: Zeros | None = None,
    scores: Scores | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    solver: str | Any = "dual",
    fill: Fill = "at-most",
    threads: int | None = None,
) -> PruneReport:
    """Turn the zeros of a model into an N:M pattern in place: what is zero stays zero, and as little as possible joins.

    Parameters
    ----------
    model : Module
        On any device; modified.
    n : int or mapping of parameter names to int
        Keep n of m; see `choose_n`. A layer that a mapping does not name, or with n = m, only gets its `zeros`.
    m : int
        Instead of n and m: ``pattern="8:16"`` or a Pattern, which has a fill of its own.
    zeros : mapping from parameter names to tensors of bool, or callable (parameter name, module) -> tensor or None
        Entries that count as zero, and become zero: below a learned threshold, say. Default: those that are.
    scores, include, exclude, filter_fn, solver, threads
        As for `prune_`.
    fill : {"at-most", "exact"}
        At most n in each line, and no zero is in the mask: always feasible, and all that hardware asks. Or exactly n:
        where a line has fewer others its mask is filled up with zeros, which are worth nothing and stay zero.

    Returns
    -------
    PruneReport
        Scores are those of entries that are not zero: ``kept_percent`` is what the pattern left of them.

    Raises
    ------
    InputValueError, InputTypeError, NonFiniteError
        As `prune_`, or if `zeros` do not fit. The model is then as it was (after an interrupt, or pruned whole).

    Notes
    -----
    To refit what stays to the outputs of the model as it was, prune with
    ``adaprune_(..., keep_zeros=True, fill="at-most", follow="own")`` instead: same masks, by the same scores. (With
    ``follow="dense"`` scores are of weights that make up for earlier layers.)

    Examples
    --------
    >>> layer = nn.Linear(4, 4, dtype=torch.float64)
    >>> _ = nn.init.eye_(layer.weight)
    >>> from_unstructured_(layer, 2, 4).layers[0].kept
    4.0
    """
    started = time.perf_counter()
    inner = unwrapped(model)
    blocks, pattern_of = patterns_of(n, m, pattern, fill)
    selection = select(inner, blocks, include=include, exclude=exclude, filter_fn=filter_fn)
    check_names(inner, n, "n")
    for argument, values in (("zeros", zeros), ("scores", scores)):
        check_values(inner, values, argument)
    gone: list[Array] = []
    reports: list[LayerReport] = []
    skipped, used = list(selection.skipped), str(solver)
    for layer in selection.layers:
        weight, chosen = to_array(layer.parameters[0], layer.name), pattern_of(layer)
        empty = _zeros(layer, zeros)
        if chosen is None:
            skipped.append((layer.name, "only its zeros: not in n, or n = m"))
            gone.append(empty)
            continue
        given = given_scores(layer, scores)
        worth = np.where(empty, 0, np.abs(weight.astype(np.float64)) if given is None else given)
        begun = time.perf_counter()
        with naming(layer.name):
            solution = solve(
                weight, pattern=chosen, scores=worth, drop=None if chosen.row_exact or chosen.col_exact else empty,
                solver=solver, layout=layer.layout, groups=layer.groups, threads=threads, certify=True,
            )  # fmt: skip
        assert solution.certificate is not None
        gone.append(empty | ~solution.mask)
        seconds, certificate = time.perf_counter() - begun, solution.certificate
        reports.append(layer_report(layer, layer.parameters[0], worth, ~gone[-1], certificate, seconds, absolute=False))
        used = solution.solver
    dropped = [to_mask(each, layer.parameters[0].device) for layer, each in zip(selection.layers, gone, strict=True)]
    write_zeros((layer.parameters[0] for layer in selection.layers), dropped)
    patterns = sorted({str(found) for layer in selection.layers if (found := pattern_of(layer)) is not None})
    return PruneReport(", ".join(patterns), used, tuple(reports), tuple(skipped), time.perf_counter() - started)


class _Chosen(dict[str, int]):
    """n by parameter name; and what for, as an `Allocation` has it."""

    def __init__(self, n: dict[str, int], m: int, transposable: bool) -> None:
        super().__init__(n)
        self.m = m
        self.transposable = transposable


def choose_n(
    model: nn.Module,
    m: int,
    confidence: float = 0.95,
    *,
    measured: bool = False,
    transposable: bool = True,
    zeros: Zeros | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
) -> dict[str, int]:
    """Choose for each layer the least n whose pattern its zeros are likely to keep to.

    Parameters
    ----------
    model : Module
        Not modified.
    m : int
        Group length.
    confidence : float
        Share of groups of m that shall have no more than n entries, above 0 and at most 1.
    measured : bool
        Count groups, instead of taking zeros as independent of each other: right where whole filters are gone.
    transposable : bool
        Whether masks are to keep n of m along columns too, whose groups are counted then where they are; so they will
        where the result is given as `n`.
    zeros, include, exclude, filter_fn
        As for `from_unstructured_`.

    Returns
    -------
    dict
        n by parameter name, between 1 and m, for `from_unstructured_`, `alps_`, `adaprune_` and `sparsegpt_`.

    Raises
    ------
    InputValueError
        If confidence is out of range, or no layer is eligible.

    Notes
    -----
    Hubara et al. 2021, "Accelerated Sparse Neural Training", Section 5: if a share ρ of a layer is zero, each entry
    with the same chance, a group has at least m − n zeros with probability Σ_{k ≤ n} C(m, k) (1 − ρ)^k ρ^(m−k). (There
    N counts zeros; here n counts what is kept.)

    Examples
    --------
    >>> layer = nn.Linear(64, 64)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.arange(64) % 2)
    >>> choose_n(layer, 8), choose_n(layer, 8, measured=True, transposable=False), choose_n(layer, 8, measured=True)
    ({'weight': 6}, {'weight': 4}, {'weight': 8})
    """
    check_flags(measured=measured)
    if not 0 < amount(confidence, "confidence") <= 1:
        raise InputValueError(f"confidence must be above 0 and at most 1, not {confidence}; 0.95 is usual")
    inner = unwrapped(model)
    blocks = Pattern(1, m, transposable=transposable)
    selection = select(inner, blocks, include=include, exclude=exclude, filter_fn=filter_fn)
    check_values(inner, zeros, "zeros")
    found = {}
    for layer in selection.layers:
        filled = ~_zeros(layer, zeros)
        share = _measured(layer, filled, m, transposable) if measured else _expected(float(filled.mean()), m)
        # float sums of a distribution may end just below one
        found[layer.name] = next((n for n in range(1, m) if share[n] >= confidence - 1e-12), m)
    return _Chosen(found, blocks.m, blocks.transposable)


def _expected(density: float, m: int) -> list[float]:
    """Chance that a group has at most k entries, for k = 0..m."""
    terms = [math.comb(m, k) * density**k * (1 - density) ** (m - k) for k in range(m + 1)]
    return [math.fsum(terms[: k + 1]) for k in range(m + 1)]


def _measured(layer: Layer, filled: Array, m: int, transposable: bool) -> list[float]:
    """Share of groups with at most k entries, for k = 0..m; a group at the edge may be shorter."""
    tensor = torch.from_numpy(np.ascontiguousarray(filled))
    matrix = tensor.reshape(-1, *filled.shape[-2:]) if layer.layout == "batch" else matrices(layer, tensor)
    counts = torch.zeros(m + 1, dtype=torch.int64, device="cpu")
    for each in (matrix, matrix.mT) if transposable else (matrix,):
        padded = nn.functional.pad(each.to(torch.int64), (0, -each.shape[-1] % m))
        counts += padded.reshape(*padded.shape[:-1], -1, m).sum(-1).reshape(-1).bincount(minlength=m + 1)
    total = int(counts.sum())
    return [int(count) / total for count in counts.cumsum(0)]


def _zeros(layer: Layer, zeros: Zeros | None) -> Array:
    """Entries of a layer that count as zero, under any of its names."""
    parameter = layer.parameters[0]
    weight = to_array(parameter, layer.name)
    empty: Array = weight == 0
    name, found = given_for(layer, zeros)
    if found is None:
        return empty
    name = f"zeros of {name}"
    return empty | as_mask(to_array(found, name), weight.shape, name)
