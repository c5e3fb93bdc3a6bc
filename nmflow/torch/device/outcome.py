"""What an engine hands back, without having waited for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

__all__ = ["Outcome", "Pair"]

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Duals of rows and of columns, in the layout of a Solution."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which blocks of a matrix are settled, so proven: all but a few of them.

    Attributes
    ----------
    open_list : Tensor of integers
        Numbers of the blocks that are open, in any order, and then whatever.
    counts : Tensor of int32, shape (4,)
        Blocks that were open after the first ascent, after the second, and at the end; and, whether scores are not
        finite: 0 if all are.
    """

    open_list: torch.Tensor
    counts: torch.Tensor
