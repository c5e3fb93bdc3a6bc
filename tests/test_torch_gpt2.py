"""The Conv1D of transformers, a Linear whose weight is the other way round: what is done to both is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmflow
import nmflow.torch as nt
from nmflow.torch.select import select

transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers


def pair() -> tuple[nn.Sequential, nn.Sequential, list[torch.Tensor]]:
    """The same network with Conv1D and with Linear."""
    torch.manual_seed(0)
    turned = nn.Sequential(
        transformers.pytorch_utils.Conv1D(32, 16), nn.ReLU(), transformers.pytorch_utils.Conv1D(16, 32)
    )
    for layer in (turned[0], turned[2]):
        nn.init.normal_(layer.weight)
    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    plain.load_state_dict(
        {name: value.T.clone() if value.ndim == 2 else value for name, value in turned.state_dict().items()}
    )
    return turned, plain, [torch.randn(4, 5, 16) for _ in range(3)]


METHODS: dict[str, Callable[[nn.Module, list[torch.Tensor]], Any]] = {
    "prune_": lambda model, batches: nt.prune_(model, 2, 4),
    "wanda": lambda model, batches: nt.prune_(model, 2, 4, scores=nt.calibrate(model, batches).scores("wanda")),
    "sparsegpt_": lambda model, batches: nt.sparsegpt_(model, batches, 2, 4),
    "alps_": lambda model, batches: nt.alps_(model, batches, 2, 4),
    "adaprune_": lambda model, batches: nt.adaprune_(model, batches, 2, 4, scores="obs"),
    "not sequential": lambda model, batches: nt.adaprune_(model, batches, 2, 4, sequential=False),
    "from_unstructured_": lambda model, batches: nt.from_unstructured_(model, 2, 4),
}


@pytest.mark.parametrize("name", METHODS)
def test_both_are_pruned_alike(name: str) -> None:
    turned, plain, batches = pair()
    reports = [METHODS[name](model, batches) for model in (turned, plain)]
    for k in (0, 2):
        torch.testing.assert_close(turned[k].weight.T, plain[k].weight)
        torch.testing.assert_close(turned[k].bias, plain[k].bias)
        assert torch.equal(turned[k].weight.T != 0, plain[k].weight != 0)
    one, other = ([(layer.kept, layer.n_blocks, layer.n_proven) for layer in report.layers] for report in reports)
    assert np.allclose(one, other)


def test_both_are_trained_alike() -> None:
    turned, plain, batches = pair()
    for model in (turned, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = nt.SparseTraining(model, optimizer, 2, 4, every=2)
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        training.finish()
    for k in (0, 2):
        torch.testing.assert_close(turned[k].weight.T, plain[k].weight)


def test_patterns_that_are_not_the_same_both_ways_leave_it_alone() -> None:
    model = nn.Sequential(pair()[0][0], nn.Linear(32, 16))
    report = nt.prune_(model, pattern=nmflow.Pattern(2, 4, transposable=False))
    assert dict(report.skipped)["0.weight"] == (
        "in a Conv1D, which keeps its weight the other way round: 2:4 rows only must be the same along both"
    )


def test_another_matrix_of_it_may_be_of_any_pattern() -> None:
    model = nn.Sequential(pair()[0][0])
    model[0].lora = nn.Parameter(torch.randn(8, 8))
    report = nt.prune_(model, pattern=nmflow.Pattern(2, 4, transposable=False), include=["0.lora"])
    assert [layer.name for layer in report.layers] == ["0.lora"]


def test_a_weight_that_a_linear_shares_is_not_turned() -> None:
    model = nn.ModuleDict({"turned": transformers.pytorch_utils.Conv1D(16, 16), "plain": nn.Linear(16, 16)})
    assert [layer.turned for layer in select(model, nmflow.Pattern(2, 4)).layers] == [True, False]
    model["plain"].weight = model["turned"].weight
    (layer,) = select(model, nmflow.Pattern(2, 4)).layers
    assert layer.also == ("plain.weight",)
    assert not layer.turned


def test_gpt2() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 50, (4, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    errors = []
    with torch.no_grad():
        dense = model(**batch).logits
        for prune in (lambda one: nt.sparsegpt_(one, [batch], 2, 4), lambda one: nt.prune_(one, 2, 4)):
            pruned = copy.deepcopy(model)
            report = prune(pruned)
            assert len(report.layers) == 8
            assert report.proven
            errors.append(float((pruned(**batch).logits - dense).norm()))
            for name, weight in pruned.named_parameters():
                if name in {layer.name for layer in report.layers}:
                    mask = (weight != 0).numpy()
                    assert nmflow.certify(np.ones(mask.shape), mask, 2, 4).feasible
    assert errors[0] < errors[1]
