"""Batches through a model: how it is called, in which state, and what is said if a batch does not fit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from nmflow.asked import check_functions
from nmflow.errors import InputTypeError, InputValueError
from nmflow.torch.memory import ran_out_of_memory
from nmflow.torch.wholly import wholly

__all__ = ["Draws", "Forward", "check_batches", "evaluating", "feed", "wanted_rows"]

Forward: TypeAlias = Callable[[nn.Module, Any], Any]
"""(model, batch) -> anything: how a batch goes through the model."""


def check_batches(batches: object, name: str, forward: Forward | None) -> None:
    """Raise InputTypeError unless batches can be gone through, and `forward` called; one batch alone is refused."""
    check_functions(forward=forward)
    one = isinstance(batches, str | bytes | torch.Tensor | Mapping)
    if one or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise InputTypeError(f"{name} must be a list or loader of batches, not one {type(batches).__name__}")


@contextlib.contextmanager
def evaluating(model: nn.Module, *, keep_buffers: bool = False) -> Iterator[None]:
    """Put a model into evaluation mode; at the end each module is back in its own, and buffers are as they were.

    Flags are set one by one: an `eval` of a module's own may do more than that, as merge an adapter into a weight,
    which no flag would undo. What is compiled runs uncompiled, as hooks would be traced into it. keep_buffers : leave
    buffers as the passes make them.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [] if keep_buffers else _buffers(model)
    try:
        for module, _ in modes:
            module.training = False
        with _uncompiled():
            yield
    finally:
        wholly([*(partial(setattr, module, "training", mode) for module, mode in modes), *buffers])


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    """A block of code in which torch.compile does nothing, in any thread; torch 2.5 cannot do that."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # else nothing is compiled
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return contextlib.nullcontext()


class Draws:
    """Random numbers of passes, apart from the caller's: some models draw in evaluation mode, too.

    seed : what they begin from; default: as the caller's would go on.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._state = _random_state()
        if seed is not None:
            devices = [torch.Generator(f"cuda:{k}").manual_seed(seed).get_state() for k in range(len(self._state[1]))]
            self._state = torch.Generator("cpu").manual_seed(seed).get_state(), devices

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Draw from these in a block of code; the next one goes on from there."""
        outside = _random_state()
        _set_random_state(self._state)
        try:
            yield
        finally:
            self._state = _random_state()
            _set_random_state(outside)


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The states of torch's default generators, of the CPU and of CUDA devices in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if in_use else []


def _set_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def _buffers(model: nn.Module) -> list[Callable[[], None]]:
    """What puts each buffer back: counters, observers of ranges, caches; not one that is a parameter's memory."""

    def put_back_of(module: nn.Module, name: str, held: torch.Tensor) -> Callable[[], None]:
        before, version, own = held.detach().clone(), held._version, vars(nn.Module())
        notes = {key: value for key, value in vars(module).items() if key not in own}

        def put_back() -> None:
            if module._buffers.get(name) is not held:  # nor is what the module notes of it: how long a text it is for
                vars(module).update(notes)
            module._buffers[name] = held
            same = held._version == version and (held.layout != torch.strided or torch.equal(held, before))
            if not same:  # else a graph that holds it would think it changed
                with torch.no_grad():
                    held.copy_(before)

        return put_back

    owned = {_memory(parameter) for parameter in model.parameters()} - {None}
    return [
        put_back_of(module, name, held)
        for module in model.modules()
        for name, held in module._buffers.items()
        if held is not None and not (held.is_meta or held.is_inference() or nn.parameter.is_lazy(held))
        and _memory(held) not in owned
    ]  # fmt: skip


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int] | None:
    """Where the storage of a dense tensor is; None of any other."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


def feed(model: nn.Module, batch: Any, number: int, forward: Forward | None) -> None:
    """Send one batch through a model, without gradients.

    A tensor or other value is its argument, a tuple or list its arguments, a mapping its keywords; tensors are brought
    to the device of the first parameter. `forward` takes the place of all that. A model may write into its input: it
    gets a copy, as a batch is sent more than once.

    Raises
    ------
    InputValueError
        If memory runs out.
    """
    try:
        with torch.no_grad(), _nothing_kept():
            if forward is not None:
                forward(model, _copied(batch))
                return
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            moved = _to(batch, device)
            if isinstance(moved, Mapping):
                model(**moved)
            elif isinstance(moved, tuple | list):
                model(*moved)
            else:
                model(moved)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise InputValueError(
            f"batches must fit in memory with the model's activations, and batch {number} of {_size(batch)} does not; "
            f"make smaller ones"
        ) from error


@contextlib.contextmanager
def _nothing_kept() -> Iterator[None]:
    """No weight that autocast has cast is used again: weights change between passes, and within one in lockstep."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def wanted_rows(model: nn.Module, batch: Any) -> tuple[torch.Tensor, ...]:
    """Which tokens of a batch are no padding, by its attention_mask; and the same of a decoder with texts of its own.

    Once more for texts that the model makes longer. Without a decoder_attention_mask all of a decoder's tokens count.
    InputValueError if a mask is one to be added to scores of attention, where zero says the opposite.
    """
    if not isinstance(batch, Mapping):
        return ()
    config = getattr(model, "config", None)
    masks = [batch.get("attention_mask"), batch.get("decoder_attention_mask")]
    texts = batch.get("decoder_input_ids", batch.get("labels"))
    if masks[1] is None and getattr(config, "is_encoder_decoder", False):
        masks[1] = torch.ones_like(texts) if isinstance(texts, torch.Tensor) else None
    found = [mask for mask in masks if isinstance(mask, torch.Tensor) and mask.ndim == 2]
    if any((mask < 0).any() for mask in found):
        raise InputValueError(
            "attention_mask must be 0 for padding and 1 for other tokens, and holds values below 0; give one such as "
            "tokenizers make"
        )
    longer = _longer(found[0], config) if found and found[0] is masks[0] else []
    return tuple(mask.bool() for mask in (*found, *longer))


def _longer(mask: torch.Tensor, config: Any) -> list[torch.Tensor]:
    """A mask as models make it that pad texts to whole windows of attention (Longformer) or blocks (BigBird)."""
    found = []
    for name in ("attention_window", "block_size"):
        given = getattr(config, name, None)  # a number, or one for each layer
        size = max(
            (each for each in (given if isinstance(given, list) else [given]) if isinstance(each, int)), default=0
        )
        if size > 0 and mask.shape[1] % size:
            found.append(nn.functional.pad(mask, (0, -mask.shape[1] % size)))
    return found


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, Mapping):
        return {key: _to(each, device) for key, each in value.items()}
    if isinstance(value, tuple | list):
        made = [_to(each, device) for each in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made) if isinstance(value, tuple) else made
    return value


def _copied(value: Any) -> Any:
    """Copies of the arrays in plain containers; anything else is the caller's own affair."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value


def _size(batch: Any) -> str:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    shapes = [str(tuple(value.shape)) for value in values if isinstance(value, torch.Tensor)]
    return "shape " + ", ".join(shapes) if shapes else f"type {type(batch).__name__}"
