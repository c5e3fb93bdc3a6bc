"""ALPS, with masks that may be transposable: masks chosen together with the weights that stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import check_method
from nmflow.torch.admm import admm
from nmflow.torch.by_name import Counts, check_names, patterns_of
from nmflow.torch.damping import checked_damping
from nmflow.torch.feed import Forward
from nmflow.torch.obs_pass import Pruned
from nmflow.torch.post import Data, run
from nmflow.torch.post_layer import Job, Options, fit_again
from nmflow.torch.post_report import PostReport
from nmflow.torch.select import Filter
from nmflow.torch.watch import OnStep

__all__ = ["alps_"]


def alps_(
    model: nn.Module,
    data: Data,
    n: Counts = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    solver: str | Any = "dual",
    fill: Fill = "exact",
    keep_zeros: bool = False,
    damping: float | None = None,
    sequential: bool = True,
    follow: str = "dense",
    absorb_mean: bool = True,
    forward: Forward | None = None,
    resume: Any = None,
    progress: OnStep | bool | None = None,
    threads: int | None = None,
) -> PostReport:
    """Prune a model in place by ALPS: a layer's mask is looked for together with the weights that stay.

    The error ‖W X − (M ⊙ W′) X‖² is brought down over masks M and weights W′ by the alternating direction method of
    multipliers. Each of its steps takes the best mask for what the weights are by then, both ways if the pattern is
    transposable. In the end the weights that stay are refitted, as `adaprune_` does. Of the methods here it leaves the
    least error, though no method finds the least there is.

    Parameters
    ----------
    model, data, n, m, pattern, include, exclude, filter_fn, solver, fill, keep_zeros, damping
        As for `adaprune_`.
    sequential, follow, absorb_mean, forward, resume, progress, threads
        As for `adaprune_`.

    Returns
    -------
    PostReport
        Kept scores and proofs are those of a layer's last step.

    Raises
    ------
    InputValueError, NonFiniteError
        As `adaprune_`.

    Notes
    -----
    Meng et al. 2024, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models"; with
    transposable masks, though approximate ones, in Meng et al. 2025, "TSENOR". Some 30 to 60 steps for a layer of R x
    K, each of 2 R K² operations and one solve of the layer; then what `adaprune_` takes to refit.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(16, 16)
    >>> report = alps_(layer, [torch.randn(64, 16)], 2, 4)
    >>> report.proven, int((layer.weight != 0).sum())
    (True, 128)
    """
    check_method(solver, threads)
    damping = checked_damping(damping)
    check_names(model, n, "n")

    def treat(job: Job) -> list[Pruned]:
        found = [
            admm(weights, hessian, job.pattern, drop, solver=solver, threads=threads)
            for weights, hessian, drop in job.groups()
        ]
        return fit_again(job, found)

    options = Options(
        include, exclude, filter_fn, damping, sequential, follow, absorb_mean, keep_zeros, forward, resume, progress
    )
    return run(
        model, data, "alps", str(solver), patterns_of(n, m, pattern, fill), treat, options, {"solver": str(solver)}
    )
