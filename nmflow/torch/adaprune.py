"""Masks by a score, then the kept weights refitted to what their layer saw (AdaPrune)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from nmflow.asked import check_choice
from nmflow.errors import InputTypeError, InputValueError
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import check_method
from nmflow.torch.by_name import Counts, Scores, check_names, given_for, patterns_of
from nmflow.torch.damping import checked_damping
from nmflow.torch.feed import Forward
from nmflow.torch.moments import matrices
from nmflow.torch.obs_pass import Pruned, solve_mask
from nmflow.torch.post import Data, run
from nmflow.torch.post_layer import Job, Options, fit_again
from nmflow.torch.post_report import PostReport
from nmflow.torch.refit import METHODS
from nmflow.torch.scores import score_named
from nmflow.torch.select import Filter, Layer
from nmflow.torch.watch import OnStep

__all__ = ["adaprune_"]


def adaprune_(
    model: nn.Module,
    data: Data,
    n: Counts = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    scores: str | Scores = "magnitude",
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    solver: str | Any = "dual",
    fill: Fill = "exact",
    keep_zeros: bool = False,
    damping: float | None = None,
    solve: str = "auto",
    sequential: bool = True,
    follow: str = "dense",
    absorb_mean: bool = True,
    forward: Forward | None = None,
    resume: Any = None,
    progress: OnStep | bool | None = None,
    threads: int | None = None,
) -> PostReport:
    """Prune a model in place, and refit the weights that stay to the outputs of each layer.

    For each layer: min ‖W X − (M ⊙ W′) X‖² over W′, where M is the best mask for the scores.

    Parameters
    ----------
    model : Module
        On any device; modified.
    data : iterable of batches, or Calibration
        Batches as for `calibrate`. A calibration holds what layers of the dense model saw: with it,
        ``sequential=False``.
    n : int or mapping of parameter names to int
        Keep n of m. A layer that a mapping does not name, or with n = m, stays dense; see `choose_n` and `allocate`.
    m : int
        Instead of n and m: ``pattern="2:4"`` or a Pattern.
    scores : str, or as in `prune_`
        "magnitude", "wanda", "obs" (`nmflow.torch.scores`), a mapping from parameter names to tensors, or a callable
        (parameter name, module) -> tensor or None (then its magnitude). Those with a name are of the weights that are
        fitted: in a sequential run with ``follow="dense"``, W moved so that it makes up for earlier errors. The masks
        of `prune_` need ``follow="own"`` or ``sequential=False``.
    include, exclude, filter_fn
        Which layers, as in `prune_`.
    solver, fill, threads
        As for `nmflow.solve`.
    keep_zeros : bool
        Entries that are zero stay zero; with ``fill="at-most"`` that is always possible.
    damping : float, optional
        Pulls W′ to W where samples say little: this share of its diagonal is added to that of XᵀX, and a tenth of it
        of the mean diagonal. By default each layer's own, from 0.003 to 1: what it would do best with on other samples
        of the kind, as generalised cross-validation finds, or the most that is next to as good.
    solve : {"auto", "cholesky", "cg", "adam"}
        Closed form for each row, conjugate gradients, or descent; "auto" takes the faster of the first two.
    sequential : bool
        Later layers see what the pruned ones before them give. Each batch waits in a thread of its own, and all
        activations at one layer are alive together: give few, large batches. False: all see the dense model.
    follow : {"dense", "own"}
        In a sequential run, fit to what the dense model's layer gave, which makes up for earlier errors too and takes
        a second copy of the model; or to what the layer itself would give for the inputs it gets now.
    absorb_mean : bool
        A bias, where no other module holds it, takes up the change of the mean output; weights are then fitted to the
        rest.
    forward : callable (model, batch), optional
        As for `calibrate`.
    resume : path, optional
        A folder for finished layers. A run of the same model with the same data, options and scores goes on from there;
        it is emptied at the end.
    progress : callable (name, done, total) or bool, optional

    Returns
    -------
    PostReport
        Prints as a table, with the relative error of each layer before and after refitting.

    Raises
    ------
    InputValueError, NonFiniteError
        As `prune_` and `calibrate`. The model is then as it was.

    Notes
    -----
    Hubara et al. 2021, "Accelerated Sparse Neural Training", Section 5, refit with Adam, and absorb means. The closed
    form takes R (K n/m)³ / 3 operations for a layer of R x K, with 8 MB of workspace, or that of one row. Conjugate
    gradients, as a rule, take 40 to 100 steps of 2 R K².

    Examples
    --------
    >>> layer = nn.Linear(16, 16)
    >>> report = adaprune_(layer, [torch.randn(64, 16)], 2, 4)
    >>> report.layers[0].error < report.layers[0].masked_error
    True
    """
    check_choice(solve, METHODS, "solve")
    check_method(solver, threads)
    damping = checked_damping(damping)
    if isinstance(scores, str):
        score_named(scores)
    elif not (isinstance(scores, Mapping) or callable(scores)):
        raise InputTypeError(f"scores must be a name, a mapping or a callable, not {type(scores).__name__}")
    check_names(model, n, "n")
    check_names(model, scores, "scores")

    def treat(job: Job) -> list[Pruned]:
        values = _values(job, scores)
        found = [
            solve_mask(weights, score, job.pattern, drop, solver=solver, threads=threads)
            for (weights, _, drop), score in zip(job.groups(), values, strict=True)
        ]
        return fit_again(job, found, solve)

    options = Options(
        include, exclude, filter_fn, damping, sequential, follow, absorb_mean, keep_zeros, forward, resume, progress
    )
    key = {"scores": scores if isinstance(scores, str) else "given", "solver": str(solver), "solve": solve}
    given = None if isinstance(scores, str) else partial(_given, scores=scores)
    return run(model, data, "adaprune", str(solver), patterns_of(n, m, pattern, fill), treat, options, key, given)


def _values(job: Job, scores: str | Scores) -> torch.Tensor:
    """Scores of a layer, shape (groups, R, K)."""
    if isinstance(scores, str):
        return score_named(scores)(job.weights, job.moments, job.damping)
    found = _given(job.layer, scores)
    if found is None:
        return job.weights.abs()
    if found.shape != job.layer.parameters[0].shape:
        raise InputValueError(
            f"scores must have the shape {tuple(job.layer.parameters[0].shape)} of the weight, not {tuple(found.shape)}"
        )
    return matrices(job.layer, found.detach()).to(job.weights)


def _given(layer: Layer, scores: Scores) -> torch.Tensor | None:
    """What a mapping or a callable has for a layer, under any of its names."""
    _, given = given_for(layer, scores)
    if not isinstance(given, torch.Tensor | None):
        raise InputTypeError(f"scores of {layer.name} must be a tensor, not {type(given).__name__}")
    return given
