"""Layers that see the same tensors, as queries, keys and values do: their sums are made once."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nmflow.torch.experts import tokens_of
from nmflow.torch.moments import Moments
from nmflow.torch.select import Layer

__all__ = ["Seen"]


class Seen:
    """What the last layer saw, and the sums of that; tensors are held weakly, so that none is kept alive for this."""

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._values: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self._place: tuple[Any, ...] = ()

    def keep(self, layer: Layer, numbers: Any, values: Sequence[torch.Tensor | None], moments: Moments) -> None:
        """Note it; not of tensors that do not tell when they are written to, or of an expert's.

        Parameters
        ----------
        layer : Layer
        numbers : of the batches, in the order of `values`
        values : sequence of Tensor
            What its modules were called with.
        moments : Moments
        """
        plain = [
            value for value in values if type(value) is torch.Tensor and not value.is_inference()
            and tokens_of(value) is None
        ]  # fmt: skip
        if len(plain) == len(values) and all(type(slot.module) is nn.Linear for slot in layer.slots):
            self._moments, self._place = moments, _place(layer, numbers)
            self._values = [(weakref.ref(value), value._version) for value in plain]

    def same(self, layer: Layer, numbers: Any, values: Sequence[torch.Tensor | None]) -> Moments | None:
        """The sums, if a layer sees the very tensors that the last one saw, and nobody has written to them; or None."""
        moments, self._moments = self._moments, None
        if moments is None or self._place != _place(layer, numbers):
            return None
        for (kept, version), value in zip(self._values, values, strict=True):
            if value is None or kept() is not value or value._version != version:
                return None
        return moments


def _place(layer: Layer, numbers: Any) -> tuple[Any, ...]:
    """What decides, beside values, how a layer's sums come out, and where they are."""
    parameter = layer.parameters[0]
    return numbers, layer.turned, layer.groups, parameter.shape[1:], parameter.device
