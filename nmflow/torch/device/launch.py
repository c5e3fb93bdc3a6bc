"""The engine in Triton: launches its kernels one after the other, and waits for none of them."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch

from nmflow.kernels.networks import selection_network
from nmflow.pattern import Pattern
from nmflow.torch.device.ascent import rounds_for
from nmflow.torch.device.duals import space_for_duals
from nmflow.torch.device.grid import BlockGrid
from nmflow.torch.device.outcome import Outcome, Pair
from nmflow.torch.device.paths import paths_for

__all__ = ["SIDES", "fits", "kept_score", "path_options", "path_warps", "settle"]

SIDES = (4, 8, 16, 32)
"""Sides of blocks that the kernels are made for."""
LANES = 128
"""Lanes of a program: four warps."""
PROGRAMS = 8
"""Programs for each multiprocessor, where they take their blocks from a list."""
TILE = 128
"""Entries of the blocks that one program augments, or one block: few, as its lanes wait for the slowest of them."""


def fits(pattern: Pattern) -> bool:
    """Whether the kernels can do a pattern: square blocks of a usual size, not dense."""
    rows, cols = pattern.block_shape
    return rows == cols and rows in SIDES and pattern.row_budget == pattern.col_budget < rows


def settle(grid: BlockGrid, mask: torch.Tensor, duals: Pair | None, *, absolute: bool, start: Pair | None) -> Outcome:
    """Settle all blocks of a matrix; see `nmflow.torch.device.plain.settle`."""
    from nmflow.torch.device import kernels

    scores, side, budget = grid.scores, grid.pattern.m, grid.pattern.n
    tall, wide = grid.size
    device = scores.device
    # between launches, the duals of blocks that are open
    u, v = duals or space_for_duals(grid)
    old_u, old_v = (u, v) if start is None else (side.contiguous() for side in start)
    counts = torch.zeros(4, dtype=torch.int32, device=device)
    lists = torch.empty((2, tall * wide), dtype=torch.int32, device=device)
    first, more, again = rounds_for(side)
    kernel = kernels.settle_blocks if side < 8 else kernels.settle_lines
    each = LANES if side < 8 else LANES // side
    listed = min(-(-tall * wide // each), PROGRAMS * _processors(device))
    place = (scores, scores.stride(0), scores.stride(1), mask.view(torch.uint8))
    common: dict[str, Any] = {
        "M": side, "N": budget, "LANES": LANES, "NETWORK": _network(side, budget), "ABSOLUTE": absolute,
        "KEEP": duals is not None, "num_warps": LANES // 32, "enable_fp_fusion": False,
    }  # fmt: skip
    with _on(device):
        kernel[(-(-tall * wide // each),)](
            *place, old_u, old_v, u, v, lists[1], counts[3:], lists[0], counts, counts[3:], tall, wide,
            ROUNDS=first if start is None else again, LISTED=False, WARM=start is not None, **common,
        )  # fmt: skip
        kernel[(listed,)](
            *place, u, v, u, v, lists[0], counts, lists[1], counts[1:], counts[3:], tall, wide,
            ROUNDS=more, LISTED=True, WARM=True, **common,
        )  # fmt: skip
        paths = path_options(side)
        kernels.augment_blocks[(min(-(-tall * wide // paths["BLOCKS"]), 4 * PROGRAMS * _processors(device)),)](
            *place, u, v, lists[1], counts[1:], lists[0], counts[2:], tall, wide,
            M=side, N=budget, ABSOLUTE=absolute, KEEP=duals is not None, **paths,
            num_warps=path_warps(side), enable_fp_fusion=False,
        )  # fmt: skip
    return Outcome(lists[0], counts)


def kept_score(scores: torch.Tensor, mask: torch.Tensor, *, absolute: bool) -> torch.Tensor:
    """Sum of what a mask keeps, float64, on the device, in an order that depends on the shape alone."""
    from nmflow.torch.device import kernels

    sums = torch.empty(min(len(scores), 4096), dtype=torch.float64, device=scores.device)
    with _on(scores.device):
        kernels.kept_score[(len(sums),)](
            scores, scores.stride(0), scores.stride(1), mask.view(torch.uint8), sums, *scores.shape,
            ABSOLUTE=absolute, SIZE=1024, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return sums.sum()


def path_options(side: int) -> dict[str, Any]:
    """Blocks that one program augments, and paths that it finds before it gives one up."""
    return {"BLOCKS": max(1, TILE // (side * side)), "PATHS": paths_for(side, side)}


def path_warps(side: int) -> int:
    """Warps of a program that augments: one, so that nothing waits at barriers, while its registers suffice."""
    return 1 if side < 32 else 4


@cache
def _network(side: int, budget: int) -> tuple[tuple[int, int], ...]:
    """Comparators that bring the budget-th and the next largest of a line, in any order, to wires of that number."""
    return tuple((i, j) for i, j, _, _ in selection_network(side, (budget - 1, budget), unordered=True))


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 where the kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return operator.index(torch.cuda.get_device_properties(device).multi_processor_count)


def _on(device: torch.device) -> Any:
    """Launch on this device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
