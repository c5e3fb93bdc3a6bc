"""Changes to a model that are made whole, whatever interrupts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

__all__ = ["wholly", "write_zeros"]


def wholly(steps: Sequence[Callable[[], object]]) -> None:
    """Take all steps, even where an interrupt arrives on the way: it is raised when the last is done.

    What was overwritten could be given back only from a copy of the model, so the way out is forward.

    Parameters
    ----------
    steps : sequence of callable
        Each may be taken again.
    """
    try:
        for step in steps:
            step()
    except Exception:
        raise  # a step that cannot be taken
    except BaseException:
        wholly(steps)
        raise


def write_zeros(weights: Iterable[torch.Tensor], dropped: Iterable[torch.Tensor]) -> None:
    """Make dropped entries +0, in all weights or in none."""
    with torch.no_grad():
        wholly([partial(weight.masked_fill_, zeros, 0.0) for weight, zeros in zip(weights, dropped, strict=True)])
