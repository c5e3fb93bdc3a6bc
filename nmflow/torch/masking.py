"""A weight that is masked whenever it is read, while the optimizer keeps the dense one."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from nmflow.errors import InputValueError
from nmflow.torch.select import Layer, Slot, unwrapped
from nmflow.torch.slots import original, place_of

__all__ = ["Masked", "attach", "bake", "before_parallel", "beside", "is_under", "sparse_state_dict", "take_off"]


DENSE = re.compile(r"parametrizations\.([^.]+)\.original$")
"""How the name of a masked weight ends in a state dict."""


class StraightThrough(torch.autograd.Function):
    """weight * mask, with the gradient of the identity: pruned entries learn too, and can come back.

    On a CPU the product is six times as fast as torch.where. Pruned entries can be -0 here, which changes no sum;
    `bake` writes +0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept for the way back."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


class ForwardToo(StraightThrough):
    """The same with a derivative forward, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].view_as(tangents[0])


class Masked(nn.Module):
    """Parametrization of one weight by a mask.

    Attributes
    ----------
    mask : Tensor of bool
        Changed in place. Not a buffer: DistributedDataParallel would send it at every step; it is kept by
        ``SparseTraining.state_dict``.
    fixed : bool
        Whether the mask is final: then pruned entries get no gradient.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask
        self.fixed = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Mask the weight."""
        mask = self.mask.to(weight.device)  # another one in the copies that DataParallel makes
        if self.fixed:
            return weight * mask
        way = StraightThrough if torch.compiler.is_compiling() else ForwardToo
        masked: torch.Tensor = way.apply(weight, mask)  # type: ignore[no-untyped-call]
        return masked

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Masked:
        moved = fn(self.mask)
        self.mask = moved if moved.dtype == torch.bool else self.mask.to(moved.device)  # model.type(...) casts all
        return self


def attach(layer: Layer, masked: Masked) -> None:
    """Put a mask on every place that holds the layer's parameter; the parameter itself stays the same object."""
    for slot in _places(layer.slots):
        parametrize.register_parametrization(slot.module, slot.attribute, masked)


def bake(layer: Layer, masked: Masked) -> None:
    """Write zeros into the parameter, which stays under its mask."""
    for parameter in layer.parameters:
        with torch.no_grad():
            parameter.masked_fill_(~masked.mask, 0.0)


def take_off(slots: Iterable[Slot]) -> None:
    """Give parameters under masks back to their modules."""
    for slot in _places(slots):
        dense = original(slot)
        assert dense is not None
        _give_back(slot.module, slot.attribute, dense)


def _places(slots: Iterable[Slot]) -> Iterable[Slot]:
    """Each place once: a module that has two names has two slots."""
    return {(id(slot.module), slot.attribute): slot for slot in slots}.values()


def is_under(slot: Slot, masked: Masked) -> bool:
    """Whether a place has this mask."""
    held = parametrize.is_parametrized(slot.module, slot.attribute)
    return held and any(one is masked for one in slot.module.parametrizations[slot.attribute])  # type: ignore[index]


def _give_back(module: nn.Module, attribute: str, dense: torch.Tensor) -> None:
    """What ``parametrize.remove_parametrizations`` does, but for what copies need of a module.

    They share its class, from which torch takes the attribute away: copies could not be used any more.
    """
    held: Any = module.parametrizations
    del held[attribute]
    own = type(module)
    (plain,) = own.__bases__
    if len(held):
        not_copied = (attribute, "__dict__", "__weakref__")
        others = {name: value for name, value in vars(own).items() if name not in not_copied}
        module.__class__ = type(own.__name__, (plain,), others)
    else:
        del module.parametrizations
        module.__class__ = plain
    module.register_parameter(attribute, cast("nn.Parameter", dense))


def beside(slot: Slot) -> list[nn.Module]:
    """Parametrizations of a masked weight that are no mask."""
    listed: Any = slot.module.parametrizations[slot.attribute]  # type: ignore[index]
    return [one for one in listed if not isinstance(one, Masked)]


def sparse_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict of a model that is trained under masks, as it will be after ``SparseTraining.finish``.

    Parameters
    ----------
    model : Module
        The one in training, which stays as it is; or a copy or average of it, which has the masks of the moment in
        which it was made. Of a model without masks it is the usual state dict.

    Returns
    -------
    dict of str to Tensor
        By the usual names; masked weights are new tensors, +0 where they are dropped. What is shared stays shared.

    Raises
    ------
    InputValueError
        If a masked weight has another parametrization too, or is not to be found in the model's state dict.

    Examples
    --------
    >>> from nmflow.torch import SparseTraining
    >>> model = nn.Linear(8, 8)
    >>> training = SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    >>> state = sparse_state_dict(model)
    >>> sorted(state), int((state["weight"] != 0).sum())
    (['bias', 'weight'], 32)
    """
    # Wrappers give modules other names than their state dicts do, and hooks may copy: known by place, or by name.
    masks: dict[object, tuple[str, torch.Tensor]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(module):
            continue
        for attribute, listed in module.parametrizations.items():
            mask = next((one.mask for one in listed if isinstance(one, Masked)), None)
            if mask is None:
                continue
            plain = f"{name}.{attribute}" if name else attribute
            if len(listed) > 1:
                raise InputValueError(f"{plain} must have its mask as the only parametrization, and has others too")
            dense = f"{name}.parametrizations.{attribute}.original".removeprefix(".")
            masks[place_of(listed.original)] = masks[dense] = plain, mask
    given = model.state_dict()
    state: OrderedDict[str, Any] = OrderedDict()
    if hasattr(given, "_metadata"):  # versions of modules, by which some read a state dict
        state._metadata = given._metadata  # type: ignore[attr-defined]
    masked: dict[object, torch.Tensor] = {}
    met: set[int] = set()
    for key, value in given.items():
        place = place_of(value) if DENSE.search(key) and isinstance(value, torch.Tensor) else None
        found = None if place is None else masks.get(place, masks.get(key))
        if found is None or place is None:
            state[key] = value
            continue
        plain, mask = found
        if hasattr(value, "full_tensor") or value.shape != mask.shape:  # a DTensor, or a flat part
            raise InputValueError(f"model must hold whole tensors, and a rank has a part of {plain}; shard no model")
        met.add(id(mask))
        if place not in masked:
            copy = value.clone()  # of the same memory format
            masked[place] = copy.masked_fill_(~mask.to(value.device), 0.0)
        state[DENSE.sub(r"\1", key)] = masked[place]
    if left := [plain for plain, mask in masks.values() if id(mask) not in met]:
        raise InputValueError(
            f"model must have its masked weights in its state dict, and {min(left)} is not there, by its name or as it "
            f"is; give the model that SparseTraining was made of, without what changes its state dict"
        )
    return state


def before_parallel(model: nn.Module) -> nn.Module:
    """The model whose names users know. The hooks by which DistributedDataParallel reduces gradients would be lost."""
    inner = unwrapped(model)
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise InputValueError(
            "model must not be in a DistributedDataParallel yet; make SparseTraining of the model itself, then wrap it"
        )
    return inner
