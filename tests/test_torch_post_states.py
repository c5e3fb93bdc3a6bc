"""What calibrating and pruning leave behind: modes, buffers, batches, threads, folders; and models that are odd."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmflow.torch as nt
from nmflow.errors import InputValueError
from nmflow.pattern import Pattern
from nmflow.torch import lockstep
from nmflow.torch.damping import damped
from nmflow.torch.obs_pass import obs_pass
from nmflow.torch.resume import Store
from nmflow.torch.select import select

METHODS = [nt.sparsegpt_, nt.adaprune_, nt.alps_]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_layers(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class Merging(nn.Linear):
    """A Linear with an adapter that `eval` merges into its weight, and `train` takes out again."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.extra = nn.Parameter(random(16, 16, seed=3))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode is self.merged:
            self.weight.data += -self.extra.data if mode else self.extra.data
            self.merged = not mode
        return self

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        found = nn.functional.linear(value, self.weight, self.bias)
        return found if self.merged else found + nn.functional.linear(value, self.extra)


def test_an_eval_that_does_more_is_not_called() -> None:
    model = nn.Sequential(Merging(), nn.ReLU(), nn.Linear(16, 16)).train()
    before = copy.deepcopy(model.state_dict())
    nt.calibrate(model, [random(32, 16)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    nt.sparsegpt_(model, [random(32, 16)], 2, 4, include=["0.weight"])
    model.eval().train()
    assert (model[0].weight != 0).sum() == 128


def test_other_matrices_of_a_linear_are_left_alone() -> None:
    """What they are multiplied by cannot be known."""
    model = nn.Sequential(Merging(), nn.ReLU(), nn.Linear(16, 16)).eval()
    report = nt.sparsegpt_(model, [random(32, 16)], 2, 4, filter_fn=lambda name, module: True)
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight"]
    assert ("0.extra", "its inputs cannot be seen; use prune_ for it") in report.skipped
    assert (model[0].extra != 0).all()


class InPlace(nn.Module):
    """It normalises its input where it lies."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layers, self.in_place = two_layers(), in_place

    def forward(self, value: torch.Tensor) -> Any:
        return self.layers(value.sub_(3.0).div_(2.0) if self.in_place else (value - 3.0) / 2.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["tensor", "mapping", "forward"])
def test_a_model_that_writes_into_its_input(method: Any, kind: str) -> None:
    pruned = []
    for in_place in (True, False):
        model, batch = InPlace(in_place), random(128, 16) * 2 + 3
        before = batch.clone()
        data: Any = {"mapping": {"value": batch}, "forward": (batch, ["a label"])}.get(kind, batch)
        forward = (lambda model, batch: model(batch[0])) if kind == "forward" else None
        method(model, [data], 2, 4, forward=forward)
        assert torch.equal(batch, before)
        pruned.append(model.layers.state_dict())
    assert all(torch.equal(value, pruned[1][name]) for name, value in pruned[0].items())


def test_what_a_run_is_known_by(tmp_path: Path) -> None:
    """Things that were taken for the same, and layers of the one used for the other."""
    long = np.arange(5000.0)
    other = long.copy()
    other[2500] = -1.0
    pairs: list[tuple[Any, Any]] = [
        (long, other), ([[1, 2], [3]], [[1], [2, 3]]), ([7, 12], [71, 2]), ({"a": 1}, {"a": "1"}), ((1,), [1]),
        (long, long.astype(np.float32)), ("ab", b"ab"), ({1, 2}, {1, 3}), (1, True), (torch.ones(2), np.ones(2)),
    ]  # fmt: skip
    for pair in pairs:
        names = []
        for value in (*pair, copy.deepcopy(pair[0])):
            store = Store.open(tmp_path, {})
            store.sign([value])
            names.append(store._place("weight").name)
        assert names[0] == names[2] != names[1], pair
    with pytest.raises(InputValueError, match="what can be pickled, to be known again with resume, and a function"):
        Store.open(tmp_path, {}).sign([lambda: 0])


def test_another_activation_or_calibration_resumes_nothing(tmp_path: Path) -> None:
    def broken_off(model: nn.Sequential, data: Any, resume: Path, **options: Any) -> None:
        held = nt.sparsegpt_(copy.deepcopy(model), data, 2, 4, **options)  # it would end well
        assert len(held.layers) == 2
        bad = copy.deepcopy(model)
        bad[2].weight.data[0, 0] = torch.nan
        with pytest.raises(InputValueError):
            nt.sparsegpt_(bad, data, 2, 4, resume=resume, **options)

    x = random(64, 16)
    first = two_layers()
    for name, options in (("own", {}), ("parallel", {"sequential": False})):
        broken_off(first, [x], tmp_path / name, **options)
        other = copy.deepcopy(first)
        other[1] = nn.Tanh()
        other[2].weight.data[0, 0] = torch.nan
        signed = {path.name for path in (tmp_path / name).iterdir()}
        with pytest.raises(InputValueError):
            nt.sparsegpt_(other, [x], 2, 4, resume=tmp_path / name, **options)
        assert len({path.name for path in (tmp_path / name).iterdir()} - signed) == 1
    one = nt.calibrate(first, [x])
    moments = {name: replace(held, gram=held.gram * 2) for name, held in one.moments.items() if held.gram is not None}
    keys = []
    for calibration in (one, replace(one, moments=moments)):
        bad = copy.deepcopy(first)
        bad[2].weight.data[0, 0] = torch.nan
        with pytest.raises(InputValueError):
            nt.sparsegpt_(bad, calibration, 2, 4, resume=tmp_path / "sums", sequential=False)
        keys.append({path.name for path in (tmp_path / "sums").iterdir()})
    assert len(keys[1] - keys[0]) == 1


def test_a_layer_is_resumed_by_the_same_options_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "2.weight":
            raise KeyboardInterrupt

    def finished(method: Any = nt.sparsegpt_, x: torch.Tensor = random(64, 16), **options: Any) -> int:  # noqa: B008
        with pytest.raises(KeyboardInterrupt):
            method(two_layers(), [x], 2, 4, **{"resume": tmp_path, "progress": stop, "follow": "own", **options})
        return len(list(tmp_path.iterdir()))

    kinds: list[dict[str, Any]] = [
        {}, {"solver": "greedy"}, {"refit": True}, {"follow": "dense"}, {"absorb_mean": True}, {"keep_zeros": True},
        {"damping": 0.02}, {"fill": "at-most"}, {"sequential": False}, {"x": random(64, 16, seed=1)},
        {"x": random(64, 16, seed=1), "sequential": False}, {"method": nt.adaprune_}, {"method": nt.alps_},
    ]  # fmt: skip
    assert [finished(**options) for options in kinds] == list(range(1, len(kinds) + 1))
    assert finished(**kinds[0]) == len(kinds)
    monkeypatch.setattr("nmflow.__version__", "0.0.0")
    assert finished(**kinds[0]) == len(kinds) + 1


@pytest.mark.parametrize("sequential", [True, False])
def test_batches_that_can_be_read_once_are_enough_to_resume(sequential: bool, tmp_path: Path) -> None:
    models, x = (two_layers(), two_layers()), random(64, 16)
    kinds: tuple[dict[str, Any], ...] = {}, {"resume": tmp_path}
    for model, options in zip(models, kinds, strict=True):
        nt.sparsegpt_(model, iter([x]), 2, 4, sequential=sequential, **options)
    assert all(torch.equal(one, two) for one, two in zip(*(model.parameters() for model in models), strict=True))


@pytest.mark.parametrize(("method", "follow"), [(nt.sparsegpt_, "own"), (nt.adaprune_, "dense"), (nt.alps_, "dense")])
def test_what_is_followed_by_default(method: Any, follow: str) -> None:
    models = two_layers(), two_layers()
    for model, options in zip(models, ({}, {"follow": follow}), strict=True):
        method(model, [random(64, 16)], 2, 4, **options)
    other = two_layers()
    method(other, [random(64, 16)], 2, 4, follow="own" if follow == "dense" else "dense")
    assert torch.equal(models[0][2].weight, models[1][2].weight)
    assert not torch.equal(models[0][2].weight, other[2].weight)


@pytest.mark.parametrize("method", METHODS)
def test_what_comes_next_is_told_and_the_end(method: Any) -> None:
    told: list[tuple[str, int, int]] = []
    method(two_layers(), [random(64, 16)], 2, 4, progress=lambda *step: told.append(step))
    assert told == [("0.weight", 0, 2), ("2.weight", 1, 2), ("", 2, 2)]


class Auxiliary(nn.Module):
    """A second output that is there in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, value: torch.Tensor) -> Any:
        value = self.stem(value)
        return (value, self.aux(value)) if self.training else value


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    model = Auxiliary().train()
    for seed in range(5):
        model(random(32, 4, seed=seed) + 2)
    before = copy.deepcopy(model.aux.state_dict())
    assert nt.reestimate_batch_norm_(model, [random(32, 4) * 3]) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.aux.state_dict().items())
    assert abs(float(model.stem.running_var.mean()) - 9) < 3  # type: ignore[union-attr]
    held = copy.deepcopy(model.state_dict())
    with pytest.raises(InputValueError, match="batches must give finite statistics"):
        nt.reestimate_batch_norm_(model, [torch.full((4, 4), torch.nan)])
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
    assert nt.reestimate_batch_norm_(nn.Sequential(nn.LazyBatchNorm1d()), [random(4, 4)]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_an_allocation_by_rows_is_pruned_by_rows(method: Any) -> None:
    pytest.importorskip("ortools", reason="allocate needs OR-Tools")
    model, x = two_layers(), random(64, 16)
    seen = nt.calibrate(model, [x])
    budget = nt.allocate(model, 4, 0.5, scores=seen.scores("obs"), transposable=False)
    report = method(model, [x], budget, 4)
    assert {layer.pattern for layer in report.layers} <= {f"{n}:4 rows only" for n in (1, 2, 3)}
    masks = nt.from_unstructured_(two_layers(), budget, 4)
    assert "rows only" in masks.pattern


class Counting(nn.Module):
    """It counts its calls, in place and by a new tensor, of which it notes how old it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.age = 0

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.last = value.detach().mean()[None]
        self.age += 1
        if (value > 1e6).any():
            raise RuntimeError("too large")
        return value


@pytest.mark.parametrize("method", [*METHODS, nt.calibrate])
def test_buffers_are_as_they_were(method: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Counting(), nn.Linear(8, 8))
    options = () if method is nt.calibrate else (2, 4)
    held = dict(model.named_buffers())
    method(model, [random(16, 8), random(16, 8, seed=1)], *options)
    with pytest.raises(RuntimeError, match="too large"):
        method(model, [random(16, 8), random(16, 8) * 1e8], *options)
    assert all(held[name] is value and not value.any() for name, value in model.named_buffers())
    assert model[1].age == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("follow", ["own", "dense"])
def test_padded_texts_of_torch_s_own_encoder(follow: str) -> None:
    """They come to its Linears as nested tensors, without the padding."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[1, 3:] = True
    batch = (random(4, 6, 16), None, padding)
    seen = nt.calibrate(model, [batch], include=["*linear*"])
    assert {moments.count for moments in seen.moments.values()} == {21}
    report = nt.adaprune_(model, [batch], 2, 4, include=["*linear*"], follow=follow)
    assert {layer.rows for layer in report.layers} == {21}


def test_a_bias_that_would_be_infinite_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(16, 16)).half()
    with torch.no_grad():
        model[0].weight.fill_(30.0)
        model[0].bias.fill_(65000.0)
    before = copy.deepcopy(model.state_dict())
    batch = -4 + 0.1 * random(8, 16)
    with pytest.raises(InputValueError, match=r"0.weight: the bias must fit into torch.float16 with the mean output"):
        nt.adaprune_(model, [-batch.half()], 2, 4, solve="cholesky", damping=1e6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Scaling(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input * torch.arange(1, 17))


class Padding(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1)))


class Own(nn.Linear):
    """As Falcon's: it spells out what a Linear does; and another output beside it."""

    def forward(self, input: torch.Tensor) -> Any:
        return input @ self.weight.T + self.bias, None


class First(nn.Module):
    def forward(self, value: Any) -> Any:
        return value[0]


def test_a_forward_that_changes_the_input_is_refused() -> None:
    for layer, batch, name in (
        (Scaling(16, 16), random(8, 16), "Scaling"),
        (Padding(4, 4, 3), random(1, 4, 8, 8), "Padding"),
    ):
        for method in (nt.calibrate, lambda *args: nt.adaprune_(*args, 2, 4)):
            with pytest.raises(InputValueError, match=f"inputs of 1.weight cannot be seen: the forward of its {name}"):
                method(nn.Sequential(nn.Identity(), layer), [batch])
    model = nn.Sequential(Own(16, 16), First(), nn.Linear(16, 16))
    plain = nn.Sequential(nn.Linear(16, 16), nn.Identity(), nn.Linear(16, 16))
    plain.load_state_dict(model.state_dict())
    batches = [torch.zeros(4, 16), random(32, 16)]
    nt.adaprune_(model, batches, 2, 4)
    nt.adaprune_(plain, batches, 2, 4)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


class Net(nn.Sequential):
    """A type of its own, so that copies can be counted."""


def test_an_interrupt_while_a_pass_is_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start, walks = threading.Thread.start, []

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if "_run" in self.name:
            walks.append(self)
            if len(walks) == 2:
                raise KeyboardInterrupt  # as a signal that arrives while it waits for the thread

    model, ran = Net(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), []
    model[1].register_forward_hook(lambda *_: ran.append(None))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nt.adaprune_(model, [random(32, 16)], 2, 4)
    for thread in walks:
        thread.join(10)
    assert len(walks) == 2
    assert not any(thread.is_alive() for thread in walks)
    assert len(ran) == 1  # for the order of layers: passes that are given up go no further
    walks.clear()
    del model
    gc.collect()
    assert not any(type(each) is Net for each in gc.get_objects())  # others may be proxies of what is gone


class Late(nn.Linear):
    """An interrupt arrives as it is put back into training mode, once."""

    late = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self.late and name == "training" and value:
            self.late = False
            raise KeyboardInterrupt
        super().__setattr__(name, value)


def test_an_interrupt_while_a_model_is_left_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """As modes are put back, and as hooks are taken off: all are, and then it is raised."""
    model = nn.Sequential(Late(16, 16), nn.Dropout(), nn.Linear(16, 16)).train()
    model[0].late = True
    with pytest.raises(KeyboardInterrupt):
        nt.calibrate(model, [random(2, 16)])
    assert all(module.training for module in model.modules())
    remove, interrupts = torch.utils.hooks.RemovableHandle.remove, iter([True])

    def interrupted(handle: torch.utils.hooks.RemovableHandle) -> None:
        if next(interrupts, False):
            raise KeyboardInterrupt
        remove(handle)

    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nt.calibrate(model, [random(2, 16)])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_an_interrupt_at_any_point_of_a_hand_over_leaves_no_pass_waiting() -> None:
    """As the caller hands over to a pass that waits at a layer, and waits for it: at each line, of threading too."""
    model, reached = two_layers(), []
    layers = {layer.name: layer for layer in select(model, Pattern(2, 4)).layers}
    places = {name: place for place, name in enumerate(layers)}

    def interrupted(point: int) -> None:
        events = itertools.count()

        def trace(frame: Any, event: str, arg: Any) -> Any:
            caller = frame
            while caller is not None and caller.f_code is not lockstep._Walker.go.__code__:
                caller = caller.f_back
            if caller is None or caller.f_locals["self"].ident is None:  # of a pass that has begun
                return None
            if event != "call" and next(events) == point:
                reached.append(point)
                raise KeyboardInterrupt
            return trace

        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(trace)
            lockstep.in_lockstep(
                model, [random(2, 16)], places, layers, lambda *_: None, dense=None, forward=None
            )  # fmt: skip

    alive = threading.active_count()
    for point in itertools.count():
        thread = threading.Thread(target=interrupted, args=(point,), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), f"it waits for ever after an interrupt at point {point}"
        assert threading.active_count() == alive
        if point not in reached:
            break
    assert len(reached) > 10


@pytest.mark.parametrize("method", METHODS)
def test_an_error_that_only_a_pruned_model_raises_is_raised(method: Any) -> None:
    model = two_layers()
    before = copy.deepcopy(model.state_dict())

    def check(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if not model[0].weight.all():
            raise ArithmeticError("a weight is zero")

    model[1].register_forward_hook(check)
    with pytest.raises(ArithmeticError, match="a weight is zero"):
        method(model, [random(32, 16)], 2, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("follow", ["own", "dense"])
def test_activations_do_not_outlive_their_pass(follow: str) -> None:
    """With many batches they are most of what there is to hold."""
    inputs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def before(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        inputs.append(weakref.ref(args[0]))

    def after(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        alive.append(sum(one() is not None for one in inputs))

    model = nn.Sequential(two_layers(), nn.ReLU())
    model[0][2].register_forward_pre_hook(before)
    model[1].register_forward_hook(after)
    nt.adaprune_(model, [random(32, 16, seed=seed) for seed in range(3)], 2, 4, follow=follow)
    assert alive == ([0, 0, 0, 2, 1, 0] if follow == "own" else [0, 0, 0, 5, 4, 3, 2, 1, 0])


def test_each_batch_draws_its_own_numbers_and_the_dense_model_the_same() -> None:
    drawn: list[float] = []
    model = two_layers()
    model[1].register_forward_hook(lambda *_: drawn.append(float(torch.rand(()))))
    nt.adaprune_(model, [random(32, 16)] * 3, 2, 4, follow="dense")
    own, dense = drawn[3:6], drawn[6:]  # the first are of the passes that set the order
    assert own == dense
    assert len(set(own)) == 3


def test_seeds_follow_from_the_caller_s_generator_and_leave_it() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again = lockstep._seeds(3), lockstep._seeds(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert one == again != lockstep._seeds(3)
    assert len(set(one)) == 3


@pytest.mark.filterwarnings("ignore:only .* rows for")
def test_inputs_near_the_end_of_float64() -> None:
    """The mean of the diagonal overflowed, and the damping never ended."""
    model = nn.Linear(8, 8, bias=False).double()
    batch = [torch.full((1, 8), 1e154, dtype=torch.float64)]
    for method in METHODS:
        assert method(copy.deepcopy(model), batch, 2, 4).proven
    assert torch.isfinite(nt.calibrate(model, batch).scores("obs")("weight", model)).all()  # type: ignore[arg-type]


def test_a_layer_whose_outputs_do_not_vary_keeps_its_weights_and_loses_nothing() -> None:
    """A bias takes up all there is; of an error there was what rounding had left, and it could be negative."""
    for rows, method in itertools.product((1, 7, 100, 333), METHODS):
        layer = nn.Linear(8, 8).double()
        before = layer.weight.detach().clone()
        x = random(1, 8, seed=rows).double().expand(rows, 8) * torch.logspace(-3, 3, 8, dtype=torch.float64)
        outputs = layer(x).detach()
        report = method(layer, [x], 2, 4, absorb_mean=True)
        assert "-0.000%" not in str(report)
        assert (report.layers[0].masked_error, report.layers[0].error) == (0.0, 0.0)
        torch.testing.assert_close(layer.weight, before * (layer.weight != 0))
        torch.testing.assert_close(layer(x), outputs)


def test_sums_that_nothing_makes_definite_are_an_error() -> None:
    moments = nt.calibrate(nn.Linear(4, 4), [random(8, 4)]).moments["weight"]
    assert moments.gram is not None
    moments.gram.fill_(torch.nan)
    with pytest.raises(InputValueError, match="inputs must have a mean of squares that float64 holds; scale them"):
        damped(moments, 0.01)


def test_an_inverse_that_rounding_leaves_indefinite() -> None:
    """H has a Cholesky factor, by chance; without more on its diagonal H⁻¹ has none."""
    failed = 0
    for seed in (5, 8, 29, 53, 89, 137, 206, 212, 281, 344, 377):  # of 400; which of them fail depends on LAPACK
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
        layer = nn.Linear(32, 16)
        moments = nt.calibrate(layer, [x]).moments["weight"]
        assert moments.gram is not None
        hessian = moments.gram[0] / moments.count
        lower, info = torch.linalg.cholesky_ex(hessian)
        if info:
            continue
        inverse = torch.cholesky_inverse(lower)
        failed += bool(torch.linalg.cholesky_ex(inverse, upper=True).info)
        found = obs_pass(layer.weight.detach().double(), hessian, Pattern(2, 4))
        assert torch.isfinite(found.weights).all()
    assert failed


def test_a_calibration_of_another_model_is_refused() -> None:
    seen = nt.calibrate(nn.Sequential(nn.Linear(8, 16)), [random(32, 8)])
    for method in METHODS:
        with pytest.raises(InputValueError, match=r"must hold 1 x 16 inputs of 0.weight, not 1 x 8; calibrate this"):
            method(nn.Sequential(nn.Linear(16, 16)), seen, 2, 4, sequential=False)


def test_what_a_model_does_between_batches_is_no_statistic() -> None:
    norm, twin = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    parts = [random(16, 4), random(16, 4, seed=1)]

    def made_by_the_model() -> Any:
        for part in parts:
            norm(100 * part)
            yield part

    assert nt.reestimate_batch_norm_(norm, made_by_the_model()) == nt.reestimate_batch_norm_(twin, parts) == 1
    for one, other in zip(norm.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)


def test_random_numbers_of_the_caller_go_on_after_batch_norm() -> None:
    class Noisy(nn.BatchNorm1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input + torch.rand_like(input))

    torch.manual_seed(3)
    nt.reestimate_batch_norm_(Noisy(4), [random(16, 4)])
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


def test_a_buffer_in_the_memory_of_a_weight_does_not_undo_its_pruning() -> None:
    model = two_layers()
    model[0].register_buffer("seen", model[0].weight.detach())
    nt.adaprune_(model, [random(32, 16)], 2, 4)
    assert int((model[0].weight != 0).sum()) == 128


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses torch.jit as it is imported
@pytest.mark.parametrize("follow", ["own", "dense"])
def test_compiled_blocks_run_uncompiled(follow: str) -> None:
    """Hooks were traced into them, which a block that must be one graph cannot be."""
    plain, model = (nn.Sequential(two_layers(), nn.Linear(16, 16, bias=False)) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    model[0] = torch.compile(model[0], backend="eager", fullgraph=True)
    x = random(32, 16)
    with torch.no_grad():
        dense = model(x)
    for one in (plain, model):
        nt.adaprune_(one, [x], 2, 4, follow=follow)
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), model.parameters(), strict=True))
    with torch.no_grad():
        assert not torch.equal(model(x), dense)
