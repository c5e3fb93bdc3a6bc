"""SparseTraining: what the forward pass sees, what the optimizer does, and that a run can be broken and goes on."""

from __future__ import annotations

import copy
import importlib
import io
import multiprocessing
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmflow
import nmflow.torch as nt
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError
from nmflow.solvers.dual import Dual
from nmflow.solvers.greedy import Greedy
from nmflow.torch import joint_search, masked_layers, search
from nmflow.torch.joint_search import find_all
from nmflow.torch.select import select
from nmflow.torch.sharing import Found, Ranks
from nmflow.torch.wholly import wholly


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 8)
    )


def batch(step: int, part: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + part)
    return torch.randn(8, 2, 4, 4, generator=generator), torch.randint(0, 8, (8,), generator=generator)


def loss_of(model: nn.Module, step: int, part: int = 0) -> torch.Tensor:
    images, labels = batch(step, part)
    return nn.functional.cross_entropy(model(images), labels)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def plain(pattern: str = "2:4", **options: Any) -> tuple[nn.Sequential, torch.optim.Optimizer, nt.SparseTraining]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, nt.SparseTraining(model, optimizer, pattern=pattern, **{"every": 5, **options})


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# what happens in a step


def test_forward_sees_the_masked_weight_and_all_of_it_learns() -> None:
    model, _, training = plain(decay=0.0)
    dense = model[3].parametrizations.weight.original
    mask = training.masks["3.weight"]
    assert torch.equal(mask, nt.mask_for(dense, 2, 4))
    assert torch.equal(model[3].weight, torch.where(mask, dense, 0))
    inputs = torch.randn(4, 128)
    model[3](inputs).sum().backward()
    assert torch.equal(dense.grad, inputs.sum(0).expand(16, 128))


def test_decay_pulls_pruned_weights_once_a_step() -> None:
    """Against SR-STE written out by hand, with two backward passes to a step, a second group, and maximize."""
    model, reference = network(), network()

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        groups = [
            {"params": [model[3].weight], "lr": 0.2},
            {"params": [p for name, p in model.named_parameters() if name != "3.weight"], "maximize": True},
        ]
        return torch.optim.SGD(groups, lr=0.1)

    optimizer = optimizer_of(model)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=100, decay=0.5)
    by_hand = optimizer_of(reference)
    for step in range(3):
        optimizer.zero_grad()
        by_hand.zero_grad()
        kept = {name: reference.get_parameter(name).detach().clone() for name in training.masks}
        with torch.no_grad():
            for name, mask in training.masks.items():
                reference.get_parameter(name).mul_(mask)
        for part in range(2):
            loss_of(model, step, part).backward()
            loss_of(reference, step, part).backward()
        optimizer.step()
        with torch.no_grad():
            for name, mask in training.masks.items():
                parameter = reference.get_parameter(name)
                parameter.copy_(kept[name])
                assert parameter.grad is not None
                parameter.grad += (0.5 if name == "3.weight" else -0.5) * parameter * ~mask
        by_hand.step()
    for name in training.masks:
        dense = model.get_submodule(name.split(".")[0]).parametrizations.weight.original
        assert torch.allclose(dense, reference.get_parameter(name), atol=1e-6), name


@pytest.mark.parametrize("by", ["position", "name"])
def test_decay_with_a_closure(by: str) -> None:
    model, optimizer, _ = plain(decay=0.5, every=100)
    twin, other, _ = plain(decay=0.5, every=100)
    advance(model, optimizer, 0, 3)
    for step in range(3):

        def closure(step: int = step) -> torch.Tensor:
            other.zero_grad()
            loss = loss_of(twin, step)
            loss.backward()
            return loss

        loss = other.step(closure) if by == "position" else other.step(closure=closure)
        assert loss is not None
    assert same(model, twin)


def test_what_else_a_step_is_given_is_passed_on() -> None:
    class Taking(torch.optim.SGD):
        def step(self, closure: Any = None, *rest: Any, **named: Any) -> Any:
            given.append((rest, named))
            return super().step(closure)

    given: list[Any] = []
    model = nn.Linear(8, 8)
    optimizer = Taking(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4)
    optimizer.step(lambda: 1.0, 2, three=3)
    optimizer.step(closure=lambda: 1.0, three=3)
    assert given == [((2,), {"three": 3}), ((), {"three": 3})]
    assert training.step == 2


@pytest.mark.parametrize("idle", [None, 0, 1])
def test_decay_pulls_once_where_two_parameters_are_one_memory(idle: int | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model[0].weight.detach().clone()
    training = nt.SparseTraining(model, optimizer, 2, 4, every=100, decay=0.5)
    for number, module in enumerate(model):
        if number != idle:
            module.parametrizations.weight.original.grad = torch.zeros(8, 8)
    optimizer.step()
    mask = training.masks["0.weight"]
    assert torch.equal(model[0].parametrizations.weight.original, torch.where(mask, before, before * 0.5))


def test_decay_may_be_set_between_steps() -> None:
    model, optimizer, training = plain(decay=0.5)
    training.decay = 0
    assert training.decay == 0.0
    twin, other, _ = plain(decay=0.0)
    for one, driver in ((model, optimizer), (twin, other)):
        advance(one, driver, 0, 3)
    assert same(model, twin)
    training.decay = 0.5
    advance(model, optimizer, 3, 4)
    advance(twin, other, 3, 4)
    assert not same(model, twin)
    with pytest.raises(InputValueError, match="decay must be"):
        training.decay = -1.0


def test_decay_leaves_weights_without_gradient_alone() -> None:
    model, optimizer, _ = plain(decay=0.5)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fused_optimizers_get_scaled_decay() -> None:
    """They are handed gradients that a GradScaler has scaled, and unscale them by themselves."""
    model, optimizer, _ = plain(decay=0.5)
    advance(model, optimizer, 0, 4)
    twin = network()
    fused = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, fused=True)
    nt.SparseTraining(twin, fused, 2, 4, every=5, decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for step in range(4):
        fused.zero_grad()
        scaler.scale(loss_of(twin, step)).backward()
        scaler.step(fused)
        scaler.update()
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float16, 1e-3), (torch.bfloat16, 1e-2), (torch.float32, 1e-6), (torch.float64, 1e-12)],
    ids=str,
)
def test_weights_survive_the_scale_that_a_scaler_begins_with(dtype: torch.dtype, error: float) -> None:
    """65536 is no float16; nor is a large weight's pull, times such a scale."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8).to(dtype)
    with torch.no_grad():
        model.weight[0, :2] = 8.0
    fused = torch.optim.AdamW(model.parameters(), eps=1e-4, fused=True)
    training = nt.SparseTraining(model, fused, 1, 4, decay=0.25)
    dense, dropped = model.parametrizations.weight.original, ~training.masks["weight"]
    wanted = 0.25 * 65536 * dense.detach().double() * dropped
    assert wanted.max() > 65504
    largest = torch.finfo(dtype).max
    wanted = wanted.clamp(-largest, largest)
    pulled: list[torch.Tensor] = []
    fused.register_step_pre_hook(lambda *_: pulled.append(dense.grad.double().clone()))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.zeros(4, 8, dtype=dtype)).float().sum() * 1e-3).backward()
    scaler.step(fused)
    assert torch.allclose(pulled[0], wanted, rtol=error)
    assert training.step == 1
    assert dense.isfinite().all()


# the schedule


def test_refresh_every_k_steps_and_its_record() -> None:
    model, optimizer, training = plain("4:8", every=4)
    old = {name: mask.clone() for name, mask in training.masks.items()}
    advance(model, optimizer, 0, 4)
    (record,) = training.history
    flips = {name: int((mask != old[name]).sum()) for name, mask in training.masks.items()}
    assert (record.step, dict(record.layers), record.sad) == (4, flips, sum(flips.values()))
    assert record.entries == sum(mask.numel() for mask in old.values())
    assert 0 < record.flip_rate == record.sad / record.entries < 1
    assert record.seconds > 0
    advance(model, optimizer, 4, 11)
    assert [record.step for record in training.history] == [4, 8]
    assert training.step == 11


@pytest.mark.parametrize("warm_start", [True, False])
def test_masks_are_the_best_of_the_weights(warm_start: bool) -> None:
    model, optimizer, training = plain("4:8", warm_start=warm_start)
    advance(model, optimizer, 0, 15)
    for name, mask in training.masks.items():
        weight = model.get_submodule(name.split(".")[0]).parametrizations.weight.original.detach().numpy()
        layout = "conv" if weight.ndim > 2 else None
        assert nmflow.certify(weight, mask.numpy(), 4, 8, layout=layout, absolute=True).gap == pytest.approx(
            0.0, abs=1e-9
        )
    assert bool(training.state_dict()["duals"]["3.weight"]) == warm_start


def test_a_solver_that_cannot_start_from_duals_keeps_none() -> None:
    model, optimizer, training = plain("4:8", warm_start=True, solver="greedy")
    advance(model, optimizer, 0, 11)
    assert [record.step for record in training.history] == [5, 10]
    assert not training.state_dict()["duals"]["3.weight"]
    assert training.finish().solver == "greedy"


def test_a_solver_may_be_an_object() -> None:
    assert plain(solver=Greedy())[2].finish().solver == "greedy"
    assert plain(solver=Dual(), warm_start=True)[2].state_dict()["duals"]["3.weight"]


def test_switch_cost_keeps_masks() -> None:
    loose, tight, stuck = (plain(switch_cost=cost) for cost in (0.0, 0.5, 1e6))
    for model, optimizer, _ in (loose, tight, stuck):
        advance(model, optimizer, 0, 20)
    flips = [sum(record.sad for record in training.history) for _, _, training in (loose, tight, stuck)]
    assert flips[0] > flips[1] > flips[2] == 0


@pytest.mark.parametrize("way", ["freeze", "stop_at", "at once"])
def test_frozen_masks_stay_and_pruned_weights_rest(way: str) -> None:
    model, optimizer, training = plain(stop_at={"freeze": None, "stop_at": 7, "at once": 0}[way])
    assert training.frozen == (way == "at once")
    advance(model, optimizer, 0, 7)
    if way == "freeze":
        training.freeze()
    assert training.frozen
    masks = {name: mask.clone() for name, mask in training.masks.items()}
    advance(model, optimizer, 7, 20)
    assert all(torch.equal(mask, masks[name]) for name, mask in training.masks.items())
    assert len(training.history) == (0 if way == "at once" else 1)
    gradient = model[3].parametrizations.weight.original.grad
    assert not gradient[~masks["3.weight"]].any()
    assert gradient[masks["3.weight"]].any()
    with pytest.raises(nt.TrainingStateError, match="masks must not be frozen for refresh"):
        training.refresh()


def test_a_state_beyond_the_last_step_freezes() -> None:
    model, optimizer, training = plain()
    advance(model, optimizer, 0, 9)
    assert not training.frozen
    _, _, stopping = plain(stop_at=7)
    stopping.load_state_dict(training.state_dict())
    assert stopping.frozen


def test_a_state_from_before_masks_were_frozen_thaws_them() -> None:
    model, optimizer, training = plain(decay=0.0)
    state = training.state_dict()
    training.freeze()
    other = plain()[2]
    other.load_state_dict(training.state_dict())
    assert other.frozen
    training.load_state_dict(state)
    assert not training.frozen
    advance(model, optimizer, 0, 1)
    assert model[3].parametrizations.weight.original.grad[~training.masks["3.weight"]].any()
    training.refresh()


@pytest.mark.parametrize("damage", ["short", "nan", "integers", "fewer"])
def test_damaged_duals_are_refused(damage: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(12, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    training = nt.SparseTraining(model, optimizer, 4, 8, warm_start=True, include=["0", "2"])
    whole, before = training.state_dict(), {name: mask.clone() for name, mask in training.masks.items()}
    training.load_state_dict(whole)
    state = training.state_dict()
    assert len(state["duals"]["0.weight"]) == 2
    u, v = state["duals"]["0.weight"][1]
    state["duals"]["0.weight"][1] = {
        "short": [u[:-1], v], "nan": [u, torch.full_like(v, torch.nan)], "integers": [u, v.long()], "fewer": [u, v],
    }[damage]  # fmt: skip
    if damage == "fewer":
        state["duals"]["0.weight"] = state["duals"]["0.weight"][1:]
    with pytest.raises(InputValueError, match=r"duals of '0.weight' .* and they are damaged"):
        training.load_state_dict(state)
    assert all(torch.equal(mask, before[name]) for name, mask in training.masks.items())
    training.refresh()


def test_a_training_may_be_made_in_inference_mode() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.inference_mode():
        training = nt.SparseTraining(model, optimizer, 2, 4, every=1)
    advance(model, optimizer, 0, 2)
    assert len(training.history) == 2


def test_a_sparse_state_keeps_the_memory_format() -> None:
    model = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), 2, 4)
    state = nt.sparse_state_dict(model)
    training.finish()
    assert state["weight"].stride() == model.weight.stride()
    assert torch.equal(state["weight"], model.weight)


def test_own_masks() -> None:
    class Checkered(nt.SparseTraining):
        def find_mask(self, layer: Any, weight: Any, last: Found | None) -> Found:
            return Found((torch.arange(weight.size).reshape(weight.shape) % 2 == 0).numpy())

    model = network()
    training = Checkered(model, torch.optim.SGD(model.parameters()), 2, 4)
    assert not model[3].weight[:, 1::2].any()
    state = training.state_dict()
    for mask in state["masks"].values():
        mask.logical_not_()
    training.load_state_dict(state)  # of no pattern, and yet its own
    assert not model[3].weight[:, ::2].any()


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (lambda weight: Found((weight > 0).astype("uint8")), InputTypeError, "mask must be boolean, not uint8"),
        (lambda weight: Found(weight[:4] > 0), InputValueError, r"mask must have shape \(8, 8\), not \(4, 8\)"),
        (lambda weight: weight > 0, InputTypeError, "find_mask must return a nmflow.torch.sharing.Found, not ndarray"),
    ],
)
def test_own_masks_that_are_none(found: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    class Own(nt.SparseTraining):
        def find_mask(self, layer: Any, weight: Any, last: Found | None) -> Found:
            return found(weight)  # type: ignore[no-any-return]

    model = nn.Linear(8, 8)
    with pytest.raises(error, match="^weight: " + message):
        Own(model, torch.optim.SGD(model.parameters()), 2, 4)
    assert list(model.state_dict()) == ["weight", "bias"]


# the end


def test_finish_bakes_zeros_and_lets_go() -> None:
    model, optimizer, training = plain()
    parameters = dict(network().named_parameters()).keys()
    held = model[3].parametrizations.weight.original
    advance(model, optimizer, 0, 12)
    seen = model(batch(99)[0])
    report = training.finish()
    assert torch.equal(model(batch(99)[0]), seen)
    assert dict(model.named_parameters()).keys() == parameters
    assert model[3].weight is held
    assert type(model[3]) is nn.Linear
    for layer in report.layers:
        weight = model.get_parameter(layer.name).detach()
        assert layer.density == 0.5 == float((weight != 0).double().mean())
        assert layer.gap >= 0
    assert (report.pattern, report.solver) == ("2:4", "dual")
    advance(model, optimizer, 12, 30)
    assert training.step == 12
    torch.save(model, io.BytesIO())


@pytest.mark.parametrize("make", [copy.deepcopy, torch.optim.swa_utils.AveragedModel])
def test_copies_of_a_model_in_training_outlive_it(make: Callable[[nn.Module], nn.Module]) -> None:
    model, optimizer, training = plain()
    advance(model, optimizer, 0, 3)
    training.freeze()
    other = make(model)
    seen = model(batch(99)[0])
    training.finish()
    assert torch.equal(other(batch(99)[0]), seen)
    assert torch.equal(model(batch(99)[0]), seen)
    again = copy.deepcopy(other)
    assert torch.equal(again(batch(99)[0]), seen)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_masked_and_can_be_copied_after_a_pass_without_gradients(kind: type[nn.RNNBase]) -> None:
    """They hold the weights of their last pass in a list; torch cannot copy what has a history."""
    torch.manual_seed(0)
    model, other = kind(8, 8), kind(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4, include=["weight_ih_l0", "weight_hh_l0"], every=1)
    value = torch.randn(3, 2, 8)
    for _ in range(2):
        optimizer.zero_grad()
        model(value)[0].square().sum().backward()
        optimizer.step()
        other.load_state_dict(nt.sparse_state_dict(model))
        assert torch.equal(other(value)[0], model(value)[0])
    with torch.no_grad():
        seen = model(value)[0]
    twin = copy.deepcopy(model)
    training.finish()
    for each in (model, twin):  # without gradients an LSTM goes by another kernel
        torch.testing.assert_close(each(value)[0], seen)


class Pair(nn.Module):
    """Two matrices in one module, and other parameters before, between and after."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("a", (3,)), ("first", (8, 8)), ("b", (2,)), ("second", (8, 8)), ("c", (1,))):
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.first @ self.second * self.c  # type: ignore[no-any-return]


def test_parameters_have_their_order_back_in_modules_that_hold_several() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Pair(), nn.Linear(8, 8))
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4, include=["0.first", "0.second", "1"])
    assert len(training.masks) == 3
    other, x = copy.deepcopy(model), torch.randn(5, 8)
    seen = model(x)
    training.finish()
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model(x), seen)
    assert torch.equal(other(x), seen)
    assert type(model[0]) is Pair


@pytest.mark.parametrize("way", ["finish", "release"])
def test_order_of_parameters_in_all_places_and_with_later_ones(way: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    model[0].register_parameter("later", nn.Parameter(torch.ones(8)))
    getattr(training, way)()
    assert [list(module._parameters) for module in model] == [["weight", "bias", "later"], ["weight", "bias"]]


def test_a_bias_that_was_removed_meanwhile_does_not_come_back() -> None:
    model, _, training = plain()
    del model[3].bias
    training.finish()
    assert list(model[3]._parameters) == ["weight"]


def test_a_module_that_left_the_model_is_missed() -> None:
    model, _, training = plain()
    model[3] = nn.Linear(128, 16)
    for call in (training.refresh, training.finish):
        with pytest.raises(
            nt.TrainingStateError, match=r"3\.weight must stay in the model, and its module was replaced"
        ):
            call()


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("what", ["module", "parameter"])
def test_one_place_of_a_shared_weight_that_left_is_missed(which: int, what: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    if what == "module":
        model[which] = nn.Linear(8, 8)
    else:
        model[which].parametrizations.weight.original = nn.Parameter(torch.ones(8, 8))
    for call in (training.refresh, training.finish):
        with pytest.raises(nt.TrainingStateError, match=r"0\.weight must stay "):
            call()


def test_a_module_that_is_wrapped_stays() -> None:
    model, _, training = plain()
    model[3] = nn.Sequential(model[3])
    training.refresh()
    assert training.finish().layers[1].density == 0.5


def test_finish_says_how_far_masks_are_from_the_best_now() -> None:
    model, optimizer, training = plain(every=1000)
    advance(model, optimizer, 0, 10)
    dense = model[3].parametrizations.weight.original.detach().clone()
    mask = training.masks["3.weight"].clone()
    begun = time.perf_counter()
    report = training.finish()
    assert 0 < sum(layer.seconds for layer in report.layers) < report.seconds <= time.perf_counter() - begun
    (layer,) = [layer for layer in report.layers if layer.name == "3.weight"]
    assert layer.gap > 0
    assert layer.gap == pytest.approx(
        nmflow.solve(dense.numpy(), 2, 4).objective - float(dense.abs()[mask].double().sum())
    )


def test_everything_is_refused_after_finish() -> None:
    _, _, training = plain()
    state = training.state_dict()
    training.finish()
    for call in (training.finish, training.release, training.freeze, training.refresh, training.state_dict):
        with pytest.raises(nt.TrainingStateError, match=r"finish\(\) must be called once, as the last thing"):
            call()
    with pytest.raises(nt.TrainingStateError, match=r"finish\(\) must be called once"):
        training.load_state_dict(state)


def test_release_leaves_the_model_as_if_nothing_had_been() -> None:
    model, optimizer, training = plain(decay=0.0)
    before = network()
    names = list(before.state_dict())
    twin = copy.deepcopy(model)
    training.release()
    assert same(model, before)
    assert list(model.state_dict()) == names
    advance(model, optimizer, 0, 6)
    assert training.step == 0
    assert not training.history
    assert "3.parametrizations.weight.original" in twin.state_dict()  # copies have masks of their own
    _, again = optimizer, nt.SparseTraining(model, optimizer, 2, 4)
    assert len(again.masks) == 3


def test_what_is_left_of_a_model_is_released() -> None:
    model, optimizer, training = plain()
    advance(model, optimizer, 0, 2)
    model[3] = nn.Linear(128, 16)
    other = torch.nn.Parameter(torch.ones(16, 8).T.contiguous())
    model[5].parametrizations.weight.original = other
    for call in (training.refresh, training.finish):
        with pytest.raises(nt.TrainingStateError, match=r"or release\(\) this and make a new SparseTraining"):
            call()
    training.release()
    assert model[5].weight is other
    assert (model[0].weight != 0).all()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert set(nt.SparseTraining(model, optimizer, 2, 4).masks) == {"0.weight", "3.weight", "5.weight"}


class Nested(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("by", ["gradient", "closure"])
def test_a_step_that_calls_the_step_of_its_base_is_one(by: str) -> None:
    """torch calls hooks around both once an optimizer of the base class was made, whatever for."""
    torch.optim.AdamW(nn.Linear(8, 8).parameters())
    model = nn.Linear(8, 8)
    optimizer = Nested(model.parameters(), lr=1e-12, weight_decay=0.0)  # too little to change a weight
    training = nt.SparseTraining(model, optimizer, 2, 4, every=2, decay=0.5)
    dense = model.parametrizations.weight.original.detach().clone()
    for step in range(1, 5):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if by == "closure":
            optimizer.step(lambda: torch.zeros(()))
        else:
            optimizer.step()
        dropped = ~training.masks["weight"]
        assert training.step == step
        assert torch.equal(model.parametrizations.weight.original.grad[dropped], 0.5 * dense[dropped])
        if step == 2:  # a step that fails leaves nothing behind

            def fail() -> Any:
                raise ValueError("no loss")

            with pytest.raises(ValueError, match="no loss"):
                optimizer.step(fail)
    assert [record.step for record in training.history] == [2, 4]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_that_only_makes_a_state_is_none(momentum: float) -> None:
    """torch.distributed.checkpoint takes one where an optimizer has no state: before it loads, or saves plain SGD's."""
    options = importlib.import_module("torch.distributed.checkpoint.state_dict")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=1)
    state = training.state_dict()
    options.get_state_dict(model, optimizer)
    assert (training.step, training.history) == (0, [])
    assert not any((one["momentum_buffer"] != 0).any() for one in optimizer.state.values() if momentum)
    training.load_state_dict(state)  # before the others: the order does not matter
    options.set_state_dict(
        model, optimizer, model_state_dict=model.state_dict(), optim_state_dict=options.get_optimizer_state_dict(
            model, optimizer
        ),
    )  # fmt: skip
    assert training.step == 0
    optimizer.state.clear()
    optimizer.param_groups[0]["lr"] = 0.0  # a warm-up has gradients, and counts
    advance(model, optimizer, 0, 1)
    assert training.step == 1
    optimizer.zero_grad()
    optimizer.step()  # nor is one with a state made for it
    assert training.step == (2 if momentum else 1)


@pytest.mark.parametrize("by", ["position", "name"])
def test_a_warm_up_with_a_closure_counts_from_the_first_step_on(by: str) -> None:
    """Before it is called there is neither a gradient nor a rate, as where only a state is made."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    training = nt.SparseTraining(model, optimizer, 2, 4)

    def closure() -> torch.Tensor:
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert (optimizer.step(closure) if by == "position" else optimizer.step(closure=closure)) is not None
    assert training.step == 1


def test_steps_of_an_optimizer_without_rates_count() -> None:
    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> None:
            pass

    model = nn.Linear(8, 8)
    optimizer = Rateless(model.parameters())
    training = nt.SparseTraining(model, optimizer, 2, 4)
    optimizer.step()
    assert training.step == 1


class Hookless(torch.optim.Optimizer):
    """As torch's PostLocalSGDOptimizer: it does not call Optimizer.__init__."""

    def __init__(self, optim: torch.optim.Optimizer) -> None:
        self.optim, self.param_groups = optim, optim.param_groups


def test_an_optimizer_without_hooks_is_refused_before_anything_is_changed() -> None:
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputTypeError, match=r"this Hookless has none.*; give the one in it, \.optim"):
        nt.SparseTraining(model, Hookless(inner), 2, 4)
    alone = Hookless(inner)
    del alone.optim
    with pytest.raises(InputTypeError, match=r"this Hookless has none.*; give the one that updates the weights"):
        nt.SparseTraining(model, alone, 2, 4)
    assert same(model, network())
    assert nt.SparseTraining(model, inner, 2, 4).masks


def test_names_that_torch_cannot_parametrize_are_left_alone() -> None:
    """It keeps parametrizations in a ModuleDict, by the names of attributes, and loses these."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Module())
    model[1].keys = nn.Parameter(torch.randn(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    why = "of a name, keys, that torch cannot parametrize; rename the attribute"
    with pytest.raises(InputValueError, match=f"include must name what 2:4 can prune, and '1.keys' is not: {why}"):
        nt.SparseTraining(model, optimizer, 2, 4, include=["0", "1.keys"])
    training = nt.SparseTraining(model, optimizer, 2, 4, filter_fn=lambda name, module: True)
    assert list(training.masks) == ["0.weight"]
    assert ("1.keys", why) in training.skipped
    assert "1.keys" in nt.prune_(nn.ModuleList([nn.Linear(4, 4), model[1]]), 2, 4, include=["1.keys"]).layers[0].name


def test_a_training_that_gets_no_hooks_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch loads its compiler for them, which takes long enough for an interrupt; nobody could release the masks."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "disable", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nt.SparseTraining(model, optimizer, 2, 4)
    assert same(model, network())
    assert nt.SparseTraining(model, optimizer, 2, 4).masks


def test_a_failure_half_way_takes_masks_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masked_layers.attach

    def attach(layer: Any, masked: Any) -> None:
        if layer.name == "5.weight":
            raise KeyboardInterrupt
        whole(layer, masked)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(masked_layers, "attach", attach)
    with pytest.raises(KeyboardInterrupt):
        nt.SparseTraining(model, optimizer, 2, 4)
    assert same(model, network())
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("where", ["zeros", "masks"])
def test_an_interrupt_of_finish_leaves_nothing_half_done(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"zeros": "bake", "masks": "take_off"}[where]
    done, calls = getattr(masked_layers, name), []

    def interrupted(*args: Any) -> None:
        calls.append(args)
        if len(calls) in (2, 4):  # one more comes on the way out
            raise KeyboardInterrupt
        done(*args)

    model, optimizer, training = plain()
    whole, _, twin = plain()
    twin.finish()
    monkeypatch.setattr(masked_layers, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.finish()
    if where == "zeros":
        training.finish()
    assert len(calls) > 4
    assert same(model, whole)
    with pytest.raises(nt.TrainingStateError, match=r"finish\(\) must be called once"):
        training.finish()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_step_that_cannot_be_taken_is_not_taken_again() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        wholly([fail, fail])
    assert calls == [1]


def test_dense_weights_behind_masks_are_out_of_reach() -> None:
    model, optimizer, training = plain()
    before = training.masks["3.weight"].clone()
    dense = model[3].parametrizations.weight.original.detach().clone()
    seen = r"3\.weight: under a mask of a SparseTraining already; finish\(\) or release\(\) that first"
    for call in (
        lambda: nt.prune_(model, 1, 4, filter_fn=lambda name, module: True),
        lambda: nt.SparseTraining(model, optimizer, 2, 4, filter_fn=lambda name, module: True),
        lambda: nt.prune_(model, 1, 4, include=["3.parametrizations.weight.original"]),
    ):
        with pytest.raises(InputValueError, match=seen) as e:
            call()
        assert str(e.value).count("3.weight") == 1
    assert torch.equal(training.masks["3.weight"], before)
    assert torch.equal(model[3].parametrizations.weight.original, dense)


def test_decay_pulls_to_zero_whichever_way_the_optimizer_goes() -> None:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training = nt.SparseTraining(model, optimizer, 2, 4, decay=0.1)
    dropped = ~training.masks["weight"]
    for maximize in (False, True):
        optimizer.param_groups[0]["maximize"] = maximize
        before = model.parametrizations.weight.original.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        torch.testing.assert_close(model.parametrizations.weight.original[dropped], 0.9 * before[dropped])


@pytest.mark.parametrize("way", ["assigned", "removed"])
def test_parameters_that_left_the_model_are_not_solved_for(way: str) -> None:
    """Refreshes would go on with weights that nobody trains any more."""
    model, _, training = plain()
    if way == "assigned":
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    else:
        nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    for call in (training.refresh, training.finish):
        with pytest.raises(
            nt.TrainingStateError, match=r"0\.weight must stay the parameter that it was, .* assign=True"
        ):
            call()


def test_a_module_with_another_class_on_top_is_left_whole() -> None:
    model, optimizer, training = plain(every=100)
    masked, inputs = type(model[3]), torch.randn(4, 128)
    model[3].__class__ = type("Sharded", (type("Mixin", (), {}), masked), {})  # as fully_shard does
    advance(model, optimizer, 0, 1)
    training.refresh()
    seen, dense = model[3](inputs), [parameter.detach().clone() for parameter in model.parameters()]
    for call in (training.release, training.finish):
        with pytest.raises(nt.TrainingStateError, match=r"3\.weight must be in .* and was made a Sharded since; give "):
            call()
        assert torch.equal(model[3](inputs), seen)
        assert all(map(torch.equal, model.parameters(), dense))  # no zeros are written either
        assert type(model[0]) is not nn.Conv2d
    model[3].__class__ = masked
    training.release()
    assert type(model[3]) is nn.Linear


def test_weights_of_which_fully_shard_holds_a_part_are_left_where_they_are() -> None:
    """In the module itself they would stay parts in forward passes, too."""
    model, _, training = plain()
    model[3].parametrizations.weight.original.full_tensor = lambda: None  # as a DTensor has
    with pytest.raises(nt.TrainingStateError, match=r"3\.weight must be whole in its module, .* go on from a state"):
        training.release()
    assert all(nn.utils.parametrize.is_parametrized(model[number]) for number in (0, 3, 5))


@pytest.mark.parametrize("parameter", [True, False])
def test_weights_that_were_sharded_are_left_where_they_are(parameter: bool) -> None:
    """FullyShardedDataParallel leaves a flat part in the parameter, or a tensor in its place."""
    model, _, training = plain()
    listed = model[3].parametrizations.weight
    if parameter:
        listed.original.data = listed.original.data.flatten()[:100]
    else:
        whole = listed.original.detach()
        del listed._parameters["original"]
        listed.original = whole
    with pytest.raises(nt.TrainingStateError, match=r"3\.weight must be whole in its module, .* go on from a state"):
        training.release()
    assert nn.utils.parametrize.is_parametrized(model[0])
    assert nn.utils.parametrize.is_parametrized(model[3])
    for call in (training.refresh, training.finish):
        with pytest.raises(nt.TrainingStateError, match=r"3\.weight must stay the parameter that it was, .* shard no"):
            call()
    if parameter:
        with pytest.raises(
            InputValueError, match=r"must hold whole tensors, and a rank has a part of 3\.weight; shard"
        ):
            nt.sparse_state_dict(model)


def test_a_parametrization_beside_the_mask_is_not_lost() -> None:
    model, _, training = plain()
    nn.utils.parametrizations.spectral_norm(model[5])
    for call in (training.refresh, training.finish, training.release):
        with pytest.raises(
            nt.TrainingStateError, match=r"5\.weight must have its mask as the only .* has _SpectralNorm"
        ):
            call()
    assert nn.utils.parametrize.is_parametrized(model[5], "weight")


def test_finish_refuses_weights_that_are_not_finite_whole() -> None:
    model, _, training = plain()
    with torch.no_grad():
        model[5].parametrizations.weight.original[0, 0] = float("inf")
    before = model[3].parametrizations.weight.original.detach().clone()
    with pytest.raises(NonFiniteError, match=r"5\.weight: weights must be finite.* a checkpoint from before$"):
        training.finish()
    assert torch.equal(model[3].parametrizations.weight.original, before)


# breaking a run and going on


@pytest.mark.parametrize(
    "options",
    [{}, {"warm_start": True}, {"warm_start": True, "switch_cost": 0.3}, {"stop_at": 10}],
    ids=["plain", "warm", "warm and loyal", "stop"],
)
@pytest.mark.parametrize("stop", [7, 10, 13])
def test_a_broken_run_goes_on_bit_for_bit(options: dict[str, Any], stop: int) -> None:
    whole, optimizer, training = plain("4:8", **options)
    advance(whole, optimizer, 0, 22)
    first, optimizer, half = plain("4:8", **options)
    advance(first, optimizer, 0, stop)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), half.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second, optimizer, rest = plain("4:8", **options)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)  # whatever it starts from does not matter
    for target, state in zip((second, optimizer, rest), states, strict=True):
        target.load_state_dict(state)
    assert rest.step == stop
    advance(second, optimizer, stop, 22)
    assert same(whole, second)
    timeless = [(record.step, record.layers) for record in training.history]
    assert timeless == [(record.step, record.layers) for record in rest.history]
    assert all(torch.equal(mask, rest.masks[name]) for name, mask in training.masks.items())
    training.finish()
    rest.finish()
    assert same(whole, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update(pattern="4:8"),
            "state must be of pattern 2:4, not 4:8; make the training",
        ),
        (lambda s: s.update(version=2), "state must be of version 1, not 2"),
        (lambda s: s.pop("duals"), r"state must come from SparseTraining.state_dict\(\), and lacks \['duals'\]"),
        (lambda s: s["masks"].pop("0.weight"), r"state must hold the parameters of this training; .* \['0.weight'\]"),
        (lambda s: s["duals"].pop("0.weight"), r"state must hold the parameters of this training; .* \['0.weight'\]"),
        (lambda s: s["masks"].update({"5.weight": torch.ones(3, 3)}), "boolean mask of shape .*, not torch.float32"),
        (lambda s: s["masks"].update({"5.weight": 1}), "boolean mask of shape .*, not 1"),
        (
            lambda s: s["history"].append({"step": 7}),
            "must hold duals, step and history as .* not: 'layers'",
        ),
        (lambda s: s["history"][0].update({"loss": 7}), "must hold duals, step and history .* argument 'loss'"),
        (lambda s: s["duals"].update({"5.weight": [[None, None]]}), "must hold duals, step and history"),
        (lambda s: s["duals"].update({"5.weight": [torch.ones(3)]}), "must hold duals, step and history"),
        (lambda s: s.update(step="seven"), "must hold duals, step and history"),
        (lambda s: s.update(step=-7), "must hold duals, step and history .* step is -7"),
        (lambda s: s.update(frozen="no"), "must hold duals, step and history .* frozen is 'no'"),
        (lambda s: s["masks"]["5.weight"].fill_(True), "must hold a mask of pattern 2:4 for '5.weight'"),
    ],
)
def test_states_that_do_not_belong(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    model, optimizer, training = plain(warm_start=True)
    advance(model, optimizer, 0, 6)
    state = training.state_dict()
    change(state)
    training.refresh()  # so that all of it is other than in the state
    masks, step = {name: mask.clone() for name, mask in training.masks.items()}, training.step
    with pytest.raises(InputValueError, match=message):
        training.load_state_dict(state)
    assert all(torch.equal(mask, masks[name]) for name, mask in training.masks.items())
    assert (training.step, len(training.history)) == (step, 2)
    assert training.state_dict()["duals"]["5.weight"]


def test_a_state_is_a_mapping() -> None:
    with pytest.raises(InputTypeError, match="state must be a mapping from "):
        plain()[2].load_state_dict([])  # type: ignore[arg-type]


# models of all kinds


def test_shared_parameters_share_a_mask_and_stay_shared() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=2)
    assert list(training.masks) == ["0.weight"]
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        assert torch.equal(model[0].weight, model[2].weight)
    (layer,) = training.finish().layers
    assert layer.also == ("2.weight",)
    assert model[0].weight is model[2].weight
    assert int((model[0].weight != 0).sum()) == 32


@pytest.mark.parametrize("make", [lambda model: model, copy.deepcopy, torch.optim.swa_utils.AveragedModel])
def test_a_snapshot_is_what_finish_will_leave(make: Callable[[nn.Module], nn.Module]) -> None:
    model, optimizer, training = plain()
    advance(model, optimizer, 0, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = make(model)
    state = nt.sparse_state_dict(getattr(made, "module", made))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    training.finish()
    assert sorted(state) == sorted(network().state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
        assert torch.equal(value.signbit(), state[name].signbit())
    other = network()
    other.load_state_dict(state)
    assert torch.equal(other(batch(99)[0]), model(batch(99)[0]))
    again = nt.sparse_state_dict(other)  # which has no masks
    assert all(torch.equal(value, state[name]) for name, value in again.items())


def test_a_snapshot_knows_the_versions_of_modules() -> None:
    """As torchvision's MNASNet, which reads no state dict without."""

    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
            assert metadata["version"] == 2
            super()._load_from_state_dict(state, prefix, metadata, *args)

    model = nn.Sequential(Versioned(8, 8))
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    file = io.BytesIO()
    torch.save(nt.sparse_state_dict(model), file)
    file.seek(0)
    training.finish()
    other = nn.Sequential(Versioned(8, 8))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(other, model)


class Renaming(nn.Module):
    """A wrapper whose state dict has the names of what it wraps, as Lightning's Fabric makes it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward_module.state_dict(*args, **kwargs)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_snapshot_through_wrappers_that_rename(when: str) -> None:
    wrappers = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper"
    wrapped = pytest.importorskip(wrappers, reason="needs torch.distributed").checkpoint_wrapper
    model = nn.Sequential(network(), nn.Linear(12, 16))
    names = sorted(model.state_dict())
    if when == "before":
        model[0] = wrapped(model[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = Renaming(model)
    training = nt.SparseTraining(outer, optimizer, 2, 4)
    if when == "after":
        model[0] = wrapped(model[0])
    states = [nt.sparse_state_dict(some) for some in (model, outer)]
    report = training.finish()
    assert report.layers[-1].name == "1.weight"
    for state in states:
        assert sorted(state) == names
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name])


@pytest.mark.parametrize("rename", [False, True])
def test_a_snapshot_of_a_state_dict_of_copies(rename: bool) -> None:
    """They are known by their names, and one that has another is missed."""

    class Copying(nn.Sequential):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            state = super().state_dict(*args, **kwargs)
            return {("flat." if rename else "") + name: value.clone() for name, value in state.items()}

    model = Copying(nn.Linear(8, 8))
    nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    if not rename:
        state = nt.sparse_state_dict(model)
        assert sorted(state) == ["0.bias", "0.weight"]
        assert int((state["0.weight"] != 0).sum()) == 32
        return
    with pytest.raises(InputValueError, match=r"must have its masked weights in its state dict, and 0\.weight is not"):
        nt.sparse_state_dict(model)


def test_a_snapshot_misses_one_of_several_weights() -> None:
    def losing(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        del state["1.parametrizations.weight.original"]

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    model.register_state_dict_post_hook(losing)
    with pytest.raises(InputValueError, match=r"masked weights in its state dict, and 1\.weight is not there"):
        nt.sparse_state_dict(model)


def test_a_snapshot_leaves_what_is_no_masked_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8))
    model[0].register_buffer("bits", model[0].weight.detach().view(torch.int32))
    nt.SparseTraining(model, torch.optim.SGD([model[0].weight], lr=0.1), 2, 4, include=["0.weight"])
    state = nt.sparse_state_dict(model)
    assert state["0.weight"].dtype == torch.float32
    assert state["0.bits"].dtype == torch.int32
    assert nn.parameter.is_lazy(state["1.weight"])


def test_a_model_under_masks_compiles_whole() -> None:
    model, _, _ = plain()
    x, _ = batch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside its compiler
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # which torch.func.jvp calls itself
def test_derivatives_forward_go_straight_through_too() -> None:
    model, _, training = plain()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    steps = {name: torch.ones_like(value) for name, value in parameters.items()}
    x, _ = batch(0)

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, weights, x).square().mean()

    gradients = torch.func.grad(loss)(parameters)
    _, along = torch.func.jvp(loss, (parameters,), (steps,))
    torch.testing.assert_close(along, sum(gradient.sum() for gradient in gradients.values()))
    training.freeze()
    _, frozen = torch.func.jvp(loss, (parameters,), (steps,))
    assert not torch.allclose(frozen, along)


def test_a_snapshot_of_shared_weights_shares_them() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    state = nt.sparse_state_dict(model)
    assert state["0.weight"] is state["2.weight"]
    nn.utils.parametrizations.spectral_norm(model[0])
    with pytest.raises(InputValueError, match=r"0\.weight must have its mask as the only parametrization"):
        nt.sparse_state_dict(model)


def test_a_module_of_two_names_is_masked_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=2)
    assert len(layer.parametrizations.weight) == 1
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    assert [(one.name, one.also) for one in training.finish().layers] == [("0.weight", ("2.weight",))]
    assert type(layer) is nn.Linear
    assert int((layer.weight != 0).sum()) == 32


def test_another_default_device() -> None:
    """What is made for the CPU is made there, in a run under torch.device as well."""
    _, _, training = plain(warm_start=True)
    with torch.device("meta"):
        training.refresh()
        state = training.state_dict()
    assert {side.device.type for pairs in state["duals"].values() for pair in pairs for side in pair} == {"cpu"}


def test_dtype_and_device_moves_take_masks_along() -> None:
    model, _, training = plain()
    model.double()
    assert training.masks["3.weight"].dtype == torch.bool
    assert model[3].weight.dtype == torch.float64
    model.type(torch.float32)
    assert training.masks["3.weight"].dtype == torch.bool
    assert model[3].weight.dtype == torch.float32
    model.to("meta")
    assert training.masks["3.weight"].device.type == "meta"


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_on_another_device_than_their_masks(frozen: bool) -> None:
    """As in the copies that DataParallel makes, which have the masks of the model itself."""
    model, _, training = plain(stop_at=0 if frozen else None)
    elsewhere = {name: value.to("meta") for name, value in model.named_parameters()}
    outputs = torch.func.functional_call(model, elsewhere, batch(0)[0].to("meta"))
    assert outputs.device.type == "meta"
    assert training.masks["3.weight"].device.type == "cpu"


@pytest.mark.parametrize("fused", [False, True])
def test_mixed_precision_and_accumulation(fused: bool) -> None:
    """bfloat16 autocast with a GradScaler that skips a step: it does not count, though a fused optimizer is called."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(7):
        optimizer.zero_grad()
        for part in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, step, part) / 2
            assert loss.isfinite()
            scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert training.step == 6
    assert [record.step for record in training.history] == [3, 6]
    assert training.finish().layers[0].density == 0.5
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_bfloat16_weights() -> None:
    model = network().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=2)
    for step in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(step)[0].bfloat16()).float(), batch(step)[1]).backward()
        optimizer.step()
    assert len(training.history) == 2
    assert model[3].weight.dtype == torch.bfloat16
    assert {layer.dtype for layer in training.finish().layers} == {"bfloat16"}


def test_functional_calls_and_vmap() -> None:
    model, _, _ = plain()
    inputs = batch(0)[0]

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).sum()

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)
    model(inputs).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name].sum(0), parameter.grad, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["compiled first", "compiled after"])
def test_compile(before: bool) -> None:
    """Refreshed and frozen masks take effect in captured graphs; the default backend takes a minute more."""
    model, optimizer, _ = plain(every=2, stop_at=5)
    advance(model, optimizer, 0, 7)
    twin = network()
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside its compiler
        compiled = torch.compile(twin, backend="aot_eager") if before else None
        training = nt.SparseTraining(compiled or twin, other, 2, 4, every=2, stop_at=5)
        compiled = compiled or torch.compile(twin, backend="aot_eager")
        advance(compiled, other, 0, 7)
    assert len(training.history) == 2
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_step_of_the_optimizer() -> None:
    model, optimizer, training = plain(every=2, decay=0.5)
    twin, other, its = plain(every=2, decay=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside its compiler
        compiled = torch.compile(lambda: other.step(), backend="aot_eager")
        for step in range(5):
            for one, drive, stepper in ((model, optimizer, optimizer.step), (twin, other, compiled)):
                drive.zero_grad()
                loss_of(one, step).backward()
                stepper()
    assert [record.layers for record in training.history] == [record.layers for record in its.history]
    assert its.step == 5
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


# bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, InputValueError, "every must be at least 1, not 0"),
        ({"every": 1.5}, InputTypeError, "every must be a whole number, not 1.5"),
        ({"stop_at": -1}, InputValueError, "stop_at must be at least 0, not -1"),
        ({"decay": -1.0}, InputValueError, "decay must be finite and not negative, not -1.0"),
        ({"decay": "x"}, InputTypeError, "decay must be a number, not 'x'"),
        ({"decay": "0.1"}, InputTypeError, "decay must be a number, not '0.1'"),
        ({"every": True}, InputTypeError, "every must be a whole number, not True"),
        ({"switch_cost": True}, InputTypeError, "switch_cost must be a number, not True"),
        ({"switch_cost": float("nan")}, InputValueError, "switch_cost must be finite and not negative, not nan"),
        ({"strict": True, "pattern": "8:16"}, InputValueError, "strict=True needs whole blocks of 16 x 16"),
        ({"include": ["no"]}, InputValueError, "include must match"),
        ({"solver": "magic"}, ValueError, "solver must be one of"),
        ({"warm_start": "no"}, InputTypeError, "warm_start must be True or False, not 'no'"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    keys = model.state_dict().keys()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(error, match=message):
        nt.SparseTraining(model, optimizer, **{"pattern": "2:4", **options})
    assert model.state_dict().keys() == keys
    assert not optimizer._optimizer_step_pre_hooks


def test_sparse_gradients_cannot_be_added_to() -> None:
    model = nn.Sequential(nn.Embedding(16, 8, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputValueError, match=r"decay must be 0 where gradients are sparse, .* '0.weight' are"):
        nt.SparseTraining(model, optimizer, 2, 4, include=["0.weight"])
    training = nt.SparseTraining(model, optimizer, 2, 4, include=["0.weight"], decay=0.0)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert training.step == 1
    other = nn.Linear(8, 8)
    other.sparse = "what its author calls so"
    assert nt.SparseTraining(other, torch.optim.SGD(other.parameters()), 2, 4).decay > 0


def test_the_optimizer_must_hold_the_parameters() -> None:
    model = network()
    optimizer = torch.optim.SGD([model[0].weight, model[3].weight])
    with pytest.raises(InputValueError, match=r"optimizer must hold every parameter .* lacks '5.weight'; make it"):
        nt.SparseTraining(model, optimizer, 2, 4)
    with pytest.raises(InputValueError, match=r"lacks '3.weight', '5.weight'; make it"):
        nt.SparseTraining(model, torch.optim.SGD([model[0].weight]), 2, 4)
    with pytest.raises(InputTypeError, match=r"optimizer must be a torch.optim.Optimizer, not list"):
        nt.SparseTraining(model, [], 2, 4)  # type: ignore[arg-type]
    model[5].weight.requires_grad_(False)
    assert ("5.weight", "requires no gradient") in nt.SparseTraining(model, optimizer, 2, 4).skipped


def test_one_training_at_a_time() -> None:
    model, optimizer, _ = plain()
    with pytest.raises(InputValueError, match=r"5\.weight: under a mask of a SparseTraining already; finish"):
        nt.SparseTraining(model, optimizer, 2, 4)


def test_wrapped_optimizers() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, Wrapper(optimizer), 2, 4)  # type: ignore[arg-type]
    advance(model, optimizer, 0, 3)
    assert training.step == 3
    optimizer.optimizer = "what its author calls it"
    training.release()
    assert nt.SparseTraining(model, optimizer, 2, 4).masks


def test_an_optimizer_that_another_one_drives_takes_steps() -> None:
    class Driving(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return optimizer.step(closure)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = nt.SparseTraining(model, optimizer, 2, 4)
    advance(model, Driving(model.parameters(), lr=0.1), 0, 2)
    assert training.step == 2


def test_weights_that_are_not_finite_at_a_refresh() -> None:
    model, optimizer, training = plain()
    advance(model, optimizer, 0, 4)
    masks = {name: mask.clone() for name, mask in training.masks.items()}
    with torch.no_grad():
        model[5].parametrizations.weight.original[1, 2] = float("nan")
    message = (
        r"5\.weight: weights must be finite.* at 1 of 128 entries, the first at \(1, 2\); repair them, or go back to a"
    )
    with pytest.raises(NonFiniteError, match=message):
        training.refresh()
    assert all(torch.equal(mask, masks[name]) for name, mask in training.masks.items())
    assert not training.history
    bad = network()
    with torch.no_grad():
        bad[0].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"0\.weight: weights must be finite.*; repair them$"):
        nt.SparseTraining(bad, torch.optim.SGD(bad.parameters()), 2, 4)
    assert bad.state_dict().keys() == network().state_dict().keys()


# several processes


def test_layers_are_shared_out_evenly() -> None:
    assert Ranks(0, 2).owners([5, 9, 4, 1]) == [1, 0, 1, 0]
    assert Ranks(0, 3).owners([]) == []
    assert Ranks().owners([3, 2]) == [0, 0]


def test_what_was_found_on_a_device_is_brought_over_in_its_order() -> None:
    mask, u, v = torch.eye(4) > 0, torch.arange(4.0), torch.arange(8.0)
    for found in (Found(mask, ((u, v), (v, u))), Found(mask.numpy(), ((u.numpy(), v.numpy()), (v.numpy(), u.numpy())))):
        there = found.as_arrays()
        assert all(isinstance(array, np.ndarray) for array in (there.mask, *there.duals[0], *there.duals[1]))
        assert (there.mask == mask.numpy()).all()
        assert [[array.tolist() for array in pair] for pair in there.duals] == [
            [u.tolist(), v.tolist()], [v.tolist(), u.tolist()],
        ]  # fmt: skip


def test_tensors_come_from_ranks_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in it count from zero; torch broadcasts by the ranks of all processes. Any strides may be sent."""
    sources = []

    def broadcast(sent: torch.Tensor, source: int, group: object) -> None:
        assert sent.is_contiguous()
        sources.append((source, group))
        sent.fill_(source)

    monkeypatch.setattr(torch.distributed, "get_global_rank", lambda group, rank: (4, 7)[rank])
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    for tensor in (torch.zeros(2, 3), torch.zeros(3, 2).T):
        Ranks(0, 2, "some").send(tensor, 1)
        assert tensor.tolist() == [[7.0] * 3] * 2
    assert sources == [(7, "some")] * 2


def test_what_keeps_ranks_apart_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise RuntimeError("Timed out waiting 20000ms for recv operation to complete")

    monkeypatch.setattr(torch.distributed, "broadcast", late)
    monkeypatch.setattr(torch.distributed, "get_global_rank", lambda group, rank: rank)
    monkeypatch.setattr(torch.distributed, "all_gather_object", late)
    for call in (lambda ranks: ranks.send(torch.zeros(2), 0), lambda ranks: ranks.agree({"step": 1})):
        with pytest.raises(RuntimeError, match="Timed out") as raised:
            call(Ranks(0, 2, "some"))
        assert "must take the same number of optimizer steps, without join()" in raised.value.__notes__[0]


def turn(training: nt.SparseTraining) -> None:
    state = training.state_dict()
    state["masks"]["3.weight"].logical_not_()
    training.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "options", "change"),
    [
        ("every", {"every": 6}, lambda training: None),
        ("stop_at", {"stop_at": 9}, lambda training: None),
        ("decay", {}, lambda training: setattr(training, "decay", 0.5)),
        ("step", {}, lambda training: training.load_state_dict({**training.state_dict(), "step": 3})),
        ("frozen", {}, lambda training: training.freeze()),
        ("masks", {}, turn),
    ],
)
def test_ranks_agree_on_all_that_would_lead_them_apart(
    name: str, options: dict[str, Any], change: Callable[[nt.SparseTraining], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings, told = [plain(), plain(**options)], []
    change(trainings[1][2])
    monkeypatch.setattr(Ranks, "_told", lambda ranks, value: told.append(value) or list(told))
    for _, optimizer, training in trainings:
        training._ranks = Ranks(0, 2)
        if training is trainings[0][2]:
            optimizer.step()
    with pytest.raises(InputValueError, match=f"^{name} must be the same on every rank, and rank 1 differs from rank"):
        optimizer.step()


def test_ranks_agree_once_and_again_after_a_state_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    _, optimizer, training = plain()
    training._ranks = Ranks(0, 2)
    monkeypatch.setattr(Ranks, "_told", lambda ranks, value: told.append(value) or [value] * 2)
    for loaded in (False, False, True, False):
        if loaded:
            training.load_state_dict(training.state_dict())
        optimizer.step()
    assert [one["step"] for one in told] == [0, 2]


def test_a_training_from_before_the_processes_takes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only refreshes: till the first, each would go on with masks of its own."""
    model, optimizer, training = plain(every=100)
    before = copy.deepcopy(model.state_dict())
    loss_of(model, 0).backward()
    monkeypatch.setattr(Ranks, "current", lambda group=None: Ranks(0, 2))
    with pytest.raises(nt.TrainingStateError, match="must be made after the processes have found each other"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert training.step == 0


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    too_early, early_optimizer, early = plain(every=1)
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(rank)  # processes begin apart: the first one's weights count
    model = network() if rank == 0 else nn.Sequential(*[copy.deepcopy(layer) for layer in network()])
    if rank == 1:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training = nt.SparseTraining(model, optimizer, 4, 8, every=3, warm_start=True)
    solved: list[str] = []
    find = training.find_mask
    training.find_mask = lambda layer, *rest: (solved.append(layer.name), find(layer, *rest))[1]  # type: ignore[method-assign]
    parallel = nn.parallel.DistributedDataParallel(model)
    for step in range(7):
        optimizer.zero_grad()
        images, labels = batch(step)
        half = slice(4 * rank, 4 * rank + 4)
        nn.functional.cross_entropy(parallel(images[half]), labels[half]).backward()
        optimizer.step()
    state = training.state_dict()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if rank == 1:
        with torch.no_grad():
            model[5].parametrizations.weight.original[0, 0] = float("nan")
            model[3].parametrizations.weight.original[0, 0] = float("nan")
    # one process's failure is everybody's, whatever it is, so that none waits for ever
    errors = [failure(training.refresh)]
    if rank == 1:
        training.find_mask = lambda *_: 1 // 0  # type: ignore[method-assign,return-value,assignment]
    errors.append(failure(training.refresh))
    other = network()
    half_of_it = torch.optim.SGD(other.parameters() if rank == 0 else other[0].parameters())
    errors.append(failure(lambda: nt.SparseTraining(other, half_of_it, 2, 4)))
    errors.append(failure(lambda: nt.SparseTraining(parallel, optimizer, 2, 4)))
    loss_of(too_early, 0).backward()
    errors += [failure(early_optimizer.step), failure(early.refresh), failure(early.finish)]
    alone = [torch.distributed.new_group([number]) for number in range(2)][rank]
    model, optimizer, _ = plain(process_group=alone, every=1)
    errors.append(failure(lambda: advance(model, optimizer, 0, 1 + rank)))  # none waits for the other
    # nor do they go on apart, where they were given different things
    apart = [failure(lambda: plain(("2:4", "4:8")[rank])), failure(lambda: plain(exclude=(["0"], ["5"])[rank]))]
    _, optimizer, uneven = plain(every=4 + rank)
    apart.append(failure(optimizer.step))
    model, optimizer, uneven = plain()
    if rank == 0:
        uneven.load_state_dict({**uneven.state_dict(), "step": 3})
    apart.append(failure(optimizer.step))
    if rank == 1:
        uneven.load_state_dict({**uneven.state_dict(), "step": 3})
        model[3] = nn.Linear(128, 16)
    apart += [failure(optimizer.step), failure(uneven.refresh)]
    torch.save((weights, state, solved, errors, apart), Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()  # else one can leave while the other still talks to it
    torch.distributed.destroy_process_group()


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_two_processes_have_the_same_masks(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    (one, state, solved, errors, apart), (two, other, also, other_errors, _) = (
        torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name, mask in state["masks"].items():
        assert torch.equal(mask, other["masks"][name])
        for mine, theirs in zip(state["duals"][name], other["duals"][name], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
    assert set(solved) | set(also) == set(state["masks"])
    assert not set(solved[:2]) & set(also)
    told = "InputValueError: masks must be found on every rank, and rank 1 could not: "
    for mine, theirs, message in zip(
        errors, other_errors,
        ("NonFiniteError: ", "ZeroDivisionError: ", "InputValueError: optimizer must hold every parameter"),
        strict=False,
    ):  # fmt: skip
        assert mine.startswith(told + message)
        assert theirs.startswith(message)
    late = "TrainingStateError: SparseTraining must be made after the processes have found each other, and was before"
    assert [error.split(":")[:2] for error in errors[4:]] == [late.split(":")] * 2 + [[""]] * 2
    assert other_errors[-1] == ""
    assert errors[3].startswith("InputValueError: model must not be in a DistributedDataParallel yet; make Sparse")
    told_apart = "InputValueError: {} must be the same on every rank, and rank 1 differs from rank 0; make the training"
    for error, name in zip(apart, ("pattern", "parameters", "every", "step"), strict=False):
        assert error.startswith(told_apart.format(name))
    assert apart[4] == ""
    assert apart[5].startswith(told + "TrainingStateError: 3.weight must stay in the model")
    # and two processes do what one does
    model, optimizer, training = plain("4:8", every=3)
    advance(model, optimizer, 0, 7)
    for name, mask in training.masks.items():
        assert float((mask == state["masks"][name]).float().mean()) > 0.98


def test_a_snapshot_of_a_sharded_model_is_refused() -> None:
    model, _, _ = plain()

    def shard(module: nn.Module, state: dict[str, Any], *args: Any) -> None:
        for name, value in state.items():
            if name.endswith("original"):
                value.full_tensor = lambda: None  # as a DTensor has
                state[name] = value

    model.register_state_dict_post_hook(shard)
    with pytest.raises(InputValueError, match=r"must hold whole tensors, and a rank has a part of 0.weight; shard no"):
        nt.sparse_state_dict(model)


def test_finish_grades_each_group_of_a_convolution() -> None:
    """Groups of 6 rows have blocks of their own: taken as one matrix, there would be fewer, which the masks break."""
    model = nn.Conv2d(8, 12, 3, groups=2)
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    dense = model.parametrizations.weight.original.detach().numpy()
    best = nmflow.solve(dense, 2, 4, layout="conv", groups=2)
    report = training.finish()
    assert report.proven
    (layer,) = report.layers
    assert layer.n_blocks == best.certificate.n_blocks == 2 * 2 * 9
    assert layer.kept == pytest.approx(best.objective, rel=1e-6)


def test_what_a_training_is_given_reaches_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            asked.append(options)
            return real(*args, **options)

        return noted

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(search, "solve", noting(search.solve))
    monkeypatch.setattr(masked_layers, "certify", noting(masked_layers.certify))
    model = nn.Linear(16, 8)
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4, threads=3, warm_start=True)
    ((u, v),) = training.state_dict()["duals"]["weight"]
    training.refresh()
    start = asked[1]["warm_start"]
    assert np.array_equal(start.row_duals[0], u)
    assert np.array_equal(start.col_duals[0], v)
    training.finish()
    assert [options["threads"] for options in asked] == [3, 3, 3]


def test_each_layer_is_solved_for_its_own_weight_wherever_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last go to the CPU, and other ranks are sent arrays."""

    class First(Ranks):
        def owners(self, sizes: Sequence[int]) -> list[int]:
            assert list(sizes) == [8 * 16, 8 * 4 * 9, 16 * 8]
            return [0] * len(sizes)

        def exchange(self, found: dict[int, Found], *_: Any) -> list[Found]:
            return list(found.values())

    def on_its_device(weight: torch.Tensor, *_: Any, **options: Any) -> Found:
        told.append(options)
        return Found(weight > 0)

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(joint_search, "find_on_device", on_its_device)
    model = nn.Sequential(nn.Linear(16, 8), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 16))
    layers = select(model, nmflow.Pattern(2, 4)).layers
    weights = [layer.parameters[0].detach() for layer in layers]
    for ranks, kind in ((First(0, 1), torch.Tensor), (First(0, 2), np.ndarray)):
        found = find_all(
            layers, weights, None, nmflow.Pattern(2, 4), ranks, find=lambda layer, weight, last: Found(weight > 0),
            stays=lambda weight: weight is weights[1], threads=3, warm_start=True,
        )  # fmt: skip
        assert all(np.array_equal(one.mask, weight > 0) for one, weight in zip(found, weights, strict=True))
        assert isinstance(found[1].mask, kind)
    assert told == [{"layout": "conv", "groups": 2, "threads": 3, "warm_start": True}] * 2


def test_masks_of_a_later_training_are_not_taken_off() -> None:
    model, optimizer, training = plain()
    nn.utils.parametrize.remove_parametrizations(model[3], "weight", leave_parametrized=False)
    later = nt.SparseTraining(model, optimizer, 2, 4, include=["3"])
    training.release()
    assert [nn.utils.parametrize.is_parametrized(module) for module in model] == [False] * 3 + [True] + [False] * 2
    assert later.finish().layers[0].density == 0.5


def test_zeros_are_written_where_one_memory_became_two() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    model.double()
    training.finish()
    assert [int((module.weight != 0).sum()) for module in model] == [32, 32]


def test_a_snapshot_of_a_state_dict_of_copies_elsewhere() -> None:
    """Of a layer with two names, whose copies are known by both; and of a model that is a layer itself."""

    def copied(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        state.update({name: value.to("meta") for name, value in state.items()})

    layer = nn.Linear(8, 8, bias=False)
    for model, names in ((nn.Sequential(layer, layer), ["0.weight", "1.weight"]), (layer, ["weight"])):
        training = nt.SparseTraining(model, torch.optim.SGD(layer.parameters(), lr=0.1), 2, 4)
        model.register_state_dict_post_hook(copied)
        state = nt.sparse_state_dict(model)
        assert {name: value.device.type for name, value in state.items()} == dict.fromkeys(names, "meta")
        training.release()
    nt.SparseTraining(layer, torch.optim.SGD(layer.parameters(), lr=0.1), 2, 4)
    nn.utils.parametrizations.spectral_norm(layer)
    with pytest.raises(InputValueError, match=r"^weight must have its mask as the only parametrization"):
        nt.sparse_state_dict(layer)


@pytest.mark.parametrize("what", ["part", "parametrization"])
def test_all_places_of_a_shared_weight_are_looked_at_before_masks_come_off(what: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    training = nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4)
    if what == "part":
        model[1].parametrizations.weight.original = nn.Parameter(torch.ones(8))
    else:
        nn.utils.parametrizations.spectral_norm(model[1])
    with pytest.raises(nt.TrainingStateError, match=r"0\.weight must (be whole in|have its mask as the only)"):
        training.release()
    assert all(nn.utils.parametrize.is_parametrized(module) for module in model)
