"""Mixtures of experts: taken apart, what they compute is the same, and each is calibrated and pruned for itself."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import nmflow
import nmflow.torch as nt
from nmflow.cli import app
from nmflow.errors import InputValueError
from nmflow.pattern import Pattern
from nmflow.torch.experts import ExpertLinear
from nmflow.torch.model_folder import prune_folder

transformers = pytest.importorskip("transformers", reason="needs transformers")
import tokenizers  # noqa: E402  comes with it
from safetensors.torch import load_file, save_file  # noqa: E402  comes with it

if not hasattr(transformers, "GptOssConfig") or int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("needs transformers 5, which keeps experts in one parameter", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers

WORDS = [f"word{number}" for number in range(30)]
SIZES: dict[str, Any] = {
    "vocab_size": 5 + len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip


def mixture(kind: str) -> nn.Module:
    """A small model with random weights: experts apart in its file, under other names, in one tensor, or turned, too.

    Llama 4 has a layer that all tokens go through beside the experts.
    """
    torch.manual_seed(0)
    if kind == "qwen":
        sizes = SIZES | {"head_dim": 8, "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 6}
        model: nn.Module = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes))
    elif kind == "mixtral":
        sizes = SIZES | {"intermediate_size": 24, "num_local_experts": 6}
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    elif kind == "granite":
        sizes = SIZES | {"intermediate_size": 24, "num_local_experts": 6}
        model = transformers.GraniteMoeForCausalLM(transformers.GraniteMoeConfig(**sizes))
    elif kind == "llama4":
        sizes = SIZES | {"head_dim": 8, "intermediate_size": 24, "intermediate_size_mlp": 24, "num_local_experts": 6}
        sizes |= {"interleave_moe_layer_step": 1, "num_experts_per_tok": 1}
        model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**sizes))
    else:
        sizes = SIZES | {"head_dim": 8, "intermediate_size": 32, "num_local_experts": 6}
        model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**sizes))
    for name, parameter in model.named_parameters():
        if "experts" in name:  # some begin as zeros, or uninitialised
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


TURNED = ("gpt-oss", "llama4")
"""Kinds whose files hold the matrices of all experts in one tensor, as (in, out)."""
TOGETHER = (*TURNED, "granite")
"""Kinds whose files hold them in one tensor."""


def name_of_experts(model: nn.Module) -> str:
    (name,) = [
        name for name, _ in model.named_modules() if name.startswith("model.layers.0.") and name.endswith("experts")
    ]
    return name


def experts_of(model: nn.Module) -> Any:
    return model.get_submodule(name_of_experts(model))


def batch() -> torch.Tensor:
    return torch.randint(5, 35, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    generator = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(generator.choice(WORDS, size=generator.integers(3, 30))) for _ in range(60)))
    return path


def saved(kind: str, path: Path) -> Path:
    """A folder with a mixture and a tokenizer that knows our words."""
    mixture(kind).save_pretrained(path)
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    known = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    known.save_pretrained(path)
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("kind", ["qwen", "mixtral", "gpt-oss", "granite", "llama4"])
@pytest.mark.parametrize("joined", [(), ("*.gate_up_proj",)])
def test_apart_a_model_computes_the_same(kind: str, joined: tuple[str, ...]) -> None:
    model = mixture(kind)
    names = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        whole: Any = model(batch()).logits
        with nt.experts_apart(model, joined=joined) as taken:
            own = {"llama4": "feed_forward", "granite": "block_sparse_moe"}.get(kind, "mlp")
            assert taken == [f"model.layers.{layer}.{own}.experts" for layer in (0, 1)]
            linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            both = bool(joined) or kind == "gpt-oss"
            assert sum(".experts." in name for name in linears) == 2 * 6 * (2 if both else 3)
            assert not names & {name for name, _ in model.named_parameters() if ".experts." in name}
            torch.testing.assert_close(model(batch()).logits, whole)
        assert torch.equal(model(batch()).logits, whole)
    assert {name for name, _ in model.named_parameters()} == names


def test_a_mixture_alone_is_refused() -> None:
    with (
        pytest.raises(InputValueError, match="must hold the mixture of experts"),
        nt.experts_apart(experts_of(mixture("qwen"))),
    ):
        pass


def test_experts_whose_parameters_have_an_adapter_are_refused() -> None:
    class ParamWrapper(nn.Module):
        """As PEFT's adapts one parameter of a module."""

        parameter_name = "down_proj"

        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

    model = mixture("qwen")
    model.model.layers[1].mlp.experts = ParamWrapper(model.model.layers[1].mlp.experts)
    fault = r"model must hold its experts as they are, and model.layers.1.mlp.experts.base_layer are in a ParamWrapper"
    with pytest.raises(InputValueError, match=fault), nt.experts_apart(model):
        pass
    assert type(experts_of(model)).__name__ == "Qwen3MoeExperts"


def test_an_error_puts_them_together_again() -> None:
    model = mixture("qwen")
    experts = experts_of(model)
    with contextlib.suppress(RuntimeError), nt.experts_apart(model):
        assert experts_of(model) is not experts
        raise RuntimeError
    assert experts_of(model) is experts


@pytest.mark.parametrize("kind", ["qwen", "mixtral", "gpt-oss", "llama4"])
def test_what_an_expert_sees_are_its_tokens(kind: str) -> None:
    """Sums by hooks against those by the router's choice, without padding."""
    model = mixture(kind)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = experts_of(model).register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        model(input_ids=batch(), attention_mask=mask)
    handle.remove()
    if kind == "llama4":
        weighted = seen[0][0].view(6, -1, 32)
        sees = [(own, own.any(-1)) for own in weighted]
        assert torch.stack([given for _, given in sees]).sum(0).eq(1).all()  # one expert for each token
    else:
        hidden, chosen, _ = seen[0]
        sees = [(hidden, (chosen == number).any(-1)) for number in range(6)]
    with nt.experts_apart(model):
        found = nt.calibrate(model, [{"input_ids": batch(), "attention_mask": mask}], include=["*layers.0*experts*"])
    place = name_of_experts(model)
    for number, (hidden, given) in enumerate(sees):
        rows = hidden[given & mask.reshape(-1).bool()].double()
        for layer in ("gate_proj", "up_proj") if kind != "gpt-oss" else ("gate_up_proj",):
            moments = found.moments[f"{place}.{number}.{layer}.weight"]
            assert moments.count == len(rows)
            torch.testing.assert_close(moments.gram, (rows.mT @ rows)[None])
        assert found.moments[f"{place}.{number}.down_proj.weight"].count == len(rows)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "wanda") for kind in ("qwen", "mixtral", "gpt-oss", "granite", "llama4")),
        ("mixtral", "sparsegpt"),
        ("llama4", "sparsegpt"),
        ("gpt-oss", "adaprune"),
        ("llama4", "adaprune"),
    ],
)
def test_a_folder(kind: str, method: str, text: Path, tmp_path: Path) -> None:
    source, out = saved(kind, tmp_path / kind), tmp_path / "out"
    chosen = ["--pattern", "4:8", "--exclude", "*attn*", *(["--exclude", "*shared*"] if kind == "llama4" else [])]
    result = run("prune", source, out, *chosen, "--method", method, "--calibration", text, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["proven"]
    assert len(report["layers"]) == 2 * 6 * (2 if kind in TOGETHER else 3)
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    assert before.keys() == after.keys()
    model = mixture(kind)
    joined = ["*.gate_up_proj"] if kind in ("llama4", "granite") else []  # as its file has them
    with nt.experts_apart(model, joined=joined):  # what wanda would keep, of matrices cut out by hand
        scores = nt.calibrate(model, _batches(source, text), gram=False).scores("wanda")
        linears = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    changed = 0
    for name, old in before.items():
        new = after[name]
        experts = ".experts." in name or name.endswith(("input_linear.weight", "output_linear.weight"))
        if not experts or name.endswith("bias"):
            assert torch.equal(old, new) or name.endswith("bias"), name
            continue
        changed += 1
        for number, (was, now) in enumerate(
            zip(old.reshape(-1, *old.shape[-2:]), new.reshape(-1, *old.shape[-2:]), strict=True)
        ):
            keeps = (now != 0).numpy()
            assert nmflow.certify(np.ones(keeps.shape), keeps, 4, 8).feasible
            if method == "wanda":
                assert torch.equal(now[now != 0], was[now != 0])
                parameter = _parameter(name, number, kind)
                score = scores(parameter, linears[parameter])
                assert score is not None
                turned = (score.T if kind in TURNED else score).numpy()
                best = nmflow.solve(turned, 4, 8)
                kept = turned[keeps].sum()
                assert kept == pytest.approx(best.objective, rel=1e-12)
    assert changed == (4 if kind in TOGETHER else 2 * 6 * 3)
    biases = [name for name in before if "experts" in name and name.endswith("bias")]
    refitted = [name for name in biases if not torch.equal(before[name], after[name])]
    assert len(refitted) == (4 if (kind, method) == ("gpt-oss", "adaprune") else 0)
    assert run("verify", out, *chosen).exit_code == 0


def _batches(source: Path, text: Path) -> Any:
    from nmflow.torch.model_load import load_model

    return load_model(source, text.read_text().splitlines())[1]


def _parameter(stored: str, number: int, kind: str) -> str:
    """Name within a model taken apart of a matrix in a file."""
    if kind == "mixtral":
        for own, name in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"), ("block_sparse_moe", "mlp")):
            stored = stored.replace(own, name)
    if kind == "granite":
        for own, name in (("input_linear", "gate_up_proj"), ("output_linear", "down_proj")):
            stored = stored.replace(f"{own}.weight", f"experts.{name}")
    return stored.replace("experts.", f"experts.{number}.") + ".weight" if kind in TOGETHER else stored


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "adaprune"])
def test_experts_that_no_token_comes_to_are_pruned_by_magnitude(method: str) -> None:
    model = mixture("qwen")
    with torch.no_grad():
        for layer in (0, 1):  # half of the experts are never chosen
            gate: Any = model.get_submodule(f"model.layers.{layer}.mlp.gate")
            gate.weight[3:] = 0
            gate.weight[:3] = gate.weight[:3].abs() + 1
            model.get_submodule(f"model.layers.{layer}.post_attention_layernorm").weight.abs_()  # type: ignore[operator, union-attr]
    ids = [batch()]
    with nt.experts_apart(model):
        called: set[str] = set()
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda module, args, name=name: called.add(name))
        with torch.no_grad():
            model(ids[0])
        linears = {name: module for name, module in model.named_modules() if ".experts." in name}
        idle = [name for name, module in linears.items() if isinstance(module, nn.Linear) and name not in called]
        assert idle
        dense = {name: linears[name].weight.clone() for name in idle}  # type: ignore[operator, union-attr]
        if method == "wanda":
            with pytest.warns(UserWarning, match=f"no token came to {len(idle)} of"):
                seen = nt.calibrate(model, ids, gram=False, include=["*experts*"])
            nt.prune_(model, 4, 8, scores=seen.scores("wanda"), include=["*experts*"])
        else:
            report = getattr(nt, f"{method}_")(model, ids, 4, 8, include=["*experts*"])
            assert {f"{name}.weight" for name in idle} <= {name for name, note in report.notes if "no token" in note}
        for name, was in dense.items():
            now: Any = linears[name].weight
            score = was.double().square() if method == "sparsegpt" else was.abs()
            kept = float(score[now != 0].sum())
            assert kept == pytest.approx(nmflow.solve(score.numpy(), 4, 8).objective, rel=1e-6), name
            torch.testing.assert_close(now, torch.where(now != 0, was, 0.0))


class Rerouted(nn.Module):
    """Once its first layer is pruned, its expert gets no token any more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(8, 8, bias=False, dtype=torch.float64) for _ in range(2))
        self.expert = ExpertLinear(torch.eye(8, dtype=torch.float64), None, kept_turned=False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        hidden = self.first(value)
        return self.last(torch.tanh(self.expert(hidden) if self.first.weight.all() else hidden))


def test_a_dense_model_that_sends_tokens_elsewhere_is_followed_all_the_same() -> None:
    torch.manual_seed(0)
    model, x = Rerouted(), torch.randn(60, 8, dtype=torch.float64)
    dense = model(x).detach()
    nt.adaprune_(model, [x], 2, 4, damping=0.0, absorb_mean=False)
    hidden, weight = torch.tanh(model.first(x)).detach(), model.last.weight.detach()
    for row in range(8):
        kept = weight[row] != 0
        best = torch.linalg.lstsq(hidden[:, kept], dense[:, row, None]).solution[:, 0]
        torch.testing.assert_close(weight[row, kept], best, rtol=1e-6, atol=1e-9)


def test_experts_in_one_parameter_say_how_to_open_them() -> None:
    model = mixture("qwen")
    selected = nt.sparsegpt_(model, [batch()], 4, 8)
    reasons = dict(selected.skipped)
    assert "experts_apart" in reasons["model.layers.0.mlp.experts.down_proj"]
    assert reasons["lm_head.weight"] == "output head; name it in include to prune it"


def test_routers_are_left_alone_unless_named() -> None:
    """They are Linears here, whose class has a forward of its own."""
    model = mixture("llama4")
    name = "model.layers.0.feed_forward.router"
    assert isinstance(model.get_submodule(name), nn.Linear)
    reasons = dict(nt.prune_(model, 2, 4).skipped)
    assert reasons[f"{name}.weight"] == "router of experts; give its plain name in include, or a filter_fn"
    assert all("router" not in layer.name for layer in nt.prune_(model, 2, 4, include=["model.layers.*"]).layers)
    assert [layer.name for layer in nt.prune_(model, 2, 4, include=[name]).layers] == [f"{name}.weight"]


def test_a_gate_is_a_router_only_with_fewer_rows_than_columns() -> None:
    class Retention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.mixture = nn.Linear(16, 16), nn.ModuleDict({"gate": nn.Linear(16, 8)})

    report = nt.prune_(Retention(), 2, 4)
    assert [layer.name for layer in report.layers] == ["gate.weight"]
    assert dict(report.skipped)["mixture.gate.weight"].startswith("router of experts")


def test_what_a_gate_consists_of_is_a_router() -> None:
    """HunYuan's is a Linear in a module of its own, and Zaya's has three."""
    gate = nn.ModuleDict({"wg": nn.Linear(16, 8)})
    model = nn.ModuleDict({"layer": nn.ModuleDict({"mlp": nn.ModuleDict({"gate": gate, "up_proj": nn.Linear(16, 8)})})})
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["layer.mlp.up_proj.weight"]
    assert dict(report.skipped)["layer.mlp.gate.wg.weight"].startswith("router of experts")


def test_a_module_is_a_router_by_the_end_of_its_class_s_name() -> None:
    class TopKRouter(nn.Linear):
        pass

    model = nn.ModuleDict({"choice": TopKRouter(16, 8), "other": nn.Linear(16, 8)})
    report = nt.prune_(model, 2, 4)
    assert [layer.name for layer in report.layers] == ["other.weight"]
    assert dict(report.skipped)["choice.weight"].startswith("router of experts")


def test_a_pattern_of_rows_alone_does_not_fit_what_is_kept_turned() -> None:
    model = mixture("gpt-oss")
    with nt.experts_apart(model):
        report = nt.prune_(model, pattern=Pattern(2, 4, transposable=False))
    reasons = dict(report.skipped)
    assert "keeps its weight the other way round" in reasons["model.layers.0.mlp.experts.0.down_proj.weight"]


@pytest.mark.parametrize(("kind", "turned"), [("gpt-oss", True), ("llama4", True), ("qwen", False)])
def test_nor_experts_together_that_are_named(kind: str, turned: bool) -> None:
    """Groups would lie along outputs, of which the products with tokens skip none."""
    model = mixture(kind)
    names = [name for name, _ in model.named_parameters() if name.endswith("experts.down_proj")]
    rows = Pattern(2, 4, transposable=False)
    if turned:
        with pytest.raises(InputValueError, match=r"keeps its weight the other way round"):
            nt.prune_(model, pattern=rows, include=names)
        assert len(nt.prune_(model, 2, 4, include=names).layers) == len(names)
    else:
        assert len(nt.prune_(model, pattern=rows, include=names).layers) == len(names)


def test_alike_experts_are_told_apart_by_their_place(text: Path, tmp_path: Path) -> None:
    """A mixture made of one dense network has experts that hold the same numbers."""
    source = saved("mixtral", tmp_path / "same")
    held = load_file(source / "model.safetensors")
    for name in held:
        if ".experts." in name:
            first, _, rest = name.partition(".experts.")
            held[name] = held[f"{first}.experts.0.{rest.partition('.')[2]}"].clone()
    save_file(held, source / "model.safetensors", metadata={"format": "pt"})
    prune_folder(source, tmp_path / "out", Pattern(4, 8), "wanda", text)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    with nt.experts_apart(model):
        found = nt.calibrate(model, _batches(source, text), gram=False, include=["*experts*"])
        scores = found.scores("wanda")
        for name in ("model.layers.0.mlp.experts.4.up_proj", "model.layers.1.mlp.experts.2.down_proj"):
            score: Any = scores(f"{name}.weight", model.get_submodule(name))
            stored = name.replace("mlp", "block_sparse_moe").replace("up_proj", "w3").replace("down_proj", "w2")
            kept = (load_file(tmp_path / "out" / "model.safetensors")[f"{stored}.weight"] != 0).numpy()
            assert score.numpy()[kept].sum() == pytest.approx(nmflow.solve(score.numpy(), 4, 8).objective, rel=1e-12)


class Ungated(nn.Module):
    """Two experts without a gate, as NemotronH has them."""

    has_gate, is_transposed = False, False

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = (nn.Parameter(torch.randn(shape)) for shape in ((2, 12, 8), (2, 8, 12)))
        self.act_fn = torch.relu

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        each = torch.einsum("eoi,ti->teo", self.up_proj, hidden).relu()
        all_of_them = torch.einsum("eoi,tei->teo", self.down_proj, each)
        picked = all_of_them.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1]))
        return (picked * weights[..., None]).sum(1)


def test_experts_without_a_gate() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": Ungated()})
    hidden, chosen = torch.randn(6, 8), torch.tensor([[0], [1], [1], [0], [1], [0]])
    whole = model["experts"](hidden, chosen, torch.full((6, 1), 0.5))
    with nt.experts_apart(model) as taken:
        assert taken == ["experts"]
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        assert names == [f"experts.{number}.{own}" for number in (0, 1) for own in ("up_proj", "down_proj")]
        torch.testing.assert_close(model["experts"](hidden, chosen, torch.full((6, 1), 0.5)), whole.detach())


@pytest.mark.parametrize(("axes", "rule"), [(3, False), (2, True)])
def test_what_only_has_the_names_of_experts_stays(axes: int, rule: bool) -> None:
    own = nn.Module()
    for name in ("gate_up_proj", "down_proj"):
        own.register_parameter(name, nn.Parameter(torch.ones([8] * axes)))
    if rule:
        own.is_transposed, own._apply_gate = False, torch.relu
    with nt.experts_apart(nn.ModuleDict({"own": own})) as taken:
        assert taken == []
