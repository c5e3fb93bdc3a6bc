"""Entries of tensors that are NaN or infinite: how many, and where the first is."""

from __future__ import annotations

import numpy as np
import torch

from nmflow.errors import NonFiniteError
from nmflow.torch.device.plain import SLICE

__all__ = ["non_finite_error"]


def non_finite_error(values: torch.Tensor, name: str, advice: str = "") -> NonFiniteError:
    """The error for a tensor of two axes or more that has such entries; `name` and `advice` as for the error."""
    step = max(1, SLICE // values[0].numel())  # a device may be full
    count = 0
    first: tuple[int, ...] = ()
    for start in range(0, len(values), step):
        bad = ~torch.isfinite(values[start : start + step]).flatten(1)
        here = int(bad.sum())
        if here and not count:
            row = int(bad.any(dim=1).nonzero()[0])
            rest = np.unravel_index(int(bad[row].nonzero()[0]), values.shape[1:])
            first = (start + row, *(int(i) for i in rest))
        count += here
    return NonFiniteError.among(name, count, values.numel(), first, advice)
