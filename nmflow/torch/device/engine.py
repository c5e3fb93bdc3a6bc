"""Which engine solves: Triton where it can, else plain torch operations; why not is said once."""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch

from nmflow.errors import InputValueError
from nmflow.torch.device import plain
from nmflow.torch.device.grid import BlockGrid

__all__ = ["MOST_BLOCKS", "engine_for", "missing_triton"]

MOST_BLOCKS = 1 << 30
"""Blocks of a band; the kernels number them in 32 bits, and step beyond the last."""


def engine_for(name: str, grid: BlockGrid) -> ModuleType:
    """The module that solves."""
    if name == "torch" or (name == "auto" and not grid.scores.is_cuda):
        return plain
    from nmflow.torch.device import launch

    if not launch.fits(grid.pattern):
        if name == "triton":
            raise InputValueError(
                f'engine must be "auto" or "torch" for pattern {grid.pattern}, not "triton", whose kernels do square '
                f"blocks of side {', '.join(map(str, launch.SIDES))}, the same n both ways, below m"
            )
        return plain
    if name == "auto":
        # a single row of blocks cannot be cut into bands
        return plain if grid.size[1] > MOST_BLOCKS or not _usable(grid.scores.device) else launch
    if grid.size[1] > MOST_BLOCKS:
        raise InputValueError(f'engine must be "auto" or "torch" for {grid.size[1]} blocks in a row, not "triton"')
    device = grid.scores.device
    missing = missing_triton(device)
    if missing:
        raise InputValueError(
            f'engine must be "auto" or "torch" for a tensor on {device}, not "triton", which cannot be used: {missing}'
        )
    return launch


@cache
def _usable(device: torch.device) -> bool:
    """Whether Triton can be used; why not is said once."""
    missing = missing_triton(device)
    if missing:
        warnings.warn(f"nmflow solves with plain torch operations, which are slower: {missing}", stacklevel=5)
    return not missing


@cache
def missing_triton(device: torch.device) -> str:
    """Why Triton cannot be used on a device; empty if it can. That takes a launch of the least kernel."""
    try:
        from nmflow.torch.device import launch

        one = torch.ones((1, 4), device=device)
        launch.kept_score(one, one > 0, absolute=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # no Triton, one that is too old, no C compiler, a card it does not know
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
