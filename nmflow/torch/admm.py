"""Masks by the alternating direction method of multipliers: what is kept is chosen and fitted in turn (ALPS)."""

from __future__ import annotations

from typing import Any

import torch

from nmflow.arrays import Array
from nmflow.pattern import Pattern
from nmflow.torch.conjugate import in_units
from nmflow.torch.obs_pass import Pruned, solve_mask
from nmflow.torch.refit import output_error

__all__ = ["admm"]

PENALTY = 0.1
"""What the penalty begins with; the diagonal of H is one."""
EVERY, STEPS = 3, 300
"""Steps between two looks at how much the mask still changes, and the most that are made."""
GROWTH = ((0.1, 1.2), (0.005, 1.1), (0.0, 1.05))
"""What the penalty grows by where more than such a share of what is kept has changed. (With the authors' 1.3, 1.2 and
1.1 there are a quarter fewer steps, and errors of a sentence model's layers are about 1% larger.)"""


def admm(
    weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, drop: Array | None = None, **options: Any
) -> Pruned:
    """Look for the mask under which tr((W' - W) H (W' - W)ᵀ) can be made least.

    From the best mask for w² H_jj on, weights X without a mask are drawn to weights D under one, harder and harder,
    until the mask of D stays. D is in each step as near as can be to X plus what is owed: its mask is the best one for
    the squares of that.

    Parameters
    ----------
    weights : Tensor of float64, shape (R, K)
        W; not modified.
    hessian : Tensor of float64, shape (K, K)
        Positive definite.
    pattern : Pattern
    drop : ndarray of bool, shape (R, K), optional
    **options
        As for `nmflow.solve`: solver, threads.

    Returns
    -------
    Pruned
        Its sums are those of the last step, or of the first if that left less error, as where inputs do not depend on
        each other; its weights are a start for `refit`.

    Notes
    -----
    Meng et al. 2024, "ALPS", Algorithm 1, in coordinates where the diagonal of H is one; with transposable masks as in
    Meng et al. 2025, "TSENOR". No mask is known to be the best of all: the problem is hard. 2 R K² operations and one
    solve a step, mostly 30 to 60 of them, and K³ / 3 every third, all in float32.
    """
    scale, unit = in_units(hessian)
    largest = (weights * scale).abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    wanted = (weights * scale / largest).float()
    pulled = ((weights / largest) @ hessian / scale).float()
    first = solve_mask(wanted, wanted.square(), pattern, drop, **options)
    found, owed, penalty, before = first, PENALTY * (wanted - first.weights), PENALTY, first.mask
    for step in range(1, STEPS + 1):
        if step % EVERY == 1:
            lower, penalty = _factor(unit, penalty)
        free = torch.cholesky_solve((pulled - owed + penalty * found.weights).T, lower).T
        near = free + owed / penalty
        found = solve_mask(near, near.square(), pattern, drop, **options)
        owed += penalty * (free - found.weights)
        if step % EVERY == 0:
            changed, before = int((found.mask ^ before).sum()) / max(1, int(before.sum())), found.mask
            if not changed:
                break
            penalty *= next(growth for share, growth in GROWTH if changed > share)
    best = min((found, first), key=lambda one: output_error(one.weights - wanted, unit))
    best.weights = best.weights.to(weights) * largest / scale
    return best


def _factor(unit: torch.Tensor, penalty: float) -> tuple[torch.Tensor, float]:
    """The Cholesky factor of H plus a penalty, or a larger one where rounding leaves that indefinite."""
    while True:
        system = unit.clone()
        system.diagonal().add_(penalty)
        lower, info = torch.linalg.cholesky_ex(system)
        if not info:
            return lower, penalty
        penalty *= 2
