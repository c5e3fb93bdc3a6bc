"""Train a model whose weights are N:M sparse at every step."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError, NmflowError
from nmflow.pattern import Pattern
from nmflow.pipeline import as_pattern, certify
from nmflow.torch.convert import arrays, to_array, to_mask
from nmflow.torch.decay import Decay, inner_optimizer
from nmflow.torch.device import on_device
from nmflow.torch.masking import Masked, attach, bake
from nmflow.torch.prune import layer_report, named_error
from nmflow.torch.report import PruneReport
from nmflow.torch.search import find, find_on_device
from nmflow.torch.select import Filter, Layer, select, unwrapped
from nmflow.torch.sharing import Found, Ranks
from nmflow.torch.state import Refresh, check, packed_duals, packed_history, unpacked

__all__ = ["Refresh", "SparseTraining", "TrainingStateError"]


class TrainingStateError(NmflowError, RuntimeError):
    """Something asked of a sparse training that it can no longer do."""


class SparseTraining:
    """Keep the weights of a model N:M sparse while it trains.

    The optimizer keeps dense weights w. Forward passes see w * mask; gradients go straight through to all of
    w, and `decay` pulls the pruned ones to zero (SR-STE): before each optimizer step,
    grad += decay * w * ~mask. After every `every` optimizer steps the best masks of the weights are found anew.

    Parameters
    ----------
    model : Module
        On any device. Make this object before DistributedDataParallel; torch.compile may come before or after.
    optimizer : Optimizer
        Holds the parameters. Its ``step`` drives the schedule; nothing is to be called in the training loop.
    n, m : int
        Keep n of m. Instead: ``pattern="2:4"`` or a Pattern.
    include, exclude, filter_fn, strict
        As for `prune_`. Parameters that require no gradient are skipped.
    every : int
        Optimizer steps between refreshes. Steps that a GradScaler skips do not count.
    decay : float
        Pull on pruned weights, per unit of gradient; 2e-4 as in Zhou et al. 2021.
    warm_start : bool
        Start each solve from the last duals, which takes 8/m bytes of memory an entry. Off by default: on a CPU,
        keeping and reading duals took longer than it saved at each of seven patterns from 2:4 to 16:32.
    switch_cost : float
        Bonus for entries that were kept before, in units of the mean score; see `nmflow.solve`.
    stop_at : int, optional
        Optimizer steps after which masks are frozen.
    solver, fill, threads
        As for `nmflow.solve`.
    process_group : ProcessGroup, optional
        Processes that train the same model, over which solves are shared out. Default: all, where
        torch.distributed is initialised.

    Raises
    ------
    InputValueError, InputTypeError
        If an option is out of range, no layer is eligible, the optimizer does not hold a parameter, the model is in a
        DistributedDataParallel already, or another rank failed.
    NonFiniteError
        If a weight is NaN or infinite: the parameter is named. At a refresh, masks stay as they were.

    Notes
    -----
    Until `finish`, the state dict of the model holds the dense weights, as ``parametrizations.weight.original`` of each
    module. A checkpoint is the state dicts of model, optimizer and this object; with them a run goes on bit for bit.

    References
    ----------
    .. [1] A. Zhou et al., "Learning N:M fine-grained structured sparse neural networks", ICLR 2021, sections 3, 4.
    .. [2] I. Hubara et al., "Accelerated sparse neural training", NeurIPS 2021, section 4.

    Examples
    --------
    >>> model = nn.Linear(8, 8)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> training = SparseTraining(model, optimizer, 2, 4, every=10)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(4, 8)).square().mean().backward()
    ...     optimizer.step()
    >>> report = training.finish()
    >>> len(training.history), int((model.weight != 0).sum())
    (2, 32)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        n: int | None = None,
        m: int | None = None,
        *,
        pattern: str | Pattern | None = None,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        filter_fn: Filter | None = None,
        every: int = 40,
        decay: float = 2e-4,
        warm_start: bool = False,
        switch_cost: float = 0.0,
        stop_at: int | None = None,
        solver: str | Any = "dual",
        fill: str = "exact",
        strict: bool = False,
        threads: int | None = None,
        process_group: Any = None,
    ) -> None:
        self.every = _whole(every, "every", 1)
        self.decay = _amount(decay, "decay")
        self.switch_cost = _amount(switch_cost, "switch_cost")
        self.stop_at = None if stop_at is None else _whole(stop_at, "stop_at", 0)
        self.warm_start = bool(warm_start)
        self.pattern = as_pattern(n, m, pattern, fill=fill)
        self.solver, self.threads = solver, threads
        self.step = 0
        self.history: list[Refresh] = []
        self._ranks = Ranks.current(process_group)
        with self._ranks.together():
            driver = inner_optimizer(optimizer)
            selection = select(
                _before_parallel(model), self.pattern,
                include=include, exclude=exclude, filter_fn=filter_fn, strict=strict, trainable=True,
            )  # fmt: skip
            self._layers, self.skipped = selection.layers, selection.skipped
            self._parameters = [layer.parameters for layer in self._layers]
            pull = Decay(self.decay, driver, self._layers)
        for parameters in self._parameters:
            self._ranks.send(parameters[0].detach(), 0)  # as DistributedDataParallel does when it takes the model
        self._found: list[Found] | None = None
        self._found = self._search()
        self._by_name = {
            layer.name: Masked(to_mask(found.mask, parameters[0].device))
            for layer, found, parameters in zip(self._layers, self._found, self._parameters, strict=True)
        }
        self._masked = pull.masked = list(self._by_name.values())
        for layer, masked in zip(self._layers, self._masked, strict=True):
            attach(layer, masked)
        self._finished = False
        self._hooks = [
            driver.register_step_pre_hook(pull),
            driver.register_step_post_hook(self._after_step),
        ]
        self._stop_in_time()

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of each parameter, on its device: True = kept. They change in place."""
        return {name: masked.mask for name, masked in self._by_name.items()}

    @property
    def frozen(self) -> bool:
        """Whether masks are final."""
        return all(masked.fixed for masked in self._masked)

    def refresh(self) -> Refresh:
        """Find the masks of the weights as they are now; called every `every` optimizer steps.

        Raises
        ------
        TrainingStateError
            If masks are frozen, or `finish` was called.
        NonFiniteError
            If a weight is NaN or infinite; all masks stay as they were.
        """
        self._check_running()
        if self.frozen:
            raise TrainingStateError("masks must not be frozen for refresh(); they are since freeze() or stop_at")
        started = time.perf_counter()
        found = self._search()
        changes = []
        for masked, one in zip(self._masked, found, strict=True):
            new = to_mask(one.mask, masked.mask.device)
            changes.append((masked.mask ^ new).count_nonzero())
            masked.mask.copy_(new)
        self._found = found
        layers = {name: int(change) for name, change in zip(self._by_name, changes, strict=True)}
        entries = sum(masked.mask.numel() for masked in self._masked)
        record = Refresh(self.step, time.perf_counter() - started, sum(layers.values()), entries, layers)
        self.history.append(record)
        return record

    def find_mask(self, layer: Layer, weight: Array, last: Found | None) -> Found:
        """Find the mask of one layer on the CPU; override it to train under masks of another kind.

        (Weights on a CUDA device are solved there instead, unless this is overridden; see `solve_on_device`.)

        Parameters
        ----------
        layer : Layer
        weight : ndarray, shape of the parameter
            Not to be modified.
        last : Found or None
            What this returned at the last refresh.
        """
        return find(
            weight, self.pattern, last, layout=layer.layout, groups=layer.groups, solver=self.solver,
            threads=self.threads, warm_start=self.warm_start, switch_cost=self.switch_cost,
        )  # fmt: skip

    def freeze(self) -> None:
        """Keep the masks as they are from now on; pruned weights get no gradient any more."""
        self._check_running()
        for masked in self._masked:
            masked.fixed = True

    def finish(self) -> PruneReport:
        """Write the zeros into plain parameters and let go of model and optimizer.

        Returns
        -------
        PruneReport
            Its gaps say what the best masks of the final weights would keep more than these.

        Raises
        ------
        TrainingStateError
            If it was called before.
        """
        self._check_running()
        started = time.perf_counter()
        reports = []
        weights = arrays((layer.name, group[0]) for layer, group in zip(self._layers, self._parameters, strict=True))
        for layer, parameters, masked, weight in zip(
            self._layers, self._parameters, self._masked, weights, strict=True
        ):
            begun = time.perf_counter()
            mask = to_array(masked.mask)
            try:
                grade = certify(
                    weight, mask, pattern=self.pattern, layout=layer.layout, groups=layer.groups,
                    threads=self.threads, absolute=True,
                )  # fmt: skip
            except NmflowError as error:
                raise named_error(error, layer.name) from None
            seconds = time.perf_counter() - begun
            reports.append(layer_report(layer, parameters[0], weight, mask, grade, seconds, absolute=True))
        for layer, masked in zip(self._layers, self._masked, strict=True):
            bake(layer, masked)
        for hook in self._hooks:
            hook.remove()
        self._finished, self._found = True, None
        name = self.solver if isinstance(self.solver, str) else self.solver.name
        return PruneReport(str(self.pattern), name, tuple(reports), self.skipped, time.perf_counter() - started)

    def state_dict(self) -> dict[str, Any]:
        """Masks, duals, step and history, as ``torch.load(weights_only=True)`` reads them; the same on every rank."""
        self._check_running()
        assert self._found is not None
        return {
            "version": 1,
            "pattern": str(self.pattern),
            "step": self.step,
            "frozen": self.frozen,
            "masks": {name: mask.detach().cpu().clone() for name, mask in self.masks.items()},
            "duals": {name: packed_duals(found) for name, found in zip(self._by_name, self._found, strict=True)},
            "history": packed_history(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Options such as `every` stay as they were given to this object.

        Raises
        ------
        InputValueError
            If the state is of another version, pattern or model, or damaged; nothing is changed then.
        """
        self._check_running()
        check(state, self.pattern, self.masks)
        found, step, history = unpacked(state, self._by_name)
        for name, masked in self._by_name.items():
            masked.mask.copy_(state["masks"][name])
            masked.fixed = bool(state["frozen"])
        self._found, self.step, self.history = found, step, history

    def _search(self) -> list[Found]:
        """New masks of all layers; nothing is changed."""
        owners = self._ranks.owners([parameters[0].numel() for parameters in self._parameters])
        mine = [number for number, owner in enumerate(owners) if owner == self._ranks.rank]
        found: dict[int, Found] = {}
        with self._ranks.together():
            staying = {number for number in mine if self._stays(self._parameters[number][0])}
            weights = arrays(
                (self._layers[number].name, self._parameters[number][0]) for number in mine if number not in staying
            )
            for number in mine:
                last = None if self._found is None else self._found[number]
                try:
                    if number in staying:
                        found[number] = self._find_on_device(number, last)
                    else:
                        found[number] = self.find_mask(self._layers[number], next(weights), last)
                except NmflowError as error:
                    raise named_error(error, self._layers[number].name) from None
        return self._ranks.exchange(found, owners, [parameters[0] for parameters in self._parameters])

    def _stays(self, parameter: nn.Parameter) -> bool:
        """Whether a mask is found on the device of its parameter: nothing asks for what only the CPU does."""
        overridden = type(self).find_mask is not SparseTraining.find_mask
        return not overridden and on_device(parameter, self.pattern, solver=self.solver, switch_cost=self.switch_cost)

    def _find_on_device(self, number: int, last: Found | None) -> Found:
        layer = self._layers[number]
        found = find_on_device(
            self._parameters[number][0], self.pattern, last, layout=layer.layout, groups=layer.groups,
            threads=self.threads, warm_start=self.warm_start,
        )  # fmt: skip
        return found if self._ranks.count == 1 else found.as_arrays()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A GradScaler calls a fused optimizer at every step, and lends it this tensor to skip by. Reading it waits for
        # the device, as the scaler itself does for other optimizers; without a scaler there is none.
        overflown = getattr(optimizer, "found_inf", None)
        if overflown is not None and bool(overflown):
            return
        self.step += 1
        if not self.frozen and self.step % self.every == 0:
            self.refresh()
        self._stop_in_time()

    def _stop_in_time(self) -> None:
        if self.stop_at is not None and self.step >= self.stop_at and not self.frozen:
            self.freeze()

    def _check_running(self) -> None:
        if self._finished:
            raise TrainingStateError("finish() must be called once, as the last thing; make a new SparseTraining")


def _before_parallel(model: nn.Module) -> nn.Module:
    """The model whose names users know. The hooks by which DistributedDataParallel reduces gradients would be lost."""
    inner = unwrapped(model)
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise InputValueError(
            "model must not be in a DistributedDataParallel yet; make SparseTraining of the model itself, then wrap it"
        )
    return inner


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputTypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise InputValueError(f"{name} must be at least {least}, not {number}")
    return number


def _amount(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputTypeError(f"{name} must be a number, not {value!r}") from None
    if not (math.isfinite(number) and number >= 0):
        raise InputValueError(f"{name} must be finite and not negative, not {value!r}")
    return number
