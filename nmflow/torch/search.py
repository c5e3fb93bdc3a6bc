"""One solve of one layer in training: from the last duals, and loyal to the last mask if asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from nmflow.arrays import Array, Layout
from nmflow.errors import NonFiniteError
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.solution import Solution
from nmflow.torch.device import solve_on_device
from nmflow.torch.sharing import Found

__all__ = ["advising", "find", "find_on_device"]


def find(
    weight: Array,
    pattern: Pattern,
    last: Found | None,
    *,
    layout: Layout | None,
    groups: int,
    solver: str | Any,
    threads: int | None,
    warm_start: bool,
    switch_cost: float,
) -> Found:
    """Find the best mask of a layer's weight.

    Parameters
    ----------
    weight : ndarray
    pattern : Pattern
    last : Found or None
        The last mask and its duals.
    layout, groups, solver, threads
        As for `nmflow.solve`.
    warm_start : bool
        Keep the duals, and start from those of `last`: where the solver is "dual", the only one that can.
    switch_cost : float
        What keeping an entry of the last mask is worth, in mean scores.
    """
    name = solver if isinstance(solver, str) else getattr(solver, "name", "")
    warm = warm_start and name == "dual"
    options: dict[str, Any] = {"layout": layout, "groups": groups, "solver": solver, "threads": threads, "duals": warm}
    if last is not None and switch_cost:
        options |= {"previous": last.mask, "switch_cost": switch_cost}
    if warm and last is not None and last.duals:
        options["warm_start"] = _solution(last, pattern)
    with advising(weight.size, begun=last is not None):
        return _found(solve(weight, pattern=pattern, **options))


def find_on_device(
    weight: torch.Tensor,
    pattern: Pattern,
    last: Found | None,
    *,
    layout: Layout | None,
    groups: int,
    threads: int | None,
    warm_start: bool,
) -> Found:
    """The same for a weight that stays on its device: mask and duals are tensors there."""
    start = None
    if warm_start and last is not None and last.duals:
        moved = tuple(
            (torch.as_tensor(u).to(weight.device), torch.as_tensor(v).to(weight.device)) for u, v in last.duals
        )
        start = _solution(Found(last.mask, moved), pattern)
    with advising(weight.numel(), begun=last is not None):
        return _found(
            solve_on_device(
                weight, pattern=pattern, layout=layout, groups=groups, threads=threads, duals=warm_start,
                warm_start=start,
            )
        )  # fmt: skip


@contextlib.contextmanager
def advising(size: int, *, begun: bool) -> Iterator[None]:
    """Say what can be done where a weight of `size` entries is not finite. begun : whether training made it so."""
    try:
        yield
    except NonFiniteError as error:
        advice = "repair them, or go back to a checkpoint from before" if begun else "repair them"
        raise NonFiniteError.among("weights", error.count, size, error.first, advice) from None


def _found(solution: Solution) -> Found:
    """Mask and duals of a solve, a pair for each matrix."""
    row, col = solution.row_duals, solution.col_duals
    if row is None:
        return Found(solution.mask)
    return Found(solution.mask, tuple(zip(row, col, strict=True)) if isinstance(row, tuple) else ((row, col),))


def _solution(found: Found, pattern: Pattern) -> Solution:
    """What solve() starts from: only the duals of it are read."""
    row, col = (tuple(pair[side] for pair in found.duals) for side in (0, 1))
    return Solution(found.mask, float("nan"), None, "dual", pattern, row_duals=row, col_duals=col)
