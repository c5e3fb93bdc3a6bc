"""The weights that do best under a mask: least squares over those that are kept, row by row."""

from __future__ import annotations

import torch

from nmflow.asked import check_choice

__all__ = ["METHODS", "output_error", "refit"]

METHODS = ("auto", "cholesky", "adam")
CHOLESKY_FLOPS = 2e12
"""Above this, "auto" takes Adam: about two minutes of one core that does 20 GFLOP/s in float64."""
PART_BYTES = 8 << 20
"""Memory of the systems that are solved together: at 128 MB fresh pages cost more than was saved by fewer calls."""
ADAM_STEPS = 400


def output_error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(C H Cᵀ) over all groups: the squared error of a layer's output, H being the mean of x xᵀ."""
    return float(((change @ hessian) * change).sum())


def refit(
    weights: torch.Tensor,
    mask: torch.Tensor,
    hessian: torch.Tensor,
    method: str = "auto",
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Minimise tr((W' − W) H (W' − W)ᵀ) over all W' that are zero where the mask drops.

    Parameters
    ----------
    weights : Tensor of float64, shape (groups, R, K)
        W; not modified.
    mask : Tensor of bool, same shape
    hessian : Tensor of float64, shape (groups, K, K)
        Positive definite.
    method : {"auto", "cholesky", "adam"}
        Closed form, or descent; "auto" takes the closed form where it needs less than 2e12 operations.
    start : Tensor, optional
        Where descent begins; default: W under the mask.

    Returns
    -------
    Tensor of float64, shape of weights

    Notes
    -----
    With S the entries kept of a row w, w'_S = (H_SS)⁻¹ (H w)_S: one Cholesky factorisation a row, R |S|³ / 3
    operations. Descent takes 400 steps of 2 R K² operations, and returns the best that it saw: never worse than
    `start`.
    """
    check_choice(method, METHODS, "solve")
    if method == "auto":
        flops = float(mask.sum(-1, dtype=torch.float64).pow(3).sum()) / 3
        method = "cholesky" if flops <= CHOLESKY_FLOPS else "adam"
    if method == "cholesky":
        return torch.stack([_closed(*group) for group in zip(weights, mask, hessian, strict=True)])
    return _descend(weights, mask, hessian, weights * mask if start is None else start)


def _closed(weights: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """One group: rows are padded to the longest with equations that say 0 = 0, and solved in parts."""
    longest = int(mask.sum(-1).max())
    out = torch.zeros_like(weights)
    if not longest:
        return out
    wanted = weights @ hessian
    step = max(1, PART_BYTES // (8 * longest * longest))
    for part in range(0, len(weights), step):
        kept = mask[part : part + step]
        # a stable sort brings the kept columns to the front, in order
        index = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
        real = kept.gather(-1, index)
        system = hessian[index[:, :, None], index[:, None, :]]
        if not real.all():
            system *= real[:, :, None] & real[:, None, :]
            system.diagonal(dim1=-2, dim2=-1)[~real] = 1.0
        right = wanted[part : part + step].gather(-1, index) * real
        solved = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(system))[..., 0]
        out[part : part + step].scatter_(-1, index, solved * real)
    return out


def _descend(weights: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Adam in coordinates where the diagonal of H is one, with a rate that falls to zero along a half cosine."""
    scale = hessian.diagonal(dim1=-2, dim2=-1).sqrt()[:, None, :]
    unit = hessian / (scale.mT * scale)
    target, point = weights * scale, (start * scale).clone()
    rate = 0.1 * float((target.square() * mask).sum() / mask.sum().clamp(min=1)) ** 0.5
    best, least = point.clone(), output_error(point - target, unit)
    optimizer = torch.optim.Adam([point], lr=rate or 1.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ADAM_STEPS)
    for _ in range(ADAM_STEPS):
        change = point - target
        pulled = change @ unit
        error = float((pulled * change).sum())
        if error < least:
            best, least = point.clone(), error
        point.grad = 2 * pulled * mask
        optimizer.step()
        schedule.step()
    return (best if least <= output_error(point - target, unit) else point) / scale
