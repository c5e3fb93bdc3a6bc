"""One layer pruned after training: the least-squares target, what a method makes of it, and its report."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from nmflow.arrays import Array
from nmflow.errors import InputValueError, NmflowError, NonFiniteError
from nmflow.pattern import Pattern
from nmflow.torch.convert import to_array
from nmflow.torch.cross_validation import best_damping
from nmflow.torch.damping import damped
from nmflow.torch.experts import may_be_idle
from nmflow.torch.feed import Forward
from nmflow.torch.moments import Moments, from_matrices, matrices
from nmflow.torch.obs_pass import Pruned
from nmflow.torch.post_report import PostLayer
from nmflow.torch.prune import named_error
from nmflow.torch.refit import output_error, refit
from nmflow.torch.resume import Saved, Store
from nmflow.torch.select import Filter, Layer
from nmflow.torch.slots import identity, is_writable
from nmflow.torch.watch import OnStep

__all__ = ["Job", "Options", "Treat", "Worker", "all_or_nothing", "fit_again"]


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
        Damped.
    damping : float
    drop : ndarray of bool, shape (groups, R, K), or None
    """

    layer: Layer
    pattern: Pattern
    weights: torch.Tensor
    moments: Moments
    hessian: torch.Tensor
    damping: float
    drop: Array | None

    def groups(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, Array | None]]:
        """Weights, H and what must be dropped, of each group."""
        drops = [None] * len(self.weights) if self.drop is None else self.drop
        yield from zip(self.weights, self.hessian, drops, strict=True)


Treat: TypeAlias = Callable[[Job], list[Pruned]]
"""What a method does with a layer: masks and new weights, one for each group."""


def fit_again(job: Job, found: list[Pruned], method: str = "auto") -> list[Pruned]:
    """Refit what is kept, from the weights that were found on."""
    mask, start = (torch.stack([getattr(group, name) for group in found]) for name in ("mask", "weights"))
    for group, weights in zip(found, refit(job.weights, mask, job.hessian, method, start), strict=True):
        group.weights = weights
    return found


@dataclass(frozen=True, slots=True)
class Options:
    """What all methods have in common; see `adaprune_`."""

    include: Iterable[str] | None = None
    exclude: Iterable[str] | None = None
    filter_fn: Filter | None = None
    damping: float | None = None
    sequential: bool = True
    follow: str = "dense"
    absorb_mean: bool = True
    keep_zeros: bool = False
    forward: Forward | None = None
    resume: Any = None
    progress: OnStep | bool | None = None


@contextlib.contextmanager
def all_or_nothing(held: Sequence[nn.Parameter]) -> Iterator[dict[nn.Parameter, torch.Tensor]]:
    """Put parameters back if anything goes wrong; yields what would be put back, not to be written to."""
    before = {parameter: parameter.detach().clone() for parameter in held}
    try:
        yield before
    except BaseException:
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
        raise


def _biases(layer: Layer, holders: Mapping[tuple[object, ...], int]) -> list[nn.Parameter]:
    """Biases that can make up for a shift of the mean: of the one module that holds the weight, and of no other."""
    modules = {id(slot.module): slot.module for slot in layer.slots}
    bias = next(iter(modules.values()))._parameters.get("bias") if len(modules) == 1 else None
    return [] if bias is None or holders[identity(bias)] > 1 or not is_writable(bias) else [bias]


class Worker:
    """Prunes one layer at a time and keeps the reports.

    Parameters
    ----------
    model : Module
    chosen : dict of Layer to Pattern
    treat : callable
    options : Options
    store : Store
    """

    def __init__(
        self, model: nn.Module, chosen: dict[Layer, Pattern], treat: Treat, options: Options, store: Store
    ) -> None:
        self.chosen, self.method, self.options, self.store = chosen, treat, options, store
        places = (held for module in model.modules() for held in module._parameters.values() if held is not None)
        holders = Counter(map(identity, places))
        self.biases = {layer: _biases(layer, holders) for layer in chosen}
        self.done: dict[str, PostLayer] = {}
        self.report: Callable[[str], None] = lambda name: None
        self._waiting: list[tuple[Layer, torch.Tensor, torch.Tensor | None]] | None = None

    def touched(self) -> list[nn.Parameter]:
        """All that may be written."""
        return [parameter for layer in self.chosen for parameter in (*layer.parameters, *self.biases[layer])]

    def restorable(self, layer: Layer) -> bool:
        """Whether a run before this one has finished the layer."""
        return self.store.load(layer.name) is not None

    def restore(self, layer: Layer) -> bool:
        """Take a layer from a run before this one, if it is there."""
        saved = self.store.load(layer.name)
        if saved is None:
            return False
        self._write(layer, saved.weight, saved.bias)
        self.done[layer.name] = PostLayer.from_dict(saved.report)
        return True

    def treat(self, layer: Layer, moments: Moments) -> None:
        """Prune a layer in place."""
        if self.restore(layer):
            return
        if not moments.count and not may_be_idle(layer):
            raise InputValueError(f"batches must hold rows that {layer.name} sees, and none does; exclude it")
        self.report(layer.name)
        begun = time.perf_counter()
        try:
            weight, bias, report = self._solve(layer, moments)
        except NmflowError as error:
            raise named_error(error, layer.name) from None
        report = replace(report, seconds=time.perf_counter() - begun)
        self.store.save(layer.name, Saved(weight, bias, report.to_dict()))
        self._write(layer, weight, bias)
        self.done[layer.name] = report

    @contextlib.contextmanager
    def writing_at_the_end(self) -> Iterator[None]:
        """Let layers stay as they are in a block of code, and write to all that were treated at its end."""
        waiting: list[tuple[Layer, torch.Tensor, torch.Tensor | None]] = []
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        for each in waiting:
            self._write(*each)

    def _write(self, layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if self._waiting is not None:
            self._waiting.append((layer, weight, bias))
            return
        with torch.no_grad():
            layer.parameters[0].copy_(weight)
            if bias is not None:
                self.biases[layer][0].copy_(bias)

    def _solve(self, layer: Layer, moments: Moments) -> tuple[torch.Tensor, torch.Tensor | None, PostLayer]:
        parameter = layer.parameters[0].detach()
        biases = self.biases[layer] if self.options.absorb_mean else []
        dense = matrices(layer, parameter).to(moments.total)
        bad = ~torch.isfinite(dense)
        if bad.any():
            first = tuple(int(index) for index in (~torch.isfinite(parameter)).nonzero()[0])
            count = int(bad.sum())
            raise NonFiniteError.among("weights", count, bad.numel(), first, "repair them")
        centred, share = bool(biases), self.options.damping
        if share is None:
            share = best_damping(dense, moments, centred=centred)
        hessian, share, bare = damped(moments, share, centred=centred)
        target = dense + _moved(dense, moments, hessian, centred=centred)
        drop = (dense == 0).cpu().numpy() if self.options.keep_zeros else None
        job = Job(layer, self.chosen[layer], target, moments, hessian, share, drop)
        with torch.autocast(target.device.type, enabled=False):  # which is for passes: what steps in float32 needs that
            found = self.method(job)
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
            if torch.isfinite(biases[0]).all() and not torch.isfinite(bias).all():
                raise InputValueError(
                    f"the bias must fit into {bias.dtype} with the mean output; use absorb_mean=False"
                )
        if moments.count:  # what damping holds dear is no error of the outputs
            hessian.diagonal(dim1=-2, dim2=-1).copy_(bare)
        whole = output_error(target, hessian) or 1.0
        report = PostLayer(
            layer.name, layer.also, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), layer.layout,
            sum(group.dense for group in found), sum(group.kept for group in found), sum(group.gap for group in found),
            float(np.count_nonzero(to_array(mask))) / mask.numel(), sum(group.n_blocks for group in found),
            sum(group.n_proven for group in found), 0.0,
            pattern=str(self.chosen[layer]), rows=moments.count, inputs=dense.shape[-1], damping=share,
            masked_error=max(0.0, output_error(dense * mask - target, hessian)) / whole,
            error=max(0.0, output_error(rounded - target, hessian)) / whole,
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
