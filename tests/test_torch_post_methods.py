"""Pruning after training: masks are the best for their scores, kept weights the best under their masks."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import hashlib
import importlib
import itertools
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmflow
import nmflow.torch as nt
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError, UnknownSolverError
from nmflow.pattern import Pattern
from nmflow.torch import adaprune, conjugate, lockstep, post, refit, resume, seen
from nmflow.torch.moments import Moments
from nmflow.torch.obs_pass import factor_of_inverse, obs_pass
from nmflow.torch.refit import output_error
from nmflow.torch.select import select


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.GELU(),
        nn.Linear(16, 12, bias=False),
    )  # fmt: skip


def images(seed: int = 0, count: int = 3) -> list[torch.Tensor]:
    """Channels and places depend on each other, so that refitting has something to gain."""
    mix = random(64, 64, seed=9) / 4
    return [(random(24, 64, seed=100 * seed + number) @ mix).reshape(24, 4, 4, 4) for number in range(count)]


def hessian_of(width: int, seed: int = 0) -> torch.Tensor:
    x = random(4 * width, width, seed=seed, dtype=torch.float64) @ random(width, width, seed=7, dtype=torch.float64)
    return x.T @ x / len(x)


# least squares under a mask


@pytest.mark.parametrize("ragged", [False, True])
def test_closed_form_is_least_squares(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "PART_BYTES", 8 * 64 * 3)  # a few rows at a time
    weights, x = random(2, 7, 12, dtype=torch.float64), random(2, 50, 12, seed=1, dtype=torch.float64)
    mask = random(2, 7, 12, seed=2) > (0.3 if ragged else -9)
    mask[0, 0], mask[1, 3] = False, True
    mask[:, :, 5] = False
    found = refit.refit(weights, mask, x.mT @ x)
    assert not found[~mask].any()
    for group in range(2):
        for row in range(7):
            kept = mask[group, row]
            best = torch.linalg.lstsq(x[group][:, kept], x[group] @ weights[group, row, :, None]).solution[:, 0]
            assert torch.allclose(found[group, row, kept], best)


def test_closed_form_of_nothing_and_of_rows_larger_than_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, hessian, none = random(2, 3, 8, dtype=torch.float64), hessian_of(8), torch.zeros(2, 3, 8, dtype=torch.bool)
    mask = none.clone()
    mask[1, 1:, ::2] = True
    both = torch.stack([hessian, hessian])
    expected = refit.refit(weights, mask, both, "cholesky")
    monkeypatch.setattr(refit, "PART_BYTES", 1)
    torch.testing.assert_close(refit.refit(weights, mask, both, "cholesky"), expected)
    assert not refit.refit(weights, none, both, "cholesky").any()
    assert expected[1, 1:, ::2].all()


def test_descent_comes_close_and_never_makes_it_worse() -> None:
    weights, hessian = random(1, 16, 32, dtype=torch.float64), hessian_of(32)[None]
    mask = random(1, 16, 32, seed=3) > 0
    exact, found = (refit.refit(weights, mask, hessian, method) for method in ("cholesky", "adam"))
    least, reached, masked = (output_error(one - weights, hessian) for one in (exact, found, weights * mask))
    assert least <= reached < least + 0.05 * (masked - least)
    assert not found[~mask].any()
    again = refit.refit(weights, mask, hessian, "adam", start=exact)
    assert output_error(again - weights, hessian) <= least * (1 + 1e-12)


def test_descent_leaves_zeros_where_others_can_be_made_up_for() -> None:
    weights, mask = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64), torch.tensor([[[True, False]]])
    hessian = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    assert refit.refit(weights, mask, hessian, "adam")[0, 0].tolist() == pytest.approx([0.5, 0.0], abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_descent_returns_the_best_that_it_saw(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The first step leads to the aim, be it the last, and the second beyond it."""
    monkeypatch.setattr(refit, "ADAM_STEPS", steps)
    aim = torch.ones(1, 2, 4, dtype=torch.float64)
    found = refit.refit(aim, aim > 0, torch.eye(4, dtype=torch.float64)[None], "adam", 0.9 * aim)
    torch.testing.assert_close(found, aim, rtol=1e-5, atol=0)


def test_conjugate_gradients_are_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conjugate, "ROWS", 5)  # in several parts
    weights = random(2, 16, 32, dtype=torch.float64)
    hessian = torch.stack([hessian_of(32), hessian_of(32, seed=5)]) + 0.01 * torch.eye(32, dtype=torch.float64)
    mask = random(2, 16, 32, seed=3) > 0
    mask[0, 3], mask[1, 4] = False, True
    exact = refit.refit(weights, mask, hessian, "cholesky")
    starts = None, 0.5 * weights * mask, exact
    least = output_error(exact - weights, hessian)
    for start in starts:
        found = refit.refit(weights, mask, hessian, "cg", start=start)
        assert not found[~mask].any()
        assert output_error(found - weights, hessian) <= least * (1 + 1e-8)
        with monkeypatch.context() as patch:
            patch.setattr(conjugate, "TOLERANCE", 1e-9)  # beyond float32: in rounds
            found = refit.refit(weights, mask, hessian, "cg", start=start)
        assert torch.allclose(found, exact, rtol=1e-8, atol=1e-8)


def test_conjugate_gradients_of_any_scale() -> None:
    """Rows of 1e30 beside 1e-30 and inputs of all sizes, whose squares float32 does not hold."""
    weights, sizes = random(1, 6, 16, dtype=torch.float64), torch.logspace(-30, 30, 16, dtype=torch.float64)
    hessian, mask = hessian_of(16)[None] + torch.eye(16, dtype=torch.float64), random(1, 6, 16, seed=3) > 0
    expected = refit.refit(weights, mask, hessian, "cholesky")
    rows = torch.tensor([1e-150, 1e-30, 1e-3, 1.0, 1e30, 0.0], dtype=torch.float64)[:, None]
    found = refit.refit(weights * rows / sizes, mask, hessian * sizes[:, None] * sizes, "cg") * sizes
    for row, wanted, got in zip(rows, expected[0], found[0], strict=True):
        torch.testing.assert_close(got, wanted * row, rtol=1e-3, atol=1e-4 * float(row))


def test_conjugate_gradients_where_float32_holds_no_inverse() -> None:
    """Rows that do not get on are left no worse, and "auto" takes the closed form for them."""
    x = random(8, 32, dtype=torch.float64)
    hessian = (x.T @ x + 1e-11 * torch.eye(32, dtype=torch.float64))[None]
    weights, mask = random(1, 16, 32, dtype=torch.float64), random(1, 16, 32, seed=3) > -0.5
    before = (weights * ~mask)[0]
    after = (refit.refit(weights, mask, hessian, "cg") - weights)[0]
    one, other = (((each @ hessian[0]) * each).sum(-1) for each in (after, before))
    assert (one <= other).all()
    assert float(one.sum()) < 1e-6 * float(other.sum())


def test_conjugate_gradients_that_are_broken_off_are_no_worse_than_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, hessian = random(1, 16, 32, dtype=torch.float64), hessian_of(32)[None]
    mask = random(1, 16, 32, seed=3) > 0
    errors = [output_error(weights * ~mask, hessian)]
    for steps in (1, 2, 5):
        monkeypatch.setattr(conjugate, "STEPS", steps)
        errors.append(output_error(refit.refit(weights, mask, hessian, "cg") - weights, hessian))
    assert all(after < before for before, after in itertools.pairwise(errors))
    monkeypatch.setattr(conjugate, "STEPS", 0)
    start = random(1, 16, 32, seed=4, dtype=torch.float64) * mask
    assert torch.equal(refit.refit(weights, mask, hessian, "cg", start), start)


def test_steps_that_make_rows_worse_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row gets steps that lead away from its aim, and the others such as are too short."""
    weights, mask = random(1, 4, 8, dtype=torch.float64), random(1, 4, 8, seed=3) > 0
    start, left = weights * mask, []

    def steps(residual: torch.Tensor, *others: Any) -> tuple[torch.Tensor, int]:
        left.append(others[-1])
        return residual * torch.tensor([-1e-3, 1e-3, 1e-3, 1e-3])[:, None], 150

    monkeypatch.setattr(conjugate, "_steps", steps)
    found = refit.refit(weights, mask, hessian_of(8)[None], "cg", start)
    assert torch.equal(found[0, 0], start[0, 0])
    assert (found[0, 1:] != start[0, 1:]).any(-1).all()
    assert left == [400, 250, 100]


def test_rows_that_lose_nothing_are_soon_done_from_a_start_that_is_rounded() -> None:
    """As ALPS gives it for weights that keep to the pattern already; what float32 holds of them is no aim to go by."""
    mask, hessian = random(8, 32, seed=3) > 0, hessian_of(32) + 0.1 * torch.eye(32, dtype=torch.float64)
    weights = random(8, 32, dtype=torch.float64) * mask
    out = torch.empty_like(weights)
    assert conjugate.conjugate_gradients(weights, mask, hessian, weights.float().double(), out).all()
    torch.testing.assert_close(out, weights, rtol=1e-8, atol=1e-9)


def test_steps_that_lead_beyond_all_numbers_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As float32's may where it takes H for indefinite."""
    weights, mask = random(1, 3, 8, dtype=torch.float64), random(1, 3, 8, seed=3) > 0
    lengths = torch.tensor([torch.inf, torch.nan, 1e-3])[:, None]
    monkeypatch.setattr(conjugate, "_steps", lambda residual, *_: (residual * lengths, 400))
    found = refit.refit(weights, mask, hessian_of(8)[None], "cg")
    assert torch.equal(found[0, :2], (weights * mask)[0, :2])
    assert torch.isfinite(found[0, 2]).all()
    assert (found[0, 2] != (weights * mask)[0, 2]).any()


def test_directions_that_float32_calls_flat_are_left() -> None:
    weights, mask = torch.tensor([[[1.0, 1.0, 1.0]]], dtype=torch.float64), torch.tensor([[[True, True, False]]])
    near, c = 1 - 1e-12, 5e-7
    hessian = torch.tensor([[[1.0, near, c], [near, 1.0, -c], [c, -c, 1.0]]], dtype=torch.float64)
    start = weights * mask
    assert torch.equal(refit.refit(weights, mask, hessian, "cg", start), start)
    exact = refit.refit(weights, mask, hessian, "cholesky")
    assert not torch.allclose(exact, start, atol=1e-2)


def test_rows_are_done_by_what_their_mask_took_and_not_by_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped has a residual too, which does not count, and a row that loses nothing is done."""
    weights = torch.tensor([[0.0, 1e6], [0.0, 1e6], [1.0, 1.0]], dtype=torch.float64)
    mask, hessian = weights < 1e6, torch.tensor([[4.0, 2e-3], [2e-3, 1.0]], dtype=torch.float64)
    solution = torch.tensor([[500.0, 0.0], [500.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    start = solution.clone()
    start[:2, 0] *= torch.tensor([1 - 0.7e-5, 1 - 1.5e-5])
    given, out = start.clone(), torch.empty_like(start)
    steps, found = conjugate.STEPS, []
    for count in (0, steps):
        monkeypatch.setattr(conjugate, "STEPS", count)
        found.append(conjugate.conjugate_gradients(weights, mask, hessian, start, out).tolist())
    assert found == [[True, False, True], [True, True, True]]
    torch.testing.assert_close(out[1:], solution[1:], rtol=1e-12, atol=0)
    assert torch.equal(start, given)


def test_auto_takes_the_faster_way_and_the_closed_form_for_what_does_not_converge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, hessian = random(1, 4, 8, dtype=torch.float64), hessian_of(8)[None]
    mask = random(1, 4, 8, seed=3) > 0
    mask[0, 0] = True  # done before the first step
    exact = refit.refit(weights, mask, hessian, "cholesky")
    assert torch.equal(refit.refit(weights, mask, hessian), exact)
    monkeypatch.setattr(refit, "CHOLESKY_SHARE", 0.0)
    assert torch.equal(refit.refit(weights, mask, hessian), refit.refit(weights, mask, hessian, "cg"))
    monkeypatch.setattr(conjugate, "STEPS", 1)
    mixed = refit.refit(weights, mask, hessian)
    assert torch.equal(mixed[:, 1:], refit.refit(weights[:, 1:], mask[:, 1:], hessian, "cholesky"))
    assert torch.equal(mixed[0, 0], weights[0, 0])
    monkeypatch.setattr(refit, "CHOLESKY_FLOPS", 1)
    assert torch.equal(refit.refit(weights, mask, hessian), refit.refit(weights, mask, hessian, "cg"))
    assert not torch.allclose(refit.refit(weights, mask, hessian), exact)


def test_auto_counts_more_operations_than_small_integers_hold() -> None:
    weights, hessian = random(1, 2, 200, dtype=torch.float64), hessian_of(200)[None]
    mask = random(1, 2, 200, seed=3) > -2
    assert 127 < int(mask.sum(-1).min()) < 200
    assert torch.equal(refit.refit(weights, mask, hessian), refit.refit(weights, mask, hessian, "cg"))
    assert not torch.equal(refit.refit(weights, mask, hessian), refit.refit(weights, mask, hessian, "cholesky"))


def test_an_error_is_the_trace_whatever_the_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    change, hessian = random(2, 5, 12, dtype=torch.float64), torch.stack([hessian_of(12), hessian_of(12, seed=5)])
    wanted = float(torch.einsum("gri,gij,grj->", change, hessian, change))
    for columns in (1, 5, 12, 99):
        monkeypatch.setattr(refit, "COLUMNS", columns)
        assert output_error(change, hessian) == pytest.approx(wanted, rel=1e-12)


# SparseGPT


def by_the_book(weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Optimal brain surgeon, a column after the other: what is dropped is made up for by all columns to the right."""
    work, width = weights.clone(), weights.shape[1]
    mask = torch.ones_like(work, dtype=torch.bool)
    group = pattern.block_shape[1]
    for column in range(width):
        if column % group == 0:
            stop = min(column + group, width)
            scores = torch.empty(len(work), stop - column, dtype=torch.float64)
            for later in range(column, stop):
                scores[:, later - column] = work[:, later] ** 2 / torch.linalg.inv(hessian[later:, later:])[0, 0]
            mask[:, column:stop] = nt.mask_for(scores, pattern=pattern)
        inverse = torch.linalg.inv(hessian[column:, column:])
        lost = torch.where(mask[:, column], 0.0, work[:, column]) / inverse[0, 0]
        work[:, column:] -= lost[:, None] * inverse[0]
    return work * mask


@pytest.mark.parametrize(
    ("pattern", "width"),
    [("2:4", 32), ("2:4", 30), ("1:4 rows", 30), ("4:8", 30), ("8:16", 30), ("2:4 by 4:8", 32), ("2:4 at-most", 30)],
)
def test_pass_is_optimal_brain_surgeon(pattern: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.obs_pass.LAZY", 9)  # several times in these few columns, or after each group
    chosen = {
        "1:4 rows": Pattern(1, 4, transposable=False),
        "2:4 by 4:8": Pattern(row="2:4", col="4:8"),
        "2:4 at-most": Pattern(2, 4, fill="at-most"),
    }.get(pattern) or Pattern.parse(pattern)
    weights, hessian = random(width, 16, dtype=torch.float64).T, hessian_of(width)  # the pass works on columns
    before = weights.clone()
    found = obs_pass(weights, hessian, chosen)
    assert torch.equal(weights, before)
    assert torch.allclose(found.weights, by_the_book(weights, hessian, chosen), atol=1e-9)
    assert not found.weights[~found.mask].any()
    assert found.n_proven == found.n_blocks > 0
    assert nmflow.certify(np.ones(weights.shape), found.mask.numpy(), pattern=chosen).feasible


@pytest.mark.parametrize("solver", ["dual", "greedy"])
def test_sums_of_a_pass_are_those_of_all_its_solves(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("nmflow.torch.obs_pass")  # by the package's name for it, that is the function
    solve, solved = module.solve, []
    monkeypatch.setattr(
        module, "solve", lambda values, **options: solved.append((values, solve(values, **options))) or solved[-1][1]
    )
    found = obs_pass(random(16, 32, dtype=torch.float64), hessian_of(32), Pattern(4, 8), solver=solver)
    assert len(solved) == 4
    assert found.dense == pytest.approx(sum(float(values.sum()) for values, _ in solved))
    assert found.kept == pytest.approx(sum(solution.objective for _, solution in solved))
    assert found.gap == pytest.approx(sum(solution.gap for _, solution in solved))
    assert found.n_blocks == 8
    assert found.n_proven == sum(solution.certificate.n_proven for _, solution in solved)
    assert (found.n_proven < 8) == (found.gap > 0) == (solver == "greedy")


def test_factor_of_inverse() -> None:
    hessian = hessian_of(24) + 0.01 * torch.eye(24, dtype=torch.float64)
    upper = factor_of_inverse(hessian)
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    assert torch.allclose(upper.T @ upper @ hessian, torch.eye(24, dtype=torch.float64), atol=1e-9)
    singular = torch.ones(4, 4, dtype=torch.float64)
    assert torch.isfinite(factor_of_inverse(singular)).all()
    assert torch.equal(singular, torch.ones(4, 4, dtype=torch.float64))
    assert torch.equal(factor_of_inverse(4.0**20 * singular), factor_of_inverse(singular) / 2.0**20)


def test_refit_after_the_pass_is_better_still() -> None:
    errors = {}
    for refitted in (False, True):
        model = network()
        report = nt.sparsegpt_(model, images(), 2, 4, refit=refitted, sequential=False)
        errors[refitted] = [layer.error for layer in report.layers]
    assert all(after < before for before, after in zip(errors[False], errors[True], strict=True))


# whole models


METHODS: dict[str, Any] = {
    "adaprune": nt.adaprune_,
    "sparsegpt": nt.sparsegpt_,
    "alps": nt.alps_,
    "adaprune by wanda": lambda *args, **options: nt.adaprune_(*args, scores="wanda", **options),
    "adaprune by obs, own": lambda *args, **options: nt.adaprune_(*args, scores="obs", follow="own", **options),
}


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_masks_keep_to_the_pattern_and_outputs_come_closer(method: str, sequential: bool) -> None:
    model, batches, fresh = network(), images(count=12), torch.cat(images(seed=50))
    before = model(fresh).detach()
    report = METHODS[method](model, batches, 2, 4, sequential=sequential)
    assert [layer.name for layer in report.layers] == ["0.weight", "3.weight", "5.weight"]
    assert report.proven
    assert report.seconds > sum(layer.seconds for layer in report.layers) > 0
    for layer in report.layers:
        weight = model.get_parameter(layer.name).detach()
        layout, groups = ("conv", 2) if layer.name == "0.weight" else (None, 1)
        assert nmflow.certify(
            np.ones(weight.shape), (weight != 0).numpy(), 2, 4, layout=layout, groups=groups, fill="at-most"
        ).feasible
        assert 0 < layer.error < layer.masked_error
    magnitude = network()
    nt.prune_(magnitude, 2, 4)
    errors = [float((one(fresh).detach() - before).square().mean()) for one in (model, magnitude)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("method", [nt.adaprune_, nt.sparsegpt_, nt.alps_])
def test_reported_errors_are_those_of_the_outputs(method: Any) -> None:
    """Damping is no part of them, be it ever so strong."""
    layer, x = nn.Linear(16, 8, bias=False).double(), random(64, 16, dtype=torch.float64)
    before = layer.weight.detach().clone()
    for damping in (0.0, 0.05, 2.0):
        pruned = copy.deepcopy(layer)
        (report,) = method(pruned, [x], 2, 4, damping=damping).layers
        after = pruned.weight.detach()
        wrong, masked = (float((x @ (weight - before).T).square().sum()) for weight in (after, before * (after != 0)))
        whole = float((x @ before.T).square().sum())
        assert report.damping == damping
        assert report.error == pytest.approx(wrong / whole, rel=1e-9)
        assert report.masked_error == pytest.approx(masked / whole, rel=1e-9)


def test_sequential_sees_what_pruned_layers_give() -> None:
    """Lockstep against one whole pass for each layer."""
    model, batches = network(), images()
    nt.adaprune_(model, batches, 2, 4, follow="own")
    other = network()
    for name in ("0.weight", "3.weight", "5.weight"):
        nt.adaprune_(other, nt.calibrate(other, batches), 2, 4, include=[name], sequential=False)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def test_following_the_dense_model_is_least_squares_on_its_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    x = random(60, 8, dtype=torch.float64)
    dense = model(x).detach()
    nt.adaprune_(model, [x[:20], x[20:]], 2, 4, damping=0.0)
    hidden, weight, bias = model[1](model[0](x)).detach(), model[2].weight.detach(), model[2].bias.detach()
    for row in range(8):
        kept = weight[row] != 0
        design = torch.cat([hidden[:, kept], torch.ones(60, 1, dtype=torch.float64)], dim=1)
        best = torch.linalg.lstsq(design, dense[:, row, None]).solution[:, 0]
        assert torch.allclose(torch.cat([weight[row, kept], bias[row, None]]), best, rtol=1e-6)


@pytest.mark.parametrize("absorb", [True, False])
def test_errors_where_the_dense_model_is_followed_are_against_the_best_full_weights(absorb: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    x, old = random(60, 8, dtype=torch.float64), copy.deepcopy(model)
    report = nt.adaprune_(model, [x], 2, 4, damping=0.0, absorb_mean=absorb).layers[1]
    hidden, wanted = model[1](model[0](x)).detach(), (old(x) - old[2].bias).detach()
    if absorb:
        hidden, wanted = hidden - hidden.mean(0), wanted - wanted.mean(0)
    best = hidden @ torch.linalg.lstsq(hidden, wanted).solution
    weight = model[2].weight.detach()
    errors = [(hidden @ kept.T - best).square().sum() / best.square().sum()
              for kept in (old[2].weight.detach() * (weight != 0), weight)]  # fmt: skip
    assert [report.masked_error, report.error] == pytest.approx([float(error) for error in errors], rel=1e-8)
    assert float((best - wanted).square().sum() / best.square().sum()) > 0.01


class Attending(nn.Module):
    """Queries, keys and values of one input; on request it is written to between them."""

    def __init__(self, write: bool = False) -> None:
        super().__init__()
        self.write = write
        self.first, self.q, self.k, self.v, self.last = (nn.Linear(16, 16) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        q = self.q(x)
        if self.write:
            x.mul_(2).add_(1)
        return self.last(torch.relu(q * self.k(x) + self.v(x)))


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("follow", ["own", "dense"])
def test_sums_of_an_input_that_layers_share_are_made_once(
    write: bool, follow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, batches, summed = Attending(write), [random(40, 16), random(30, 16, seed=1)], []
    other = copy.deepcopy(model)
    add = lockstep.add

    def adding(moments: Moments, layer: Any, *rest: Any) -> None:
        summed.append(layer.name)
        assert (moments.cross is None) == (follow == "own")  # as large as all else
        add(moments, layer, *rest)

    monkeypatch.setattr(lockstep, "add", adding)
    nt.adaprune_(model, batches, 2, 4, follow=follow)
    once = ["first.weight", "q.weight", *(["k.weight"] if write else []), "last.weight"]
    assert summed == [name for name in once for _ in batches]
    monkeypatch.setattr("nmflow.torch.seen.Seen.same", lambda *_: None)
    nt.adaprune_(other, batches, 2, 4, follow=follow)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_sums_are_made_anew_of_what_may_have_been_written_to() -> None:
    """Tensors made for inference do not tell, nor need those of another type; an expert's has tokens beside it.

    Sums are given away once.
    """
    layer = select(nn.Linear(8, 8), Pattern(2, 4)).layers[0]
    moments, before, plain = Moments.of(layer, gram=True), seen.Seen(), random(4, 8)
    with torch.inference_mode():
        inference = random(4, 8)
    routed: Any = random(4, 8)
    routed.tokens = torch.arange(4), 4
    for value in (inference, nn.Parameter(plain), routed, None):
        before.keep(layer, 0, [plain, value], moments)
        assert before.same(layer, 0, [plain, value]) is None
    before.keep(layer, 0, [plain], moments)
    assert before.same(layer, 0, [plain]) is moments
    assert before.same(layer, 0, [plain]) is None
    for number, value in ((1, plain), (0, plain.clone())):
        before.keep(layer, 0, [plain], moments)
        assert before.same(layer, number, [value]) is None


@pytest.mark.parametrize("interrupted", [False, True])
def test_sums_that_do_not_fit_together_are_made_of_the_dense_model_one_after_the_other(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if interrupted and name == "5.weight":
            raise KeyboardInterrupt

    alive: list[int] = []
    gather = post.gather
    monkeypatch.setattr(post, "gather", lambda *args, **options: alive.append(len(args[2])) or gather(*args, **options))
    nt.adaprune_(whole := network(), images(), 2, 4, sequential=False)
    nt.adaprune_(pair := network(), images(), 2, 4, sequential=False, include=["0", "3"])
    monkeypatch.setattr("nmflow.torch.gather.MEMORY", 1.0)
    nt.adaprune_(one := network(), images(), 2, 4, sequential=False, include=["0", "3"])
    assert alive == [3, 2, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), one.parameters(), strict=True))
    del alive[1:]
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    options: dict[str, Any] = {"sequential": False, "resume": tmp_path / "resume"}
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            nt.adaprune_(model, images(), 2, 4, progress=stop, **options)
        assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
        interrupted = False
    nt.adaprune_(model, images(), 2, 4, progress=stop, **options)
    assert alive[:2] == [3, 1]
    assert sum(alive[1:]) in (3, 4)  # of what was broken off, one layer again
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), model.parameters(), strict=True))
    with pytest.raises(InputValueError, match="batches must be readable 3 times"):
        nt.adaprune_(network(), iter(images()), 2, 4, sequential=False)


def test_absorbed_means() -> None:
    batches = [3 + batch for batch in images()]
    for method in (nt.adaprune_, nt.sparsegpt_):
        model = network()
        dense = model[:4](torch.cat(batches)).mean(0)
        method(model, batches, 2, 4, absorb_mean=True, follow="dense")
        assert torch.allclose(model[:4](torch.cat(batches)).mean(0), dense, atol=1e-4)
    model = network()
    bias = model[3].bias.detach().clone()
    nt.adaprune_(model, batches, 2, 4, absorb_mean=False)
    assert torch.equal(model[3].bias, bias)


@pytest.mark.parametrize("held_by", ["Linear", "other module"])
def test_a_bias_that_modules_share_absorbs_nothing(held_by: str) -> None:
    reports = []
    for absorb in (True, False):
        model = network()
        other = nn.Linear(16, 16) if held_by == "Linear" else nn.LayerNorm(16)
        other.bias = model[3].bias
        model.insert(4, other)
        before = model[3].bias.detach().clone()
        reports.append(nt.adaprune_(model, images(), 2, 4, include=["3"], absorb_mean=absorb))
        assert torch.equal(model[3].bias, before)
    assert reports[0].layers[0].error == reports[1].layers[0].error


def test_a_bias_that_cannot_be_written_absorbs_nothing() -> None:
    model = network()
    bias = torch.ones(1).expand(16)
    model[3].bias = nn.Parameter(bias)
    assert nt.adaprune_(model, images(), 2, 4).layers[1].error < 1
    assert torch.equal(model[3].bias, bias)


@pytest.mark.parametrize("follow", ["dense", "own"])
def test_sequential_passes_run_in_the_state_of_the_caller(follow: str) -> None:
    """Autocast, default device and variables are of a thread; weights that autocast has cast outlive their change."""

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add((x.dtype, torch.empty(1).device.type))
            assert variable.get() == "the caller's"
            return x

    variable = contextvars.ContextVar("variable", default="a thread's own")
    variable.set("the caller's")
    seen: set[Any] = set()
    model = nn.Sequential(nn.Linear(16, 16), Looks(), nn.Linear(16, 16), Looks())
    x = random(64, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        nt.adaprune_(model, [x], 2, 4, follow=follow)
        found = model(x)
        torch.clear_autocast_cache()
        assert torch.equal(found, model(x))
    assert seen == {(torch.bfloat16, "cpu")}
    seen.clear()
    with torch.device("meta"):
        nt.adaprune_(model, [x.float()], 2, 4, follow=follow)
    assert seen == {(torch.float32, "meta")}


@pytest.mark.parametrize("method", [nt.alps_, partial(nt.adaprune_, solve="cg")])
def test_autocast_is_for_passes_and_not_for_steps(method: Any) -> None:
    """In bfloat16 steps in float32 got nowhere."""
    layer = nn.Linear(128, 32)
    seen = nt.calibrate(layer, [random(400, 128) @ random(128, 128, seed=1)])
    one, other = copy.deepcopy(layer), copy.deepcopy(layer)
    report = method(one, seen, 2, 4, sequential=False)
    with torch.autocast("cpu", torch.bfloat16):
        again = method(other, seen, 2, 4, sequential=False)
    assert torch.equal(one.weight, other.weight)
    assert report.layers[0].error == again.layers[0].error


def test_a_layer_that_is_called_twice_and_one_that_is_called_now_and_then() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.twice, self.rare, self.last = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.twice(torch.relu(self.twice(x)))
            return self.last(self.rare(x) if len(x) > 20 else x)

    model = Model()
    report = nt.adaprune_(model, [random(16, 8), random(24, 8, seed=1)], 2, 4)
    assert [layer.rows for layer in report.layers] == [80, 24, 40]
    assert all((model.get_parameter(layer.name) != 0).sum() == 32 for layer in report.layers)


def test_a_module_of_two_names_is_followed_by_either() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(16, 16)
            self.one = self.other = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(torch.relu(self.first(x)))

    report = nt.adaprune_(Twice(), [random(64, 16)], 2, 4, follow="dense")
    assert [(layer.name, layer.rows) for layer in report.layers] == [("first.weight", 64), ("one.weight", 64)]


def test_inputs_of_other_rows_than_the_dense_model_s_are_not_compared_with_them() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.second(x[x[:, 0] > 0])

    model, x = Choosing(), random(256, 16)
    dense = int((model.first(x)[:, 0] > 0).sum())
    rows = nt.adaprune_(model, [x], 2, 4, follow="dense").layers[1].rows
    assert rows == int((model.first(x)[:, 0] > 0).sum()) != dense


def test_rows_of_an_expert_are_compared_with_those_of_the_same_tokens() -> None:
    def routed(*tokens: int) -> torch.Tensor:
        rows: Any = random(len(tokens), 4)
        rows.tokens = torch.tensor(tokens), 9
        return rows  # type: ignore[no-any-return]

    assert lockstep._same_rows(routed(1, 5), routed(1, 5))
    assert not lockstep._same_rows(routed(1, 5), routed(1, 6))
    assert not lockstep._same_rows(routed(1, 5), routed(1))
    assert lockstep._same_rows(random(2, 4), random(2, 4))


def test_layers_that_batches_come_to_in_opposite_orders() -> None:
    """None is before the other, so they have the order of the first batch; what comes after both still waits."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.last = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
            for name in names:
                x = self.get_submodule(name)(torch.relu(x))
            return x

    ways = (["one", "two", "last"], ["two", "one", "last"], ["last"])
    batches = [{"x": random(10 + number, 8, seed=number), "names": way} for number, way in enumerate(ways)]
    report = nt.adaprune_(Model(), batches, 2, 4)
    assert {layer.name: layer.rows for layer in report.layers} == {
        "one.weight": 10, "two.weight": 21, "last.weight": 33,
    }  # fmt: skip


@pytest.mark.parametrize("follow", ["dense", "own"])
def test_a_weight_that_is_parametrized_during_a_pass(follow: str) -> None:
    """As by PEFT's adapters of parameters."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nn.utils.parametrize.register_parametrization(self.base_layer, "weight", nn.Identity())
            try:
                return self.base_layer(x)
            finally:
                nn.utils.parametrize.remove_parametrizations(self.base_layer, "weight")

    torch.manual_seed(0)
    adapted = nn.Sequential(nn.Linear(16, 16), Adapted())
    usual = nn.Sequential(copy.deepcopy(adapted[0]), copy.deepcopy(adapted[1].base_layer))
    batches = [random(32, 16)]
    nt.adaprune_(adapted, batches, 2, 4, follow=follow)
    nt.adaprune_(usual, batches, 2, 4, follow=follow)
    assert torch.equal(adapted[1].base_layer.weight, usual[1].weight)
    assert type(adapted[1].base_layer) is nn.Linear


def test_n_for_each_layer() -> None:
    model = network()
    before = model[5].weight.detach().clone()
    report = nt.adaprune_(model, images(), {"0.weight": 1, "3.weight": 3, "5.weight": 4}, 4)
    assert [layer.pattern for layer in report.layers] == ["1:4", "3:4"]
    assert [layer.density for layer in report.layers] == [0.25, 0.75]
    assert report.pattern == "1:4, 3:4"
    assert ("5.weight", "stays dense: not in n, or n = m") in report.skipped
    assert torch.equal(model[5].weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    batches = [batch.to(dtype) for batch in images()]
    report = nt.sparsegpt_(model, batches, 2, 4, refit=True)
    assert all(layer.error < layer.masked_error for layer in report.layers)
    assert int((model[3].weight != 0).sum()) == 128 * 16 // 2
    assert not torch.signbit(model[3].weight[model[3].weight == 0]).any()


def test_zeros_stay_zeros() -> None:
    for method in (nt.adaprune_, nt.sparsegpt_):
        model = network()
        with torch.no_grad():
            model[3].weight[random(16, 128) > 0.2] = 0.0
        zeros = model[3].weight == 0
        method(model, images(), 2, 4, include=["3"], fill="at-most", keep_zeros=True)
        assert not model[3].weight[zeros].any()
        assert model[3].weight.any()
        if method is nt.adaprune_:  # be they worth most
            given = {"3.weight": random(16, 128, seed=2).abs() + zeros}
            report = method(model, images(), 2, 4, include=["3"], fill="at-most", keep_zeros=True, scores=given)
            assert not model[3].weight[zeros].any()
            assert 0 < report.layers[0].density <= 1 - float(zeros.float().mean())


def test_scores_of_the_user() -> None:
    scores = random(16, 128, seed=4).abs()
    for given in ({"3.weight": scores}, lambda name, module: scores if name == "3.weight" else None):
        model = network()
        dense = model[5].weight.detach().clone()
        nt.adaprune_(model, images(), 2, 4, scores=given)
        assert torch.equal(model[3].weight != 0, nt.mask_for(scores, 2, 4))
    nt.prune_(other := nn.ModuleDict({"5": nn.Linear(16, 12)}), 2, 4, scores={"5.weight": dense.abs()})
    model = network()
    nt.adaprune_(model, images(), 2, 4, include=["5"], scores=lambda name, module: None, sequential=False)
    assert torch.equal(model[5].weight != 0, other["5"].weight != 0)


def test_few_samples_are_said() -> None:
    model = network()
    report = nt.adaprune_(model, [images()[0][:2]], 2, 4)
    assert dict(report.notes) == {
        "3.weight": "only 2 rows for 128 inputs: damped by 1, give more samples",
        "5.weight": "only 2 rows for 16 inputs: damped by 1, give more samples",
    }
    assert "only 2 rows for 128 inputs" in str(report)
    assert report.to_dict()["notes"][0]["name"] == "3.weight"
    assert repr(report) == "<PostReport adaprune 2:4: 3 pruned, 0 skipped>"


def test_masks_of_another_solver() -> None:
    errors = []
    for solver in ("dual", "greedy"):
        report = nt.adaprune_(network(), images(), 4, 8, solver=solver, sequential=False)
        errors.append([layer.kept for layer in report.layers])
        assert report.solver == solver
    assert all(best >= greedy for best, greedy in zip(*errors, strict=True))


# what goes wrong


def test_a_model_that_cannot_be_copied() -> None:
    model = network()
    model[1].made = torch.ones(3, requires_grad=True) * 2  # a tensor with a history
    with pytest.raises(
        InputValueError, match='model must be copied for follow="dense", and cannot be; use follow="own"'
    ):
        nt.adaprune_(model, images(), 2, 4)
    assert nt.adaprune_(model, images(), 2, 4, follow="own").proven


def test_the_copy_that_is_followed_is_what_would_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy of the pruned parameters, not two; and it is the dense model, whatever becomes of the other."""
    held: dict[nn.Parameter, torch.Tensor] = {}
    copies: list[nn.Module] = []

    @contextlib.contextmanager
    def watched(parameters: list[nn.Parameter]) -> Iterator[dict[nn.Parameter, torch.Tensor]]:
        with all_or_nothing(parameters) as before:
            held.update(before)
            yield before

    def lockstep_of(model: nn.Module, *args: Any, dense: nn.Module, **options: Any) -> None:
        copies.append(dense)
        in_lockstep(model, *args, dense=dense, **options)

    all_or_nothing, in_lockstep = post.all_or_nothing, lockstep.in_lockstep
    monkeypatch.setattr(post, "all_or_nothing", watched)
    monkeypatch.setattr(post, "in_lockstep", lockstep_of)
    model, dense = network(), network()
    model[3].weight.requires_grad_(False)
    nt.adaprune_(model, images(), 2, 4)
    followed = dict(copies[0].named_parameters())
    for name, parameter in model.named_parameters():
        assert followed[name].data_ptr() == held[parameter].data_ptr() != parameter.data_ptr()
        assert torch.equal(followed[name], dense.get_parameter(name))
        assert followed[name].requires_grad == parameter.requires_grad == (name != "3.weight")


def test_a_model_that_writes_to_its_weights_is_put_back_too() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())

    def halve(module: nn.Module, args: Any) -> None:
        module.weight.data.mul_(0.5)

    model[3].register_forward_pre_hook(halve)

    def stop(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(model, images(), 2, 4, progress=stop)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_run_in_place_of_its_copy_is_not_followed() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputValueError, match='follow="dense" must run a copy of the model, and the model itself is'):
        nt.adaprune_(model, images(), 2, 4, forward=lambda _, batch: model(batch))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert nt.adaprune_(model, images(), 2, 4, forward=lambda _, batch: model(batch), follow="own").proven


@pytest.mark.parametrize(
    ("method", "data", "options", "message"),
    [
        (nt.adaprune_, images(), {"scores": "taylor"}, "scores must be one of magnitude, wanda, obs, or your own"),
        (nt.adaprune_, images(), {"scores": 3}, "scores must be a name, a mapping or a callable, not int"),
        (nt.adaprune_, images(), {"scores": {"5.weight": random(2, 2)}},
         "5.weight: scores must have the shape (12, 16)"),
        (nt.adaprune_, images(), {"solve": "qr"}, "solve must be \"auto\", \"cholesky\", \"cg\" or \"adam\", not 'qr'"),
        (nt.adaprune_, images(), {"follow": "me"}, 'follow must be "dense" or "own", not \'me\''),
        (nt.adaprune_, images(), {"damping": float("nan")}, "damping must be finite and not negative, not nan"),
        (nt.sparsegpt_, images(), {"damping": -1.0}, "damping must be finite and not negative, not -1.0"),
        (nt.sparsegpt_, images(), {"refit": "no"}, "refit must be True or False, not 'no'"),
        (nt.sparsegpt_, images(), {"sequential": 1}, "sequential must be True or False, not 1"),
        (nt.adaprune_, images(), {"absorb_mean": "no"}, "absorb_mean must be True or False, not 'no'"),
        (nt.adaprune_, images(), {"keep_zeros": None}, "keep_zeros must be True or False, not None"),
        (nt.sparsegpt_, images(), {"n": {"nobody": 2}}, "n must be named like parameters of the model, not 'nobody'"),
        (nt.alps_, images(), {"n": {"nobody": 2}}, "n must be named like parameters of the model, not 'nobody'"),
        (nt.alps_, images(), {"damping": -1.0}, "damping must be finite and not negative, not -1.0"),
        (nt.adaprune_, images(), {"scores": {"nobody": random(2)}}, "scores must be named like parameters of"),
        (nt.adaprune_, images(), {"n": {}}, "n must name at least one parameter, not none"),
        (nt.adaprune_, images(), {"n": {"3.weight": 4}}, "n must name a layer that can be pruned, at less than m"),
        (nt.adaprune_, images(), {"n": {"3.weight": 2}, "m": None}, "m must be given beside n for each layer"),
        (nt.sparsegpt_, [], {}, "data must hold at least one batch, not none"),
        (nt.sparsegpt_, iter([]), {"sequential": False}, "batches must hold at least one batch, not none"),
        (nt.sparsegpt_, images()[0], {}, "data must be a list or loader of batches, not one Tensor"),
        (nt.sparsegpt_, nt.calibrate(network(), images()), {}, "sequential must be False with a calibration"),
        (nt.sparsegpt_, nt.calibrate(network(), images(), include=["0"]), {"sequential": False},
         "calibration must hold 3.weight, and does not"),
        (nt.sparsegpt_, images(), {"resume": __file__}, "resume must be a folder that can be written"),
    ],
)  # fmt: skip
def test_bad_options(method: Any, data: Any, options: dict[str, Any], message: str) -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises((InputValueError, InputTypeError), match=re.escape(message)):
        method(model, data, **{"n": 2, "m": 4, **options})
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("method", [nt.sparsegpt_, nt.adaprune_, nt.alps_])
def test_a_solver_and_threads_are_checked_before_batches_run(method: Any) -> None:
    def forward(model: nn.Module, batch: torch.Tensor) -> None:
        pytest.fail("a batch ran")

    for error, options in ((UnknownSolverError, {"solver": "simplex"}), (InputValueError, {"threads": 0})):
        with pytest.raises(error, match=next(iter(options))):
            method(network(), images(), 2, 4, forward=forward, **options)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("trouble", ["weight", "inputs", "overflow", "model"])
def test_after_an_error_the_model_is_as_it_was(trouble: str, sequential: bool) -> None:
    model, batches = network(), images()
    if trouble == "weight":
        model[5].weight.data[3, 4] = float("inf")
    elif trouble == "inputs":
        model[3].bias.data[2] = float("nan")
    elif trouble == "overflow":
        model, batches = model.half(), [batch.half() for batch in batches]
        model[5].weight.data[:] = 65504 * torch.sign(random(12, 16)).half()
    else:
        model[4].forward = lambda x: 1 / 0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    error, message = {
        "weight": (NonFiniteError, r"5.weight: weights must be finite.*1 of 192 entries, the first at \(3, 4\)"),
        "inputs": (NonFiniteError, "inputs of 5.weight must be finite"),
        "overflow": (InputValueError, r"5.weight: weights must fit into torch.float16 after they are refitted"),
        "model": (ZeroDivisionError, "division by zero"),
    }[trouble]
    with pytest.raises(error, match=message):
        nt.adaprune_(model, batches, 2, 4, sequential=sequential)
    for one, two in zip(before, model.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not [thread for thread in threading.enumerate() if "(_run)" in thread.name]  # a pass; solvers keep theirs


@pytest.mark.parametrize("sequential", [False, True])
def test_an_interrupted_run_resumes(sequential: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network()
    full = nt.adaprune_(whole, images(), 2, 4, sequential=sequential)
    solved: list[tuple[int, ...]] = []
    solve_mask = adaprune.solve_mask

    def counting(weights: torch.Tensor, *args: Any, **options: Any) -> Any:
        if stop and len(solved) == 3:
            raise KeyboardInterrupt
        solved.append(tuple(weights.shape))
        return solve_mask(weights, *args, **options)

    monkeypatch.setattr(adaprune, "solve_mask", counting)
    model, stop, folder = network(), True, tmp_path / "resume"
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(model, images(), 2, 4, sequential=sequential, resume=folder)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    assert len(list(folder.glob("*.layer"))) == 2
    broken = sorted(folder.glob("*.layer"))[0]
    stop = False
    for options in ({"damping": 0.5}, {}):  # other options take nothing from the folder, and here empty it
        other = tmp_path / f"other{len(options)}"
        other.mkdir()
        for path in folder.glob("*.layer"):
            (other / path.name).write_bytes(path.read_bytes())
        solved.clear()
        model = network()
        report = nt.adaprune_(model, images(), 2, 4, sequential=sequential, resume=other, **options)
        assert len(solved) == (4 if options else 1)
        assert not other.exists()
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), model.parameters(), strict=True))
    assert [layer.error for layer in report.layers] == [layer.error for layer in full.layers]
    assert all(layer.shape == other.shape for layer, other in zip(report.layers, full.layers, strict=True))
    kept = {path: path.read_bytes() for path in folder.glob("*.layer")}
    for content in (kept[broken][:100], bytes(100), b"garbage", b""):  # as after a power failure
        folder.mkdir(exist_ok=True)
        for path, whole_layer in kept.items():
            path.write_bytes(content if path == broken else whole_layer)
        solved.clear()
        nt.adaprune_(again := network(), images(), 2, 4, sequential=sequential, resume=folder)
        assert 2 <= len(solved) <= 3
        assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("change", ["nothing", "mapping", "callable", "norm", "buffer"])
def test_only_layers_of_the_same_run_are_resumed(change: str, sequential: bool, tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        model = nn.Sequential(*network(), nn.BatchNorm1d(12), nn.Linear(12, 8))
        return model.eval().requires_grad_(False)

    def scores(seed: int) -> Any:
        table = {"3.weight": random(16, 128, seed=seed).abs(), "5.weight": random(12, 16, seed=seed).abs()}
        return (lambda name, module: table.get(name)) if change == "callable" else table

    def stop(name: str, done: int, total: int) -> None:
        if name == "7.weight":
            raise KeyboardInterrupt

    model = fresh()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        nt.adaprune_(model, images(), 2, 4, scores=scores(1), sequential=sequential, resume=tmp_path, progress=stop)
    if change == "norm":
        state["6.weight"] *= 2
    if change == "buffer":
        state["6.running_mean"] += 1
    second = scores(1 if change in ("nothing", "norm", "buffer") else 2)
    treated: list[str] = []
    models = fresh(), fresh()
    for model, options in zip(
        models, ({"resume": tmp_path, "progress": lambda name, *_: treated.append(name)}, {}), strict=True
    ):
        model.load_state_dict(state)
        nt.adaprune_(model, images(), 2, 4, scores=second, sequential=sequential, **options)
    assert all(torch.equal(one, two) for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True))
    again = [name for name in treated if name.endswith(".weight")]
    wanted = 1 if change == "nothing" else 4
    assert len(again) == wanted


def test_all_that_a_model_may_hold_is_digested() -> None:
    found = set()
    for value in (
        None, 1, random(4), random(8)[::2], random(4).half(), random(4).bfloat16(), random(4) > 0,
        random(4).to(torch.complex64), random(4).to(torch.complex64).conj(), random(4).to_sparse(),
        torch.tensor(1.0), torch.empty(0), torch.empty(4, device="meta"), nn.UninitializedParameter(),
        random(4).to(torch.float8_e4m3fn),
    ):  # fmt: skip
        one, same = hashlib.sha256(), hashlib.sha256()
        resume._digest(value, one)
        resume._digest(copy.deepcopy(value), same)
        assert one.digest() == same.digest()
        found.add(one.digest())
    assert len(found) == 15


class Looping(nn.Module):
    """Calls its second layer as often as a batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.often = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
        x = self.once(x)
        for _ in range(times):
            x = self.often(torch.relu(x))
        return x


@pytest.mark.parametrize("method", [nt.adaprune_, nt.sparsegpt_, nt.alps_])
@pytest.mark.parametrize(("calls", "rows"), [((3, 0, 0), 24), ((3, 1, 0), 32), ((1, 3, 1), 40)])
def test_a_layer_that_one_batch_calls_often_and_others_less_is_seen_whole(
    calls: tuple[int, ...], rows: int, method: Any
) -> None:
    torch.manual_seed(0)
    batches = [{"x": torch.randn(8, 16), "times": times} for times in calls]
    report = method(Looping(), batches, 2, 4)
    assert {layer.name: layer.rows for layer in report.layers} == {"once.weight": 24, "often.weight": rows}
