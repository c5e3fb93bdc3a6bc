"""How many of m each layer keeps, so that a model keeps a given share of its weights at the least score lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from nmflow.arrays import Array
from nmflow.asked import amount
from nmflow.errors import InputValueError, MissingLibraryError, NmflowError, SolverLimitError
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.torch.by_name import Scores, check_values
from nmflow.torch.by_name import scores_of as given_scores
from nmflow.torch.convert import to_array
from nmflow.torch.prune import named_error
from nmflow.torch.select import Filter, Layer, select, unwrapped
from nmflow.torch.watch import OnStep, watching

__all__ = ["Allocation", "allocate"]

UNITS = 1 << 52
"""Losses are whole numbers for the knapsack; all of them together are this many, well within 64 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation(Mapping[str, int]):
    """n by parameter name, as a mapping; and what it keeps.

    Attributes
    ----------
    n : mapping of str to int
    m : int
    density : float
        Share of the weights that is kept, with lines at ragged edges counted as if they were whole.
    lost, total : float
        Score lost, and score of all.
    uniform : float
        Score lost by the best single n for all layers within the same density.
    transposable : bool
        Whether masks are to keep n of m along columns too; so they will where it is given as `n`.
    """

    n: Mapping[str, int]
    m: int
    density: float
    lost: float
    total: float
    uniform: float
    transposable: bool = True

    def __getitem__(self, name: str) -> int:
        return self.n[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.n)

    def __len__(self) -> int:
        return len(self.n)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n}:{self.m} x {list(self.n.values()).count(n)}" for n in sorted(set(self.n.values())))
        lost, uniform = (100 * value / self.total if self.total else 0.0 for value in (self.lost, self.uniform))
        return f"<Allocation {counts}; density {self.density:.4f}, {lost:.3f}% lost ({uniform:.3f}% by one n for all)>"


def allocate(
    model: nn.Module,
    m: int,
    density: float,
    *,
    scores: Scores | None = None,
    transposable: bool = True,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    solver: str | Any = "dual",
    threads: int | None = None,
    progress: OnStep | bool | None = None,
) -> Allocation:
    """Choose n for each layer so that the score lost is least, and no more than a share of all weights is kept.

    Each layer is solved for every n from 1 to m − 1; n = m keeps all. Then one n a layer is chosen by a knapsack:
    min Σ lost_l(n_l) with Σ size_l n_l / m ≤ density Σ size_l.

    Parameters
    ----------
    model : Module
        Not modified.
    m : int
    density : float
        At least 1/m, at most 1.
    scores : as in `prune_`, optional
        Scores of different layers are added up, so they must be comparable, and of all layers or of none:
        ``calibration.scores("obs")`` is a squared error of each layer's output. Not negative.
    transposable, include, exclude, filter_fn, solver, threads
        As for `prune_` and `nmflow.solve`.
    progress : callable (name, done, total) or bool, optional

    Returns
    -------
    Allocation
        A mapping from parameter names to n, for `alps_`, `adaprune_`, `sparsegpt_` and `from_unstructured_`.

    Raises
    ------
    InputValueError
        If density is out of range, scores are negative or of some layers only, or no layer is eligible.
    MissingLibraryError
        If OR-Tools is not installed.
    SolverLimitError
        If OR-Tools does not prove its choice.

    Notes
    -----
    m − 1 solves of each layer. The knapsack is solved by CP-SAT to proven optimality, over losses rounded to
    2^-52 of what one of m would lose.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> _ = nn.init.constant_(model[0].weight, 2.0), nn.init.constant_(model[1].weight, 1.0)
    >>> dict(allocate(model, 4, 0.5))
    {'0.weight': 3, '1.weight': 1}
    """
    inner = unwrapped(model)
    size, density = Pattern(1, m).m, amount(density, "density")
    if not 1 / size <= density <= 1:
        raise InputValueError(f"density must be between 1/m = {1 / size:g} and 1, not {density}")
    check_values(inner, scores, "scores")
    blocks = Pattern(1, size, transposable=transposable)
    selection = select(inner, blocks, include=include, exclude=exclude, filter_fn=filter_fn)
    lost: list[list[float]] = []
    totals: list[float] = []
    scored: dict[bool, str] = {}
    with watching("allocating", progress) as report:
        for number, layer in enumerate(selection.layers):
            report(layer.name, number, len(selection.layers))
            given = given_scores(layer, scores)
            scored.setdefault(given is not None, layer.name)
            if len(scored) > 1:
                raise InputValueError(
                    f"scores must be of all layers or of none, not of {scored[True]} without {scored[False]}, since "
                    f"they are added up; give those too, or leave that layer out with exclude="
                )
            values = _values(layer, given)
            totals.append(float(values.sum()))
            options: dict[str, Any] = {
                "layout": layer.layout,
                "groups": layer.groups,
                "solver": solver,
                "threads": threads,
            }
            try:
                kept = [
                    solve(
                        values, pattern=Pattern(n, size, transposable=transposable), scores=values, **options
                    ).objective
                    for n in range(1, size)
                ]
            except NmflowError as error:
                raise named_error(error, layer.name) from None
            lost.append([max(0.0, totals[-1] - one) for one in kept] + [0.0])
        report("", len(selection.layers), len(selection.layers))
    sizes = [layer.parameters[0].numel() for layer in selection.layers]
    budget = math.floor(density * size * sum(sizes) + 1e-6)
    counts = _knapsack(lost, sizes, budget)
    return Allocation(
        {layer.name: n for layer, n in zip(selection.layers, counts, strict=True)}, size,
        sum(n * each for n, each in zip(counts, sizes, strict=True)) / (size * sum(sizes)),
        math.fsum(losses[n - 1] for losses, n in zip(lost, counts, strict=True)), math.fsum(totals),
        math.fsum(losses[budget // sum(sizes) - 1] for losses in lost), transposable,
    )  # fmt: skip


def _values(layer: Layer, given: Array | None) -> Array:
    """Scores of a layer in float64: what is given, or absolute values."""
    if given is None:
        return np.abs(to_array(layer.parameters[0], layer.name).astype(np.float64))
    values = given.astype(np.float64)
    if (values < 0).any():
        raise InputValueError(f"scores of {layer.name} must not be negative; what is lost would be less than nothing")
    return values


def _knapsack(lost: list[list[float]], sizes: list[int], budget: int) -> list[int]:
    """One n for each layer at the least loss, Σ sizes · n ≤ budget; losses[n − 1] is what n loses."""
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise MissingLibraryError(
            'allocate needs OR-Tools, which is not installed; pip install "nmflow[reference]"'
        ) from error
    whole = math.fsum(losses[0] for losses in lost) or 1.0
    model = cp_model.CpModel()
    cost, weight = [], []
    chosen = []
    for number, losses in enumerate(lost):
        taken = [model.new_bool_var(f"{number}:{n}") for n in range(1, len(losses) + 1)]
        model.add_exactly_one(taken)
        chosen.append(taken)
        cost += [round(UNITS * (loss / whole)) * each for loss, each in zip(losses, taken, strict=True)]
        weight += [sizes[number] * n * each for n, each in enumerate(taken, 1)]
    model.add(sum(weight) <= budget)
    model.minimize(sum(cost))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # so that ties are broken the same way each time
    solver.parameters.max_time_in_seconds = 300
    status = solver.solve(model)
    if status != cp_model.OPTIMAL:
        raise SolverLimitError(f"allocate must prove its choice, and OR-Tools says {solver.status_name(status)}")
    return [next(n for n, each in enumerate(taken, 1) if solver.value(each)) for taken in chosen]
