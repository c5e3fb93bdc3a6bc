"""SR-STE's pull on pruned weights, added to gradients as the optimizer takes its step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from nmflow.errors import InputValueError
from nmflow.torch.masking import Masked
from nmflow.torch.select import Layer

__all__ = ["Decay"]


class Decay:
    """Before each step, grad += strength * w * ~mask, once however many backward passes made the gradient.

    `strength` may be set anew at any time.

    Parameters
    ----------
    strength : float
    optimizer : Optimizer
    layers : sequence of Layer

    Raises
    ------
    InputValueError
        If the optimizer does not hold a parameter, or the gradient of one is sparse.
    """

    def __init__(self, strength: float, optimizer: Optimizer, layers: Sequence[Layer]) -> None:
        _check_held(optimizer, layers)
        self._layers = layers
        self._parameters = [layer.parameters for layer in layers]
        self.masked: list[Masked] = []
        self.strength = strength

    @property
    def strength(self) -> float:
        """Pull for each unit of weight."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        for layer in self._layers if strength else ():
            if any(getattr(slot.module, "sparse", False) is True for slot in layer.slots):
                raise InputValueError(
                    f"decay must be 0 where gradients are sparse, as those of {layer.name!r} are; make its "
                    f"{type(layer.slots[0].module).__name__} with sparse=False, or exclude it"
                )
        self._strength = strength

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Step pre-hook; with a closure, the gradients are those that it makes."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._pull(optimizer)
            return None

        def evaluated() -> Any:
            loss = closure()
            self._pull(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers are handed scaled gradients
        rising = {id(one) for group in optimizer.param_groups if group.get("maximize") for one in group["params"]}
        for parameters, masked in zip(self._parameters, self.masked, strict=True):
            # the first that has a gradient: of several, the optimizer steps with each, but they are one weight
            parameter = next((one for one in parameters if one.grad is not None), None)
            if masked.fixed or not self.strength or parameter is None or parameter.grad is None:
                continue
            value, dropped = self.strength * (-1.0 if id(parameter) in rising else 1.0), ~masked.mask
            if scale is None:
                parameter.grad.addcmul_(parameter, dropped, value=value)
            else:
                _add_scaled(parameter.grad, parameter * dropped, scale, value)


def _add_scaled(grad: torch.Tensor, pull: torch.Tensor, scale: torch.Tensor, value: float) -> None:
    """grad += value * scale * pull, by way of float32: float16 ends at 65504, below the scale a GradScaler begins with.

    What is too large for the gradient's dtype becomes its largest number: the scaler has looked for infinities before.
    """
    wide = torch.promote_types(grad.dtype, torch.float32)
    total = torch.addcmul(grad.to(wide), pull.to(wide), scale.to(grad.device, wide), value=value)
    largest = torch.finfo(grad.dtype).max
    grad.copy_(total.clamp_(-largest, largest))


def _check_held(optimizer: Optimizer, layers: Iterable[Layer]) -> None:
    """Raise InputValueError unless the optimizer holds all parameters."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lost = [repr(layer.name) for layer in layers if any(id(parameter) not in held for parameter in layer.parameters)]
    if lost:
        raise InputValueError(
            f"optimizer must hold every parameter that is trained sparse, and lacks {', '.join(lost[:8])}; make it "
            f"from the parameters of this model, or exclude them"
        )
