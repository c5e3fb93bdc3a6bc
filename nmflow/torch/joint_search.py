"""New masks of all layers at once: each rank finds its share, on the device or on the CPU, and is told the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from nmflow.arrays import Array
from nmflow.errors import InputTypeError
from nmflow.given import as_mask
from nmflow.pattern import Pattern
from nmflow.torch.convert import arrays
from nmflow.torch.prune import naming
from nmflow.torch.search import find_on_device
from nmflow.torch.select import Layer
from nmflow.torch.sharing import Found, Ranks

__all__ = ["Find", "find_all"]

Find: TypeAlias = Callable[[Layer, Array, Found | None], Found]
"""(layer, its weight on the CPU, what was found last) -> a mask."""


def find_all(
    layers: Sequence[Layer],
    weights: Sequence[torch.Tensor],
    last: Sequence[Found] | None,
    pattern: Pattern,
    ranks: Ranks,
    *,
    find: Find,
    stays: Callable[[torch.Tensor], bool],
    threads: int | None,
    warm_start: bool,
) -> list[Found]:
    """Find the masks of all layers; nothing is changed.

    Parameters
    ----------
    layers : sequence of Layer
    weights : sequence of Tensor
        The dense weight of each.
    last : sequence of Found, or None
        What this returned the time before.
    pattern : Pattern
    ranks : Ranks
    find : callable
        For weights that go to the CPU.
    stays : callable (weight)
        Whether it is solved on its own device instead.
    threads, warm_start
        As for `find_on_device`.

    Raises
    ------
    NmflowError
        If a mask cannot be found, or is none: the parameter is named.
    InputValueError
        If another rank failed.
    """
    owners = ranks.owners([weight.numel() for weight in weights])
    mine = [number for number, owner in enumerate(owners) if owner == ranks.rank]
    found: dict[int, Found] = {}
    with ranks.together():
        staying = {number for number in mine if stays(weights[number])}
        travelling = arrays((layers[number].name, weights[number]) for number in mine if number not in staying)
        for number in mine:
            layer, before = layers[number], None if last is None else last[number]
            with naming(layer.name):
                if number not in staying:
                    found[number] = _checked(find(layer, next(travelling), before), tuple(weights[number].shape))
                    continue
                here = find_on_device(
                    weights[number], pattern, before, layout=layer.layout, groups=layer.groups, threads=threads,
                    warm_start=warm_start,
                )  # fmt: skip
                found[number] = here if ranks.count == 1 else here.as_arrays()
    return ranks.exchange(found, owners, weights)


def _checked(found: object, shape: tuple[int, ...]) -> Found:
    """What a `find_mask` of the user's may have returned."""
    if not isinstance(found, Found):
        raise InputTypeError(f"find_mask must return a nmflow.torch.sharing.Found, not {type(found).__name__}")
    as_mask(found.as_arrays().mask, shape, "mask")
    return found
