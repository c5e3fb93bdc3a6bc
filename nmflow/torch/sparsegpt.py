"""SparseGPT, with masks that may be transposable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from nmflow.asked import check_flags
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import check_method
from nmflow.torch.by_name import Counts, check_names, patterns_of
from nmflow.torch.damping import checked_damping
from nmflow.torch.feed import Forward
from nmflow.torch.obs_pass import Pruned, obs_pass
from nmflow.torch.post import Data, run
from nmflow.torch.post_layer import Job, Options, fit_again
from nmflow.torch.post_report import PostReport
from nmflow.torch.select import Filter
from nmflow.torch.watch import OnStep

__all__ = ["sparsegpt_"]


def sparsegpt_(
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
    refit: bool = False,
    sequential: bool = True,
    follow: str = "own",
    absorb_mean: bool = False,
    forward: Forward | None = None,
    resume: Any = None,
    progress: OnStep | bool | None = None,
    threads: int | None = None,
) -> PostReport:
    """Prune a model in place by SparseGPT, column group by column group.

    Each group's mask is the best one for w² / [H⁻¹]_jj, both ways if the pattern is transposable; then the columns to
    its right make up for what it lost, as in Frantar and Alistarh 2023.

    Parameters
    ----------
    model, data, n, m, pattern, include, exclude, filter_fn, solver, fill, keep_zeros, damping, sequential, forward
        As for `adaprune_`.
    refit : bool
        In the end fit the kept weights anew, to the left too, under the mask that was found: as `adaprune_` does.
    follow : {"own", "dense"}
        As for `adaprune_`; "own" is what SparseGPT does.
    absorb_mean : bool
        As for `adaprune_`; SparseGPT does not.
    resume, progress, threads
        As for `adaprune_`.

    Returns
    -------
    PostReport

    Raises
    ------
    InputValueError, NonFiniteError
        As `adaprune_`.

    Notes
    -----
    R K² + K³ operations for a layer of R x K, and K / m solves of R x m.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(16, 16)
    >>> report = sparsegpt_(layer, [torch.randn(64, 16)], 2, 4)
    >>> report.proven, int((layer.weight != 0).sum())
    (True, 128)
    """
    check_flags(refit=refit)
    check_method(solver, threads)
    damping = checked_damping(damping)
    check_names(model, n, "n")

    def treat(job: Job) -> list[Pruned]:
        found = [
            obs_pass(weights, hessian, job.pattern, drop, solver=solver, threads=threads)
            for weights, hessian, drop in job.groups()
        ]
        return fit_again(job, found) if refit else found

    options = Options(
        include, exclude, filter_fn, damping, sequential, follow, absorb_mean, keep_zeros, forward, resume, progress
    )
    key = {"solver": str(solver), "refit": refit}
    return run(model, data, "sparsegpt", str(solver), patterns_of(n, m, pattern, fill), treat, options, key)
