"""What an engine hands back, without having waited for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Masks of all blocks of a matrix, all but a few of them proven.

    Attributes
    ----------
    mask : Tensor of bool, shape (tall * R, wide * C)
        Undefined in blocks that are open, or where scores are not finite.
    u, v : Tensor of float64, shapes (tall * R, wide) and (tall, wide * C)
        Duals in units of the scores: of all blocks if they were asked for, else undefined.
    open_list : Tensor of integers
        Numbers of the blocks that are open, in any order, and then whatever.
    counts : Tensor of int32, shape (4,)
        Blocks that were open after the first ascent, after the second, and at the end; and, whether scores are not
        finite: 0 if all are.
    """

    mask: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    open_list: torch.Tensor
    counts: torch.Tensor
