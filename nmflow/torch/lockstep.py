"""Forward passes that stop at every layer and go on when it is pruned: later layers see what earlier ones became.

Each batch goes through the model once, in a thread of its own that waits inside a hook. Only one thread runs at a
time, so results don't depend on timing; what is alive meanwhile are the activations of all batches at one layer.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from nmflow.errors import InputValueError
from nmflow.torch.experts import tokens_of
from nmflow.torch.feed import Draws, Forward, feed, wanted_rows
from nmflow.torch.gather import add, hooked
from nmflow.torch.moments import Moments
from nmflow.torch.seen import Seen
from nmflow.torch.select import Layer

__all__ = ["in_lockstep"]


class _Left(BaseException):
    """Raised inside a pass that is given up; derives from BaseException so that no model swallows it."""


class _State:
    """What torch keeps for each thread: autocast, and the device of new tensors (`feed` switches gradients off)."""

    def __init__(self) -> None:
        types = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)]
        self._casts = [(kind, torch.get_autocast_dtype(kind)) for kind in types if torch.is_autocast_enabled(kind)]
        self._device = torch.empty(0).device  # get_default_device does not know of contexts up to torch 2.6

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put the current thread into it."""
        with contextlib.ExitStack() as stack:
            for kind, dtype in self._casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            if self._device != torch.device("cpu"):  # what a thread begins with
                stack.enter_context(self._device)
            yield


class _Walker:
    """One forward pass, in a thread that runs only between `go` and its next stop, in the state of the caller's."""

    def __init__(self, walk: Callable[[], None], draws: Draws) -> None:
        self._state, self._draws = _State(), draws
        self.layer: Layer | None = None
        self.module: nn.Module | None = None
        self.value: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._left = False
        # of C, as an interrupt within a lock or semaphore of Python's own text could leave that held, or a wait lost
        self._go: SimpleQueue[None] = SimpleQueue()
        self._stopped: SimpleQueue[None] = SimpleQueue()
        self._context = contextvars.copy_context()
        self._thread = threading.Thread(target=self._run, args=(walk,), daemon=True)
        self.ident: int | None = None

    def _run(self, walk: Callable[[], None]) -> None:
        self._go.get()
        try:
            if not self._left:
                with self._state.entered():
                    self._context.run(walk)
        except _Left:
            pass
        except BaseException as error:
            self._error = error
        self.layer = None
        self._stopped.put(None)

    def go(self) -> None:
        """Run up to the next stop, or to the end."""
        if self.ident is None:
            self._thread.start()
            self.ident = self._thread.ident
        with self._draws.apart():
            self._go.put(None)
            self._stopped.get()
        if self._error is not None:
            raise self._error

    def stop(self, layer: Layer, module: nn.Module, value: torch.Tensor) -> None:
        """Wait inside the thread until told to go on."""
        self.layer, self.module, self.value = layer, module, value
        self._stopped.put(None)
        self._go.get()
        self.value = None
        if self._left:
            raise _Left

    def leave(self) -> None:
        """Give the pass up, wherever it is, and wait for its thread."""
        self._left = True
        self._go.put(None)
        if self._thread.ident is not None:  # it may have been started and nobody told so, by an interrupt
            self._thread.join()


def in_lockstep(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, int],
    by_name: Mapping[str, Layer],
    treat: Callable[[Layer, Moments], None],
    *,
    dense: nn.Module | None,
    forward: Forward | None,
) -> None:
    """Prune layers in the order in which a model calls them.

    Parameters
    ----------
    model : Module
        In evaluation mode; its weights are changed by `treat`.
    batches : sequence
    layers : mapping of str to int
        Names of the layers to stop at, each with its place in the order of calls.
    by_name : mapping of str to Layer
    treat : callable (layer, moments)
        Changes the layer's weight; called when every batch that comes to it waits there.
    dense : Module, optional
        A copy of the model that stays as it is: then moments also hold how far inputs have moved from its.
    forward : callable, optional
    """
    pending = set(layers)
    walkers: dict[int, _Walker] = {}

    def take(layer: Layer, module: nn.Module, value: torch.Tensor) -> None:
        walker = walkers.get(threading.get_ident())
        if walker is not None and layer.name in pending:
            walker.stop(layer, module, value)

    def walk_of(which: nn.Module, number: int) -> _Walker:
        def walk() -> None:
            walkers[threading.get_ident()] = walker
            feed(which, batches[number], number, forward)

        walker = _Walker(walk, Draws(seeds[number]))
        return walker

    seeds = _seeds(len(batches))  # a model and its copy draw the same numbers
    own = [walk_of(model, number) for number in range(len(batches))]
    twins = [] if dense is None else [walk_of(dense, number) for number in range(len(batches))]
    wanted = [wanted_rows(model, batch) for batch in batches]
    chosen = [by_name[name] for name in layers]
    copies = [] if dense is None else [_copy_of(layer, dense) for layer in chosen]
    try:
        with hooked(chosen, take), hooked(copies, take):
            for walker in (*own, *twins):
                walker.go()
            before = Seen()
            while waiting := {walker.layer.name for walker in own if walker.layer is not None}:
                name = min(waiting, key=layers.__getitem__)
                layer = by_name[name]
                here = [number for number, walker in enumerate(own) if _at(walker, name)]
                for number in here if twins else ():  # past layers that only the dense model sends this batch to
                    while (at := twins[number].layer) is not None and layers[at.name] < layers[name]:
                        twins[number].go()
                there = [number for number, walker in enumerate(twins) if _at(walker, name)]
                values = [own[number].value for number in here] + [twins[number].value for number in there]
                moments = before.same(layer, (here, there), values)
                again = moments is not None  # keys see what queries saw
                moments = moments or Moments.of(layer, gram=True, cross=bool(twins))
                for number in () if again else here:
                    walker = own[number]
                    other = twins[number].value if number in there else None
                    assert walker.module is not None
                    assert walker.value is not None
                    if number in there and twins[number].module is walker.module:
                        raise InputValueError(
                            'follow="dense" must run a copy of the model, and the model itself is run in its place; '
                            'let forward call the model that it is given, or use follow="own"'
                        )
                    if other is not None and not _same_rows(other, walker.value):
                        other = None  # routed otherwise: nothing to compare row by row
                    add(moments, layer, walker.module, walker.value, wanted[number], number, other)
                before.keep(layer, (here, there), values, moments)
                values.clear()  # activations are not to outlive their pass
                other = None
                treat(layer, moments)
                pending.discard(name)
                for walker in (*(own[number] for number in here), *(twins[number] for number in there)):
                    walker.go()
    finally:
        for walker in (*own, *twins):
            walker.leave()


def _seeds(count: int) -> list[int]:
    """Seeds that follow from the state of the default generator, which stays as it is."""
    generator = torch.Generator("cpu")
    generator.set_state(torch.get_rng_state())
    return torch.randint(1 << 62, (count,), generator=generator, device="cpu").tolist()


def _at(walker: _Walker, name: str) -> bool:
    return walker.layer is not None and walker.layer.name == name


def _same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether rows belong to each other: of an expert, if they are of the same tokens."""
    mine, its = tokens_of(one), tokens_of(other)
    return one.shape == other.shape and (mine is None or its is None or torch.equal(mine[0], its[0]))


def _copy_of(layer: Layer, dense: nn.Module) -> Layer:
    """The same layer in a copy of the model."""
    modules = dict(dense.named_modules(remove_duplicate=False))
    return replace(layer, slots=tuple(replace(slot, module=modules[slot.module_name]) for slot in layer.slots))
