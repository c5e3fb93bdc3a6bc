"""All masked weights of a model in training: put on, changed together, graded, and written into the weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from nmflow.pattern import Pattern
from nmflow.pipeline import certify
from nmflow.torch.convert import arrays, to_array, to_mask
from nmflow.torch.masking import Masked, attach, bake, beside, is_under, take_off
from nmflow.torch.prune import layer_report, naming
from nmflow.torch.report import LayerReport
from nmflow.torch.search import advising
from nmflow.torch.select import Layer
from nmflow.torch.sharing import Found
from nmflow.torch.slots import Slot, original
from nmflow.torch.state import TrainingStateError
from nmflow.torch.wholly import wholly

__all__ = ["MaskedLayers"]


class MaskedLayers:
    """Layers with their masks, by the names of their parameters.

    Parameters
    ----------
    model : Module
        That holds them.
    layers : sequence of Layer
        Not masked yet: `attach` does that.
    found : sequence of Found
        A mask for each.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], found: Sequence[Found]) -> None:
        self._model, self._layers = model, layers
        modules = {id(slot.module): slot.module for layer in layers for slot in layer.slots}.values()
        self._orders = [(module, tuple(module._parameters)) for module in modules]
        self._parameters = [layer.parameters for layer in layers]  # as `attach` hides them from their modules
        with torch.inference_mode(False):  # they are written to later
            masks = [
                to_mask(one.mask, parameters[0].device) for one, parameters in zip(found, self._parameters, strict=True)
            ]
            self.by_name = {
                layer.name: Masked(mask.clone() if mask.is_inference() else mask)  # of a solve on its device
                for layer, mask in zip(layers, masks, strict=True)
            }

    @property
    def fixed(self) -> bool:
        """Whether masks are final."""
        return all(masked.fixed for masked in self.by_name.values())

    def attach(self) -> None:
        """Put the masks on the weights."""
        try:
            for layer, masked in zip(self._layers, self.by_name.values(), strict=True):
                attach(layer, masked)
        except BaseException:
            self.take_off()
            raise

    def fix(self, fixed: bool = True) -> None:
        """Make masks final, or not."""
        for masked in self.by_name.values():
            masked.fixed = fixed

    def check_held(self) -> None:
        """Raise TrainingStateError if the model holds other parameters now, or sees them in another way.

        Masks would be those of what was left.
        """
        modules = {id(module) for module in self._model.modules()}  # by whatever name: some tools wrap them
        for layer, parameters, masked in zip(self._layers, self._parameters, self.by_name.values(), strict=True):
            if any(id(slot.module) not in modules for slot in layer.slots):
                raise TrainingStateError(
                    f"{layer.name} must stay in the model, and its module was replaced or removed; put it back, or "
                    f"release() this and make a new SparseTraining"
                )
            held = [original(slot) for slot in layer.slots]
            moved = any(all(one is not parameter for parameter in parameters) for one in held)
            if moved or any(parameter.shape != masked.mask.shape for parameter in parameters):  # a rank holds a part
                raise TrainingStateError(
                    f"{layer.name} must stay the parameter that it was, and is another now; load states without "
                    f"assign=True, or release() this; and shard no model, which can only be made anew"
                )
            _check_alone(layer, layer.slots)

    def digest(self) -> bytes:
        """What tells these masks from others."""
        digest = hashlib.sha256()
        for masked in self.by_name.values():
            digest.update(to_array(masked.mask).tobytes())
        return digest.digest()

    def change(self, found: Sequence[Found]) -> dict[str, int]:
        """Write other masks in place of these; how many entries of each differ."""
        changes = []
        for masked, one in zip(self.by_name.values(), found, strict=True):
            new = to_mask(one.mask, masked.mask.device)
            changes.append((masked.mask ^ new).count_nonzero())
            masked.mask.copy_(new)
        return {name: int(change) for name, change in zip(self.by_name, changes, strict=True)}

    def grade(self, pattern: Pattern, threads: int | None) -> tuple[LayerReport, ...]:
        """What the masks keep of the weights as they are, and what the best masks would keep more.

        Raises
        ------
        NonFiniteError
            If a weight is NaN or infinite: the parameter is named.
        """
        reports = []
        weights = arrays((layer.name, group[0]) for layer, group in zip(self._layers, self._parameters, strict=True))
        for layer, parameters, masked, weight in zip(
            self._layers, self._parameters, self.by_name.values(), weights, strict=True
        ):
            begun = time.perf_counter()
            mask = to_array(masked.mask)
            with naming(layer.name), advising(weight.size, begun=True):
                grade = certify(
                    weight, mask, pattern=pattern, layout=layer.layout, groups=layer.groups, threads=threads,
                    absolute=True,
                )  # fmt: skip
            seconds = time.perf_counter() - begun
            reports.append(layer_report(layer, parameters[0], weight, mask, grade, seconds, absolute=True))
        return tuple(reports)

    def bake(self) -> None:
        """Write zeros into the weights, all of them or none; `take_off` can be called then."""
        for layer in self._layers:
            _check_class(layer, layer.slots)
        wholly(
            [partial(bake, layer, masked) for layer, masked in zip(self._layers, self.by_name.values(), strict=True)]
        )

    def take_off(self) -> None:
        """Take the masks off what still has them, whatever its parameters are now; those are not changed.

        Parameters have the order back that they had in their modules.
        """
        still = [
            [slot for slot in layer.slots if is_under(slot, masked)]
            for layer, masked in zip(self._layers, self.by_name.values(), strict=True)
        ]
        for layer, slots, masked in zip(self._layers, still, self.by_name.values(), strict=True):
            _check_alone(layer, slots)
            _check_class(layer, slots)
            _check_whole(layer, slots, masked.mask)
        for slots in still:
            take_off(slots)
        self._reorder()

    def _reorder(self) -> None:
        for module, order in self._orders:
            held = module._parameters
            for name in (*order, *(name for name in tuple(held) if name not in order)):
                if name in held:
                    held[name] = held.pop(name)


def _check_alone(layer: Layer, slots: Sequence[Slot]) -> None:
    """Raise TrainingStateError if a weight has other parametrizations beside its mask."""
    others = [type(one).__name__ for slot in slots for one in beside(slot)]
    if others:
        raise TrainingStateError(
            f"{layer.name} must have its mask as the only parametrization, and has {', '.join(others)} too, "
            f"which would be lost with it; register it after finish()"
        )


def _check_class(layer: Layer, slots: Sequence[Slot]) -> None:
    """Raise TrainingStateError if a module is of another class than its mask gave it: the mask could not be taken off.

    As fully_shard does, which puts a class on top.
    """
    kinds = [type(slot.module) for slot in slots]
    made = [kind.__name__ for kind, slot in zip(kinds, slots, strict=True) if slot.attribute not in vars(kind)]
    if made:
        raise TrainingStateError(
            f"{layer.name} must be in a module of the class that its mask gave it, and was made a {made[0]} since; "
            f"give the module its class back, or go on from a state dict, in a new model"
        )


def _check_whole(layer: Layer, slots: Sequence[Slot], mask: torch.Tensor) -> None:
    """Raise TrainingStateError if a module holds a part of its weight, or none: it could not do with that.

    FullyShardedDataParallel and DeepSpeed leave one row or none; fully_shard a DTensor, which it makes whole only where
    the parameter was as it sharded the model.
    """
    for slot in slots:
        dense = original(slot)
        if not isinstance(dense, nn.Parameter) or dense.ndim != mask.ndim or hasattr(dense, "full_tensor"):
            raise TrainingStateError(
                f"{layer.name} must be whole in its module, which holds a part of it or none since the model was "
                f"sharded; go on from a state dict, in a new model"
            )
