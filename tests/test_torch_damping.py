"""Damping that is each layer's own: what cross-validation finds, against its formula and on other samples."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[torch]'")

from torch import nn  # noqa: E402

import nmflow  # noqa: E402
import nmflow.torch as nt  # noqa: E402
from nmflow import Pattern  # noqa: E402
from nmflow.torch import cross_validation  # noqa: E402
from nmflow.torch.cross_validation import GOLDEN, ROWS_FOR_ONE, SHARES, best_damping, expected_errors  # noqa: E402
from nmflow.torch.damping import damped, second_moments  # noqa: E402
from nmflow.torch.moments import Moments  # noqa: E402
from nmflow.torch.refit import output_error, refit  # noqa: E402
from nmflow.torch.select import select  # noqa: E402


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alike(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs of which some dozen directions hold most."""
    mixed = random(rows, 12, seed=seed) @ random(12, width, seed=99)
    return mixed + 0.5 * random(rows, width, seed=seed + 1000)


def moments_of(x: torch.Tensor, dense: torch.Tensor | None = None) -> Moments:
    layer = select(nn.Linear(x.shape[-1], 4), Pattern(2, 4)).layers[0]
    moments = Moments.of(layer, gram=True, cross=dense is not None)
    moments.add(x[None], None if dense is None else dense[None])
    return moments


def by_rows(weight: torch.Tensor, x: torch.Tensor, dense: torch.Tensor, share: float, *, centred: bool) -> float:
    """The same error from the rows themselves, with the matrix that maps outputs to fitted ones written out."""
    count = len(x)
    if centred:
        x, dense = x - x.mean(0), dense - dense.mean(0)
    half = np.arange(x.shape[1]) * GOLDEN % 1 < 0.5
    seen, away, more = (each.numpy() for each in (x[:, half], x[:, ~half], (x**2).mean(0)))
    ridge = share * np.diag(more[half] + 0.1 * more.mean())
    hat = seen @ np.linalg.inv(seen.T @ seen / count + ridge) @ seen.T / count
    wanted = away @ weight[:, ~half].numpy().T + (dense - x).numpy() @ weight.numpy().T
    left = ((wanted - hat @ wanted) ** 2).sum() / count
    return float(left / (1 - ROWS_FOR_ONE * np.trace(hat) / count) ** 2)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("width", [4, 7, 24])
def test_errors_are_those_of_generalised_cross_validation(width: int, centred: bool) -> None:
    weight, x = random(5, width, seed=2), alike(200, width) + 3
    noise = random(200, width, seed=4)
    # inputs that have moved, each by itself and by nothing in the mean
    dense = x + 4 * torch.linalg.qr(noise - noise.mean(0)).Q * torch.linspace(0.1, 1, width)
    for others in (None, dense):
        moments = moments_of(x, others)
        found = expected_errors(weight[None], moments, second_moments(moments, centred=centred), centred=centred)
        outputs = x if others is None else others
        assert found == pytest.approx([by_rows(weight, x, outputs, share, centred=centred) for share in SHARES])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rows", [20, 200])
def test_inputs_that_move_together_are_known_by_what_they_are_now(rows: int, centred: bool) -> None:
    """Outputs move by more then than as if each moved by itself; damping is no better for that."""
    weight, x = random(5, 24, seed=2).abs(), alike(rows, 24).abs() + 3
    moments = moments_of(x, 1.5 * x)
    found = expected_errors(weight[None], moments, second_moments(moments, centred=centred), centred=centred)
    wanted = [by_rows(weight, x, 1.5 * x, share, centred=centred) for share in SHARES]
    known = [(error, other) for error, other in zip(found, wanted, strict=True) if error < math.inf]
    assert known
    assert [error for error, _ in known] == pytest.approx([other for _, other in known], rel=1e-3)


def test_a_network_of_positive_weights_does_as_well_as_with_any_damping() -> None:
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(3))).double()
    batch = random(256, 32).abs()
    with torch.no_grad():
        for layer in model:
            layer.weight.abs_()
        dense = model(batch)
    errors = {}
    for damping in (None, *SHARES[::5]):
        nt.alps_(pruned := copy.deepcopy(model), [batch], 1, 4, damping=damping, progress=False)
        errors[damping] = float((pruned(batch) - dense).detach().norm())
    assert errors[None] < 2 * min(errors.values())


@pytest.mark.parametrize("centred", [False, True])
def test_a_shift_of_the_mean_is_the_bias_to_make_up(centred: bool) -> None:
    weight, x = random(1, 5, 24, seed=2), alike(200, 24)
    same, shifted = (
        expected_errors(weight, moments, second_moments(moments, centred=centred), centred=centred)
        for moments in (moments_of(x, x), moments_of(x, x + 2))
    )
    assert (same == pytest.approx(shifted)) == centred


def test_groups_have_one_damping() -> None:
    """Errors are summed over them."""
    layer, x = nn.Conv2d(6, 4, 3, groups=2).double(), random(9, 6, 8, 8)
    moments = nt.calibrate(layer, [x]).moments["weight"]
    weights = layer.weight.detach().movedim(1, -1).reshape(2, 2, 27)
    found = expected_errors(weights, moments, second_moments(moments), centred=False)
    apart = []
    for number in (0, 1):
        each = nt.calibrate(half := nn.Conv2d(3, 2, 3).double(), [x.chunk(2, 1)[number]]).moments["weight"]
        apart.append(expected_errors(weights[number][None], each, second_moments(each), centred=False))
        assert half.weight[0].numel() == 27
    assert found == pytest.approx([sum(pair) for pair in zip(*apart, strict=True)])


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("rows", [256, 1024, 4096])
def test_the_damping_does_well_on_other_samples(rows: int, width: int) -> None:
    """Under a mask for each row, and against every other share."""
    weight, x, fresh = random(1, 40, width, seed=5), alike(rows, width), alike(4096, width, seed=7)
    moments, held = moments_of(x), fresh.T @ fresh / 4096
    mask = torch.from_numpy(nmflow.solve(weight[0].numpy(), 8, 16).mask)[None]
    errors = {}
    for share in SHARES:
        fitted = refit(weight, mask, damped(moments, share)[0])
        errors[share] = output_error(fitted - weight, held[None])
    assert errors[best_damping(weight, moments)] < 1.15 * min(errors.values())
    assert max(errors.values()) > 1.3 * min(errors.values())  # so that this says something


def test_more_damping_for_fewer_rows_and_for_inputs_that_have_moved() -> None:
    weight = random(1, 40, 64, seed=5)
    found = [best_damping(weight, moments_of(alike(rows, 64))) for rows in (128, 256, 1024, 16384)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 3 * found[-1]
    x = alike(512, 64)
    assert best_damping(weight, moments_of(x, x + random(512, 64, seed=6))) > best_damping(weight, moments_of(x, x))


def test_the_most_is_taken_that_is_next_to_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = moments_of(alike(64, 16))
    for errors, place in (
        ([9, 8, 7, 5, 4, 4.07, 4.09, 5, 4.5, 6, 7], 5),
        ([1.0] * 11, 10),
        ([0.0] * 4 + [1.0] * 7, 3),
        ([math.inf] * 9 + [3.0, 2.0], 10),
        ([math.inf] * 11, 10),
    ):
        monkeypatch.setattr(cross_validation, "expected_errors", lambda *args, found=errors, **options: found)
        assert best_damping(random(1, 4, 16), moments) == SHARES[place]


def test_some_rows_of_a_weight_speak_for_all() -> None:
    weight, moments = random(1, 130, 16), moments_of(alike(64, 16))
    second = second_moments(moments)
    few = expected_errors(weight[:, ::3], moments, second, centred=False)
    assert expected_errors(weight, moments, second, centred=False) == few


def test_rows_that_are_zero_say_nothing() -> None:
    """Filters that are gone, here every other one; and a weight of which nothing is left."""
    weight, moments = random(1, 128, 64, seed=5), moments_of(alike(4096, 64))
    gone = weight.clone()
    gone[:, ::2] = 0
    assert best_damping(gone, moments) == best_damping(weight[:, 1::2], moments) < 0.1
    assert best_damping(0 * weight, moments) == SHARES[-1]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_too_few_rows_to_say_get_most(rows: int) -> None:
    weight, moments = random(1, 4, 16), moments_of(alike(rows, 16))
    assert best_damping(weight, moments) == SHARES[-1] == 1
    errors = expected_errors(weight, moments, second_moments(moments), centred=False)
    assert (errors[0] == math.inf) == (rows > 0)  # without rows there is nothing to be wrong about


@pytest.mark.parametrize("scale", [0.0, 1e-160, 1e150])
def test_extreme_inputs(scale: float) -> None:
    """What is too small or too large for products is not known, and gets a damping all the same."""
    weight, x = random(1, 4, 16, seed=1), alike(64, 16)
    for moments in (moments_of(scale * x), moments_of(scale * x, 2 * scale * x)):
        for centred in (False, True):
            assert best_damping(weight, moments, centred=centred) in SHARES


def test_each_layer_has_its_own_by_default() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)).double()
    batch = alike(300, 16)
    for method in (nt.adaprune_, nt.sparsegpt_, nt.alps_):
        options = {"follow": "own", "absorb_mean": False, "progress": False}
        first, second = method(pruned := copy.deepcopy(model), [batch], 2, 4, **options).layers
        assert first.damping == best_damping(model[0].weight.detach()[None], moments_of(batch))
        hidden = pruned[:2](batch).detach()
        assert second.damping == best_damping(model[2].weight.detach()[None], moments_of(hidden))
        same = copy.deepcopy(model)
        method(same, [batch], 2, 4, include=["0"], damping=first.damping, **options)
        assert torch.equal(same[0].weight, pruned[0].weight)


def test_obs_scores_of_a_calibration_have_the_damping_of_each_layer() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)).double()
    seen = nt.calibrate(model, [alike(300, 16)])
    share = best_damping(model[2].weight.detach()[None], seen.moments["2.weight"])
    given = nt.calibrate(model, [alike(300, 16)], damping=share)
    scores = [each.scores("obs")("2.weight", model[2]) for each in (seen, given)]
    assert scores[0] is not None
    assert torch.equal(scores[0], scores[1])
