"""Models that have zeros already: learned thresholds, whole filters gone; n for each layer; batch normalisation."""

from __future__ import annotations

import itertools
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmflow
import nmflow.torch as nt
from nmflow.errors import InputTypeError, InputValueError, MissingLibraryError, NonFiniteError, SolverLimitError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse(density: float = 0.4) -> nn.Module:
    """Unstructured zeros, by magnitude."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            least = layer.weight.abs().flatten().quantile(1 - density)
            layer.weight[layer.weight.abs() < least] = 0.0
    return model


@pytest.mark.parametrize("fill", ["at-most", "exact"])
def test_zeros_stay_and_as_little_as_possible_joins(fill: str) -> None:
    model = sparse()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    report = nt.from_unstructured_(model, 4, 8, fill=fill)
    assert report.proven
    for layer in report.layers:
        old, new = before[layer.name], model.get_parameter(layer.name).detach()
        assert not new[old == 0].any()
        assert torch.equal(new[new != 0], old[new != 0])
        scores = old.double().abs().numpy()  # as scores, for which the kernel is there already
        best = nmflow.solve(scores, 4, 8, fill=fill, layout=layer.layout, scores=scores).objective
        assert layer.kept == pytest.approx(best)
        assert float(new.double().abs().sum()) == pytest.approx(best)
        assert layer.dense == pytest.approx(float(old.double().abs().sum()))


class Thresholded(nn.Linear):
    """Dynamic Sparse Training: each row has a threshold that is learned with it; what is below plays no part."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.threshold = nn.Parameter(self.weight.detach().abs().quantile(0.55, dim=1))

    def dropped(self) -> torch.Tensor:
        return self.weight.abs() < self.threshold[:, None]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight.masked_fill(self.dropped(), 0.0), self.bias)


def test_learned_thresholds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Thresholded(64, 64), nn.ReLU(), Thresholded(64, 32))
    x = random(200, 64)
    dense = model(x).detach()

    def below(name: str, module: nn.Module) -> torch.Tensor | None:
        return module.dropped() if isinstance(module, Thresholded) else None

    count = nt.choose_n(model, 16, 0.99, zeros=below)
    assert set(count) == {"0.weight", "2.weight"}
    assert all(7 < n < 13 for n in count.values())
    dropped = {name: model.get_submodule(name[:-7]).dropped() for name in count}
    report = nt.from_unstructured_(model, count, 16, zeros=below)
    assert report.kept_percent > 99
    for name in count:
        weight = model.get_parameter(name)
        assert not weight[dropped[name]].any()
        assert not model.get_submodule(name[:-7]).dropped()[weight != 0].any()
    assert (model(x) - dense).norm() < 0.1 * dense.norm()


def test_whole_filters_gone() -> None:
    """Sampled filters: half of the rows are empty, the others full, which independent zeros would not be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8))
    gone = torch.randperm(32)[:16]
    with torch.no_grad():
        model[0].weight[gone] = 0.0
    options: dict[str, Any] = {"include": ["0"]}
    assert nt.choose_n(model, 8, 0.9, **options) == {"0.weight": 6}
    assert nt.choose_n(model, 8, 0.9, measured=True, **options) == {"0.weight": 8}
    report = nt.from_unstructured_(model, 4, 8, **options)
    assert not model[0].weight[gone].any()
    rows = model[0].weight.movedim(1, -1).flatten(1)
    assert (rows != 0).reshape(32, 9, 8).sum(-1).max() == 4
    assert report.proven
    batches = [random(50, 8, 2, 2, seed=seed) for seed in range(3)]
    refitted = nt.adaprune_(model, batches, 4, 8, fill="at-most", keep_zeros=True)
    assert [layer.name for layer in refitted.layers] == ["0.weight", "3.weight"]
    assert not model[0].weight[gone].any()


def test_what_counts_as_zero_goes_under_exact_fill_too() -> None:
    """There a mask is filled up with such entries, as with zeros; and they are none yet."""
    model = nn.Linear(8, 8)
    report = nt.from_unstructured_(model, 2, 4, fill="exact", zeros={"weight": torch.ones(8, 8, dtype=torch.bool)})
    assert not model.weight.any()
    assert report.layers[0].kept == 0


def test_what_is_asked_for_reaches_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def solve(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return nmflow.solve(*args, **options)

    monkeypatch.setattr("nmflow.torch.unstructured.solve", solve)
    model = nn.ModuleDict({name: nn.Conv2d(16, 8, 1, groups=2) for name in "abc"})
    asked: dict[str, Any] = {"include": ["a", "b"], "exclude": ["b"]}
    report = nt.from_unstructured_(model, 2, 4, solver="greedy", threads=1, **asked)
    (options,) = calls
    given = {name: options[name] for name in ("solver", "threads", "layout", "groups")}
    assert given == {"solver": "greedy", "threads": 1, "layout": "conv", "groups": 2}
    assert (report.solver, [layer.name for layer in report.layers]) == ("greedy", ["a.weight"])
    assert list(nt.choose_n(model, 4, **asked)) == ["a.weight"]
    left = {"filter_fn": lambda name, module: name != "c"}
    assert list(nt.choose_n(model, 4, **left)) == ["a.weight", "b.weight"]
    assert len(nt.from_unstructured_(model, 2, 4, **left).layers) == 2


def test_groups_of_stacked_matrices_are_counted_in_each() -> None:
    model = nn.Module()
    model.experts = nn.Parameter(torch.eye(4).repeat(2, 1, 1))
    assert nt.choose_n(model, 4, 1.0, measured=True, include=["experts"]) == {"experts": 1}


def test_layers_that_are_not_named_only_get_their_zeros() -> None:
    model = sparse()
    zeros = random(16, 128, seed=2) > 0
    report = nt.from_unstructured_(model, {"0.weight": 2, "3.weight": 4}, 4, zeros={"3.weight": zeros})
    assert (report.pattern, [layer.name for layer in report.layers]) == ("2:4 at-most", ["0.weight"])
    assert ("3.weight", "only its zeros: not in n, or n = m") in report.skipped
    assert not model[3].weight[zeros].any()
    assert (model[3].weight != 0).any()


def test_n_is_found_under_the_second_name_of_a_shared_weight() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    (layer,) = nt.from_unstructured_(model, {"b.weight": 2}, 4).layers
    assert (layer.name, layer.also, layer.density) == ("a.weight", ("b.weight",), 0.5)


def test_scores_decide_what_joins() -> None:
    model = sparse(1.0)
    scores = random(16, 128, seed=5).abs()
    nt.from_unstructured_(model, 2, 4, scores={"3.weight": scores}, include=["3"])
    assert torch.equal(model[3].weight != 0, nt.mask_for(scores, 2, 4, fill="at-most"))


@pytest.mark.parametrize(
    ("density", "m", "confidence", "n"),
    [(0.5, 4, 1.0, 4), (0.5, 4, 15 / 16, 3), (0.5, 4, 0.9376, 4), (0.5, 4, 5 / 16, 1), (0.0, 8, 1.0, 1)],
)
def test_chosen_n_is_binomial(density: float, m: int, confidence: float, n: int) -> None:
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight.view(-1)[int(256 * density) :] = -0.0
    assert nt.choose_n(layer, m, confidence) == {"weight": n}


def test_a_sum_that_rounds_to_just_below_confidence_reaches_it() -> None:
    layer = nn.Linear(10, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(100)[0].view(10, 10))
    assert nt.choose_n(layer, 4, 0.99940797) == {"weight": 1}  # 0.99⁴ + 4 · 0.99³ · 0.01, exactly


def test_what_is_zero_counts_as_zero_whatever_else_does() -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(8))
    others = {"weight": torch.zeros(8, 8, dtype=torch.bool)}
    assert nt.choose_n(layer, 4, 1.0, measured=True, zeros=others) == {"weight": 1}


def test_scores_of_either_sign_are_added_up() -> None:
    layer, scores = nn.Linear(4, 4), torch.ones(4, 4)
    scores[0] = -1
    assert nt.from_unstructured_(layer, 2, 4, scores={"weight": scores}).layers[0].dense == 8


def test_what_was_chosen_for_rows_is_pruned_by_rows() -> None:
    model = nn.Linear(16, 16)
    with torch.no_grad():
        model.weight[:, ::2] = 0.0
    chosen = nt.choose_n(model, 8, measured=True, transposable=False)
    assert chosen == {"weight": 4}
    assert nt.from_unstructured_(model, chosen, 8).kept_percent == 100
    assert (model.weight[:, 1] != 0).all()  # a mask of columns, too, would drop half of these
    with pytest.raises(InputValueError, match="m must be 8, for which n was chosen, not 4"):
        nt.from_unstructured_(model, chosen, 4)


def test_zeros_are_counted_under_another_default_device() -> None:
    model = nn.Linear(16, 16)
    wanted = nt.choose_n(model, 4, measured=True)
    with torch.device("meta"):
        assert nt.choose_n(model, 4, measured=True) == wanted
        assert nt.from_unstructured_(model, 2, 4).proven


def test_choice_holds_on_random_zeros() -> None:
    layer = nn.Linear(512, 512)
    with torch.no_grad():
        layer.weight[torch.rand(512, 512, generator=torch.Generator().manual_seed(0)) > 0.5] = 0.0
    n = nt.choose_n(layer, 16, 0.9)["weight"]
    counts = (layer.weight != 0).reshape(512, 32, 16).sum(-1)
    assert float((counts <= n).float().mean()) > 0.89
    assert float((counts <= n - 1).float().mean()) < 0.9
    assert nt.choose_n(layer, 16, 0.9, measured=True) == {"weight": n}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: nt.choose_n(m, 8, 0.0), "confidence must be above 0 and at most 1, not 0.0"),
        (lambda m: nt.choose_n(m, 8, zeros={"nobody": random(2)}), "zeros must be named like parameters of the model"),
        (lambda m: nt.from_unstructured_(m, 2, 4, zeros={"3.weight": random(16, 128)}),
         "zeros of 3.weight must be boolean"),
        (lambda m: nt.from_unstructured_(m, 2, 4, zeros={"3.weight": random(2) > 0}),
         "zeros of 3.weight must have shape"),
        (lambda m: nt.from_unstructured_(m, {"nobody": 2}, 4), "n must be named like parameters of the model"),
        (lambda m: nt.from_unstructured_(m, 2, 4, scores={"nobody": random(2)}), "scores must be named like"),
        (lambda m: nt.allocate(m, 4, 0.5, scores={"nobody": random(2)}), "scores must be named like"),
        (lambda m: nt.from_unstructured_(m, {"3.weight": 2}), "m must be given beside n for each layer"),
        (lambda m: nt.from_unstructured_(m, {"3.weight": 2}, 4, pattern="2:4"), "n for each layer, and no pattern"),
        (lambda m: nt.from_unstructured_(m, nt.Allocation({"3.weight": 2}, 4, 0.5, 0.0, 1.0, 0.0), 8),
         "m must be 4, for which n was chosen, not 8"),
        (lambda m: nt.allocate(m, 4, 0.2), "density must be between 1/m = 0.25 and 1, not 0.2"),
        (lambda m: nt.allocate(m, 4, 0.5, scores=lambda name, module: -module.weight.abs()), "must not be negative"),
        (lambda m: nt.allocate(m, 4, 0.5, scores={"3.weight": random(2)}), "3.weight: scores must have the shape"),
        (lambda m: nt.allocate(m, 4, 0.5, scores={"3.weight": random(16, 128).abs()}),
         "scores must be of all layers or of none, not of 3.weight without 0.weight, since they are added up"),
        (lambda m: nt.from_unstructured_(m, 2, 4, scores={"3.weight": random(128)}),
         "3.weight: scores must have the shape (16, 128) of the weight, not (128,)"),
        (lambda m: nt.allocate(m, 4, 0.5, scores=lambda name, module: module.weight * torch.nan),
         "0.weight: scores must"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str) -> None:
    model = sparse()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises((InputValueError, InputTypeError), match=re.escape(message)):
        call(model)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_after_an_error_nothing_has_changed() -> None:
    model = sparse()
    model[3].weight.data[0, 0] = torch.nan
    before = model[0].weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"3.weight: scores must be finite"):
        nt.from_unstructured_(model, 1, 4)
    assert torch.equal(model[0].weight, before)


# a budget for the whole model


def test_allocation_is_the_best_of_all() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 16), nn.Conv2d(8, 12, 2, groups=2), nn.Linear(16, 16))
    with torch.no_grad():
        for place, scale in enumerate((3.0, 1.0, 0.3, 1.0)):
            model[place].weight *= scale * model[place].weight.abs()
    layers = {"0.weight": model[0], "1.weight": model[1], "2.weight": model[2], "3.weight": model[3]}
    lost: dict[str, list[float]] = {}
    for name, layer in layers.items():
        weight = layer.weight.detach().double().numpy()
        conv = {"layout": "conv", "groups": 2} if name == "2.weight" else {}
        kept = [nmflow.solve(weight, n, 4, **conv).objective for n in range(1, 5)]
        lost[name] = [np.abs(weight).sum() - one for one in kept]
    sizes = [layer.weight.numel() for layer in layers.values()]
    total = sum(np.abs(layer.weight.detach().double().numpy()).sum() for layer in layers.values())
    for density in (0.25, 0.3, 0.5, 0.77, 1.0):
        found = nt.allocate(model, 4, density)
        best = min(
            sum(losses[n - 1] for losses, n in zip(lost.values(), counts, strict=True))
            for counts in itertools.product(range(1, 5), repeat=4)
            if sum(n * size for n, size in zip(counts, sizes, strict=True)) <= 4 * density * sum(sizes)
        )
        assert found.lost == pytest.approx(best, abs=1e-9)
        assert sum(lost[name][n - 1] for name, n in found.items()) == pytest.approx(best, abs=1e-9)
        assert found.density == sum(n * size for n, size in zip(found.values(), sizes, strict=True)) / (4 * sum(sizes))
        assert found.density <= density
        assert found.uniform == pytest.approx(sum(losses[int(4 * density) - 1] for losses in lost.values()), abs=1e-9)
        assert found.total == pytest.approx(total)
        percent = (f"{100 * part / found.total:.3f}%" for part in (found.lost, found.uniform))
        assert repr(found).endswith("; density {:.4f}, {} lost ({} by one n for all)>".format(found.density, *percent))
    assert found.lost == 0
    assert repr(found) == "<Allocation 4:4 x 4; density 1.0000, 0.000% lost (0.000% by one n for all)>"


def test_allocation_goes_into_the_methods() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    with torch.no_grad():
        model[2].weight *= 0.2
    batches = [random(64, 16)]
    scores = nt.calibrate(model, batches).scores("obs")
    count = nt.allocate(model, 4, 0.5, scores=scores)
    assert dict(count) == {"0.weight": 3, "2.weight": 1}
    report = nt.sparsegpt_(model, batches, count, 4)
    assert [layer.pattern for layer in report.layers] == ["3:4", "1:4"]


def test_allocate_without_ortools(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ortools", "ortools.sat", "ortools.sat.python"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match=r"allocate needs OR-Tools, which is not installed; pip install"):
        nt.allocate(nn.Linear(4, 4), 4, 0.5)


# batch normalisation


def test_batch_normalisation_is_estimated_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.3)).train()
    model[2].eval()
    batches = [random(32, 4, seed=seed) for seed in range(4)]
    assert nt.reestimate_batch_norm_(model, batches) == 2
    hidden = [model[0](batch) for batch in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([one.mean(0) for one in hidden]).mean(0), atol=1e-6)
    assert torch.allclose(model[1].running_var, torch.stack([one.var(0) for one in hidden]).mean(0), rtol=1e-5)
    assert (model[1].momentum, model[3].momentum, model[3].training, model[2].training) == (0.1, 0.3, True, False)
    assert nt.reestimate_batch_norm_(nn.Linear(4, 4), batches) == 0
    before = [value.clone() for value in model.buffers()]
    with pytest.raises(InputValueError, match="batches must hold at least one batch, not none"):
        nt.reestimate_batch_norm_(model, [])
    with pytest.raises(RuntimeError):
        nt.reestimate_batch_norm_(model, [*batches, random(2, 5)])
    assert all(torch.equal(one, two) for one, two in zip(before, model.buffers(), strict=True))
    assert model[1].momentum == 0.1


def test_batch_normalisation_is_fed_as_it_is_asked() -> None:
    def forward(model: nn.Module, batch: torch.Tensor) -> None:
        if len(batch) > 32:
            raise MemoryError
        model(batch + 5)

    model, batches = nn.BatchNorm1d(4), [random(32, 4), random(32, 4, seed=1)]
    nt.reestimate_batch_norm_(model, batches, forward=forward)
    assert torch.allclose(model.running_mean, torch.cat(batches).mean(0) + 5, atol=1e-6)
    with pytest.raises(InputValueError, match=r"batches must fit in memory .*, and batch 2 of shape"):
        nt.reestimate_batch_norm_(model, [*batches, random(64, 4)], forward=forward)
    assert nt.reestimate_batch_norm_(nn.BatchNorm1d(4, track_running_stats=False), []) == 0
    with pytest.raises(InputTypeError, match=r"model must be a torch.nn.Module, not list"):
        nt.reestimate_batch_norm_([model], batches)
    before = [value.clone() for value in model.buffers()]

    def interrupted(model: nn.Module, batch: torch.Tensor) -> None:
        model(batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.reestimate_batch_norm_(model, batches, forward=interrupted)
    assert all(torch.equal(one, two) for one, two in zip(before, model.buffers(), strict=True))
    with pytest.raises(InputTypeError, match="batches must be a list or loader of batches, not one Tensor"):
        nt.reestimate_batch_norm_(model, batches[0])
    with pytest.raises(InputTypeError, match="forward must be a function, not 3"):
        nt.reestimate_batch_norm_(model, batches, forward=3)


def test_allocation_keeps_no_more_than_was_asked_for() -> None:
    pytest.importorskip("ortools", reason="allocate needs OR-Tools")
    assert dict(nt.allocate(nn.Linear(8, 8), 4, 0.7499)) == {"weight": 2}


def test_an_allocation_keeps_as_much_as_was_asked_for() -> None:
    """Of 100 entries 0.29 are 116 fourths, and a little less in float64."""
    pytest.importorskip("ortools", reason="allocate needs OR-Tools")
    assert 0.29 * 4 * 100 < 116
    model, told = nn.Sequential(nn.Linear(4, 4), nn.Linear(7, 12)), []
    found = nt.allocate(model, 4, 0.29, progress=lambda *step: told.append(step))
    assert dict(found) == {"0.weight": 2, "1.weight": 1}
    assert found.density == 0.29
    assert told == [("0.weight", 0, 2), ("1.weight", 1, 2), ("", 2, 2)]


def test_an_allocation_by_rows_loses_what_rows_lose() -> None:
    pytest.importorskip("ortools", reason="allocate needs OR-Tools")
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    weight = layer.weight.detach().double().numpy()
    rows = nmflow.solve(weight, pattern=nmflow.Pattern(2, 4, transposable=False)).objective
    found = nt.allocate(layer, 4, 0.5, transposable=False)
    assert found.lost == pytest.approx(np.abs(weight).sum() - rows, abs=1e-12)


def test_no_less_than_nothing_is_lost() -> None:
    """The sum of all and that of what is kept round apart, even where nothing else is dropped than zeros."""
    pytest.importorskip("ortools", reason="allocate needs OR-Tools")
    for seed in range(11, 16):  # of these some come out below zero
        layer = nn.Linear(16, 16).double()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        nt.prune_(layer, 2, 4)
        found = nt.allocate(layer, 4, 0.5)
        assert 0 <= found.lost == found.uniform < 1e-12


def test_an_allocation_of_nothing_but_zeros() -> None:
    pytest.importorskip("ortools", reason="allocate needs OR-Tools")
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight)
    found = nt.allocate(layer, 4, 0.5)
    assert found.lost == 0.0
    assert repr(found).endswith("0.000% lost (0.000% by one n for all)>")


def test_a_choice_that_is_not_proven_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cp_model = pytest.importorskip("ortools.sat.python.cp_model", reason="allocate needs OR-Tools")
    monkeypatch.setattr(cp_model.CpSolver, "solve", lambda self, model: cp_model.FEASIBLE)
    monkeypatch.setattr(cp_model.CpSolver, "status_name", lambda self, status: "FEASIBLE")
    with pytest.raises(SolverLimitError, match="allocate must prove its choice, and OR-Tools says FEASIBLE"):
        nt.allocate(nn.Linear(8, 8), 4, 0.5)
