"""The way of every method that prunes after training: layer by layer, all of a model or nothing, resumable."""

from __future__ import annotations

import contextlib
import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

import torch
from torch import nn

from nmflow.asked import check_choice, check_flags
from nmflow.errors import InputValueError
from nmflow.pattern import Pattern
from nmflow.torch.calibrate import Calibration, with_known_inputs
from nmflow.torch.feed import Draws, Forward, check_batches, evaluating, feed
from nmflow.torch.gather import check_called, gather, hooked, passes_over
from nmflow.torch.lockstep import in_lockstep
from nmflow.torch.moments import Moments, matrices
from nmflow.torch.post_layer import Options, Treat, Worker, all_or_nothing
from nmflow.torch.post_report import PostReport
from nmflow.torch.resume import Store
from nmflow.torch.select import Layer, Selection, select, unwrapped
from nmflow.torch.watch import watching

__all__ = ["Data", "run"]

Data: TypeAlias = Iterable[Any] | Calibration


def run(
    model: nn.Module,
    data: Data,
    method: str,
    solver: str,
    patterns: tuple[Pattern, Callable[[Layer], Pattern | None]],
    treat: Treat,
    options: Options,
    key: Mapping[str, Any],
    scores: Callable[[Layer], Any] | None = None,
) -> PostReport:
    """Prune a model with what its layers see; after an error or an interrupt the model is as it was.

    Parameters
    ----------
    model, data : Module, batches or Calibration
    method, solver : str
        For the report.
    patterns : what `patterns_of` returns
    treat : callable
    options : Options
    key : mapping
        What else a resumed run must have in common with the one before.
    scores : callable (layer), optional
        The same for each layer.
    """
    from nmflow.checkpoint.journal import version  # a Python made for a card may lack what files need

    started = time.perf_counter()
    inner = unwrapped(model)
    _check(data, options)
    selection, chosen = _chosen(inner, patterns, options)
    said = {layer.name: str(pattern) for layer, pattern in chosen.items()}
    common = {"version": version(), "method": method, **key, "patterns": said}
    store = Store.open(options.resume, common | _plain(options))
    # what one layer becomes depends on all before it, so everything is signed while all of the model is as it was
    store.sign(
        [dict(inner.named_parameters()), dict(inner.named_buffers()), repr(inner), repr(getattr(inner, "config", None))]
    )
    store.sign(scores(layer) for layer in chosen if scores is not None)
    worker = Worker(inner, chosen, treat, options, store)
    with watching("pruning", options.progress) as report, all_or_nothing(worker.touched()) as before:
        worker.report = lambda name: report(name, len(worker.done), len(chosen))
        if isinstance(data, Calibration):
            for layer in chosen:
                _check_moments(layer, data)
            worker.store.sign([moments.count, moments.total, moments.gram] for moments in data.moments.values())
            for layer in chosen:
                worker.treat(layer, data.moments[layer.name])
        elif options.sequential:
            _sequential(inner, data, worker, options, before)
        else:
            _parallel(inner, data, worker, options)
        worker.report("")
    layers = tuple(worker.done[layer.name] for layer in chosen)
    worker.store.clear()
    names = sorted({layer.pattern for layer in layers})
    return PostReport(
        pattern=", ".join(names), solver=solver, layers=layers, skipped=selection.skipped,
        seconds=time.perf_counter() - started, method=method,
    )  # fmt: skip


def _check(data: Data, options: Options) -> None:
    check_choice(options.follow, ("dense", "own"), "follow")
    check_flags(sequential=options.sequential, absorb_mean=options.absorb_mean, keep_zeros=options.keep_zeros)
    if isinstance(data, Calibration):
        if options.sequential:
            raise InputValueError("sequential must be False with a calibration; give batches to see pruned inputs")
    else:
        check_batches(data, "data", options.forward)


def _check_moments(layer: Layer, data: Calibration) -> None:
    """Raise InputValueError unless a calibration holds sums of this layer's inputs."""
    if layer.name not in data.moments:
        raise InputValueError(f"calibration must hold {layer.name}, and does not; calibrate again")
    found, (groups, _, width) = (
        data.moments[layer.name].total.shape,
        matrices(layer, layer.parameters[0].detach()).shape,
    )
    if tuple(found) != (groups, width):
        raise InputValueError(
            f"calibration must hold {groups} x {width} inputs of {layer.name}, not {found[0]} x {found[1]}; "
            f"calibrate this model"
        )


def _plain(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("damping", "sequential", "follow", "absorb_mean", "keep_zeros")}


def _chosen(
    model: nn.Module, patterns: tuple[Pattern, Callable[[Layer], Pattern | None]], options: Options
) -> tuple[Selection, dict[Layer, Pattern]]:
    """Layers to prune with their patterns, and all that is left alone with the reason."""
    blocks, pattern_of = patterns
    found = with_known_inputs(
        select(model, blocks, include=options.include, exclude=options.exclude, filter_fn=options.filter_fn)
    )
    chosen = {layer: pattern for layer in found.layers if (pattern := pattern_of(layer)) is not None}
    if not chosen:
        raise InputValueError("n must name a layer that can be pruned, at less than m; it names none")
    dense = [(layer.name, "stays dense: not in n, or n = m") for layer in found.layers if layer not in chosen]
    return Selection(tuple(chosen), (*found.skipped, *dense)), chosen


def _sequential(
    model: nn.Module,
    data: Iterable[Any],
    worker: Worker,
    options: Options,
    before: Mapping[nn.Parameter, torch.Tensor],
) -> None:
    """Every layer sees what the pruned ones before it make of the batches."""
    batches = list(data)
    if not batches:
        raise InputValueError("data must hold at least one batch, not none; is the iterator used up?")
    worker.store.sign(batches)
    order = _order(model, batches, worker.chosen, options.forward)
    repeated = [layer for layer in worker.chosen if order.get(layer.name, (0, 0))[1] > 1]
    follow = options.follow == "dense"
    with evaluating(model):
        twin = _copy(model, before) if follow else None
        if repeated:  # called again and again in one pass: seen whole in the dense model only
            sums = gather(model, batches, repeated, gram=True, forward=options.forward, progress=False)
            for layer in repeated:
                worker.treat(layer, sums.pop(layer.name))
        places = {name: place for name, (place, _) in order.items()}
        restored = [layer for layer in worker.chosen if layer not in repeated and worker.restore(layer)]
        left = [layer for layer in worker.chosen if layer not in repeated and layer not in restored]
        by_name = {layer.name: layer for layer in left if layer.name in places}
        if by_name:
            in_lockstep(
                model, batches, {name: places[name] for name in by_name}, by_name, worker.treat,
                dense=twin, forward=options.forward,
            )  # fmt: skip
        for layer in left:
            if layer.name not in worker.done:  # pruned layers may send all tokens to other experts
                worker.treat(layer, Moments.of(layer, gram=True))


def _copy(model: nn.Module, before: Mapping[nn.Parameter, torch.Tensor]) -> nn.Module:
    """The dense model, to follow; some modules hold tensors that torch does not copy.

    What would be put back is the copy of the parameters that are pruned, unless passes have written to one: they would
    write to this as well.
    """
    memo: dict[int, Any] = {}
    if all(torch.equal(parameter, value) for parameter, value in before.items()):
        plain = {parameter: value for parameter, value in before.items() if type(parameter) is nn.Parameter}
        memo = {id(held): nn.Parameter(value, held.requires_grad) for held, value in plain.items()}
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, MemoryError) as error:
        raise InputValueError(
            f'model must be copied for follow="dense", and cannot be; use follow="own": {error}'
        ) from error


def _parallel(model: nn.Module, data: Iterable[Any], worker: Worker, options: Options) -> None:
    """Every layer sees what the dense model makes of the batches."""
    if worker.store:
        data = list(data)
        worker.store.sign(data)
    left = [layer for layer in worker.chosen if not worker.restorable(layer)]
    parts = passes_over(data, left, gram=True) if left else []
    # sums of a part go before those of the next are made; till then the model stays dense, and new weights wait
    with worker.writing_at_the_end() if len(parts) > 1 else contextlib.nullcontext():
        for part in parts:
            sums = gather(model, data, part, gram=True, forward=options.forward, progress=options.progress)
            for layer in part:
                worker.treat(layer, sums.pop(layer.name))
    for layer in worker.chosen:
        if layer.name not in worker.done:
            worker.restore(layer)


def _order(
    model: nn.Module, batches: list[Any], layers: Iterable[Layer], forward: Forward | None
) -> dict[str, tuple[int, int]]:
    """When each layer is called first, and how often at most for one batch."""
    most: dict[str, int] = {}
    calls: Counter[str] = Counter()  # for the batch that is on its way
    last: list[str] = []
    after: dict[str, set[str]] = {}
    draws = Draws()

    def take(layer: Layer, module: nn.Module, value: torch.Tensor) -> None:
        calls[layer.name] += 1
        most[layer.name] = max(most.get(layer.name, 0), calls[layer.name])
        after.setdefault(layer.name, set()).update({*last} - {layer.name})
        last[:] = [layer.name]

    with hooked(layers, take), evaluating(model):
        for number, batch in enumerate(batches):
            last.clear()
            calls.clear()
            with draws.apart():
                feed(model, batch, number, forward)
    try:  # a layer that only some batches come to has its place between those around it
        order = list(TopologicalSorter(after).static_order())
    except CycleError:
        order = list(most)
    check_called(layer for layer in layers if layer.name not in most)
    return {name: (place, most[name]) for place, name in enumerate(order)}
