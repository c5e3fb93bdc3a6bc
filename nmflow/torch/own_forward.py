"""Linears and convolutions with a forward of their own: whether it multiplies the weight by what it is called with."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from nmflow.errors import InputValueError
from nmflow.torch.slots import is_turned

__all__ = ["called_with", "has_own_forward", "multiplies"]

FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)
INNER = (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward)
NEAR = 0.02
"""Relative distance within which two products are the same; bfloat16 has eight bits."""


def called_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input of a call, by whatever keyword."""
    return args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))


def has_own_forward(module: nn.Module) -> bool:
    """Whether a class derived from Linear or a convolution, or one module, may do something else with its input."""
    kind = type(module)
    inner = isinstance(module, _ConvNd) and kind._conv_forward not in INNER  # type: ignore[attr-defined]
    return _method_of(module) is not None or ((kind.forward not in FORWARDS or inner) and not is_turned(module))


def _method_of(module: nn.Module) -> Any:
    """A function that was made the forward of one module, if any; what wraps it otherwise calls the usual one."""
    own = module.__dict__.get("forward")
    return own.__func__ if isinstance(own, MethodType) and own.__self__ is module else None


def multiplies(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Look whether a call multiplies the weight by the input itself: its output less that of a weight of zeros.

    Returns
    -------
    bool
        False if that product is zero, which tells nothing.

    Raises
    ------
    InputValueError
        If it multiplies something else.
    """
    value = called_with(args, kwargs)
    weight: Any = module._parameters["weight"]
    with torch.no_grad():
        found = _output(module, weight, args, kwargs) - _output(module, torch.zeros_like(weight), args, kwargs)
        if isinstance(module, _ConvNd):
            base: Any = nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d
            plain = base._conv_forward(module, value, weight, None)
        else:
            plain = nn.functional.linear(value, weight)
        if not plain.any():
            return False
        if found.shape != plain.shape or not (found - plain).norm() <= NEAR * plain.norm():
            raise InputValueError(
                f"inputs of {name} cannot be seen: the forward of its {type(module).__name__} gives its weight others "
                f"than it is called with; exclude it, or use prune_ for it"
            )
    return True


def _output(module: nn.Module, weight: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """What the module would give with some weight, without any hook; of several, the first."""
    probe: Any = copy.copy(module)
    own = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    none: dict[str, Any] = {name: OrderedDict() for name in ("_forward_pre_hooks", "_forward_hooks")}
    probe.__dict__ = {**module.__dict__, "_parameters": own, **none}
    copies = [each.clone() if isinstance(each, torch.Tensor) else each for each in args]
    more = {name: each.clone() if isinstance(each, torch.Tensor) else each for name, each in kwargs.items()}
    found = (_method_of(module) or type(module).forward)(probe, *copies, **more)
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]
