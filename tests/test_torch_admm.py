"""ADMM finds masks under which a layer's error becomes small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import nmflow
import nmflow.torch as nt
from nmflow.pattern import Pattern
from nmflow.torch import admm as module
from nmflow.torch.admm import admm
from nmflow.torch.obs_pass import obs_pass, solve_mask
from nmflow.torch.refit import output_error, refit

BOTH_WAYS = Pattern(2, 4)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian_of(width: int, seed: int = 0) -> torch.Tensor:
    """Of inputs that depend on each other and have scales of their own."""
    x = random(4 * width, width, seed=seed) @ random(width, width, seed=seed + 1) * (1 + 9 * random(width, seed=2) ** 2)
    return x.T @ x / len(x) + 0.01 * torch.eye(width, dtype=torch.float64)


def least(weights: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor) -> float:
    """The error under a mask when what it keeps is refitted."""
    return output_error(refit(weights[None], mask[None], hessian[None], "cholesky")[0] - weights, hessian)


def test_it_beats_masks_by_scores_and_sparsegpt() -> None:
    for seed, pattern in itertools.product(range(5), (BOTH_WAYS, Pattern(4, 8), Pattern(2, 4, transposable=False))):
        weights, hessian = random(32, 64, seed=seed), hessian_of(64, seed=10 * seed)
        found = admm(weights, hessian, pattern)
        assert nmflow.certify(np.ones(weights.shape), found.mask.numpy(), pattern=pattern).feasible
        assert (found.n_proven, found.kept <= found.dense) == (found.n_blocks, True)
        assert not found.weights[~found.mask].any()
        other = obs_pass(weights, hessian, pattern).mask
        wanda = solve_mask(weights, weights.abs() * hessian.diagonal().sqrt(), pattern, None).mask
        error, after, before = (least(weights, mask, hessian) for mask in (found.mask, other, wanda))
        assert error < 0.97 * after
        assert error < 0.9 * before
        assert error <= output_error(found.weights - weights, hessian) < 1.1 * error


def plainly(weights: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Algorithm 1 of ALPS in float64, by an inverse."""
    scale = hessian.diagonal().sqrt()
    unit, wanted = hessian / torch.outer(scale, scale), weights * scale
    kept, owed, penalty, masks = wanted, torch.zeros_like(wanted), module.PENALTY, []
    while len(masks) < module.STEPS:
        inverse = torch.linalg.inv(unit + penalty * torch.eye(len(unit), dtype=torch.float64))
        free = (wanted @ unit - owed + penalty * kept) @ inverse
        near = free + owed / penalty
        masks.append(solve_mask(near, near.square(), pattern, None).mask)
        kept = near * masks[-1]
        owed = owed + penalty * (free - kept)
        if len(masks) % 3 == 1 and len(masks) > 1:
            share = float((masks[-1] ^ masks[-4]).sum() / masks[-1].sum())
            if not share:
                break
            penalty *= 1.2 if share > 0.1 else 1.1 if share > 0.005 else 1.05
    return masks[-1]


def test_its_steps_are_those_of_the_authors() -> None:
    for seed, pattern in itertools.product(range(2), (BOTH_WAYS, Pattern(4, 8))):
        weights, hessian = random(16, 32, seed=seed), hessian_of(32, seed=10 * seed)
        assert torch.equal(admm(weights, hessian, pattern).mask, plainly(weights, hessian, pattern)), (seed, pattern)


def test_what_must_be_dropped_is_dropped_from_the_first_mask_on() -> None:
    """Which is the best there is, where inputs do not depend on each other."""
    weights, drop = random(8, 8), np.zeros((8, 8), bool)
    drop[::4, 1::4] = True
    weights[::4, 1::4] = 9
    found = admm(weights, torch.eye(8, dtype=torch.float64), BOTH_WAYS, drop)
    assert not found.mask[torch.from_numpy(drop)].any()
    assert torch.equal(found.mask, solve_mask(weights, weights.square(), BOTH_WAYS, drop).mask)


def test_small_blocks_against_all_of_their_masks() -> None:
    masks = [mask for mask in itertools.product(itertools.combinations(range(4), 2), repeat=4)
             if np.bincount(np.ravel(mask), minlength=4).tolist() == [2] * 4]  # fmt: skip
    assert len(masks) == 90
    every = torch.zeros(90, 4, 4, dtype=torch.bool)
    for number, rows in enumerate(masks):
        every[number][torch.arange(4)[:, None], torch.tensor(rows)] = True
    best, ratios = 0, []
    for seed in range(40):
        weights, hessian = random(4, 4, seed=seed), hessian_of(4, seed=seed)
        errors = sorted(least(weights, mask, hessian) for mask in every)
        error = least(weights, admm(weights, hessian, BOTH_WAYS).mask, hessian)
        best += error <= errors[0] * (1 + 1e-9)
        ratios.append(error / errors[0])
        assert error < errors[len(errors) // 3]
    assert best >= 20
    assert np.median(ratios) < 1.05


def test_inputs_that_do_not_depend_on_each_other_leave_the_best_mask_of_squares() -> None:
    weights, scale = random(16, 16), 1 + random(16, seed=3) ** 2
    found = admm(weights, scale.diag(), BOTH_WAYS)
    assert torch.equal(found.mask, solve_mask(weights, weights.square() * scale, BOTH_WAYS, None).mask)
    torch.testing.assert_close(found.weights, weights * found.mask, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [1e-200, 1e-30, 2.0**20, 1e200])
def test_units_do_not_matter(times: float) -> None:
    weights, hessian = random(16, 32), hessian_of(32)
    one, two, three = (admm(w, h, BOTH_WAYS) for w, h in
                       ((weights, hessian), (weights * times, hessian), (weights, hessian * times)))  # fmt: skip
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.mask, three.mask)
    torch.testing.assert_close(two.weights, one.weights * times, rtol=1e-4, atol=1e-6 * times)


def test_it_is_the_same_twice_and_leaves_its_inputs_alone() -> None:
    weights, hessian = random(16, 32), hessian_of(32)
    copies = weights.clone(), hessian.clone()
    one, two = admm(weights, hessian, BOTH_WAYS, threads=1), admm(weights, hessian, BOTH_WAYS, threads=2)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(weights, copies[0])
    assert torch.equal(hessian, copies[1])


def test_nothing_to_keep_and_a_penalty_that_rounding_asks_for() -> None:
    zeros = admm(torch.zeros(8, 8, dtype=torch.float64), hessian_of(8), BOTH_WAYS)
    assert (int(zeros.mask.sum()), bool(zeros.weights.any())) == (32, False)
    indefinite = torch.ones(8, 8, dtype=torch.float64) - 0.5 * torch.eye(8, dtype=torch.float64).flip(0)
    assert torch.linalg.eigvalsh(indefinite)[0] < -module.PENALTY
    assert torch.isfinite(admm(random(8, 8), indefinite, BOTH_WAYS).weights).all()


def test_no_more_is_kept_than_there_is() -> None:
    """Scores of float32 are added up in float64, as the solver does it."""
    weights = (random(64, 64) * torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(16)).float()
    found = solve_mask(weights, weights.square(), Pattern(2, 4, transposable=False), None)
    assert found.kept == pytest.approx(found.dense, rel=1e-14)


def test_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, when the mask stays; or after as many steps as it may take."""
    steps: list[int] = []

    def counting(*args: object, **options: object) -> object:
        steps.append(1)
        return solve_mask(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "solve_mask", counting)
    admm(random(32, 64), hessian_of(64), BOTH_WAYS)
    assert 10 < len(steps) < 200
    assert len(steps) % module.EVERY == 1
    steps.clear()
    monkeypatch.setattr(module, "STEPS", 7)
    assert admm(random(32, 64), hessian_of(64), BOTH_WAYS).n_proven == 128
    assert len(steps) == 8


@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_zeros_that_stay_and_lines_that_are_not_full(fill: nmflow.Fill) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight[::4, ::4] = 0
        if fill == "at-most":
            model[0].weight[3] = 0
    zeros = model[0].weight == 0
    report = nt.alps_(model, [random(64, 16).float()], 2, 4, fill=fill, keep_zeros=True)
    assert report.proven
    assert not model[0].weight[zeros].any()
    mask = (model[0].weight != 0).numpy()
    assert nmflow.certify(np.ones(mask.shape), mask, 2, 4, fill="at-most").feasible


def test_of_a_layer_it_leaves_the_least_error() -> None:
    torch.manual_seed(0)
    dense, batches = nn.Linear(64, 64), [(random(512, 64) @ random(64, 64, seed=1) / 8).float()]
    errors = []
    for method, options in ((nt.alps_, {}), (nt.sparsegpt_, {"refit": True, "absorb_mean": True}),
                            (nt.adaprune_, {"scores": "obs"})):  # fmt: skip
        layer = nn.Linear(64, 64)
        layer.load_state_dict(dense.state_dict())
        report = method(layer, batches, 2, 4, **options)
        assert report.method == method.__name__.strip("_")
        errors.append(report.layers[0].error)
    assert errors[0] < 0.97 * errors[1] < errors[2]


def test_masks_are_found_on_the_device_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU stands for one: the same masks, by plain torch operations, and nothing goes through NumPy."""
    weights, hessian, asked = random(32, 64), hessian_of(64), []

    def anywhere(scores: torch.Tensor, pattern: Pattern, **options: object) -> bool:
        asked.append((scores.dtype, pattern, options))
        return True

    there = admm(weights, hessian, Pattern(4, 8), solver="dual", threads=1)
    with monkeypatch.context() as patch:
        patch.setattr("nmflow.torch.obs_pass.on_device", anywhere)
        patch.setattr("nmflow.torch.obs_pass.solve", None)
        here = admm(weights, hessian, Pattern(4, 8), solver="dual", threads=1)
    assert torch.equal(here.mask, there.mask)
    assert torch.equal(here.weights, there.weights)
    assert (here.n_proven, here.n_blocks) == (32, 32)
    assert here.kept == pytest.approx(there.kept, rel=1e-6)
    assert here.dense == there.dense > here.kept
    # at once what a device can do, and what `on_device` must be told to see that it can
    assert set(map(repr, asked)) == {
        repr((torch.float32, Pattern(4, 8), {"drop": None, "solver": "dual", "threads": 1}))
    }
