"""What layers see: rows, sums over them, and what is said of batches that cannot be used."""

from __future__ import annotations

import copy
import re
import types
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import nmflow.torch as nt
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError
from nmflow.pattern import Pattern
from nmflow.torch.cross_validation import best_damping
from nmflow.torch.damping import damped
from nmflow.torch.feed import Draws, wanted_rows
from nmflow.torch.moments import Moments, from_matrices, matrices, rows_of
from nmflow.torch.select import select


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 7)),
    (nn.Conv2d(6, 8, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, bias=False), (3, 6, 7, 8)),
    (nn.Conv2d(4, 4, (3, 5), padding=(1, 2)), (2, 4, 5, 6)),
    (nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"), (1, 4, 5, 6)),
    (nn.Conv2d(4, 4, 2, padding=1, padding_mode="circular", groups=4), (4, 5, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (2, 4, 9)),
    (nn.Conv1d(4, 6, 3, dilation=2), (4, 9)),
    (nn.Conv1d(4, 6, 4, padding="same"), (4, 9)),  # of three zeros, two come after
    (nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(3, 2)), (2, 4, 5, 6)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch copies its input there
@pytest.mark.parametrize(("module", "shape"), CONVOLUTIONS, ids=str)
def test_windows_times_weight_is_the_output(
    module: nn.Conv2d, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmflow.torch.moments.PART_BYTES", 1)  # a sample at a time
    module, x = module.double(), random(*shape, dtype=torch.float64)
    layer = select(nn.ModuleDict({"it": module}), Pattern(1, 1), include=["it"]).layers[0]
    weight = matrices(layer, module.weight.detach())
    assert torch.equal(from_matrices(layer, weight, module.weight.shape), module.weight)
    rows = torch.cat(list(rows_of(module, x)), dim=1)
    sums = nt.calibrate(module, [x], include=["weight"]).moments["weight"]
    assert sums.count == rows.shape[1]
    assert torch.allclose(sums.total, rows.sum(1))
    module.bias = None
    expected = module(x if x.ndim == module.weight.ndim else x[None]).detach()
    found = (rows @ weight.mT).reshape(module.groups, len(expected), *expected.shape[2:], -1)
    assert torch.allclose(found.movedim(-1, 2).movedim(0, 1).flatten(1, 2), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_moments_are_sums_in_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.moments.PART_BYTES", 8 * 8 * 5)  # five rows at a time
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity()).to(dtype)
    batches = [100 + random(2, 6, 8, dtype=dtype), random(7, 8, seed=1, dtype=dtype), random(8, seed=2, dtype=dtype)]
    moments = nt.calibrate(model, batches).moments["0.weight"]
    rows = torch.cat([batch.reshape(-1, 8) for batch in batches]).double()
    assert moments.count == len(rows) == 20
    assert moments.gram is not None
    assert torch.allclose(moments.gram[0], rows.T @ rows, rtol=1e-14)
    assert torch.allclose(moments.total[0], rows.sum(0), rtol=1e-13)
    assert torch.allclose(moments.norms[0], rows.norm(dim=0), rtol=1e-14)
    slim = nt.calibrate(model, batches, gram=False).moments["0.weight"]
    assert slim.gram is None
    assert torch.allclose(slim.norms, moments.norms)


def gram_of(rows: torch.Tensor) -> torch.Tensor:
    layer = nn.Linear(rows.shape[1], 8).to(rows.dtype)
    slim = nt.calibrate(layer, [rows], gram=False).moments["weight"]
    torch.testing.assert_close(slim.square[0], rows.double().square().sum(0), rtol=1e-14, atol=0)
    moments = nt.calibrate(layer, [rows]).moments["weight"]
    assert moments.gram is not None
    assert torch.equal(moments.square, moments.gram.diagonal(dim1=-2, dim2=-1))
    assert ((moments.total[0] - rows.double().sum(0)).abs() <= 1e-14 * rows.double().abs().sum(0)).all()
    return moments.gram[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rows_of_16_bits_are_multiplied_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.gram.COLUMNS", 8)
    monkeypatch.setattr("nmflow.torch.gram.ROWS", 16)
    scale = 2.0 ** random(24, seed=3).mul(2).round()
    rows = (random(500, 24) * scale + random(500, 1, seed=1)).to(dtype)
    exact = rows.double().T @ rows.double()
    unit = exact.diagonal().sqrt()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # of float32 that would leave eight bits
        found = gram_of(rows)
    assert 0 < float(((found - exact).abs() / (unit[:, None] * unit)).max()) <= 16 * 2.0**-24


def test_what_rows_of_16_bits_have_moved_by_is_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.gram.COLUMNS", 4)
    layer = select(nn.Linear(8, 8).bfloat16(), Pattern(2, 4)).layers[0]
    moments, (now, dense) = Moments.of(layer, gram=True, cross=True), random(2, 1, 40, 8, dtype=torch.bfloat16)
    moments.add(now, dense)
    moved = dense[0].double() - now[0].double()
    assert moments.cross is not None
    assert moments.shift is not None
    torch.testing.assert_close(moments.cross[0], moved.T @ now[0].double(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moments.shift[0], moved.sum(0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-25, 1e25, -1e25])
def test_rows_of_16_bits_whose_squares_float32_cannot_hold(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.gram.COLUMNS", 4)
    rows = random(40, 8)
    if scale > 0:
        rows[:, 2] *= scale
    else:
        rows[0, 2] = scale  # the largest magnitude of its column, and the least number
    rows[:, 5] = 0
    rows = rows.bfloat16()
    torch.testing.assert_close(gram_of(rows), rows.double().T @ rows.double(), rtol=1e-14, atol=0)


def test_float16_where_products_may_be_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.gram.COLUMNS", 4)
    rows = random(40, 8, dtype=torch.float16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = gram_of(rows)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, rows.double().T @ rows.double(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("width", [24, 30])
def test_a_gram_matrix_in_parts_is_that_of_one_product(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.gram.COLUMNS", 8)
    batches = [random(2, 6, width), random(7, width, seed=1)]
    rows = torch.cat([batch.reshape(-1, width) for batch in batches]).double()
    gram = nt.calibrate(nn.Linear(width, 8), batches).moments["weight"].gram
    assert gram is not None
    assert torch.allclose(gram[0], rows.T @ rows, rtol=1e-13, atol=1e-13)
    assert torch.allclose(gram, gram.mT, rtol=1e-13, atol=1e-13)


def test_padding_of_texts_is_left_out_and_the_model_left_as_it_was() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.layer = nn.Dropout(0.5), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(input=self.drop(x))

    model = Model().train()
    model.drop.eval()
    batch = {"x": random(2, 3, 4), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    moments = nt.calibrate(model, [batch]).moments["layer.weight"]
    assert moments.count == 3
    assert torch.allclose(moments.total[0], (batch["x"][0, :2].sum(0) + batch["x"][1, 0]).double())
    assert (model.training, model.drop.training, model.layer.training) == (True, False, True)
    assert not model.layer._forward_pre_hooks


class Flat(nn.Module):
    """Sees tokens one after the other, as the MLP of OPT does; and those of a decoder, as T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
        return self.flat(x.reshape(-1, 4)).sum() + self.decoder(y).sum()


def seen(padding: list[list[int]], tokens: int, **others: Any) -> dict[str, int]:
    """Rows that are counted of two texts of three tokens, beside two of some others; what these are told by."""
    model = Flat()
    model.config = SimpleNamespace(is_encoder_decoder=True)  # type: ignore[assignment]
    batch = {"x": random(2, 3, 4), "y": random(2, tokens, 4), "attention_mask": torch.tensor(padding), **others}
    return {name: moments.count for name, moments in nt.calibrate(model, [batch]).moments.items()}


def test_padding_is_left_out_of_flat_texts_and_of_those_of_a_decoder() -> None:
    some, other = [[1, 1, 0], [1, 0, 0]], torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    assert seen(some, 4) == {"flat.weight": 3, "decoder.weight": 8}
    assert seen(some, 4, decoder_attention_mask=other) == {"flat.weight": 3, "decoder.weight": 5}
    assert seen(some, 3, decoder_attention_mask=torch.tensor(some)) == {"flat.weight": 3, "decoder.weight": 3}
    for known in ({"decoder_attention_mask": other[:, :3]}, {"labels": torch.zeros(2, 3)}):
        with pytest.raises(InputValueError, match=r"batches must tell padding of the encoder from that of the decoder"):
            seen(some, 3, **known)
    assert seen([[1, 1, 1]] * 2, 3, labels=torch.zeros(2, 3)) == {"flat.weight": 6, "decoder.weight": 6}


def test_padding_is_left_out_of_an_expert_s_tokens_by_the_mask_of_as_many() -> None:
    value: Any = random(3, 8)
    value.tokens = torch.tensor([0, 1, 3]), 4
    masks = torch.tensor([[True, False], [True, True]]), torch.tensor([[False, True, True], [True, True, True]])
    for wanted in (masks, masks[::-1]):
        (rows,) = rows_of(nn.Linear(8, 8), value, wanted)
        assert torch.equal(rows[0], value[[0, 2]])


def test_shared_and_repeated_layers_sum_all_their_calls() -> None:
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(shared, nn.Linear(4, 4, bias=False), shared)
    model[1].weight = shared.weight
    x = random(5, 4)
    calibration = nt.calibrate(model, [x])
    assert list(calibration.moments) == ["0.weight"]
    weight = shared.weight.detach()
    rows = torch.cat([x, x @ weight.T, x @ weight.T @ weight.T]).double()
    gram = calibration.moments["0.weight"].gram
    assert gram is not None
    assert torch.allclose(gram[0], rows.T @ rows, rtol=1e-5)


def test_too_few_rows_for_obs_are_told(recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(64, 8))
    seen = nt.calibrate(model, [random(12, 64)])
    with pytest.warns(
        UserWarning, match="^only 12 rows for 64 inputs of 0.weight, and in 1 more layers: give more samples$"
    ):
        seen.scores("obs")
    seen.scores("wanda")
    nt.calibrate(model, [random(64, 64)]).scores("obs")
    assert not recwarn.list


def test_several_passes_where_memory_is_short() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    batches, seen = [random(4, 8), random(4, 8, seed=1)], []
    whole = nt.calibrate(model, batches)
    parts = nt.calibrate(model, batches, memory=600, progress=lambda *step: seen.append(step))
    for name in whole.moments:
        assert torch.equal(whole.moments[name].total, parts.moments[name].total)
    assert seen[0] == ("batch 1", 0, 6)
    assert seen[-1] == ("", 6, 6)
    with pytest.raises(InputValueError, match=r"batches must be readable 3 times.* more memory"):
        nt.calibrate(model, iter(batches), memory=600)


def test_batches_of_every_kind() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.layer(a + b)

    model, a, b = Two(), random(2, 4), random(2, 4, seed=1)
    kinds: list[Any] = [(a, b), [a, b], {"a": a, "b": b}]
    counts = [nt.calibrate(model, [batch]).moments["layer.weight"].total for batch in kinds]
    given = nt.calibrate(model, [(a, "label")], forward=lambda model, batch: model(batch[0], b))
    assert all(torch.equal(count, counts[0]) for count in [*counts, given.moments["layer.weight"].total])


@pytest.mark.filterwarnings("ignore:only .* rows for")
def test_scores_for_prune() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    calibration = nt.calibrate(model, [random(16, 4, 3, 3)])
    assert repr(calibration) == "<Calibration of 2 layers, 16 to 16 rows each>"
    wanda = calibration.scores("wanda")("0.weight", model[0])
    assert wanda is not None
    x = random(16, 4, 3, 3).double()
    assert torch.allclose(wanda, model[0].weight.abs() * x.square().sum(0).sqrt(), rtol=1e-6)
    obs = calibration.scores("obs")("2.weight", model[2])
    hessian, share, bare = damped(
        calibration.moments["2.weight"],
        best_damping(model[2].weight.detach().double()[None], calibration.moments["2.weight"]),
    )
    assert torch.allclose(hessian[0].diagonal(), (1 + share) * bare[0] + 0.1 * share * bare.mean())
    assert obs is not None
    assert torch.allclose(obs, model[2].weight.double() ** 2 / torch.linalg.inv(hessian[0]).diagonal(), rtol=1e-6)
    assert calibration.scores("wanda")("other", model[2]) is None
    report = nt.prune_(model, 2, 4, scores=calibration.scores("obs"))
    assert report.proven
    assert report.layers[1].dense == pytest.approx(float(obs.sum()))


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv1d(4, 8, 2), nn.Conv2d(4, 8, 2, padding=1)])
def test_an_empty_batch_adds_nothing(layer: nn.Module) -> None:
    shape = {nn.Linear: (8,), nn.Conv1d: (4, 5), nn.Conv2d: (4, 5, 5)}[type(layer)]
    full, empty = random(3, *shape), random(0, *shape)
    one, other = (nt.calibrate(layer, batches).moments["weight"] for batches in ([full], [empty, full, empty]))
    assert one.count == other.count
    assert torch.equal(one.square, other.square)
    assert nt.adaprune_(layer, [empty, full], 2, 4).layers[0].rows == one.count
    before = layer.weight.detach().clone()
    for method in (nt.adaprune_, nt.sparsegpt_):
        with pytest.raises(InputValueError, match="batches must hold rows that weight sees, and none does"):
            method(layer, [empty], 1, 4)
    assert torch.equal(layer.weight, before)


def test_scores_are_those_of_the_module_that_is_asked_about() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    score = nt.calibrate(model, [random(16, 8)]).scores("wanda")
    other = copy.deepcopy(model[0])
    with torch.no_grad():
        other.weight *= 2
        model[0].weight.zero_()
    found = score("0.weight", other)
    assert found is not None
    assert torch.allclose(found, other.weight.abs() * random(16, 8).double().square().sum(0).sqrt(), rtol=1e-6)
    for misfit in (nn.Linear(6, 8), nn.LayerNorm(8)):
        with pytest.raises(
            InputValueError, match=r"scores of 0.weight must be .* of 8 inputs in each of 1 groups, not"
        ):
            score("0.weight", misfit)


def test_obs_score_is_what_dropping_one_weight_costs() -> None:
    layer, x = nn.Linear(6, 2, bias=False).double(), random(50, 6, dtype=torch.float64)
    scores = nt.calibrate(layer, [x], damping=0.0).scores("obs")("weight", layer)
    assert scores is not None
    weight = layer.weight.detach()
    for row, column in [(0, 0), (1, 4)]:
        others = [index for index in range(6) if index != column]
        best = torch.linalg.lstsq(x[:, others], x @ weight[row, :, None]).solution
        lost = (x @ weight[row, :, None] - x[:, others] @ best).square().mean()
        assert scores[row, column] == pytest.approx(float(lost), rel=1e-9)


def test_few_samples_are_damped() -> None:
    moments = nt.calibrate(nn.Linear(8, 8), [random(3, 8)]).moments["weight"]
    hessian, share, _ = damped(moments, 0.0)
    assert 0 < share < 1e-6  # no more than it takes
    assert not torch.linalg.cholesky_ex(hessian).info.any()
    nothing = nt.calibrate(nn.Linear(4, 4), [torch.zeros(3, 4)]).moments["weight"]
    no_rows = Moments.of(select(nn.Linear(4, 4), Pattern(2, 4)).layers[0], gram=True)
    for sums in (nothing, no_rows):
        assert torch.equal(damped(sums, 0.5)[0][0], 0.05 * torch.eye(4, dtype=torch.float64))


def test_each_group_is_damped_by_its_own_scale() -> None:
    x = random(32, 4, 5, 5) * torch.tensor([1.0, 1.0, 100.0, 100.0])[:, None, None]
    moments = nt.calibrate(nn.Conv2d(4, 4, 3, groups=2), [x]).moments["weight"]
    assert moments.gram is not None
    mean = moments.gram / moments.count
    own = mean.diagonal(dim1=1, dim2=2)
    scale = own.mean(1, keepdim=True)
    assert scale[1] > 1000 * scale[0]
    torch.testing.assert_close(damped(moments, 0.1)[0], mean + (0.1 * own + 0.01 * scale).diag_embed())


@pytest.mark.parametrize("rows", [1, 3, 7, 100, 333])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_rounding_leaves_of_inputs_that_are_always_the_same_is_no_variance(dtype: torch.dtype, rows: int) -> None:
    """It could be negative, and so large that nothing made the matrix definite."""
    always = 1.7e9 * (1 + random(8, seed=1, dtype=torch.float64).abs())
    for count in (3, 8):
        x = random(rows, 8, dtype=torch.float64)
        x[:, :count] = always[:count]
        moments = nt.calibrate(nn.Linear(8, 8).to(dtype), [x.to(dtype)]).moments["weight"]
        hessian, share, bare = damped(moments, 0.25, centred=True)
        assert share == 0.25
        assert not bare[0, :count].any()
        assert (bare[0, count:] > 0.05).all() or rows == 1
        assert not hessian[0, :count].triu(1).any()
        scale = bare.mean() if bare.any() else 1.0
        torch.testing.assert_close(hessian[0].diagonal(), 1.25 * bare[0] + 0.025 * scale)


def test_a_channel_that_is_always_the_same_where_products_are_summed_in_float32() -> None:
    """Sums of its squares had lost more than the others vary by."""
    layer, rows = nn.Linear(520, 4).half(), random(2048, 520, dtype=torch.float16)
    rows[:, 3] = 1023
    moments = nt.calibrate(layer, [rows]).moments["weight"]
    _, share, bare = damped(moments, 0.125, centred=True)
    assert (share, float(bare[0, 3])) == (0.125, 0.0)


def test_more_is_added_where_a_pivot_is_but_rounding() -> None:
    """A Cholesky factor may exist by chance, and none of what a mask leaves of the matrix."""
    for seed in range(20):  # in a quarter of them there is one; which depends on LAPACK
        x = random(200, 8, seed=seed)
        few, all_ = (nt.calibrate(nn.Linear(rows.shape[1], 16), [rows]) for rows in (x @ random(8, 32, seed=99), x))
        hessian, share, bare = damped(few.moments["weight"], 0.0)
        assert share == 1e-10, seed
        torch.testing.assert_close(hessian[0].diagonal(), bare[0], rtol=1e-8, atol=0)
        assert damped(all_.moments["weight"], 0.0)[1] == 0


def test_wanda_of_inputs_that_are_zero() -> None:
    """Weights of one are worth nothing; of all of them, what they are."""
    layer, x = nn.Linear(4, 4), random(6, 4)
    x[:, 1] = 0
    for inputs in (x, torch.zeros(6, 4)):
        found = nt.calibrate(layer, [inputs], gram=False).scores("wanda")("weight", layer)
        norms = inputs.double().norm(dim=0) if inputs.any() else torch.ones(4)
        assert found is not None
        torch.testing.assert_close(found, layer.weight.detach().abs() * norms, check_dtype=False)


class Greedy(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if len(input) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return super().forward(input)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


NAN = random(2, 4)
NAN[:, 2] = float("nan")


@pytest.mark.parametrize(
    ("model", "batches", "options", "message"),
    [
        (nn.Linear(4, 4), [], {}, "batches must hold at least one batch, not none"),
        (nn.Linear(4, 4), random(3, 4), {}, "batches must be a list or loader of batches, not one Tensor"),
        (nn.Linear(4, 4), [random(2, 4), NAN], {}, "inputs of weight must be finite, not NaN or infinite at 2 entries "
         "in batch 1"),
        (nn.Linear(4, 4).double(), [1e200 * random(2, 4).double()], {},
         "squares of inputs of weight must be finite, not"),
        (Greedy(4, 4), [random(2, 4), random(3, 4)], {}, "batch 1 of shape (3, 4) does not; make smaller ones"),
        (Idle(), [random(2, 4)], {}, "every layer must be called by the model, and idle.weight never was; exclude it"),
        (nn.Linear(4, 4), [random(2, 4)], {"damping": -1.0}, "damping must be finite and not negative, not -1.0"),
        (nn.Embedding(8, 8), [torch.tensor([1])], {"include": ["weight"]},
         "model must have a Linear, Conv1d or Conv2d"),
    ],
)  # fmt: skip
def test_bad_input(model: nn.Module, batches: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputValueError, InputTypeError), match=re.escape(message)) as caught:
        nt.calibrate(model, batches, **options)
    assert isinstance(caught.value, NonFiniteError) == ("finite, not" in message)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("sequential", [True, False])
def test_a_layer_that_no_batch_calls_is_missed_before_any_is_pruned(sequential: bool) -> None:
    def progress(name: str, done: int, total: int) -> None:
        assert not name.endswith("weight")

    with pytest.raises(InputValueError, match=r"every layer must be called by the model, and idle\.weight never"):
        nt.adaprune_(Idle(), [random(8, 4)], 2, 4, sequential=sequential, progress=progress)


def test_other_errors_of_the_model_pass() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        nt.calibrate(nn.Linear(4, 4), [random(2, 5)])


@pytest.mark.filterwarnings("ignore:only .* rows for")
def test_unknown_score_and_missing_gram() -> None:
    calibration = nt.calibrate(nn.Linear(4, 4), [random(2, 4)], gram=False)
    with pytest.raises(InputValueError, match="scores must be one of magnitude, wanda, obs, or your own, not 'taylor'"):
        calibration.scores("taylor")
    with pytest.raises(InputValueError, match="calibration must hold gram matrices; calibrate with gram=True"):
        nt.prune_(nn.Linear(4, 4), 2, 4, scores=calibration.scores("obs"))


# what models do beside multiplying


def test_a_convolution_whose_padding_was_changed() -> None:
    """As encoders are made dilated; with zeros, torch goes by what the module says now."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1)
    layer.dilation, layer.padding = (2, 2), (2, 2)
    x = torch.randn(4, 8, 9, 9)
    same = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
    found, wanted = (nt.calibrate(nn.Sequential(each), [x]).moments["0.weight"] for each in (layer, same))
    assert found.count == wanted.count == 4 * 81
    assert torch.equal(found.gram, wanted.gram)


@pytest.mark.parametrize("padding", ["same", "valid", 0])
def test_padding_by_name(padding: Any) -> None:
    layer = nn.Conv1d(8, 8, 4, padding=padding, dilation=2)
    x = torch.randn(2, 8, 12)
    count = nt.calibrate(nn.Sequential(layer), [x]).moments["0.weight"].count
    assert count == layer(x).shape[-1] * 2


def test_a_convolution_whose_weight_was_replaced() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    layer.weight = nn.Parameter(torch.randn(8, 4, 1, 1))
    x = torch.randn(2, 4, 5, 5)
    found = nt.calibrate(nn.Sequential(layer), [x]).moments["0.weight"]
    rows = nn.functional.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, 4).double()
    assert found.count == len(rows)
    torch.testing.assert_close(found.gram[0], rows.mT @ rows)


@pytest.mark.parametrize("seen", [lambda x: x.transpose(0, 1), lambda x: x[:, None]])
def test_texts_side_by_side_or_with_an_axis_of_one_leave_their_padding_out(seen: Any) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(seen(x))

    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.long)
    mask[1, 2:] = 0
    found = nt.calibrate(Turned(), [{"x": x, "attention_mask": mask}]).moments["layer.weight"]
    rows = x[mask.bool()].double()
    assert found.count == 12
    torch.testing.assert_close(found.gram[0], rows.mT @ rows)


@pytest.mark.parametrize("config", [{"attention_window": [2, 4]}, {"attention_window": 4}, {"block_size": 4}])
def test_padding_to_whole_windows_is_left_out(config: dict[str, Any]) -> None:
    class Windows(nn.Module):  # as Longformer, which pads every text to a multiple of its longest window
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.config = nn.Linear(8, 8), SimpleNamespace(**config)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            padded = nn.functional.pad(x, (0, 0, 0, 3), value=1.0)
            return self.layer(padded.transpose(0, 1)) + self.layer(x).sum()

    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.long)
    mask[1, 2:] = 0
    found = nt.calibrate(Windows(), [{"x": x, "attention_mask": mask}]).moments["layer.weight"]
    rows = x[mask.bool()].double()
    assert found.count == 24
    torch.testing.assert_close(found.gram[0], 2 * rows.mT @ rows)


def test_batches_that_the_model_makes_count_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    x = [torch.randn(6, 8) for _ in range(3)]
    with torch.no_grad():
        batches = [each + model.eval()(each) for each in x]

    def made() -> Any:
        for each in x:
            with torch.no_grad():
                yield each + model(each)

    one, other = (nt.calibrate(model, some).moments["0.weight"] for some in (batches, made()))
    assert one.count == other.count == 18
    assert torch.equal(one.gram, other.gram)
    nt.reestimate_batch_norm_(model, made())
    assert int(model[1].num_batches_tracked) == 3


def test_a_model_that_differentiates_as_it_runs() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = x.requires_grad_()
                return torch.autograd.grad(self.out(torch.tanh(self.layer(x))).sum(), x)[0]

    model = Force()
    found = nt.calibrate(model, [torch.randn(6, 8)])
    assert not any(moments.gram.requires_grad for moments in found.moments.values())
    nt.adaprune_(model, [torch.randn(20, 8)], 2, 4)


def test_a_forward_that_one_module_was_given_is_looked_at() -> None:
    layer = nn.Linear(8, 8)
    layer.forward = types.MethodType(lambda self, x: nn.functional.linear(3 * x, self.weight, self.bias), layer)
    with pytest.raises(InputValueError, match=r"inputs of 0\.weight cannot be seen"):
        nt.calibrate(nn.Sequential(layer), [torch.randn(6, 8)])
    layer.forward = types.MethodType(lambda self, x: nn.functional.linear(x, self.weight, self.bias), layer)
    assert nt.calibrate(nn.Sequential(layer), [torch.randn(6, 8)]).moments["0.weight"].count == 6


def test_inputs_by_any_keyword_and_nested_batches() -> None:
    class Pair(NamedTuple):
        a: torch.Tensor
        b: torch.Tensor

    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Named(8, 8)

        def forward(self, pair: Pair) -> torch.Tensor:
            return self.layer(x=pair.a + pair.b)

    batch = {"pair": Pair(torch.randn(6, 8), torch.randn(6, 8))}
    assert nt.calibrate(Model(), [batch]).moments["layer.weight"].count == 6


class Noisy(nn.Module):
    """Drops inputs at random in evaluation mode, too, as masked autoencoders do, and counts in a buffer."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.data.add_(1)
        return self.second(torch.relu(self.first(x * (torch.rand_like(x) < 0.5))))


def test_random_numbers_in_evaluation_mode() -> None:
    """The dense model and the pruned one draw the same; and nothing of a pass is left behind."""
    batches = [torch.randn(64, 16, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    models = Noisy(), Noisy()
    for model, follow in zip(models, ("dense", "own"), strict=True):
        before = torch.get_rng_state()
        report = nt.adaprune_(model, batches, 2, 4, follow=follow)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.calls == 0
        assert report.layers[0].error < report.layers[0].masked_error
    assert torch.equal(models[0].first.weight, models[1].first.weight)  # nothing was pruned before it


def test_random_numbers_of_the_callers_go_on() -> None:
    """Batches may be drawn while the model runs; what it draws itself is not seen outside."""
    model = Noisy()

    def drawn() -> Any:
        for _ in range(2):
            yield torch.randn(8, 16)

    torch.manual_seed(0)
    one, other = (nt.calibrate(model, drawn()).moments["second.weight"] for _ in range(2))
    assert not torch.equal(one.gram, other.gram)
    after = torch.randn(3)
    torch.manual_seed(0)
    for _ in range(2):
        list(drawn())
    assert torch.equal(after, torch.randn(3))


def test_draws_go_on_from_where_they_were() -> None:
    draws, parts = Draws(7), []
    torch.manual_seed(3)
    for _ in range(2):
        with draws.apart():
            parts.append(torch.rand(2))
    outside = torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(torch.cat(parts), torch.cat([torch.rand(2), torch.rand(2)]))
    torch.manual_seed(3)
    assert torch.equal(outside, torch.rand(2))


def test_masks_that_are_no_padding_and_a_batch_that_is_no_list() -> None:
    """A mask of more axes says who may look at whom, not which tokens count."""
    model = nn.Linear(4, 4)
    assert wanted_rows(model, {"attention_mask": torch.ones(2, 1, 3, 3)}) == ()
    (rows,) = wanted_rows(model, {"attention_mask": torch.tensor([[1, 0]])})
    assert rows.tolist() == [[True, False]]
    with pytest.raises(InputValueError, match="attention_mask must be 0 for padding and 1 for other tokens, and holds"):
        wanted_rows(model, {"attention_mask": torch.tensor([[0.0, -torch.inf]])})
    with pytest.raises(InputTypeError, match="batches must be a list or loader of batches, not one dict"):
        nt.calibrate(model, {"input": torch.ones(2, 4)})


def test_passes_keep_no_graph_and_no_casts() -> None:
    class Looking(nn.Linear):
        seen: Any = ()

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.seen = torch.is_grad_enabled(), torch.is_autocast_cache_enabled()
            return super().forward(input)

    model = Looking(4, 4)
    assert torch.is_autocast_cache_enabled()
    reached = nt.reestimate_batch_norm_(nn.Sequential(model, nn.BatchNorm1d(4)), [torch.randn(8, 4)])
    assert (reached, model.seen) == (1, (False, False))
    assert torch.is_autocast_cache_enabled()


def test_a_buffer_made_for_inference_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.inference_mode():
        model.register_buffer("table", torch.ones(2))
    nt.calibrate(model, [torch.randn(8, 4)])
    assert model.table.tolist() == [1.0, 1.0]
