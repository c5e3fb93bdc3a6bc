"""Where parameters are: each place seen as a matrix, and why there can be no mask for some."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from nmflow.arrays import Layout
from nmflow.errors import InputValueError
from nmflow.names import is_router
from nmflow.pattern import Pattern
from nmflow.torch.convert import FLOATS

__all__ = [
    "Layer",
    "Slot",
    "depthwise",
    "identity",
    "impossible",
    "is_fused",
    "is_fused_turned",
    "is_sorted",
    "is_turned",
    "is_writable",
    "layout_of",
    "original",
    "place_of",
    "router",
    "standardises",
    "too_small",
]

STANDARDISING = ("*Std*", "*Standardi[sz]ed*", "*WS[123]d")
"""Names of convolutions that standardise their weight: of timm, of transformers, of mmcv."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the model that holds a parameter, and whether the model says that it gives a score to each word."""

    module_name: str
    module: nn.Module
    attribute: str
    head: bool = False

    @property
    def name(self) -> str:
        """Name of the parameter, as in ``model.named_parameters()``."""
        return f"{self.module_name}.{self.attribute}" if self.module_name else self.attribute


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter that gets a mask, with every place that holds it.

    Attributes
    ----------
    slots : tuple of Slot
        The first one names it; more than one where modules share it.
    layout : {None, "conv", "batch"}
    groups : int
    """

    slots: tuple[Slot, ...]
    layout: Layout | None
    groups: int

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.slots[0].name

    @property
    def turned(self) -> bool:
        """Whether it is a matrix whose rows belong to inputs, and columns to outputs."""
        return all(is_turned(slot.module) for slot in self.slots)

    @property
    def also(self) -> tuple[str, ...]:
        """Its other names."""
        return tuple(slot.name for slot in self.slots[1:])

    def matrices(self, parameter: torch.Tensor) -> tuple[int, tuple[int, int]]:
        """How many matrices its parameter is seen as, and the rows and columns of each."""
        shape = _size(parameter, self.layout, self.groups)
        return parameter.numel() // math.prod(shape), shape

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameter; more than one object only where two share their memory."""
        found = {id(p): p for p in map(_held, self.slots) if p is not None}
        return tuple(found.values())


def _held(slot: Slot) -> nn.Parameter | None:
    """The parameter in a place; while it is parametrized, as PEFT does during a pass, what that is made from."""
    dense: Any = original(slot)
    return slot.module._parameters[slot.attribute] if dense is None else dense


def original(slot: Slot) -> torch.Tensor | None:
    """The dense weight behind a masked or otherwise parametrized one; None where there is nothing of it any more."""
    if not parametrize.is_parametrized(slot.module, slot.attribute):
        return None
    dense: torch.Tensor = slot.module.parametrizations[slot.attribute].original  # type: ignore[index, union-attr]
    return dense


def is_turned(module: nn.Module) -> bool:
    """Whether it is a Conv1D of transformers, as GPT-2 has: a Linear that keeps its weight the other way round."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight is not None and weight.ndim == 2


def is_fused(module: nn.Module) -> bool:
    """Whether it holds the experts of a mixture as transformers does from version 5."""
    down = module._parameters.get("down_proj")
    up = module._parameters.get("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj")
    known = hasattr(module, "_apply_gate") and isinstance(getattr(module, "is_transposed", None), bool)
    return (known or is_sorted(module)) and down is not None and up is not None and down.ndim == up.ndim == 3


def is_sorted(module: nn.Module) -> bool:
    """Whether it is called as Llama 4's experts are: with all tokens for each, and zeros for those it does not get."""
    return type(module).__name__ == "Llama4TextExperts"


def is_fused_turned(module: nn.Module) -> bool:
    """Whether the experts that a module holds are kept (in, out)."""
    return bool(getattr(module, "is_transposed", True))  # Llama 4 does not say so


def _rank(parameter: nn.Parameter) -> int:
    return 2 if nn.parameter.is_lazy(parameter) else parameter.ndim


def identity(parameter: nn.Parameter) -> tuple[object, ...]:
    """Equal for parameters that are the same object or the same memory."""
    held = type(parameter) is nn.Parameter and parameter.layout == torch.strided and not parameter.is_meta
    return place_of(parameter) if held and parameter.numel() else (id(parameter),)


def place_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """Where a tensor lies, and how it is seen there."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def is_writable(parameter: torch.Tensor) -> bool:
    """Whether each entry has a place of its own, which can be written."""
    expanded = any(step == 0 < size - 1 for step, size in zip(parameter.stride(), parameter.shape, strict=True))
    return not (expanded or parameter.is_inference())


def depthwise(slot: Slot) -> bool:
    """Whether it is the weight of a convolution that has a group for each channel."""
    module = slot.module
    alone = isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels
    return alone and slot.attribute == "weight"


def standardises(slot: Slot) -> bool:
    """Whether it is the weight of a convolution that subtracts its mean, and so multiplies by no zeros of it."""
    if slot.attribute != "weight" or not isinstance(slot.module, _ConvNd):
        return False
    kinds = (kind.__name__ for kind in type(slot.module).__mro__)
    return any(fnmatchcase(kind, glob) for kind in kinds for glob in STANDARDISING)


def router(slot: Slot) -> bool:
    """Whether it sends tokens to experts."""
    parameter = slot.module._parameters[slot.attribute]
    shape = () if parameter is None or nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
    return is_router(slot.name, shape) or type(slot.module).__name__.endswith("Router")


def layout_of(slot: Slot) -> tuple[Layout | None, int]:
    """How a parameter is seen as matrices, and the groups of a convolution."""
    module, parameter = slot.module, slot.module._parameters[slot.attribute]
    assert parameter is not None
    if isinstance(module, _ConvNd) and slot.attribute == "weight":
        return "conv", module.groups
    return (None, 1) if _rank(parameter) == 2 else ("batch", 1)


def impossible(slot: Slot, layout: Layout | None, groups: int, pattern: Pattern, strict: bool, trainable: bool) -> str:
    """Why no mask can be made for a parameter, whatever its name; empty if one can."""
    parameter = slot.module._parameters[slot.attribute]
    assert parameter is not None
    if nn.parameter.is_lazy(parameter):
        return "not initialised yet; run the model once first"
    if type(parameter) is not nn.Parameter or parameter.layout != torch.strided:
        return f"a {type(parameter).__name__} of layout {parameter.layout}, not a dense parameter"
    if parameter.dtype not in FLOATS:
        return f"dtype {parameter.dtype}"
    if parameter.is_meta:
        return "on the meta device, without data"
    if not parameter.numel():
        return "empty"
    if not is_writable(parameter):
        return "cannot be written in place (an inference or expanded tensor)"
    if trainable and not parameter.requires_grad:
        return "requires no gradient"
    if trainable and hasattr(nn.ModuleDict, slot.attribute):  # in which torch keeps parametrizations by their names
        return f"of a name, {slot.attribute}, that torch cannot parametrize; rename the attribute"
    if _kept_turned(slot) and pattern.row != pattern.col:
        kind = type(slot.module).__name__
        return f"in a {kind}, which keeps its weight the other way round: {pattern} must be the same along both"
    (rows, cols), (tall, wide) = _size(parameter, layout, groups), _block(pattern)
    if strict and (rows % tall or cols % wide):
        raise InputValueError(
            f"strict=True needs whole blocks of {tall} x {wide}, and {slot.name!r} is {rows} x {cols}; exclude it, or "
            f"leave strict out to pad its edges"
        )
    return ""


def _kept_turned(slot: Slot) -> bool:
    """Whether its rows belong to inputs: of Conv1D, of experts taken apart, and of some that are together."""
    if is_fused(slot.module):
        return is_fused_turned(slot.module) and slot.attribute in ("gate_up_proj", "up_proj", "down_proj")
    turned = is_turned(slot.module) or getattr(slot.module, "kept_turned", False)
    return bool(turned) and slot.attribute == "weight"


def too_small(slot: Slot, layout: Layout | None, groups: int, pattern: Pattern) -> str:
    """Why hardware would gain nothing: without a whole block, there is nothing but a ragged edge."""
    parameter = slot.module._parameters[slot.attribute]
    assert parameter is not None
    (rows, cols), (tall, wide) = _size(parameter, layout, groups), _block(pattern)
    return f"{rows} x {cols}, smaller than a block of {tall} x {wide}" if rows < tall or cols < wide else ""


def _size(parameter: torch.Tensor, layout: Layout | None, groups: int) -> tuple[int, int]:
    """Rows and columns of each matrix of a parameter."""
    shape = tuple(parameter.shape)
    return (shape[-2], shape[-1]) if layout == "batch" else (shape[0] // groups, math.prod(shape[1:]))


def _block(pattern: Pattern) -> tuple[int, int]:
    """Rows and columns of what is constrained together."""
    return pattern.block_shape if pattern.transposable else (1, pattern.m)
