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
        return plain if grid.size[1] > MOST_BLOCKS or missing_triton(grid.scores.device) else launch
    missing = missing_triton()
    if missing:
        raise InputValueError(f'engine must be "auto" or "torch", not "triton", which cannot be used: {missing}')
    return launch


@cache
def missing_triton(device: torch.device | None = None) -> str:
    """Why Triton cannot be used, said once; empty if it can. On a device, that takes a launch of the least kernel."""
    try:
        from nmflow.torch.device import kernels, launch  # noqa: F401

        if device is not None:
            one = torch.ones((1, 4), device=device)
            launch.kept_score(one, one > 0, absolute=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # no Triton, one that is too old, no C compiler, a card it does not know
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if device is not None:
            warnings.warn(f"nmflow solves with plain torch operations, which are slower: {reason}", stacklevel=4)
        return reason
    return ""
