"""nmflow.torch: what is taken, what is left and why, and that a model is pruned whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import nmflow
import nmflow.torch as nt
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError, PatternError, UnknownSolverError
from nmflow.torch.convert import arrays, to_array
from nmflow.torch.model_folder import prune_folder
from nmflow.torch.select import select

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, groups=2),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv1d(8, 8, 5),
        nn.Linear(32, 24),
        nn.LayerNorm(24),
        nn.Embedding(16, 24),
        nn.Linear(24, 2),
    )


def bits(model: nn.Module) -> list[bytes]:
    return [
        value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for value in model.state_dict().values()
    ]


@pytest.mark.parametrize("value", ["no", 1, None])
def test_flags_are_true_or_false(value: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    before, batches = bits(model), [tensor(4, 8)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[str, ...]]] = {
        "prune_": (nt.prune_, (model, 2, 4), ("strict",)),
        "training": (nt.SparseTraining, (model, optimizer, 2, 4), ("strict", "warm_start")),
        "calibrate": (nt.calibrate, (model, batches), ("gram",)),
        "adaprune_": (nt.adaprune_, (model, batches, 2, 4), ("sequential", "absorb_mean", "keep_zeros")),
        "sparsegpt_": (nt.sparsegpt_, (model, batches, 2, 4), ("refit", "sequential", "absorb_mean", "keep_zeros")),
        "alps_": (nt.alps_, (model, batches, 2, 4), ("sequential", "absorb_mean", "keep_zeros")),
        "choose_n": (nt.choose_n, (model, 4), ("measured",)),
        "load": (nt.load_semi_structured, ("nowhere",), ("padded", "verify")),
        "on device": (nt.solve_on_device, (tensor(4, 4), 2, 4), ("duals",)),
        "folder": (prune_folder, ("a", "b", nmflow.Pattern(2, 4), "wanda", "c"), ("overwrite", "resume")),
    }
    for function, arguments, names in calls.values():
        for name in names:
            with pytest.raises(InputTypeError, match=f"{name} must be True or False, not {value!r}"):
                function(*arguments, **{name: value})
    assert bits(model) == before


# masks of tensors


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_mask_is_that_of_the_core(dtype: torch.dtype) -> None:
    weight = tensor(16, 24, dtype=torch.float32).mul(30).to(dtype)
    mask = nt.mask_for(weight, 2, 4)
    assert (mask.dtype, mask.shape, mask.device) == (torch.bool, weight.shape, weight.device)
    assert np.array_equal(mask.numpy(), nmflow.solve(to_array(weight), 2, 4).mask)


def test_mask_of_strides_gradients_and_layouts() -> None:
    weight = tensor(24, 16).requires_grad_()
    assert torch.equal(nt.mask_for(weight.t(), 4, 8), nt.mask_for(weight.t().contiguous(), 4, 8))
    kernel = tensor(8, 4, 3, 3)
    mask = nt.mask_for(kernel.to(memory_format=torch.channels_last), 2, 4, layout="conv", groups=2)
    assert torch.equal(mask, torch.from_numpy(nmflow.solve(kernel.numpy(), 2, 4, layout="conv", groups=2).mask.copy()))


def test_mask_by_scores() -> None:
    weight, scores = tensor(8, 8), tensor(8, 8, seed=1)
    assert torch.equal(nt.mask_for(weight, 2, 4, scores=scores.abs()), nt.mask_for(scores, 2, 4))
    with pytest.raises(InputTypeError, match=r"scores must have a dtype that NumPy can hold, not torch\.float8"):
        nt.mask_for(weight, 2, 4, scores=scores.to(torch.float8_e4m3fn))


def test_mask_of_what_torch_negates_as_it_is_read() -> None:
    weight = torch.complex(tensor(8, 8), tensor(8, 8, seed=1))
    assert weight.conj().imag.is_neg()
    assert torch.equal(nt.mask_for(weight.conj().imag, 2, 4), nt.mask_for(weight.imag.clone(), 2, 4))


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("option", ["keep", "drop", "previous"])
def test_masks_among_the_options(option: str, kind: Any) -> None:
    """They have no truth: what asks them whether they say anything fails."""
    weight, given = tensor(8, 8), np.zeros((8, 8), np.bool_)
    given[:4, :4] = np.eye(4)
    options: dict[str, Any] = {"previous": {"switch_cost": 0.5}}.get(option, {})
    mask = nt.mask_for(weight, 2, 4, **{option: kind(given)}, **options)
    assert np.array_equal(mask.numpy(), nmflow.solve(weight.numpy(), 2, 4, **{option: given}, **options).mask)


def test_bfloat16_crosses_bit_for_bit() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    array = to_array(every)
    assert array.dtype.name == "bfloat16"
    assert np.array_equal(array.view(np.int16), every.view(torch.int16).numpy())


def test_arrays_are_views_in_order() -> None:
    weights = [tensor(4, 4, seed=seed) for seed in range(3)]
    found = list(arrays((str(number), weight) for number, weight in enumerate(weights)))
    for weight, array in zip(weights, found, strict=True):
        assert array.ctypes.data == weight.data_ptr()
    assert list(arrays([])) == []


class Parted(torch.Tensor):
    """What sets a DTensor apart."""

    def full_tensor(self) -> torch.Tensor:
        return torch.Tensor(self)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones((4, 4)), "tensor must be a tensor, not ndarray; for arrays use nmflow.solve"),
        (torch.ones(4, 4).to_sparse(), "tensor must be a dense tensor, not torch.sparse_coo of torch.float32"),
        (torch.ones(4, 4, device="meta"), "tensor must have data, not be on the meta device"),
        (
            Parted(torch.ones(4, 4)),
            r"tensor must be whole, not a Parted, of which each rank has a part; use \.full_tensor",
        ),
        (torch.ones(4, 4, dtype=torch.float8_e4m3fn), "tensor must have a dtype that NumPy can hold, not torch.float8"),
        (
            torch.ones(4, 4, dtype=torch.cfloat).conj(),
            "tensor must have a dtype that NumPy can hold, not torch.complex64",
        ),
    ],
    ids=["array", "sparse", "meta", "parted", "float8", "complex"],
)
def test_tensors_that_cannot_be_read(bad: Any, message: str) -> None:
    with pytest.raises((InputTypeError, InputValueError), match=message):
        nt.mask_for(bad, 2, 4)


# pruning


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prune_keeps_bits_and_drops_to_positive_zero(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    with torch.no_grad():
        model[3].weight[:4, :4] = -0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight", "3.weight"]
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[torch.empty(0, dtype=dtype).element_size()]
    for layer in report.layers:
        old, new = before[layer.name], model.state_dict()[layer.name]
        solution = nmflow.solve(to_array(old), 2, 4, layout=layer.layout, groups=2 if layer.name == "0.weight" else 1)
        kept = torch.from_numpy(solution.mask.copy())
        assert torch.equal(new.view(whole)[kept], old.view(whole)[kept])
        assert not new.view(whole)[~kept].any()
        assert (layer.kept, layer.gap, layer.proven) == (solution.objective, 0.0, True)
        assert layer.dense == pytest.approx(float(old.double().abs().sum()))
        assert (layer.shape, layer.density) == (tuple(old.shape), float(kept.double().mean()))
    for name in before.keys() - {layer.name for layer in report.layers}:
        assert torch.equal(before[name], model.state_dict()[name])


def test_report_prints_as_a_table_and_packs_to_json() -> None:
    report = nt.prune_(network(), pattern="2:4", exclude=["2"])
    text = str(report)
    assert text.splitlines()[0].split() == [
        "2:4",
        "by",
        "dual",
        "shape",
        "kept",
        "score",
        "density",
        "gap",
        "proven",
        "blocks",
    ]
    assert "3.weight" in text
    assert "excluded by '2'" in text
    assert repr(report) == "<PruneReport 2:4: 2 pruned, 4 skipped>"
    packed = json.loads(json.dumps(report.to_dict()))
    assert packed["proven"] is True
    assert packed["kept_percent"] == pytest.approx(report.kept_percent)
    assert {"name": "5.weight", "reason": dict(report.skipped)["5.weight"]} in packed["skipped"]


def test_adapters_are_taken_by_name_only() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(16, 16)
            self.lora_A, self.lora_B = (nn.ModuleDict({"default": nn.Linear(*size)}) for size in ((16, 8), (8, 16)))

    report = nt.prune_(Adapted(), 2, 4)
    assert [layer.name for layer in report.layers] == ["base_layer.weight"]
    assert dict(report.skipped)["lora_A.default.weight"] == "adapter; name it in include to prune it"
    report = nt.prune_(Adapted(), 2, 4, include=["lora_*"])
    assert [layer.name for layer in report.layers] == ["lora_A.default.weight", "lora_B.default.weight"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_head", "output head"),
        ("gpt.embed_out", "output head"),
        ("decoder.lm_heads.0", "output head"),
        ("cls.predictions.decoder", "output head"),
        ("proj.oft_R.default", "adapter"),
        ("prompt_encoder.default.mlp_head.0", "adapter"),
        ("proj.lily_A.default", "adapter"),
        ("proj.peanut_encoders.default.0", "adapter"),
        ("proj.shadow_up.default", "adapter"),
        ("proj.lora.down", "adapter"),
        ("score.original_module", "kept aside by PEFT"),
    ],
)
def test_what_is_taken_by_name_only(name: str, reason: str) -> None:
    model = nn.Module()
    place = model
    *path, last = name.split(".")
    for part in path:
        place.add_module(part, nn.Module())
        place = place.get_submodule(part)
    place.add_module(last, nn.Linear(16, 16))
    model.add_module("other", nn.Linear(16, 16))
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["other.weight"]
    assert dict(report.skipped)[f"{name}.weight"] == f"{reason}; name it in include to prune it"
    assert [layer.name for layer in nt.prune_(model, 2, 4, include=[f"*{last}*"]).layers] == [f"{name}.weight"]


@pytest.mark.parametrize(
    "kind", ["StdConv2d", "ScaledStdConv2dSame", "WeightStandardizedConv2d", "WeightStandardisedConv2d", "ConvAWS2d"]
)
def test_a_convolution_that_standardises_its_weight_is_taken_by_name_only(kind: str) -> None:
    """It subtracts the mean of what is stored, so that what it multiplies by keeps no pattern. So do classes of it."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), type("Own", (type(kind, (nn.Conv2d,), {}),), {})(8, 8, 3))
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["0.weight"]
    reason = "convolution that standardises its weight, and so uses no zeros of it; name it in include to prune it"
    assert report.skipped == (("1.weight", reason),)
    assert [layer.name for layer in nt.prune_(model, 2, 4, include=["1*"]).layers] == ["1.weight"]
    linear = type("StdLinear", (nn.Linear,), {})(8, 8)  # only of convolutions is this known
    assert [layer.name for layer in nt.prune_(linear, 2, 4).layers] == ["weight"]


def test_reasons() -> None:
    model = network()
    model.add_module("normed", parametrizations.weight_norm(nn.Linear(8, 8)))
    model.add_module("lazy", nn.LazyLinear(8))
    model.add_module("meta", nn.Linear(8, 8, device="meta"))
    model.add_module("empty", nn.Linear(8, 8))
    model.empty.weight = nn.Parameter(torch.ones(8, 0))
    model.add_module("byte", nn.Linear(8, 8).requires_grad_(False))
    model.byte.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    model.add_module("wide", nn.Linear(8, 8))
    model.wide.weight = nn.Parameter(torch.ones(1, 8).expand(8, 8))
    model.add_module("packed", nn.Linear(8, 8))
    model.packed.weight = type("Params4bit", (nn.Parameter,), {})(torch.ones(8, 8))  # as bitsandbytes'
    model.add_module("sparse", nn.Linear(8, 8))
    model.sparse.weight = nn.Parameter(torch.eye(8).to_sparse())
    with torch.inference_mode():
        model.add_module("frozen", nn.Linear(8, 8))
    reasons = dict(nt.prune_(model, 2, 4).skipped)
    other = "in a Embedding, not a Linear, Conv1d or Conv2d; give its plain name in include, or a filter_fn"
    assert reasons == {
        "1.weight": "depthwise convolution; name it in include to prune it",
        "5.weight": other,
        "6.weight": "2 x 24, smaller than a block of 4 x 4",
        "normed.weight": "computed, not a parameter of the module",
        **{
            f"normed.parametrizations.weight.original{i}": other.replace("Embedding", "ParametrizationList")
            for i in (0, 1)
        },
        "lazy.weight": "not initialised yet; run the model once first",
        "meta.weight": "on the meta device, without data",
        "empty.weight": "empty",
        "byte.weight": "dtype torch.int8",
        "wide.weight": "cannot be written in place (an inference or expanded tensor)",
        "packed.weight": "a Params4bit of layout torch.strided, not a dense parameter",
        "sparse.weight": "a Parameter of layout torch.sparse_coo, not a dense parameter",
        "frozen.weight": "cannot be written in place (an inference or expanded tensor)",
    }


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"include": ["3"]}, ["3.weight"]),
        ({"include": ["3.weight", "0.*"]}, ["0.weight", "3.weight"]),
        ({"include": ["1"]}, ["1.weight"]),
        ({"include": ["[13]"]}, ["1.weight", "3.weight"]),
        ({"include": ["5"]}, ["5.weight"]),
        ({"include": ["*"]}, ["0.weight", "2.weight", "3.weight"]),
        ({"include": ["*"], "exclude": ["0", "2.weight"]}, ["3.weight"]),
        ({"include": ["6.weight"]}, ["6.weight"]),
        ({"exclude": ["0"]}, ["2.weight", "3.weight"]),
        ({"filter_fn": lambda name, module: isinstance(module, nn.Linear)}, ["3.weight"]),
        (
            {"filter_fn": lambda name, module: isinstance(module, nn.Embedding) or None},
            ["0.weight", "2.weight", "3.weight", "5.weight"],
        ),
        ({"filter_fn": lambda name, module: name in ("1", "5"), "exclude": ["5"]}, ["1.weight"]),
        ({"filter_fn": lambda name, module: bool(name), "include": ["[15]*"]}, ["1.weight", "5.weight"]),
    ],
)
def test_selection(options: dict[str, Any], taken: list[str]) -> None:
    assert [layer.name for layer in nt.prune_(network(), 2, 4, **options).layers] == taken


def test_a_model_says_what_its_output_head_is() -> None:
    """As RWKV and GIT do, where no name tells."""

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 16)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    class Vision(nn.Module):
        def get_output_embeddings(self) -> nn.Module:
            raise NotImplementedError

    model = nn.Sequential(Language(), Vision())
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["0.body.weight"]
    assert dict(report.skipped) == {"0.head.weight": "output head; name it in include to prune it"}
    assert [layer.name for layer in nt.prune_(model, 2, 4, include=["*head"]).layers] == ["0.head.weight"]


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"exclude": ["a"]}, ["b.weight"]),
        ({"exclude": ["a.inner", "b"]}, ["a.fc.weight"]),
        ({"exclude": ["?.inner"]}, ["a.fc.weight", "b.weight"]),
        ({"include": ["a"]}, ["a.fc.weight", "a.inner.0.weight"]),
        ({"include": ["a.inner", "b"]}, ["a.inner.0.weight", "b.weight"]),
        ({"include": ["a"], "exclude": ["a.inner"]}, ["a.fc.weight"]),
        ({"include": ["a", "a.inner.lm_head"]}, ["a.fc.weight", "a.inner.0.weight", "a.inner.lm_head.weight"]),
        ({"filter_fn": lambda name, module: isinstance(module, nn.Linear), "exclude": ["a.inner"]},
         ["a.fc.weight", "b.weight"]),
    ],
)  # fmt: skip
def test_a_module_stands_for_all_that_is_in_it(options: dict[str, Any], taken: list[str]) -> None:
    inner = nn.Sequential(nn.Linear(8, 8))
    inner.add_module("lm_head", nn.Linear(8, 8))
    model = nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(8, 8), "inner": inner}), "b": nn.Linear(8, 8)})
    assert sorted(layer.name for layer in nt.prune_(model, 2, 4, **options).layers) == taken


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1", "it has no parameter of two axes or more"),
        ("0.bias", "it has no parameter of two axes or more"),
        ("2.weight", "on the meta device, without data"),
        ("2", "on the meta device, without data"),
        ("3", "computed, not a parameter of the module"),
        ("4", "in a Embedding, not a Linear, Conv1d or Conv2d"),
    ],
)
def test_what_is_named_is_pruned_or_nothing_is(name: str, reason: str) -> None:
    inner = nn.Sequential(nn.Embedding(8, 8))
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8, device="meta"), normed, inner)
    before = model[0].weight.detach().clone()
    with pytest.raises(InputValueError, match=f"include must name what 2:4 can prune, and '{name}' is not: {reason}"):
        nt.prune_(model, 2, 4, include=["0.weight", name])
    assert torch.equal(model[0].weight, before)
    assert len(nt.prune_(model, 2, 4, include=["0.weight", name], exclude=["[1-9]*", "0.bias"]).layers) == 1


def test_parts_of_sharded_weights_are_listed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight = nn.Parameter(torch.ones(32))
    reason = "of shape (32,), not a matrix; where a model is sharded, a rank holds a part of it"
    assert nt.prune_(model, 2, 4).skipped == (("0.weight", reason),)


def test_other_modules_and_their_layouts() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(tensor(3, 8, 8))
            self.bias = nn.Parameter(tensor(8))

    model = nn.ModuleDict(
        {"conv": nn.Conv3d(4, 8, 3, groups=2), "up": nn.ConvTranspose2d(8, 4, 3), "experts": Experts()}
    )
    layers = select(model, nmflow.Pattern(2, 4), filter_fn=lambda name, module: True).layers
    assert [(layer.name, layer.layout, layer.groups) for layer in layers] == [
        ("conv.weight", "conv", 2),
        ("up.weight", "conv", 1),
        ("experts.stack", "batch", 1),
    ]
    assert nt.prune_(model, 2, 4, filter_fn=lambda name, module: True).proven


def test_shared_parameters_are_masked_once_and_stay_shared() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    model["c"].weight = nn.Parameter(model["a"].weight.detach())  # the same memory
    (layer,) = nt.prune_(model, 2, 4, include=["b*"]).layers
    assert (layer.name, layer.also) == ("a.weight", ("b.weight", "c.weight"))
    assert model["a"].weight is model["b"].weight
    assert int((model["c"].weight != 0).sum()) == 32


def test_parameters_that_overlap_in_memory_are_masked_once() -> None:
    """A transpose and parts of a matrix; columns of one lie between each other, and have nothing in common."""
    whole = tensor(24, 8)
    model = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in ("a", "b", "c", "d", "e")})
    model["b"].weight = nn.Parameter(model["a"].weight.detach().t())
    qkv = nn.Linear(8, 24, bias=False)
    qkv.weight = nn.Parameter(whole)
    for name, part in zip("cde", whole.split(8), strict=True):
        model[name].weight = nn.Parameter(part)
    model["qkv"] = qkv
    columns = tensor(8, 16)
    model["left"], model["right"] = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    model["left"].weight, model["right"].weight = nn.Parameter(columns[:, :8]), nn.Parameter(columns[:, 8:])
    model["narrow"] = nn.Linear(8, 16, bias=False)
    model["narrow"].weight = nn.Parameter(model["left"].weight.detach()[:4].view(torch.bfloat16)[:, :16])
    report = nt.prune_(model, 2, 4)
    assert [layer.name[0] for layer in report.layers] == ["a", "c", "d", "e", "l", "r"]
    assert dict(report.skipped) == {
        "b.weight": "has entries in common with a.weight, which gets a mask",
        "qkv.weight": "has entries in common with c.weight, which gets a mask",
        "narrow.weight": "has entries in common with left.weight, which gets a mask",
    }
    assert int((model["a"].weight != 0).sum()) == 32
    assert int((qkv.weight != 0).sum()) == 96


class Adapted(nn.Linear):
    """A Linear with more matrices of its own."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.lora, self.gain = nn.Parameter(tensor(8, 8)), nn.Parameter(tensor(8))


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, ["0.weight"]),
        ({"include": ["0.*"]}, ["0.weight"]),
        ({"include": ["0.lora"]}, ["0.lora"]),
        ({"include": ["0.lora", "0.weight"]}, ["0.lora", "0.weight"]),
        ({"include": ["0"]}, ["0.lora", "0.weight"]),
        ({"filter_fn": lambda name, module: isinstance(module, nn.Linear)}, ["0.lora", "0.weight"]),
    ],
)
def test_other_matrices_of_a_linear(options: dict[str, Any], taken: list[str]) -> None:
    report = nt.prune_(nn.Sequential(Adapted()), 2, 4, **options)
    assert sorted(layer.name for layer in report.layers) == taken
    if options in ({}, {"include": ["0.*"]}):
        reason = "not the weight of its Adapted; give its plain name in include, or a filter_fn"
        assert dict(report.skipped) == {"0.lora": reason}


def test_weights_tied_to_an_embedding_are_left_unless_named() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(16, 8), "head": nn.Linear(8, 16, bias=False), "other": nn.Linear(8, 8)}
    )
    model["head"].weight = model["embed"].weight
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["other.weight"]
    assert "in a Embedding" in dict(report.skipped)["embed.weight"]
    assert [layer.name for layer in nt.prune_(model, 2, 4, include=["head"]).layers] == ["embed.weight"]


@pytest.mark.parametrize("kind", ["mapping", "callable"])
def test_scores(kind: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    scores, old = tensor(8, 8, seed=3).abs(), model[1].weight.detach().clone()
    given: Any = {"0.weight": scores}
    if kind == "callable":
        given = lambda name, module: scores if module is model[0] else None  # noqa: E731
    report = nt.prune_(model, 2, 4, scores=given)
    assert torch.equal(model[0].weight != 0, nt.mask_for(scores, 2, 4))
    assert torch.equal(model[1].weight != 0, nt.mask_for(old, 2, 4))
    assert report.layers[0].dense == pytest.approx(float(scores.double().sum()))


def test_fill_and_solver_are_passed_on() -> None:
    report = nt.prune_(nn.Linear(8, 8), 2, 4, fill="at-most", solver="enumerate")
    assert (report.pattern, report.solver, report.proven) == ("2:4 at-most", "enumerate", True)
    report = nt.prune_(nn.Linear(16, 16), 4, 8, solver="greedy")
    assert report.solver == "greedy"
    assert report.layers[0].gap > 0
    assert not report.proven


def test_compiled_and_parallel_models_are_known_by_their_own_names() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses torch.jit as it is imported
        compiled = torch.compile(nn.DataParallel(model))
    assert nt.prune_(compiled, 2, 4, include=["0"]).layers[0].name == "0.weight"
    assert int((model[0].weight != 0).sum()) == 32


# bad input: an error by its message, and a model as it was


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "3"}, InputTypeError, r"include must be a list of globs, not the text '3'; write \['3'\]"),
        ({"exclude": "3"}, InputTypeError, "exclude must be a list of globs"),
        ({"include": ["nothing*"]}, InputValueError, r"include must match the name of .*, not 'nothing\*'; names here"),
        ({"exclude": ["nothing"]}, InputValueError, "exclude must match the name of a parameter or module"),
        ({"filter_fn": lambda n, m: 1}, InputTypeError, "filter_fn must answer True, False or None, not 1 for ''"),
        ({"strict": True}, InputValueError, "strict=True needs whole blocks of 4 x 4, and '6.weight' is 2 x 24"),
        (
            {"scores": {"9.weight": torch.ones(1)}},
            InputValueError,
            "scores must be named like .* not '9.weight'",
        ),
        (
            {"scores": {"3.weight": torch.ones(3, 3)}},
            InputValueError,
            "3.weight: scores must have the shape",
        ),
        ({"scores": {"3.weight": [1.0]}}, InputTypeError, "scores of 3.weight must be a tensor, not list"),
        (
            {"scores": "wanda"},
            InputTypeError,
            "scores must be a mapping from .*, or a callable, not 'wanda'",
        ),
        (
            {"scores": {"3.weight": torch.full((24, 32), float("nan"))}},
            NonFiniteError,
            "3.weight: scores must be",
        ),
        ({"solver": "magic"}, UnknownSolverError, "solver must be one of"),
        ({"fill": "half"}, PatternError, 'fill must be "exact" or "at-most"'),
        ({"threads": 0}, InputValueError, "threads must be a whole number of at least 1"),
    ],
)
def test_errors_leave_the_model_as_it_was(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    before = bits(model)
    with pytest.raises(error, match=message):
        nt.prune_(model, 2, 4, **options)
    assert bits(model) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_weight_in_the_last_layer_spares_the_first(value: float) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[3, 5] = value
    before = bits(model)
    with pytest.raises(NonFiniteError, match=r"3\.weight: weights must be finite") as caught:
        nt.prune_(model, 2, 4)
    assert (caught.value.count, caught.value.first) == (1, (3, 5))
    assert bits(model) == before


@pytest.mark.parametrize("prune", [nt.prune_, nt.from_unstructured_])
def test_an_interrupt_while_zeros_are_written_leaves_the_model_pruned_whole(
    prune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = network(), network()
    prune(whole, 2, 4)
    calls, written = [], torch.Tensor.masked_fill_

    def masked_fill_(self: torch.Tensor, *args: Any) -> torch.Tensor:
        calls.append(self)
        if len(calls) in (2, 4):  # one more comes while the rest is written
            raise KeyboardInterrupt
        return written(self, *args)

    monkeypatch.setattr(torch.Tensor, "masked_fill_", masked_fill_)
    with pytest.raises(KeyboardInterrupt):
        prune(model, 2, 4)
    assert len(calls) > 4
    assert bits(model) == bits(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 2)),
            "model must have a layer that 2:4 can prune; seen: 0.weight: 2 x 3",
        ),
        (lambda: nn.ReLU(), "seen: no parameter of two axes or more"),
        (lambda: nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)]), "; and 8 more"),
    ],
    ids=["small", "none", "many"],
)
def test_no_eligible_layer(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputValueError, match=message):
        nt.prune_(make(), 2, 4)


def test_not_a_model() -> None:
    with pytest.raises(InputTypeError, match=r"model must be a torch.nn.Module, not Tensor"):
        nt.prune_(torch.ones(4, 4), 2, 4)  # type: ignore[arg-type]


# the library itself


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("sys.modules['torch'] = None", 'not installed; pip install "nmflow[torch]"'),
        ("sys.modules['torch'] = types.SimpleNamespace(__version__='2.4.1+cu121')", "2.5 or newer, not 2.4.1+cu121"),
    ],
    ids=["missing", "old"],
)
def test_torch_is_asked_for_by_name(setup: str, message: str) -> None:
    code = f"import sys, types\n{setup}\ntry:\n    import nmflow.torch\nexcept ImportError as e:\n    print(repr(e))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingLibraryError('nmflow.torch needs torch 2.5 or newer")
    assert message in done.stdout


# recipes of docs/torch.md


def test_recipe_custom_from_mask() -> None:
    layer = nn.Linear(16, 16)
    weight = layer.weight.detach().clone()
    prune.custom_from_mask(layer, "weight", mask=nt.mask_for(layer.weight, 2, 4))
    assert torch.equal(layer.weight != 0, nt.mask_for(weight, 2, 4))
    prune.remove(layer, "weight")
    assert torch.equal(layer.weight != 0, nt.mask_for(weight, 2, 4))


def test_recipe_apex_mask_calculator() -> None:
    """apex is not on PyPI: its ASP calls ``mask_calculator(parameter)`` and takes the answer as a mask of it."""

    def mask_calculator(weight: torch.Tensor) -> torch.Tensor:
        return nt.mask_for(weight, 2, 4, layout="conv" if weight.ndim > 2 else None)

    for layer in (nn.Linear(16, 32), nn.Conv2d(16, 16, 3)):
        mask = torch.ones_like(layer.weight).bool()
        mask.set_(mask_calculator(layer.weight))
        assert mask.shape == layer.weight.shape
        assert float(mask.float().mean()) == 0.5


# sparse kernels


def test_semi_structured_verifies_and_explains() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "good": nn.Linear(64, 128),
            "dense": nn.Linear(64, 64),
            "small": nn.Linear(32, 64),
            "conv": nn.Conv2d(64, 64, 1),
        }
    ).to(torch.bfloat16)
    model["wrong"] = nn.Linear(64, 64)
    nt.prune_(model, 2, 4, exclude=["dense"])
    before = bits(model)
    report = nt.to_semi_structured_(model)
    reasons = dict(report.skipped)
    assert (report.converted, report.verified) == ((), ("good.weight",))
    assert "not 2:4 in rows and columns: at least" in reasons["dense.weight"]
    assert "64 x 32: rows must be a multiple of 64 and columns of 64" in reasons["small.weight"]
    assert "torch multiplies semi-structured tensors in Linear layers only" in reasons["conv.weight"]
    assert "the two-way kernels take float16 and bfloat16" in reasons["wrong.weight"]
    assert "stays dense" in str(report)
    assert repr(report) == "<SemiReport: 0 converted, 1 verified, 4 skipped>"
    assert bits(model) == before


def test_semi_structured_names_a_weight_that_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(64, 64, dtype=torch.float16))
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"0\.weight: weights must be finite"):
        nt.to_semi_structured_(model)


def test_semi_structured_keeps_negative_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.where(nt.mask_for(tensor(64, 64).half(), 2, 4), tensor(64, 64, seed=1).half(), 0.0)
    weight[(weight != 0) & (tensor(64, 64, seed=2) > 0)] = -0.0
    model, packed = nn.Linear(64, 64, bias=False).half(), []
    model.weight = nn.Parameter(weight)
    whole = nt.semi_structured

    def noted(weight: Any, mask: Any, **options: Any) -> torch.Tensor:
        packed.append(whole(weight, mask, **options))
        return packed[-1]

    monkeypatch.setattr("nmflow.torch.semi.semi_structured", noted)
    assert nt.to_semi_structured_(model).verified == ("weight",)
    assert torch.equal(packed[0].to_dense().view(torch.int16), weight.view(torch.int16))


def test_semi_structured_finds_every_corrupted_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(64, 64).half()
    nt.prune_(model, 2, 4)
    whole = nt.semi_structured

    def swapped(weight: Any, mask: Any, **options: Any) -> torch.Tensor:
        return whole(-weight, mask, **options)

    monkeypatch.setattr("nmflow.torch.semi.semi_structured", swapped)
    with pytest.raises(AssertionError, match="packed and unpacked, the weight is not what it was"):
        nt.to_semi_structured_(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    weight = tensor(256, 256, dtype=torch.float16).cuda()
    mask = nt.mask_for(weight, 2, 4)
    assert mask.device == weight.device
    best = nmflow.solve(weight.cpu().float().numpy(), 2, 4)  # float16 repeats: several masks are best
    assert (weight.abs() * mask).sum(dtype=torch.float64).item() == pytest.approx(best.objective, rel=1e-12)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).half().cuda()
    nt.prune_(model, 2, 4)
    inputs = tensor(64, 256, dtype=torch.float16, seed=1).cuda()
    dense = model(inputs)
    report = nt.to_semi_structured_(model)
    assert len(report.converted) == 2, str(report)
    assert torch.allclose(model(inputs), dense, atol=1e-2)


def test_a_pattern_of_rows_alone_has_blocks_of_one_row() -> None:
    rows = nmflow.Pattern(2, 4, transposable=False)
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 8), nn.Linear(8, 1))
    report = nt.prune_(model, pattern=rows)
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight"]
    assert dict(report.skipped)["1.weight"] == "8 x 3, smaller than a block of 1 x 4"
    nt.prune_(nn.Linear(8, 3), pattern=rows, strict=True)
    with pytest.raises(InputValueError, match="strict=True needs whole blocks of 1 x 4, and 'weight' is 4 x 6"):
        nt.prune_(nn.Linear(6, 4), pattern=rows, strict=True)


def test_what_torch_masked_itself_is_told_how_to_free() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    prune.l1_unstructured(model[0], "weight", 0.5)
    report = nt.prune_(model, 2, 4)
    assert dict(report.skipped)["0.weight"].startswith("computed by torch.nn.utils.prune; call its remove(module, 'w")
    prune.remove(model[0], "weight")
    assert len(nt.prune_(model, 2, 4).layers) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_spectral_norm_is_not_taken_for_a_mask_of_torch() -> None:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    assert dict(nt.prune_(model, 2, 4).skipped)["0.weight"] == "computed, not a parameter of the module"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_direction_under_weight_normalisation_is_taken_by_its_name() -> None:
    """By either of torch's two ways; nothing said that there is one by the older, and its name was no parameter's."""
    older, newer = nn.utils.weight_norm(nn.Linear(8, 8)), parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.ModuleDict({"older": older, "newer": newer, "other": nn.Linear(8, 8)})
    names = ["older.weight_v", "newer.parametrizations.weight.original1"]
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["other.weight"]
    assert all("give its plain name in include" in dict(report.skipped)[name] for name in names)
    report = nt.prune_(model, 2, 4, include=names)
    assert [layer.name for layer in report.layers] == names
    assert all(int((module(torch.eye(8)) - module.bias).count_nonzero()) == 32 for module in (older, newer))
    reasons = dict(nt.to_semi_structured_(model, include=names).skipped)
    assert reasons["older.weight_v"].startswith("not the weight of its Linear")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_is_scripted_is_left_alone() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Conv2d(8, 8, 4), torch.ones(1, 8, 4, 4)), nn.Linear(8, 8))
    report = nt.prune_(model, 2, 4, filter_fn=lambda name, module: True)
    assert [layer.name for layer in report.layers] == ["1.weight"]
    assert dict(report.skipped)["0.weight"].startswith("scripted or traced, so that its type cannot be told; prune")
    nt.SparseTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), 2, 4).finish()
    with pytest.raises(InputValueError, match="include must name what 2:4 can prune, and '0' is not: scripted or tra"):
        nt.prune_(model, 2, 4, include=["0", "1"])


def test_what_is_said_of_any_name_of_a_shared_weight_counts() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert [layer.name for layer in select(model, nmflow.Pattern(2, 4), exclude=["1.weight"]).layers] == ["2.weight"]
    for rows in (8, 2):
        tied = nn.Sequential(nn.Embedding(rows, 8), nn.Linear(8, rows))
        tied[1].weight = tied[0].weight
        assert [layer.name for layer in select(tied, nmflow.Pattern(2, 4), include=["1.weight"]).layers] == ["0.weight"]


def test_scores_by_the_second_name_of_a_shared_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    scores = torch.rand(8, 8, generator=torch.Generator().manual_seed(1))
    wanted = torch.from_numpy(nmflow.solve(scores.numpy(), 2, 4).mask)
    nt.prune_(model, 2, 4, scores={"1.weight": scores})
    assert torch.equal(model[0].weight != 0, wanted)


def test_an_axis_of_one_may_have_any_stride() -> None:
    model = nn.Conv2d(8, 8, 1)
    model.weight = nn.Parameter(torch.randn(64).as_strided((8, 8, 1, 1), (8, 1, 0, 0)))
    assert [layer.name for layer in select(model, nmflow.Pattern(2, 4)).layers] == ["weight"]


def test_a_weight_asked_for_under_its_second_name_is_taken_whatever_holds_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(8, 8))
    model[1].weight = model[0].weight
    assert [layer.name for layer in select(model, nmflow.Pattern(2, 4), include=["1.weight"]).layers] == ["0.weight"]


def test_what_is_named_and_left_out_by_the_caller_is_no_error() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    options = {"include": ["0.weight", "1.weight"], "filter_fn": lambda name, module: False if name == "0" else None}
    assert [layer.name for layer in select(model, nmflow.Pattern(2, 4), **options).layers] == ["1.weight"]


def test_a_convolution_of_one_channel_is_not_depthwise() -> None:
    assert [layer.name for layer in nt.prune_(nn.Conv2d(1, 8, 3), 2, 4).layers] == ["weight"]


def test_what_has_no_memory_is_not_shared() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8, device="meta") for _ in range(2)), nn.Linear(8, 8))
    for _ in range(2):
        model.append(nn.Linear(8, 8))
        model[-1].weight = nn.Parameter(torch.ones(8, 0))
    assert [name for name, _ in nt.prune_(model, 2, 4).skipped] == [f"{number}.weight" for number in (0, 1, 3, 4)]


def test_a_conv1d_of_anybody_else_is_no_turned_linear() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(tensor(8, 8))

    model = nn.Sequential(Conv1D(), nn.Linear(8, 8))
    assert dict(nt.prune_(model, 2, 4).skipped)["0.weight"].startswith("in a Conv1D, not a Linear, Conv1d or Conv2d")
    model[1].nf = 8
    layers = select(model, nmflow.Pattern(2, 4), include=["0.weight", "1.weight"]).layers
    assert [layer.turned for layer in layers] == [False, False]


def test_other_matrices_of_a_convolution() -> None:
    for kind, groups in (("Depthwise", 8), ("StdConv2d", 1)):
        convolution = type(kind, (nn.Conv2d,), {})(8, 8, 3, groups=groups)
        convolution.lora = nn.Parameter(tensor(8, 8))
        model = nn.Sequential(convolution)
        assert [layer.name for layer in nt.prune_(model, 2, 4, include=["0.*"]).layers] == ["0.weight"]
        (layer,) = nt.prune_(model, 2, 4, include=["0.lora"]).layers
        assert (layer.name, layer.layout) == ("0.lora", None)


def test_a_weight_that_is_seen_in_another_dtype_too_is_not_shared() -> None:
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.float16), nn.Linear(8, 8))
    model[1].weight = nn.Parameter(model[0].weight.detach().view(torch.bfloat16))
    report = nt.prune_(model, 2, 4)
    assert report.skipped == (("1.weight", "has entries in common with 0.weight, which gets a mask"),)
