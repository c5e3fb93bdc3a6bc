"""The mean of x xᵀ over what a layer saw, and a ridge on its diagonal that pulls new weights to the old ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nmflow.asked import amount
from nmflow.errors import InputValueError
from nmflow.torch.moments import Moments

__all__ = ["Second", "checked_damping", "damped", "second_moments"]

REST = 0.1
"""How much of the damping every input gets of the mean over all of them."""
ROUNDING = 2.0**-52
"""Of float64: what one operation may be wrong by, twice over."""


def checked_damping(damping: float | None) -> float | None:
    """What may be given for `damping`: a number that is finite and not negative, or None."""
    return None if damping is None else amount(damping, "damping")


@dataclass(frozen=True, slots=True)
class Second:
    """Second moments of a layer's inputs.

    Attributes
    ----------
    mean : Tensor of float64, shape (groups, K, K)
        Of x xᵀ.
    bare : Tensor of float64, shape (groups, K)
        Its diagonal; not negative.
    more : Tensor of float64, shape (groups, K)
        What damping adds a share of to the diagonal; positive.
    """

    mean: torch.Tensor
    bare: torch.Tensor
    more: torch.Tensor


def second_moments(moments: Moments, *, centred: bool = False) -> Second:
    """The mean of x xᵀ, or the covariance, as a matrix of its own.

    Parameters
    ----------
    moments : Moments
        With a gram matrix.
    centred : bool
        Take the covariance: right where a bias is free to make up for the mean.

    Raises
    ------
    InputValueError
        If the moments have no gram matrix.

    Notes
    -----
    SparseGPT (Frantar and Alistarh 2023) adds a share of the mean diagonal to every input: much to those that are
    small beside others, little to those that are large. Here an input gets its own mean square and a tenth of the mean
    of all, so that its scale hardly matters. An input that is always zero (or the same, if centred) gets its part of
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
    return Second(mean, bare, bare + REST * scale[:, None])


def damped(moments: Moments, share: float, *, centred: bool = False) -> tuple[torch.Tensor, float, torch.Tensor]:
    """The mean of x xᵀ with enough on its diagonal to be factorised.

    Parameters
    ----------
    moments, centred
        As for `second_moments`.
    share : float
        Of an input's own mean square, and of a tenth of the mean of all inputs', that is added to the diagonal.

    Returns
    -------
    Tensor of float64, shape (groups, K, K)
        Positive definite.
    float
        The share that was needed: more than `share` where rounding or too few samples made it so.
    Tensor of float64, shape (groups, K)
        The diagonal without it; not negative.

    Raises
    ------
    InputValueError
        If the moments have no gram matrix, or nothing makes it definite.
    """
    second = second_moments(moments, centred=centred)
    mean = second.mean
    while True:
        diagonal = second.bare + share * second.more
        mean.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        lower, info = torch.linalg.cholesky_ex(mean)
        # a pivot that is but rounding may be negative in what a mask leaves of the matrix
        pivots = lower.diagonal(dim1=-2, dim2=-1).square()
        if not info.any() and (pivots > 16 * ROUNDING * mean.shape[-1] * diagonal).all():
            return mean, share, second.bare
        share = max(10 * share, 1e-10)
        if not math.isfinite(share):
            raise InputValueError("inputs must have a mean of squares that float64 holds; scale them")
