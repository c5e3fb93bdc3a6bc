"""What a weight is worth, by what its layer sees: scores for which masks are then optimal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from nmflow.asked import amount
from nmflow.errors import InputValueError
from nmflow.torch.moments import Moments

__all__ = [
    "SCORES", "Score", "checked_damping", "damped", "magnitude", "obs", "score_named", "share_of", "wanda",
]  # fmt: skip

PER_ROW, MOST = 0.6, 0.3
"""The share of damping: so much for each input of a row, as what a fit takes from chance falls with the number of rows;
and the most."""
REST = 0.1
"""How much of it every input gets of the mean over all of them."""
ROUNDING = 2.0**-52
"""Of float64: what one operation may be wrong by, twice over."""
Score: TypeAlias = Callable[[torch.Tensor, Moments, float | None], torch.Tensor]
"""(weights of shape (groups, R, K), moments, damping) -> scores of that shape."""


def magnitude(weights: torch.Tensor, moments: Moments, damping: float | None) -> torch.Tensor:
    """|w|."""
    return weights.abs()


def wanda(weights: torch.Tensor, moments: Moments, damping: float | None) -> torch.Tensor:
    """|w| times the Euclidean norm of its input (Sun et al. 2024, "A Simple and Effective Pruning Approach for LLMs").

    The square root of what the layer's squared error grows by if this weight alone is dropped and no other changes.
    Where all inputs are zero, as of an expert that no token came to, |w|.
    """
    norms = moments.norms
    return weights.abs() * torch.where(norms.any(-1, keepdim=True), norms, 1.0)[:, None, :]


def obs(weights: torch.Tensor, moments: Moments, damping: float | None) -> torch.Tensor:
    """w² / [H⁻¹]_jj: what the layer's squared error grows by if this weight alone is dropped and the others make up.

    H is the damped mean of x xᵀ; Hassibi and Stork 1993, "Optimal Brain Surgeon", up to the factor 1/2.
    """
    hessian = damped(moments, damping)[0]
    # H = L Lᵀ, so that [H⁻¹]_jj is the squared length of column j of L⁻¹
    unit = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device).expand_as(hessian)
    inverse: torch.Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(hessian), unit, upper=False)
    return weights.square() / inverse.square_().sum(-2)[:, None, :]


SCORES: dict[str, Score] = {"magnitude": magnitude, "wanda": wanda, "obs": obs}


def score_named(name: str) -> Score:
    """Look a score up in the table.

    Raises
    ------
    InputValueError
        If there is none of that name.
    """
    if name not in SCORES:
        raise InputValueError(f"scores must be one of {', '.join(SCORES)}, or your own, not {name!r}")
    return SCORES[name]


def checked_damping(damping: float | None) -> float | None:
    """What may be given for `damping`: a number that is finite and not negative, or None."""
    return None if damping is None else amount(damping, "damping")


def share_of(damping: float | None, moments: Moments) -> float:
    """The share itself: as given, or else by inputs and rows."""
    return min(MOST, PER_ROW * moments.total.shape[-1] / max(1, moments.count)) if damping is None else damping


def damped(
    moments: Moments, damping: float | None, *, centred: bool = False
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """The mean of x xᵀ with enough on its diagonal to be factorised.

    Parameters
    ----------
    moments : Moments
        With a gram matrix.
    damping : float or None
        Share of an input's own mean square, and of a tenth of the mean of all inputs', that is added to the diagonal.
        None: 0.6 inputs for each row that was seen, at most 0.3.
    centred : bool
        Take the covariance instead: right where a bias is free to make up for the mean.

    Returns
    -------
    Tensor of float64, shape (groups, K, K)
        Positive definite.
    float
        The share that was needed: more than `damping` where rounding or too few samples made it so.
    Tensor of float64, shape (groups, K)
        The diagonal without it; not negative.

    Raises
    ------
    InputValueError
        If the moments have no gram matrix, or nothing makes it definite.

    Notes
    -----
    A ridge that pulls new weights to the old ones where samples say little. SparseGPT (Frantar and Alistarh 2023) adds
    a share of the mean diagonal to every input: much to those that are small beside others, little to those that are
    large. Here an input's scale hardly matters. An input that is always zero (or the same, if centred) gets its part of
    the mean, so that it is not given up altogether; where all inputs are, the mean is taken to be 1.
    """
    if moments.gram is None:
        raise InputValueError("calibration must hold gram matrices; calibrate with gram=True")
    count = max(1, moments.count)
    mean = moments.gram / count
    if centred:
        centre, squares = moments.total / count, mean.diagonal(dim1=-2, dim2=-1).clone()
        mean.baddbmm_(centre[:, :, None], centre[:, None, :], alpha=-1)
        # a sum of that many squares may be wrong by this, and so what is left of an input that is always the same
        still = mean.diagonal(dim1=-2, dim2=-1) <= 2 * ROUNDING * count * squares
        if still.any():
            mean.masked_fill_(still[:, :, None] | still[:, None, :], 0.0)
    scale = (mean.diagonal(dim1=-2, dim2=-1) / mean.shape[-1]).sum(-1)  # in this order, as a sum could overflow
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    bare = mean.diagonal(dim1=-2, dim2=-1).clone()
    more = bare + REST * scale[:, None]
    share = share_of(damping, moments)
    while True:
        diagonal = bare + share * more
        mean.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        lower, info = torch.linalg.cholesky_ex(mean)
        # a pivot that is but rounding may be negative in what a mask leaves of the matrix
        pivots = lower.diagonal(dim1=-2, dim2=-1).square()
        if not info.any() and (pivots > 16 * ROUNDING * mean.shape[-1] * diagonal).all():
            return mean, share, bare
        share = max(10 * share, 1e-10)
        if not math.isfinite(share):
            raise InputValueError("inputs must have a mean of squares that float64 holds; scale them")
