"""Which engine solves: Triton where it does what plain torch operations do, else these; why not is said once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch

from nmflow.errors import InputValueError
from nmflow.pattern import Pattern
from nmflow.torch.device import plain
from nmflow.torch.device.duals import space_for_duals
from nmflow.torch.device.grid import BlockGrid
from nmflow.torch.memory import ran_out_of_memory

__all__ = ["MOST_BLOCKS", "engine_for", "missing_triton", "untrusted_triton"]

MOST_BLOCKS = 1 << 30
"""Blocks of a band; the kernels number them in 32 bits, and step beyond the last."""


def engine_for(name: str, grid: BlockGrid, *, absolute: bool, duals: bool) -> ModuleType:
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
    device = grid.scores.device
    if name == "auto":
        if grid.size[1] > MOST_BLOCKS:  # a single row of blocks cannot be cut into bands
            return plain
        reason = missing_triton(device) or untrusted_triton(device, grid.pattern, grid.scores.dtype, absolute, duals)
        if reason:
            _say(reason)
        return plain if reason else launch
    if grid.size[1] > MOST_BLOCKS:
        raise InputValueError(f'engine must be "auto" or "torch" for {grid.size[1]} blocks in a row, not "triton"')
    missing = missing_triton(device)
    if missing:
        raise InputValueError(
            f'engine must be "auto" or "torch" for a tensor on {device}, not "triton", which cannot be used: {missing}'
        )
    return launch


@cache
def missing_triton(device: torch.device) -> str:
    """Why Triton cannot be used on a device; empty if it can. That takes a launch of the least kernel."""

    def least() -> str:
        from nmflow.torch.device import launch

        one = torch.ones((1, 4), device=device)
        launch.kept_score(one, one > 0, absolute=True)
        return ""

    return _tried(least)


@cache
def untrusted_triton(device: torch.device, pattern: Pattern, dtype: torch.dtype, absolute: bool, duals: bool) -> str:
    """Why the kernels for one kind of solve cannot be trusted on a device; empty if they can.

    They prove what they find, so a compiler that has a mistake would prove it too: a small matrix, of
    which some scores repeat and a few are large, must come out as plain operations have it, bit for bit.
    """

    def compare() -> str:
        from nmflow.torch.device import launch

        side = pattern.m
        place = torch.arange(32 * side * side, device=device).reshape(4 * side, 8 * side)
        few, many = place * 7919 % 5 - 1.0, (place * place * 40503 % 65521 - 21000) / 2.0**12
        values = torch.where(place % 997 == 0, 2.0**9, torch.where(place < 8 * side * side, few, many))
        grid = BlockGrid.of(values.to(dtype), pattern, None, 1)
        ours, theirs = (_settled(engine, grid, absolute, duals) for engine in (launch, plain))
        if all(torch.equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True)) and (
            math.isclose(float(ours[0]), float(theirs[0]), rel_tol=1e-12)
        ):
            return ""
        return f"Triton's kernels for {pattern} of {dtype} do not do what they should on {device}; please report that"

    return _tried(compare)


def _settled(engine: ModuleType, grid: BlockGrid, absolute: bool, duals: bool) -> list[torch.Tensor]:
    """Kept score, counts, mask and duals; what is undefined, that of open blocks, as 0."""
    mask = torch.zeros(grid.scores.shape, dtype=torch.bool, device=grid.scores.device)
    kept = space_for_duals(grid) if duals else None
    outcome = engine.settle(grid, mask, kept, absolute=absolute, start=None)
    left = outcome.open_list[: int(outcome.counts[2])].long()
    grid.put(mask, left, torch.zeros((), dtype=torch.bool, device=mask.device))
    found = [engine.kept_score(grid.scores, mask, absolute=absolute), outcome.counts, mask, left.sort().values]
    return found if len(left) else [*found, *(kept or ())]


def _tried(trial: Callable[[], str]) -> str:
    """What a trial says, or why it failed. No memory, and errors that the device had before, are no answer."""
    for last in (False, True):
        try:
            return trial()
        except Exception as error:  # no Triton, one that is too old, no C compiler, a card it does not know
            full = ran_out_of_memory(error)
            if (full and last) or (not full and "CUDA error" in str(error)):
                raise
            if not full:
                return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        torch.cuda.empty_cache()  # which Triton cannot use
    raise AssertionError("the last trial returns or raises")


@cache
def _say(reason: str) -> None:
    warnings.warn(f"nmflow solves with plain torch operations, which are slower: {reason}", stacklevel=5)
