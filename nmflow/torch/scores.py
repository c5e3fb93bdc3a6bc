"""What a weight is worth, by what its layer sees: scores for which masks are then optimal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from nmflow.errors import InputValueError
from nmflow.torch.cross_validation import best_damping
from nmflow.torch.damping import damped
from nmflow.torch.moments import Moments

__all__ = ["SCORES", "Score", "magnitude", "obs", "score_named", "wanda"]

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
    hessian = damped(moments, best_damping(weights, moments) if damping is None else damping)[0]
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
