"""Duals of all blocks of a matrix on a device: space for them, those of an earlier solution, those of a band."""

from __future__ import annotations

import torch

from nmflow.errors import InputValueError
from nmflow.solution import Solution
from nmflow.torch.device.grid import BlockGrid
from nmflow.torch.device.outcome import Pair

__all__ = ["cut_duals", "earlier_duals", "space_for_duals"]


def space_for_duals(grid: BlockGrid) -> Pair:
    """Space for the duals of all blocks."""
    rows, cols = grid.pattern.block_shape
    tall, wide = grid.size
    device = grid.scores.device
    u = torch.empty((tall * rows, wide), dtype=torch.float64, device=device)
    return u, torch.empty((tall, wide * cols), dtype=torch.float64, device=device)


def earlier_duals(earlier: Solution, grid: BlockGrid) -> Pair:
    """The duals of an earlier solution, each side in one tensor."""
    if earlier.row_duals is None or earlier.col_duals is None:
        raise InputValueError("warm_start must hold duals, not None; call solve_on_device with duals=True for it")
    if earlier.pattern != grid.pattern:
        raise InputValueError(f"warm_start must have pattern {grid.pattern}, not {earlier.pattern}; solve anew")
    rows, cols = grid.pattern.block_shape
    tall, wide = grid.size
    sides = []
    for side in (earlier.row_duals, earlier.col_duals):
        parts = [torch.as_tensor(part) for part in (side if isinstance(side, tuple) else (side,))]
        if any(part.device != grid.scores.device for part in parts):
            raise InputValueError(
                f"warm_start must hold duals on {grid.scores.device}, not on {parts[0].device}; "
                f"pass what solve_on_device returned for this device"
            )
        sides.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    if sides[0].shape != (tall * rows, wide) or sides[1].shape != (tall, wide * cols):
        raise InputValueError(f"warm_start must be of a problem of shape {grid.shape}, not of another; solve anew")
    return sides[0].double(), sides[1].double()


def cut_duals(duals: Pair | None, grid: BlockGrid, band: int, bands: int) -> Pair | None:
    """Those of a band."""
    if duals is None:
        return None
    first, last = grid.edges(band, bands)
    rows = grid.pattern.block_shape[0]
    return duals[0][first * rows : last * rows], duals[1][first:last]
