"""The way of every method that prunes after training: layer by layer, all of a model or nothing, resumable."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from nmflow.errors import InputTypeError, InputValueError, NmflowError, NonFiniteError
from nmflow.pattern import Pattern
from nmflow.pipeline import as_pattern
from nmflow.problem import Array
from nmflow.torch.calibrate import (
    Calibration,
    check_called,
    check_damping,
    gather,
    hooked,
    with_known_inputs,
)
from nmflow.torch.convert import to_array
from nmflow.torch.feed import Forward, evaluating, feed
from nmflow.torch.lockstep import in_lockstep
from nmflow.torch.moments import Moments, from_matrices, matrices
from nmflow.torch.obs_pass import Pruned
from nmflow.torch.post_report import PostLayer, PostReport
from nmflow.torch.prune import named_error
from nmflow.torch.refit import output_error
from nmflow.torch.resume import Saved, Store
from nmflow.torch.scores import damped
from nmflow.torch.select import Filter, Layer, Selection, select, unwrapped
from nmflow.torch.watch import OnStep, watching

__all__ = ["Counts", "Data", "Job", "Options", "Treat", "check_names", "patterns_of", "run"]

Data: TypeAlias = Iterable[Any] | Calibration
Counts: TypeAlias = int | Mapping[str, int] | None
"""n for all layers, or for each by the name of its parameter."""


@dataclass(frozen=True, slots=True)
class Job:
    """One layer to be pruned, as a method sees it.

    Attributes
    ----------
    layer : Layer
    pattern : Pattern
    weights : Tensor of float64, shape (groups, R, K)
        What the kept ones are to stand in for.
    moments : Moments
    hessian : Tensor of float64, shape (groups, K, K)
    drop : ndarray of bool, shape (groups, R, K), or None
    """

    layer: Layer
    pattern: Pattern
    weights: torch.Tensor
    moments: Moments
    hessian: torch.Tensor
    drop: Array | None


Treat: TypeAlias = Callable[[Job], list[Pruned]]
"""What a method does with a layer: masks and new weights, one for each group."""


@dataclass(frozen=True, slots=True)
class Options:
    """What all methods have in common; see `adaprune_`."""

    include: Iterable[str] | None = None
    exclude: Iterable[str] | None = None
    filter_fn: Filter | None = None
    damping: float = 0.01
    sequential: bool = True
    follow: str = "dense"
    absorb_mean: bool = True
    keep_zeros: bool = False
    forward: Forward | None = None
    resume: Any = None
    progress: OnStep | bool | None = None


def patterns_of(
    n: Counts, m: int | None, pattern: str | Pattern | None, fill: str
) -> tuple[Pattern, Callable[[Layer], Pattern | None]]:
    """A pattern whose blocks are those of all layers, and the pattern of each (None: it stays dense).

    Raises
    ------
    InputValueError
        If n is a mapping and m is missing, or there is a pattern too.
    """
    if not isinstance(n, Mapping):
        chosen = as_pattern(n, m, pattern, fill=fill)
        return chosen, lambda layer: chosen
    if m is None or pattern is not None:
        raise InputValueError("m must be given beside n for each layer, and no pattern; write n={...}, m=16")
    table = {name: Pattern(count, m, fill=fill) for name, count in n.items()}
    if not table:
        raise InputValueError("n must name at least one parameter, not none")

    def of(layer: Layer) -> Pattern | None:
        found = next((table[slot.name] for slot in layer.slots if slot.name in table), None)
        return None if found is None or found.n == m else found

    return next(iter(table.values())), of


def run(
    model: nn.Module,
    data: Data,
    method: str,
    solver: str,
    patterns: tuple[Pattern, Callable[[Layer], Pattern | None]],
    treat: Treat,
    options: Options,
    key: Mapping[str, Any],
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
    """
    started = time.perf_counter()
    inner = unwrapped(model)
    _check(data, options)
    selection, chosen = _chosen(inner, patterns, options)
    common = {"method": method, **key, "patterns": {layer.name: str(pattern) for layer, pattern in chosen.items()}}
    worker = _Worker(chosen, treat, options, Store.open(options.resume, common | _plain(options)))
    with watching("pruning", options.progress) as report, _all_or_nothing(chosen):
        worker.report = lambda name: report(name, len(worker.done), len(chosen))
        if isinstance(data, Calibration):
            worker.store.sign(moments.total for moments in data.moments.values())
            for layer in chosen:
                if layer.name not in data.moments:
                    raise InputValueError(f"calibration must hold {layer.name}, and does not; calibrate again")
                worker.treat(layer, data.moments[layer.name])
        elif options.sequential:
            _sequential(inner, data, worker, options)
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
    check_damping(options.damping)
    if options.follow not in ("dense", "own"):
        raise InputValueError(f'follow must be "dense" or "own", not {options.follow!r}')
    if isinstance(data, Calibration):
        if options.sequential:
            raise InputValueError("sequential must be False with a calibration; give batches to see pruned inputs")
    elif isinstance(data, str | bytes | torch.Tensor | Mapping):
        raise InputTypeError(f"data must be batches or a calibration, not one {type(data).__name__}")


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


def _sequential(model: nn.Module, data: Iterable[Any], worker: _Worker, options: Options) -> None:
    """Every layer sees what the pruned ones before it make of the batches."""
    batches = list(data)
    if not batches:
        raise InputValueError("data must hold at least one batch, not none; is the iterator used up?")
    worker.store.sign(batches)
    order = _order(model, batches, worker.chosen, options.forward)
    repeated = [layer for layer in worker.chosen if order[layer.name][1] > len(batches)]
    follow = options.follow == "dense"
    with evaluating(model):
        twin = _copy(model) if follow else None
        if repeated:  # called again and again in one pass: seen whole in the dense model only
            sums = gather(model, batches, repeated, gram=True, forward=options.forward, progress=False)
            for layer in repeated:
                worker.treat(layer, sums.pop(layer.name))
        places = {name: place for name, (place, _) in order.items()}
        restored = [layer for layer in worker.chosen if layer not in repeated and worker.restore(layer)]
        left = [layer for layer in worker.chosen if layer not in repeated and layer not in restored]
        by_name = {layer.name: layer for layer in left}
        if left:
            in_lockstep(
                model, batches, {name: places[name] for name in by_name}, by_name, worker.treat,
                dense=twin, forward=options.forward,
            )  # fmt: skip


def _copy(model: nn.Module) -> nn.Module:
    """The dense model, to follow; some modules hold tensors that torch does not copy."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, MemoryError) as error:
        raise InputValueError(
            f'model must be copied for follow="dense", and cannot be; use follow="own": {error}'
        ) from error


def check_names(model: nn.Module, values: object, argument: str) -> None:
    """Raise InputValueError if a mapping names what is no parameter of the model."""
    if isinstance(values, Mapping):
        known = {name for name, _ in unwrapped(model).named_parameters(remove_duplicate=False)}
        unknown = next((name for name in values if name not in known), None)
        if unknown is not None:
            raise InputValueError(f"{argument} must be named like parameters of the model, not {unknown!r}")


def _parallel(model: nn.Module, data: Iterable[Any], worker: _Worker, options: Options) -> None:
    """Every layer sees what the dense model makes of the batches."""
    if worker.store:
        data = list(data)
        worker.store.sign(data)
    left = [layer for layer in worker.chosen if not worker.restorable(layer)]
    sums: dict[str, Moments] = {}
    if left:
        sums = gather(model, data, left, gram=True, forward=options.forward, progress=options.progress)
    for layer in worker.chosen:
        if layer in left:
            worker.treat(layer, sums.pop(layer.name))
        else:
            worker.restore(layer)


def _order(
    model: nn.Module, batches: list[Any], layers: Iterable[Layer], forward: Forward | None
) -> dict[str, tuple[int, int]]:
    """When each layer is called first, and how often over all batches."""
    calls: Counter[str] = Counter()
    last: list[str] = []
    after: dict[str, set[str]] = {}

    def take(layer: Layer, module: nn.Module, value: torch.Tensor) -> None:
        calls[layer.name] += 1
        after.setdefault(layer.name, set()).update({*last} - {layer.name})
        last[:] = [layer.name]

    with hooked(layers, take), evaluating(model):
        for number, batch in enumerate(batches):
            last.clear()
            feed(model, batch, number, forward)
    try:  # a layer that only some batches come to has its place between those around it
        order = list(TopologicalSorter(after).static_order())
    except CycleError:
        order = list(calls)
    idle = [layer.name for layer in layers if layer.name not in calls]
    if idle:
        check_called({name: Moments(0, torch.empty(0), torch.empty(0)) for name in idle})
    return {name: (place, calls[name]) for place, name in enumerate(order)}


@contextlib.contextmanager
def _all_or_nothing(layers: Iterable[Layer]) -> Iterator[None]:
    """Put weights and biases back if anything goes wrong."""
    held = [parameter for layer in layers for parameter in (*layer.parameters, *_biases(layer))]
    before = [parameter.detach().clone() for parameter in held]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(held, before, strict=True):
                parameter.copy_(value)
        raise


def _biases(layer: Layer) -> list[nn.Parameter]:
    """Biases that can make up for a shift of the mean: of the one module that holds the weight."""
    modules = {id(slot.module): slot.module for slot in layer.slots}
    bias = next(iter(modules.values()))._parameters.get("bias") if len(modules) == 1 else None
    return [] if bias is None else [bias]


class _Worker:
    """Prunes one layer at a time and keeps the reports."""

    def __init__(self, chosen: dict[Layer, Pattern], treat: Treat, options: Options, store: Store) -> None:
        self.chosen, self.method, self.options, self.store = chosen, treat, options, store
        self.done: dict[str, PostLayer] = {}
        self.report: Callable[[str], None] = lambda name: None

    def restorable(self, layer: Layer) -> bool:
        """Whether a run before this one has finished the layer."""
        return self.store.load(layer.name, self._state(layer)) is not None

    def restore(self, layer: Layer) -> bool:
        """Take a layer from a run before this one, if it is there."""
        saved = self.store.load(layer.name, self._state(layer))
        if saved is None:
            return False
        self._write(layer, saved.weight, saved.bias)
        self.done[layer.name] = PostLayer.from_dict(saved.report)
        return True

    def treat(self, layer: Layer, moments: Moments) -> None:
        """Prune a layer in place."""
        if self.restore(layer):
            return
        self.report(layer.name)
        begun = time.perf_counter()
        try:
            weight, bias, report = self._solve(layer, moments)
        except NmflowError as error:
            raise named_error(error, layer.name) from None
        report = replace(report, seconds=time.perf_counter() - begun)
        # saved under what the layer was, so before it is written
        self.store.save(layer.name, self._state(layer), Saved(weight, bias, report.to_dict()))
        self._write(layer, weight, bias)
        self.done[layer.name] = report

    def _state(self, layer: Layer) -> tuple[torch.Tensor, ...]:
        return tuple(parameter.detach() for parameter in (layer.parameters[0], *_biases(layer)))

    def _write(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        with torch.no_grad():
            layer.parameters[0].copy_(weight)
            if bias is not None:
                _biases(layer)[0].copy_(bias)

    def _solve(self, layer: Layer, moments: Moments) -> tuple[torch.Tensor, torch.Tensor | None, PostLayer]:
        parameter = layer.parameters[0].detach()
        biases = _biases(layer) if self.options.absorb_mean else []
        dense = matrices(layer, parameter).to(moments.total)
        bad = ~torch.isfinite(dense)
        if bad.any():
            first = tuple(int(index) for index in (~torch.isfinite(parameter)).nonzero()[0])
            count = int(bad.sum())
            raise NonFiniteError(
                f"weights must be finite, not NaN or infinite at {count} entries, the first at {first}", count, first
            )
        hessian, share = damped(moments, self.options.damping, centred=bool(biases))
        target = dense + _moved(dense, moments, hessian, centred=bool(biases))
        drop = (dense == 0).cpu().numpy() if self.options.keep_zeros else None
        found = self.method(Job(layer, self.chosen[layer], target, moments, hessian, drop))
        mask = torch.stack([group.mask for group in found])
        new = torch.stack([group.weights for group in found]) * mask
        weight = from_matrices(layer, new, parameter.shape).to(parameter)
        weight = weight.masked_fill(from_matrices(layer, ~mask, parameter.shape).to(parameter.device), 0.0)
        if not torch.isfinite(weight).all():
            raise InputValueError(f"weights must fit into {parameter.dtype} after they are refitted; raise damping")
        rounded = matrices(layer, weight).to(dense)
        bias = None
        if biases:
            # the mean of what the layer gave before, less that of what it gives now
            mean = moments.total / max(1, moments.count)
            shift = 0.0 if moments.shift is None else moments.shift / max(1, moments.count)
            owed = (dense @ (mean + shift)[..., None] - rounded @ mean[..., None]).reshape(-1)
            bias = (biases[0].detach().to(owed) + owed).to(biases[0])
        whole = output_error(target, hessian) or 1.0
        report = PostLayer(
            layer.name, layer.also, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), layer.layout,
            sum(group.dense for group in found), sum(group.kept for group in found), sum(group.gap for group in found),
            float(np.count_nonzero(to_array(mask))) / mask.numel(), sum(group.n_blocks for group in found),
            sum(group.n_proven for group in found), 0.0,
            pattern=str(self.chosen[layer]), rows=moments.count, inputs=dense.shape[-1], damping=share,
            masked_error=output_error(dense * mask - target, hessian) / whole,
            error=output_error(rounded - target, hessian) / whole,
        )  # fmt: skip
        if not math.isfinite(report.error):
            raise InputValueError("errors must be finite; the inputs are too large or too small: scale them")
        return weight, bias, report


def _moved(dense: torch.Tensor, moments: Moments, hessian: torch.Tensor, *, centred: bool) -> torch.Tensor:
    """What must be added to W so that the least-squares target of moved inputs is that of the dense model's outputs.

    With x the inputs now and x + d those of the dense model, the best unrestricted weights for W (x + d) are
    W + W E[d xᵀ] H⁻¹, and the error of any others is their error against these, plus a constant.
    """
    if moments.cross is None or moments.shift is None or not bool(moments.cross.any()):
        return torch.zeros_like(dense)
    count = max(1, moments.count)
    cross = moments.cross / count
    if centred:
        cross = cross - (moments.shift / count)[:, :, None] * (moments.total / count)[:, None, :]
    return torch.cholesky_solve((dense @ cross).mT, torch.linalg.cholesky(hessian)).mT
