"""Least squares under a mask by conjugate gradients: all rows of a matrix by one product a step."""

from __future__ import annotations

import torch

__all__ = ["conjugate_gradients"]

STEPS = 400
TOLERANCE = 1e-7
"""Of the first residual, in coordinates where the diagonal of H is one; about what float32 tells of a weight."""
ROWS = 512
"""Rows at a time: enough for products at full speed, and few enough for a step's vectors to stay in the cache."""


def conjugate_gradients(
    weights: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor, start: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Minimise (w' − w) H (w' − w)ᵀ for each row w over all w' that are zero where the mask drops.

    Parameters
    ----------
    weights : Tensor of float64, shape (R, K)
        Not modified.
    mask : Tensor of bool, shape (R, K)
    hessian : Tensor of float64, shape (K, K)
        Positive definite.
    start : Tensor of float64, shape (R, K)
        Zero where the mask drops; not modified.
    out : Tensor of float64, shape (R, K)
        Overwritten by the solution.

    Returns
    -------
    Tensor of bool, shape (R,)
        Whether a row's residual has fallen to 1e-7 of that of its start under the mask. Rows that did not get there in
        400 steps are no worse than `start`, as the error falls in each.

    Notes
    -----
    Hestenes and Stiefel 1952, preconditioned by the diagonal: with P the projection on what a row keeps, the system is
    P H P w' = P H w. A step costs 2 R K² operations.
    """
    done = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    scale = hessian.diagonal().reciprocal()
    for first in range(0, len(weights), ROWS):
        part = slice(first, first + ROWS)
        done[part] = _rows(weights[part], mask[part], hessian, scale, start[part], out[part])
    return done


def _rows(
    weights: torch.Tensor,
    mask: torch.Tensor,
    hessian: torch.Tensor,
    scale: torch.Tensor,
    start: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """Some rows; those that have converged stay as they are while the others go on."""
    keep = mask.to(weights.dtype)
    point = start.clone()
    residual = ((weights - point) @ hessian).mul_(keep)
    # against W under the mask, so that a good start is not asked for more than a bad one
    first = (((weights - weights * keep) @ hessian) * keep).square().mul(scale).sum(-1)
    aim = TOLERANCE**2 * first
    direction = residual * scale
    size = (residual * direction).sum(-1)
    for _ in range(STEPS):
        going = size > aim
        if not going.any():
            break
        image = (direction @ hessian).mul_(keep)
        curve = (direction * image).sum(-1)
        step = torch.where(going & (curve > 0), size / curve, 0.0)[:, None]
        point.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        before, scaled = size, residual * scale
        size = (residual * scaled).sum(-1)
        turn = torch.where(going, size / before, 0.0)
        direction.mul_(turn[:, None]).add_(scaled)
    out.copy_(point)
    return size <= aim
