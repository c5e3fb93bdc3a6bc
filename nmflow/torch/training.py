"""Train a model whose weights are N:M sparse at every step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from nmflow.arrays import Array
from nmflow.asked import amount, check_flags, whole
from nmflow.errors import InputValueError
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import as_pattern, certify
from nmflow.torch.decay import Decay
from nmflow.torch.device import on_device
from nmflow.torch.joint_search import find_all
from nmflow.torch.masked_layers import MaskedLayers
from nmflow.torch.masking import before_parallel
from nmflow.torch.report import PruneReport
from nmflow.torch.search import find
from nmflow.torch.select import Filter, Layer, select
from nmflow.torch.sharing import Found, Ranks
from nmflow.torch.state import Refresh, TrainingStateError, check, check_duals, packed, unpacked
from nmflow.torch.steps import Steps, inner_optimizer
from nmflow.torch.wholly import wholly

__all__ = ["Refresh", "SparseTraining", "TrainingStateError"]


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
        Share of each pruned weight that is added to its gradient; 2e-4 as in Zhou et al. 2021.
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
    .. [1] A. Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021,
       sections 3, 4.
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
        fill: Fill = "exact",
        strict: bool = False,
        threads: int | None = None,
        process_group: Any = None,
    ) -> None:
        check_flags(warm_start=warm_start)
        self.every = whole(every, "every", 1)
        pull, self.switch_cost = amount(decay, "decay"), amount(switch_cost, "switch_cost")
        self.stop_at = None if stop_at is None else whole(stop_at, "stop_at", 0)
        self.warm_start = bool(warm_start)
        self.pattern = as_pattern(n, m, pattern, fill=fill)
        self.solver, self.threads = solver, threads
        self.step = 0
        self.history: list[Refresh] = []
        self._group, self._ranks = process_group, Ranks.current(process_group)
        with self._ranks.together():
            driver, inner = inner_optimizer(optimizer), before_parallel(model)
            selection = select(
                inner, self.pattern,
                include=include, exclude=exclude, filter_fn=filter_fn, strict=strict, trainable=True,
            )  # fmt: skip
            self._layers, self.skipped = selection.layers, selection.skipped
            self._pull = Decay(pull, driver, self._layers)
        shapes = [(layer.name, tuple(layer.parameters[0].shape)) for layer in self._layers]
        self._ranks.agree({"pattern": str(self.pattern), "parameters": shapes})
        self._weights = [layer.parameters[0] for layer in self._layers]
        for weight in self._weights:
            self._ranks.send(weight.detach(), 0)  # as DistributedDataParallel does when it takes the model
        self._found: list[Found] | None = None
        self._found = self._search()
        self._masked = MaskedLayers(inner, self._layers, self._found)
        self._pull.masked = list(self._masked.by_name.values())
        self._finished = self._agreed = False
        self._steps = Steps(driver, self._before_step, self._after_step)  # may load Dynamo, which takes seconds
        try:
            self._masked.attach()
        except BaseException:
            self._steps.remove()
            raise
        self._stop_in_time()

    @property
    def decay(self) -> float:
        """Pull on pruned weights; a schedule may set it between steps."""
        return self._pull.strength

    @decay.setter
    def decay(self, value: float) -> None:
        self._pull.strength = amount(value, "decay")

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of each parameter, on its device: True = kept. They change in place."""
        return {name: masked.mask for name, masked in self._masked.by_name.items()}

    @property
    def frozen(self) -> bool:
        """Whether masks are final."""
        return self._masked.fixed

    def refresh(self) -> Refresh:
        """Find the masks of the weights as they are now; called every `every` optimizer steps.

        Raises
        ------
        TrainingStateError
            If masks are frozen, `finish` was called, or the model has other parameters now.
        NonFiniteError
            If a weight is NaN or infinite; all masks stay as they were.
        """
        self._check_running()
        if self.frozen:
            raise TrainingStateError("masks must not be frozen for refresh(); they are since freeze() or stop_at")
        self._check_ranks()
        with self._ranks.together():
            self._masked.check_held()
        started = time.perf_counter()
        found = self._search()
        layers = self._masked.change(found)
        self._found = found
        entries = sum(weight.numel() for weight in self._weights)
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
        self._masked.fix()

    def finish(self) -> PruneReport:
        """Write the zeros into plain parameters and let go of model and optimizer.

        After an interrupt nothing is changed or it is all done, unless zeros were being written: then all are, and
        `finish` can be called again.

        Returns
        -------
        PruneReport
            Its gaps say what the best masks of the final weights would keep more than these.

        Raises
        ------
        TrainingStateError
            If it was called before, the model has other parameters now, or a module was given another class since.
        """
        self._check_running()
        self._masked.check_held()
        started = time.perf_counter()
        reports = self._masked.grade(self.pattern, self.threads)
        self._masked.bake()
        self._let_go()
        name = self.solver if isinstance(self.solver, str) else self.solver.name
        return PruneReport(str(self.pattern), name, reports, self.skipped, time.perf_counter() - started)

    def release(self) -> None:
        """Take the masks off and let go of model and optimizer; weights stay dense, as the optimizer learned them.

        What was replaced or removed since is left alone. So a new SparseTraining can be made of the model.

        Raises
        ------
        TrainingStateError
            If it or `finish` was called before, a masked weight has another parametrization too, or its module was
            given another class or a part of it since, as sharding does. Nothing is changed then.
        """
        self._check_running()
        self._let_go()

    def state_dict(self) -> dict[str, Any]:
        """Masks, duals, step and history, as ``torch.load(weights_only=True)`` reads them; the same on every rank."""
        self._check_running()
        assert self._found is not None
        return packed(self.pattern, self.step, self.frozen, self.masks, self._found, self.history)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, on every rank. Options such as `every` stay as they were given to this object.

        Raises
        ------
        InputValueError
            If the state is of another version, pattern or model, or damaged; nothing is changed then. (At the first
            optimizer step, if another rank did not load it. Later, ranks would wait for each other.)
        """
        self._check_running()
        check(state, self.pattern, self.masks)
        found, step, history = unpacked(state, self.masks)
        if not self._finds_others:
            self._check_found(found)
        self._masked.change(found)
        self._masked.fix(state["frozen"])
        self._found, self.step, self.history = found, step, history
        self._agreed = False
        self._stop_in_time()

    def _search(self) -> list[Found]:
        """New masks of all layers; nothing is changed."""
        return find_all(
            self._layers, self._weights, self._found, self.pattern, self._ranks, find=self.find_mask,
            stays=self._stays, threads=self.threads, warm_start=self.warm_start,
        )  # fmt: skip

    def _stays(self, weight: torch.Tensor) -> bool:
        """Whether a mask is found on the device of its weight: nothing asks for what only the CPU does."""
        return not self._finds_others and on_device(
            weight, self.pattern, solver=self.solver, switch_cost=self.switch_cost
        )

    @property
    def _finds_others(self) -> bool:
        """Whether `find_mask` is overridden: then masks may be of any kind."""
        return getattr(self.find_mask, "__func__", None) is not SparseTraining.find_mask

    def _check_found(self, found: Sequence[Found]) -> None:
        """Raise InputValueError unless masks keep to the pattern, and duals fit."""
        for layer, weight, one in zip(self._layers, self._weights, found, strict=True):
            check_duals(layer.name, one, *layer.matrices(weight), self.pattern)
            grade = certify(
                one.mask.view(np.uint8), one.mask, pattern=self.pattern, layout=layer.layout, groups=layer.groups,
                threads=self.threads,
            )  # fmt: skip
            if not grade.feasible:
                raise InputValueError(
                    f"state must hold a mask of pattern {self.pattern} for {layer.name!r}, and its mask breaks it"
                )

    def _let_go(self) -> None:
        wholly([self._masked.take_off, self._end])

    def _end(self) -> None:
        self._steps.remove()
        self._finished, self._found = True, None

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_ranks()
        self._agree()
        return self._pull(optimizer, args, kwargs)

    def _after_step(self, optimizer: Optimizer) -> None:
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

    def _check_ranks(self) -> None:
        """Raise TrainingStateError if there are more processes now: each would have masks of its own."""
        if Ranks.current(self._group).count > self._ranks.count:
            raise TrainingStateError(
                "SparseTraining must be made after the processes have found each other, and was before: make "
                "TrainingArguments or Accelerator, or call init_process_group, first"
            )

    def _agree(self) -> None:
        """Raise InputValueError if another rank has other options, or has loaded what this one has not.

        Without a word, weights would drift apart, or ranks wait for each other.
        """
        if self._agreed or self._ranks.count == 1:
            return
        self._ranks.agree(
            {
                "step": self.step, "every": self.every, "stop_at": self.stop_at, "decay": self.decay,
                "frozen": self.frozen, "masks": self._masked.digest(),
            }
        )  # fmt: skip
        self._agreed = True

    def _check_running(self) -> None:
        if self._finished:
            raise TrainingStateError(
                "finish() must be called once, as the last thing, or release(); make a new SparseTraining"
            )
