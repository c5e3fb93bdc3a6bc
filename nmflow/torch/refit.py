"""The weights that do best under a mask: least squares over those that are kept, row by row."""

from __future__ import annotations

import torch

from nmflow.torch.conjugate import conjugate_gradients

__all__ = ["METHODS", "output_error", "refit"]

METHODS = ("auto", "cholesky", "cg", "adam")
CHOLESKY_FLOPS = 2e12
"""Above this, "auto" leaves rows as conjugate gradients left them that did not converge."""
CHOLESKY_SHARE = 5.0
"""In units of R K² operations: what the closed form may need and still be as fast as conjugate gradients. These take
some 60 products of 2 R K² in float32, and small matrices are factorised at a tenth of that in operations a second."""
COLUMNS = 1024
"""Columns of a layer's error at a time."""
PART_BYTES = 8 << 20
"""Memory of the systems that are solved together: at 128 MB fresh pages cost more than was saved by fewer calls."""
ADAM_STEPS = 400


def output_error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(C H Cᵀ) over all groups: the squared error of a layer's output, H being the mean of x xᵀ.

    Of the symmetric H only what is on and below the diagonal is multiplied, some columns at a time.
    """
    total = 0.0
    for start in range(0, change.shape[-1], COLUMNS):
        stop = start + COLUMNS
        here, below = change[..., start:stop], change[..., stop:]
        product = here @ hessian[..., start:stop, start:stop]
        if below.shape[-1]:
            product += 2 * (below @ hessian[..., stop:, start:stop])
        total += float((product * here).sum())
    return total


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
    method : {"auto", "cholesky", "cg", "adam"}
        Closed form, conjugate gradients, or descent; "auto" takes the faster of the first two, and the closed form for
        rows that do not converge (unless it needs more than 2e12 operations).
    start : Tensor, optional
        Where the others begin; default: W under the mask.

    Returns
    -------
    Tensor of float64, shape of weights

    Notes
    -----
    With S the entries kept of a row w, w'_S = (H_SS)⁻¹ (H w)_S: one Cholesky factorisation a row, R |S|³ / 3
    operations. Conjugate gradients need 2 R K² a step in float32, mostly 40 to 100 of them. Descent takes 400
    such steps in float64, and returns the best that it saw. Neither is ever worse than `start`, up to rounding.
    """
    flops = float(mask.sum(-1, dtype=torch.float64).pow(3).sum()) / 3
    closed = flops <= CHOLESKY_SHARE * mask.numel() * mask.shape[-1]
    if method == "cholesky" or (method == "auto" and closed):
        return torch.stack([_closed(*group) for group in zip(weights, mask, hessian, strict=True)])
    begin = weights * mask if start is None else start
    if method == "adam":
        return _descend(weights, mask, hessian, begin)
    out = torch.empty_like(weights)
    for group in range(len(weights)):
        done = conjugate_gradients(weights[group], mask[group], hessian[group], begin[group], out[group])
        if method == "auto" and flops <= CHOLESKY_FLOPS and not done.all():
            out[group, ~done] = _closed(weights[group, ~done], mask[group, ~done], hessian[group])
    return out


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
        # rows, then columns: many times as fast as one look-up by pairs
        system = torch.stack([hessian.index_select(0, each).index_select(1, each) for each in index])
        if not real.all():
            system *= real[:, :, None] & real[:, None, :]
            system.diagonal(dim1=-2, dim2=-1)[~real] = 1.0
        right = wanted[part : part + step].gather(-1, index) * real
        solved = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(system))[..., 0]
        out[part : part + step].scatter_(-1, index, solved)
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
