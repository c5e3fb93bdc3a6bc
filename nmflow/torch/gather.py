"""Stream batches through a model and sum up what its layers see, in as many passes as memory asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nmflow.errors import InputTypeError, InputValueError, NonFiniteError
from nmflow.torch.experts import may_be_idle
from nmflow.torch.feed import Draws, Forward, check_batches, evaluating, feed, wanted_rows
from nmflow.torch.memory import ran_out_of_memory
from nmflow.torch.moments import Moments, matrices, rows_of
from nmflow.torch.own_forward import called_with, has_own_forward, multiplies
from nmflow.torch.select import Layer
from nmflow.torch.watch import OnStep, watching
from nmflow.torch.wholly import wholly

__all__ = ["MEMORY", "add", "check_called", "gather", "hooked", "passes_over"]

MEMORY = 4e9
"""Bytes of sums that are kept in one pass over the batches; what needs more takes more passes."""


def gather(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[Layer],
    *,
    gram: bool,
    forward: Forward | None,
    memory: float = MEMORY,
    progress: OnStep | bool | None = None,
) -> dict[str, Moments]:
    """Sum up what some layers see, in as many passes over the batches as memory asks for."""
    check_batches(batches, "batches", forward)
    passes = passes_over(batches, layers, gram=gram, memory=memory)
    sums: dict[str, Moments] = {}
    total = len(passes) * len(batches) if isinstance(batches, Sequence) else 0
    done, draws = 0, Draws()
    with watching("calibrating", progress) as report, evaluating(model):
        for chosen in passes:
            current = {layer.name: Moments.of(layer, gram=gram) for layer in chosen}
            number = -1
            state = _Batch(0, (), inside=False)

            def take(layer: Layer, module: nn.Module, value: torch.Tensor, state: _Batch = state, current=current):  # type: ignore[no-untyped-def]
                if state.inside:
                    add(current[layer.name], layer, module, value, state.wanted, state.number)

            with hooked(chosen, take):
                for number, batch in enumerate(batches):
                    report(f"batch {number + 1}", done, total)
                    state.number, state.wanted, state.inside = number, wanted_rows(model, batch), True
                    with draws.apart():
                        feed(model, batch, number, forward)
                    state.inside = False
                    done += 1
            if number < 0:
                raise InputValueError("batches must hold at least one batch, not none; is the iterator used up?")
            check_called(layer for layer in chosen if not current[layer.name].count)
            sums |= current
        report("", done, total)
    return sums


@dataclass(slots=True)
class _Batch:
    """The batch that is on its way. inside : whether it is in the model, which may also make the next batch."""

    number: int
    wanted: tuple[torch.Tensor, ...]
    inside: bool


def add(
    moments: Moments,
    layer: Layer,
    module: nn.Module,
    value: torch.Tensor,
    wanted: Sequence[torch.Tensor],
    number: int,
    dense: torch.Tensor | None = None,
) -> None:
    """Take the input of one call into a layer's sums; an error names the layer and the batch."""
    if not isinstance(value, torch.Tensor):
        raise InputTypeError(f"batches must bring a tensor to {layer.name}, not {type(value).__name__}: batch {number}")
    parts = rows_of(module, value, wanted)
    others = rows_of(module, dense, wanted) if dense is not None else None
    try:
        for part in parts:
            moments.add(part, None if others is None else next(others))
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} of {layer.name} must be finite, not NaN or infinite at {error.count} entries in batch {number}; "
            f"look at that batch, and at the layers before this one",
            error.count,
            error.first,
        ) from None
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        raise InputValueError(
            f"batches must fit in memory with the inputs of {layer.name}, and batch {number} does not; "
            f"make smaller ones"
        ) from error


def check_called(idle_layers: Iterable[Layer]) -> None:
    """Raise InputValueError if a layer saw nothing; an expert may."""
    idle = [layer.name for layer in idle_layers if not may_be_idle(layer)]
    if idle:
        more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
        raise InputValueError(
            f"every layer must be called by the model, and {idle[0]}{more} never was; exclude it, or "
            f"calibrate with more"
        )


@contextlib.contextmanager
def hooked(layers: Iterable[Layer], take: Callable[[Layer, nn.Module, torch.Tensor], None]) -> Iterator[None]:
    """Call `take` with the input of every call of the layers' modules.

    Raises
    ------
    InputValueError
        Where a module's weight is multiplied by something else than its input.
    """
    unsure = set()

    def hook_of(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = called_with(args, kwargs)
            if isinstance(value, torch.Tensor) and value.is_nested:  # as nn.TransformerEncoder makes of padded texts
                value = torch.cat([text.reshape(-1, text.shape[-1]) for text in value.unbind()])
            elif id(module) in unsure and multiplies(layer.name, module, args, kwargs):
                unsure.discard(id(module))
            take(layer, module, value)

        return hook

    handles = []
    try:
        for layer in layers:
            for module in {id(slot.module): slot.module for slot in layer.slots}.values():
                if has_own_forward(module):
                    unsure.add(id(module))
                handle = module.register_forward_pre_hook(hook_of(layer), with_kwargs=True)
                handles.append(handle)
        yield
    finally:
        wholly([handle.remove for handle in handles])


def passes_over(
    batches: Iterable[Any], layers: Sequence[Layer], *, gram: bool, memory: float | None = None
) -> list[list[Layer]]:
    """Layers that are summed up together.

    Raises
    ------
    InputValueError
        If that takes several passes over batches that can be read only once.
    """
    memory = MEMORY if memory is None else memory
    passes: list[list[Layer]] = [[]]
    used = 0.0
    for layer in layers:
        groups, _, width = matrices(layer, layer.parameters[0].detach()).shape
        size = 8.0 * groups * width * (width if gram else 2)
        if passes[-1] and used + size > memory:
            passes.append([])
            used = 0.0
        passes[-1].append(layer)
        used += size
    if len(passes) > 1 and iter(batches) is batches:
        raise InputValueError(
            f"batches must be readable {len(passes)} times, as sums of {memory:g} bytes hold only some layers at once, "
            f"and are an iterator; give a list or a loader, or more memory"
        )
    return passes
