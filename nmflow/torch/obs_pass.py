"""SparseGPT's pass over the columns of a matrix, with masks that may be transposable and are optimal in each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nmflow.arrays import Array
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.torch.convert import to_mask
from nmflow.torch.device import on_device, solve_on_device

__all__ = ["Pruned", "factor_of_inverse", "obs_pass", "solve_mask"]

LAZY = 128
"""Columns after which the rest of the matrix is brought up to date, as in SparseGPT; it changes roundings alone."""


@dataclass(slots=True)
class Pruned:
    """A mask, and what the solver said of it.

    Attributes
    ----------
    mask : Tensor of bool, shape (R, K)
    weights : Tensor of float64, shape (R, K)
        Zero where the mask drops.
    dense, kept, gap : float
    n_blocks, n_proven : int
    """

    mask: torch.Tensor
    weights: torch.Tensor
    dense: float = 0.0
    kept: float = 0.0
    gap: float = 0.0
    n_blocks: int = 0
    n_proven: int = 0

    def count(self, dense: float, solution: Any) -> None:
        """Add what one solve said, and the sum of the scores it was given."""
        self.dense += dense
        self.kept += solution.objective
        self.gap += solution.gap
        self.n_blocks += solution.certificate.n_blocks
        self.n_proven += solution.certificate.n_proven


def solve_mask(
    weights: torch.Tensor, scores: torch.Tensor, pattern: Pattern, drop: Array | None, **options: Any
) -> Pruned:
    """Mask a matrix by scores, on the device where that can be, and leave the weights that are kept as they are."""
    scores = scores.detach()
    if on_device(scores, pattern, drop=drop, **options):
        solution = solve_on_device(scores, pattern=pattern, scores=scores, threads=options.get("threads"))
    else:
        values = scores.cpu().numpy()
        solution = solve(values, pattern=pattern, scores=values, drop=drop, certify=True, **options)
    mask = to_mask(solution.mask, weights.device)
    found = Pruned(mask, weights * mask)
    found.count(float(scores.sum(dtype=torch.float64)), solution)
    return found


def obs_pass(
    weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern, drop: Array | None = None, **options: Any
) -> Pruned:
    """Prune a matrix column group by column group, and let the columns to the right make up for what is lost.

    Parameters
    ----------
    weights : Tensor of float64, shape (R, K)
        Not modified.
    hessian : Tensor of float64, shape (K, K)
        Damped mean of x xᵀ.
    pattern : Pattern
        A column group is as wide as its blocks: m columns.
    drop : ndarray of bool, shape (R, K), optional
    **options
        As for `nmflow.solve`: solver, threads.

    Returns
    -------
    Pruned
        Scores of its sums are those at the time a group was solved.

    Notes
    -----
    Frantar and Alistarh 2023, "SparseGPT", Algorithm 1. U is the upper Cholesky factor of H⁻¹, so that U_jj² is
    [H_F⁻¹]_jj of the columns F from j on, and w² / U_jj² is what the squared error grows by if w is dropped and the
    rest of F makes up for it. There a group of m columns keeps n in each row; here the group's m x m blocks are solved
    together, before the group is updated. What a group loses is taken from the others by products of matrices. R K² +
    K³ operations, beside the solves.
    """
    rows, width = weights.shape
    upper = factor_of_inverse(hessian)
    diagonal = upper.diagonal()[:, None]
    work = weights.T.clone(memory_format=torch.contiguous_format)  # turned: a column lies in one piece
    masks = torch.ones_like(work, dtype=torch.bool)
    found = Pruned(masks, work)
    group = pattern.block_shape[1]
    step = max(1, LAZY // group) * group
    for start in range(0, width, step):
        stop = min(start + step, width)
        errors = work.new_zeros(stop - start, rows)
        for left in range(start, stop, group):
            right = min(left + group, stop)
            # a copy in C order: solve() reads rows
            values = np.ascontiguousarray((work[left:right] / diagonal[left:right]).square().cpu().numpy().T)
            banned = None if drop is None else drop[:, left:right]
            solution = solve(values, pattern=pattern, scores=values, drop=banned, certify=True, **options)
            found.count(float(values.sum()), solution)
            masks[left:right] = to_mask(solution.mask, work.device).T
            for column in range(left, right):
                lost = errors[column - start]
                torch.div(work[column].masked_fill(masks[column], 0.0), diagonal[column], out=lost)
                work[column:right].addr_(upper[column, column:right], lost, alpha=-1)
            work[right:stop].addmm_(upper[left:right, right:stop].T, errors[left - start : right - start], alpha=-1)
        work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    found.mask = masks.T.contiguous()
    found.weights = work.masked_fill_(~masks, 0.0).T.contiguous()  # of what is dropped, rounding has left a little
    return found


def factor_of_inverse(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor U of H⁻¹ = Uᵀ U, from H alone: with its lines in reverse order, H = L Lᵀ and U = L⁻¹.

    More is added to the diagonal of H where rounding leaves that indefinite. K³ / 3 + K³ operations; an inverse of H
    would be formed more slowly, and with the square of U's condition.
    """
    turned = hessian.flip(0, 1)
    scale, more = (hessian.diagonal() / len(hessian)).sum(), 1e-10
    while True:
        lower, info = torch.linalg.cholesky_ex(turned)
        if not info:
            break
        turned.diagonal().add_(more * scale)
        more *= 10
    unit = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    upper: torch.Tensor = torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1)
    return upper
