"""How much damping a layer's samples call for: generalised cross-validation of a fit to its outputs."""

from __future__ import annotations

import math

import torch

from nmflow.torch.damping import Second, second_moments
from nmflow.torch.moments import Moments

__all__ = ["SHARES", "best_damping", "expected_errors"]

SHARES = tuple(10 ** (step / 4) for step in range(-10, 1))
"""What is tried, from .003 to 1."""
ROWS_FOR_ONE = 2
"""Rows that say as much as one that is independent of all others: tokens of a text, and pixels, are like each other."""
SLACK = 1.02
"""The most damping is taken whose error is at most so many times the least: the error is flat about its minimum, and
where the model sees other inputs than the samples, more damping is much better."""
GOLDEN = (5**0.5 - 1) / 2
ROWS = 64
"""Of a weight, at most so many are looked at, and none that is zero."""
LEAST = 1e-8
"""A share that is next to none, and enough to factorise a matrix of fewer rows than inputs."""


def best_damping(weights: torch.Tensor, moments: Moments, *, centred: bool = False) -> float:
    """The share of damping that a layer does best with on samples that it was not fitted to, or somewhat more.

    Parameters
    ----------
    weights : Tensor of float64, shape (groups, R, K)
        Before pruning.
    moments : Moments
        With gram matrices.
    centred : bool
        Whether a bias takes up the mean.

    Returns
    -------
    float
        One of `SHARES`; the largest where there are too few rows to say.

    Notes
    -----
    What is fitted is what remains of the outputs when about half of the inputs are dropped, from the other half, with a
    ridge: as refitting under a mask does, but with one mask for all rows, so that one factorisation serves them all.
    Where inputs have moved from those of the dense model, outputs are the dense model's. K³ / 8 operations for each
    share, and K³ / 3 more where inputs have moved.

    Golub, Heath and Wahba 1979, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter": with n
    rows and t the trace of the matrix that maps outputs to fitted ones, the error is (squares left) / (1 - t/n)².
    """
    second = second_moments(moments, centred=centred)
    errors = expected_errors(weights, moments, second, centred=centred)
    good = [share for share, error in zip(SHARES, errors, strict=True) if error <= SLACK * min(errors)]
    held = (share for share in reversed(good) if bool(torch.isfinite(second.bare + share * second.more).all()))
    return next(held, good[0])


def expected_errors(weights: torch.Tensor, moments: Moments, second: Second, *, centred: bool) -> list[float]:
    """Squared error of outputs that each of `SHARES` is expected to leave on other samples; infinite where unknown."""
    count = max(1, moments.count)
    places = torch.arange(second.bare.shape[-1], device=second.bare.device)
    # no stride, as channels that lie side by side, or a fixed way apart, may be alike
    half = (places.double() * GOLDEN) % 1 < 0.5
    kept, dropped = places[half], places[~half]
    weights = weights[:, weights.any(-1).any(0)]  # else filters that are gone could be all that is looked at
    weights = weights[:, :: max(1, -(-weights.shape[1] // ROWS))]
    away = weights[..., dropped]
    below, inner = second.mean[:, dropped], second.mean[:, kept][:, :, kept]
    wanted = away @ below[..., kept]  # of what is to be fitted, the products with the kept inputs
    energy = ((away @ below[..., dropped]) * away).sum((1, 2))
    if moments.cross is not None and moments.shift is not None and moments.drift is not None:
        moved, drift = weights @ moments.cross / count, moments.drift / count
        if centred:
            shift = moments.shift / count
            moved -= (weights @ shift[..., None]) * (moments.total / count)[:, None, :]
            drift = drift - shift.square()
        alone = (weights.square() @ drift[..., None]).sum((1, 2))  # as if inputs moved each by itself
        # where they move together that can be too little, and then nothing seems to be left whatever the damping
        energy += torch.maximum(alone, _follows(moved, second))
        wanted += moved[..., kept]
        energy += 2 * (moved[..., dropped] * away).sum((1, 2))
    more = second.more[:, kept]
    found = []
    for share in SHARES:
        system = inner.clone()
        system.diagonal(dim1=-2, dim2=-1).add_(share * more)
        lower, info = torch.linalg.cholesky_ex(system)
        change = torch.cholesky_solve(wanted.mT, lower).mT
        left = energy + ((change @ inner - 2 * wanted) * change).sum((1, 2))
        trace = len(kept) - share * (more * torch.cholesky_inverse(lower).diagonal(dim1=-2, dim2=-1)).sum(-1)
        free = 1 - trace * ROWS_FOR_ONE / count
        error = float((left.clamp(min=0) / free.square()).sum())
        known = not bool(info.any()) and bool((free > 0).all()) and math.isfinite(error)
        found.append(error if known else math.inf)
    return found


def _follows(moved: torch.Tensor, second: Second) -> torch.Tensor:
    """For each group, the squares of what outputs have moved by, as far as that follows from inputs; zero if unknown.

    moved : products of what outputs have moved by with the inputs.
    """
    system = second.mean.clone()
    system.diagonal(dim1=-2, dim2=-1).add_(LEAST * second.more)
    lower, info = torch.linalg.cholesky_ex(system)
    found = torch.linalg.solve_triangular(lower, moved.mT, upper=False).square().sum((1, 2))
    return torch.where((info == 0) & torch.isfinite(found), found, 0.0)
