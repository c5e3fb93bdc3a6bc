"""nmflow prune --method: a Hugging Face folder, pruned with what its layers see in a text."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import nmflow
from nmflow.checkpoint import make_plan
from nmflow.checkpoint.journal import Journal, identity, version
from nmflow.checkpoint.lock import locked
from nmflow.checkpoint.source import open_source
from nmflow.cli import app, methods
from nmflow.errors import (
    CheckpointError,
    DestinationExistsError,
    InputValueError,
    NonFiniteError,
    PatternError,
    SourceNotFoundError,
)
from nmflow.pattern import Pattern
from nmflow.torch import model_folder, model_load
from nmflow.torch.beside import layers_beside
from nmflow.torch.report import PruneReport
from nmflow.torch.resume import Store

transformers = pytest.importorskip("transformers", reason="needs transformers")
import tokenizers  # noqa: E402  comes with it
from safetensors.torch import load_file, save_file  # noqa: E402  comes with it

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers

WORDS = [
    *("the", "a", "dog", "cat", "river", "sings", "sleeps", "under", "over", "old", "green", "stone", "and", "runs"),
    "far",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a vocabulary of fifteen words, and without the prefix that its class would give to names."""
    path = tmp_path_factory.mktemp("bert") / "model"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(path)
    vocabulary = path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    generator = np.random.default_rng(0)
    lines = [" ".join(generator.choice(WORDS, size=generator.integers(3, 30))) for _ in range(100)]
    path.write_text("\n".join(lines) + "\n\n  \n")
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def hidden(path: Path) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(path).eval()
    ids = torch.randint(5, 20, (40, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).last_hidden_state
    return found


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "adaprune", "alps"])
def test_methods(method: str, folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--pattern", "2:4", "--exclude", "pooler*", "--json"]
    result = run("prune", folder, out, *options, "--method", method, "--calibration", text)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (len(report["layers"]), report["proven"], report["destination"]) == (12, True, str(out))
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in folder.iterdir())
    before, after = (load_file(path / "model.safetensors") for path in (folder, out))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    pruned = {layer["name"] for layer in report["layers"]}
    for name, old in before.items():
        if name in pruned:
            mask = (after[name] != 0).numpy()
            assert nmflow.certify(np.ones(mask.shape), mask, 2, 4).feasible
            assert torch.equal(after[name][after[name] != 0], old[after[name] != 0]) == (method == "wanda")
        elif method not in ("adaprune", "alps") or not name.endswith("bias"):
            assert torch.equal(after[name], old), name
    refitted = [name for name in before if name.endswith("bias") and not torch.equal(after[name], before[name])]
    assert bool(refitted) == (method in ("adaprune", "alps"))
    assert run("verify", out, "--pattern", "2:4", "--exclude", "pooler*").exit_code == 0
    if method != "wanda":  # weights that were never trained know no magnitude worth keeping
        plain = tmp_path / "plain"
        assert run("prune", folder, plain, *options).exit_code == 0
        dense = hidden(folder)
        assert (hidden(out) - dense).norm() < 0.8 * (hidden(plain) - dense).norm()


def test_an_encoder_with_a_decoder_is_refused(folder: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    config = transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    asked = ("prune", tmp_path / "t5", tmp_path / "out", "--pattern", "2:4", "--method", "wanda", "--calibration", text)
    result = run(*asked)
    assert result.exit_code == 2
    assert "t5 has an encoder and a decoder, which take more than lines of text; use method magnitude" in result.stderr


def test_nothing_is_calibrated_on_what_transformers_makes_up(folder: Path, text: Path, tmp_path: Path) -> None:
    def fault(name: str) -> str:
        asked = ("prune", tmp_path / name, tmp_path / "out", "--pattern", "2:4", "--method", "wanda")
        result = run(*asked, "--calibration", text)
        assert result.exit_code == 2
        assert not (tmp_path / "out").exists()
        return result.stderr

    for name in ("lost weight", "small weight", "lost words", "another's"):
        shutil.copytree(folder, tmp_path / name)
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.weight"
    save_file(weights | {name: torch.ones(8, 8)}, tmp_path / "small weight" / "model.safetensors", {"format": "pt"})
    assert "must hold a model that transformers can load" in fault("small weight")
    del weights[name]
    save_file(weights, tmp_path / "lost weight" / "model.safetensors", {"format": "pt"})
    assert f"{name} is missing, and transformers would make it up" in fault("lost weight")
    (tmp_path / "lost words" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    assert "its tokenizer knows 0 of" in fault("lost words")
    more = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{k}" for k in range(40)), *WORDS])
    (tmp_path / "another's" / "vocab.txt").write_text(more)
    assert "and the model embeds 20; it is another's" in fault("another's")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_is_asked_for_reaches_the_method(
    method: str, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def ended(*args: Any, **options: Any) -> None:
        given.update(options)
        raise InputValueError("ended here")

    def calibrated(*args: Any, **options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(scores=lambda name: {})

    def beside(dst: Path, record: dict[str, Any], **options: Any) -> Any:
        given.update(record=record)
        return layers_beside(dst, record, **options)

    def progress(*args: object) -> None:
        pass

    monkeypatch.setattr(model_folder, "layers_beside", beside)
    monkeypatch.setattr(model_folder, "calibrate", calibrated)
    monkeypatch.setattr(model_folder, "prune_", ended)
    monkeypatch.setitem(model_folder._PRUNE, method, ended)
    asked: dict[str, Any] = {"exclude": ["*layer.1*"], "solver": "greedy", "threads": 3, "progress": progress}
    damping = {} if method == "wanda" else {"damping": 0.2}
    with pytest.raises(InputValueError, match="ended here"):
        model_folder.prune_folder(folder, tmp_path / "out", Pattern(2, 4), method, text, **asked, **damping)
    expected = {**damping, "solver": "greedy", "threads": 3, "pattern": Pattern(2, 4), "progress": progress}
    assert {name: given[name] for name in expected} == expected
    record, lines = given["record"], [line for line in text.read_text().splitlines() if line.strip()]
    assert (record["command"], record["version"]) == ("prune", version())
    assert (record["method"], record["solver"], record["pattern"]) == (method, "greedy", "2:4")
    assert record["damping"] == damping.get("damping")
    assert method != "wanda" or given["gram"] is False  # which takes the memory of each layer's inputs squared
    assert record["calibration"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert record["source"] == identity(open_source(folder))
    assert sorted(record["pruned"]) == sorted(given["include"])
    assert len(record["pruned"]) == 7  # those of the first layer, and the pooler


def test_every_text_is_in_a_batch(folder: Path) -> None:
    texts = [" ".join(WORDS[: 1 + number % 9]) for number in range(70)]
    model, batches = model_load.load_model(folder, texts)
    assert not model.training
    assert [len(batch["input_ids"]) for batch in batches] == [32, 32, 6]
    assert [batch["input_ids"].shape[1] for batch in batches] == [6, 11, 11]  # of about the same length
    _, [batch] = model_load.load_model(folder, ["dog " * 30])
    assert batch["input_ids"].shape == (1, 16)  # as many as there are positions


def test_a_model_is_of_the_class_and_dtype_that_its_config_names(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    kind = transformers.BertForSequenceClassification
    kind(transformers.AutoConfig.from_pretrained(folder)).bfloat16().save_pretrained(tmp_path / "model")
    model, _ = model_load.load_model(tmp_path / "model", ["a dog"])
    assert type(model) is kind
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_nothing_to_prune_is_said_before_a_model_is_loaded(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(model_folder, "load_model")
    with pytest.raises(PatternError, match="must hold a weight that 2:4 can prune, and all"):
        model_folder.prune_folder(folder, tmp_path / "out", Pattern(2, 4), "wanda", text, exclude=["*"])


def test_transformers_speaks_again_afterwards() -> None:
    logging = transformers.utils.logging
    logging.set_verbosity(logging.WARNING)
    for shown in (False, True):  # as a caller has it; the last is the default
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        with model_load._quiet(transformers):
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.CRITICAL, False)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.WARNING, shown)


def test_one_token_for_all_is_no_unknown_word() -> None:
    """That of GPT-2 ends texts, pads them, and stands for what is unknown, which nothing is."""
    model = transformers.BertModel(transformers.BertConfig(vocab_size=20, hidden_size=8, num_attention_heads=1))
    batch = {"input_ids": torch.tensor([[1, 2, 3, 3, 3, 3, 3, 3]])}
    batch["attention_mask"] = (batch["input_ids"] != 3).long()
    tokens = {"unk_token_id": 3, "eos_token_id": 3, "bos_token_id": 3}
    model_load._check_tokens([batch], SimpleNamespace(**tokens), model)
    model_load._check_tokens([{"input_ids": batch["input_ids"]}], SimpleNamespace(**tokens), model)
    padded = SimpleNamespace(unk_token_id=3, eos_token_id=1)  # and padding by it, as LLaMA's recipes do
    model_load._check_tokens([batch], padded, model)
    marked = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    model_load._check_tokens([batch], SimpleNamespace(unk_token_id=None, **marked), model)  # LLaMA's has none at all
    with pytest.raises(ValueError, match="its tokenizer knows 1 of 2 tokens"):
        model_load._check_tokens([{"input_ids": torch.tensor([[2, 3]])}], padded, model)
    with pytest.raises(ValueError, match="its tokenizer knows 1 of 7 tokens"):
        model_load._check_tokens([{"input_ids": batch["input_ids"]}], padded, model)
    with pytest.raises(ValueError, match="its tokenizer gives token 20, and the model embeds 20"):
        model_load._check_tokens([{"input_ids": torch.tensor([[1, 20]])}], padded, model)


def test_positions_of_roberta_begin_after_that_of_padding(folder: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "roberta")
    config = transformers.RobertaConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=14,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    asked = ("prune", tmp_path / "roberta", tmp_path / "out", "--pattern", "2:4", "--method", "wanda")
    result = run(*asked, "--exclude", "pooler*", "--calibration", text)
    assert result.exit_code == 0, result.stderr


def test_the_table(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["prune", folder, out, "--pattern", "4:8", "--method", "sparsegpt", "--calibration", text]
    result = run(*asked, "--include", "embeddings.word*", "--exclude", "*layer.1*", "--exclude", "embeddings.word*")
    assert result.exit_code == 0, result.stderr
    assert "sparsegpt by dual" in result.stdout
    why = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.split("skipped", 1)[1].splitlines()[2:]}
    assert not any(name.endswith("bias") for name in why)
    assert why["embeddings.position_embeddings.weight"] == "embedding (*embed*)"
    assert why["encoder.layer.1.output.dense.weight"] == "excluded by '*layer.1*'"
    assert f"every block proven optimal for its score; wrote {out}" in result.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(model_folder, "load_model")  # said before hours of work
        again = run(*asked)
    assert again.exit_code == 2
    assert again.stderr == (
        f"nmflow: dst must not exist, and {out} does; choose another, or say overwrite=True (--overwrite)\n"
    )
    assert run(*asked, "--overwrite").exit_code == 0


def test_prefixes_of_names(folder: Path, text: Path, tmp_path: Path) -> None:
    """Weights of a class with a head carry a prefix that AutoModel's do not, and 16-bit files stay so."""
    source = tmp_path / "source"
    source.mkdir()
    for path in folder.iterdir():
        if path.name != "model.safetensors":
            (source / path.name).write_bytes(path.read_bytes())
    tensors = {f"bert.{name}": value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    result = run("prune", source, tmp_path / "out", "--pattern", "2:4", "--method", "sparsegpt", "--calibration", text)
    assert result.exit_code == 0, result.stderr
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert float((found["bert.encoder.layer.0.output.dense.weight"] != 0).float().mean()) == 0.5


def test_an_interrupted_run_leaves_the_source_and_resumes(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out, calls, stop = tmp_path / "out", 0, 5
    from nmflow.torch import sparsegpt

    inner = sparsegpt.obs_pass

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return inner(*args, **options)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sparsegpt, "obs_pass", counting)
    asked = ["prune", folder, out, "--pattern", "2:4", "--method", "sparsegpt", "--calibration", text, "--resume"]
    assert run(*asked).exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == [".out.nmflow-layers"]
    calls, stop = 0, 0
    with monkeypatch.context() as patch:  # all is done, and cannot be written: that is kept, too
        patch.setattr(model_folder, "replace_tensors", full)
        assert run(*asked).exit_code == 2
    assert calls == 13 - 4
    assert [path.name for path in tmp_path.iterdir()] == [".out.nmflow-layers"]
    calls = 0
    assert run(*asked).exit_code == 0
    assert calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    resumed = (out / "model.safetensors").read_bytes()
    assert run(*asked[:-1], "--overwrite").exit_code == 0
    assert (out / "model.safetensors").read_bytes() == resumed
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_says_what_is_kept(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = Store.save, 0

    def full(store: Store, name: str, layer: Any) -> None:
        nonlocal saved
        if saved == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.new")
        saved += 1
        save(store, name, layer)

    asked = ["prune", folder, tmp_path / "out", "--pattern", "2:4", "--method", "adaprune", "--calibration", text]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", full)
        result = run(*asked)
    assert result.exit_code == 2
    assert "No space left on device: 'x.new'; 3 layers are done and kept in " in result.stderr
    assert "(--resume) goes on from there" in result.stderr
    other = run(*("1:4" if word == "2:4" else word for word in asked), "--resume")
    assert other.exit_code == 2
    assert other.stderr == (
        'nmflow: resume must be asked for what the unfinished run was asked for, and pattern was "2:4", not "1:4"; ask '
        "for the same, or leave resume (--resume) out to begin anew\n"
    )
    assert len(list((tmp_path / ".out.nmflow-layers").glob("*.layer"))) == 3
    assert run(*asked, "--resume").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_one_process_at_a_time(method: str, folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["prune", folder, out, "--pattern", "2:4", "--method", method, "--calibration", text]
    layers = tmp_path / ".out.nmflow-layers"
    with locked(layers, out):
        (layers / "0.layer").touch()  # another's
        for options in ((), ("--overwrite",), ("--resume",)):
            result = run(*asked, *options)
            assert result.exit_code == 2
            assert f"another is at work on {out}; wait until it is done" in result.stderr
            assert (layers / "0.layer").exists()
    assert run(*asked).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["wanda", "adaprune"])
def test_a_weight_that_is_not_finite_is_named_before_any_work(
    method: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    held = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    held[name][3, 5] = float("nan")
    save_file(held, source / "model.safetensors", {"format": "pt"})
    result = run("prune", source, tmp_path / "out", "--pattern", "2:4", "--method", method, "--calibration", text)
    assert result.exit_code == 2
    assert (
        f"tensor {name!r}: weights must be finite, not NaN or infinite at 1 of 1024 entries, the first at (3, 5)"
        in (result.stderr)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "wanda"], "--calibration must be given for --method wanda: a file of text, a sample a line"),
        (["--calibration", "TEXT"], "--calibration must come with --method wanda, sparsegpt, adaprune or alps"),
        (["--method", "wanda", "--calibration", "NONE"], "calibration must be a file of text, and "),
        (["--method", "wanda", "--calibration", "EMPTY"], "is empty; give a few hundred lines"),
        (["--method", "wanda", "--calibration", "LATIN"], "calibration must be text in UTF-8, and "),
        (["--method", "wanda", "--calibration", "TEXT", "--keep-from", "x"], "--keep-from must be left out"),
        (["--damping", "0.3"], "--damping must come with --method sparsegpt, adaprune or alps, not magnitude"),
        (["--method", "wanda", "--calibration", "TEXT", "--damping", "0"], "--damping must come with --method"),
        (["--method", "alps", "--calibration", "TEXT", "--damping", "-1"], "--damping must be finite and not negative"),
        (["--method", "alps", "--calibration", "TEXT", "--damping", "nan", "--dry-run"], "--damping must be finite"),
        (["--method", "wanda", "--calibration", "TEXT", "--include", "embeddings.word_embeddings.weight"],
         "'embeddings.word_embeddings.weight' must be the weight of a Linear or convolution of the model, and is not"),
    ],
)  # fmt: skip
def test_bad_options(options: list[str], message: str, folder: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    places = {"TEXT": text, "NONE": tmp_path / "none", "EMPTY": tmp_path / "empty.txt", "LATIN": tmp_path / "latin.txt"}
    result = run("prune", folder, tmp_path / "out", "--pattern", "2:4", *(places.get(each, each) for each in options))
    assert result.exit_code == 2
    assert result.stderr.startswith("nmflow: ")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_damping_is_for_methods_that_refit(folder: Path, text: Path, tmp_path: Path) -> None:
    for damping, message in ((0.3, "damping must be None for method wanda, which refits nothing"), (-1.0, "negative")):
        with pytest.raises(InputValueError, match=message):
            model_folder.prune_folder(folder, tmp_path / "out", Pattern(2, 4), "wanda", text, damping=damping)


def test_what_is_no_model(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "model.safetensors"
    result = run("prune", file, tmp_path / "out.safetensors", "--pattern", "2:4", "--method", "wanda",
                 "--calibration", text)  # fmt: skip
    assert "src must be a Hugging Face folder with config.json for method wanda" in result.stderr
    words = 'method must be "magnitude", "wanda", "sparsegpt", "adaprune" or "alps", not'
    with pytest.raises(InputValueError, match=words):
        model_folder.prune_folder(folder, tmp_path / "out", Pattern(2, 4), "taylor", text)
    other = tmp_path / "strange"
    other.mkdir()
    (other / "model.safetensors").write_bytes(file.read_bytes())
    (other / "config.json").write_text('{"model_type": "nobody"}')
    result = run("prune", other, tmp_path / "out", "--pattern", "2:4", "--method", "wanda", "--calibration", text)
    assert "must hold a model that transformers can load" in result.stderr
    monkeypatch.setattr("transformers.__version__", "4.55.4")
    result = run("prune", folder, tmp_path / "out", "--pattern", "2:4", "--method", "wanda", "--calibration", text)
    assert "this method needs transformers 4.56 or newer, not 4.55.4; pip install --upgrade" in result.stderr
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = run("prune", folder, tmp_path / "out", "--pattern", "2:4", "--method", "wanda", "--calibration", text)
    assert 'this method needs transformers, which is not installed; pip install "nmflow[transformers]"' in result.stderr


def strange(folder: Path, path: Path, **config: object) -> Path:
    """A copy of a folder whose config says more."""
    shutil.copytree(folder, path)
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **config}))
    return path


def test_no_code_of_a_folder_is_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask at the terminal, and a yes to the wrong question runs a stranger's code."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    other = strange(folder, tmp_path / "model", model_type="nobody", auto_map={"AutoConfig": "code.Config"})
    (other / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertConfig as Config"
    )
    with pytest.raises(CheckpointError, match="without code of the folder's own, which is never run; use method"):
        model_load.load_model(other, ["a dog"])
    assert not asked
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "stranger/kernels"},  # would be fetched and run
        {"architectures": ["AutoTokenizer"]},  # a class that is no model
        {"architectures": []},
        {"architectures": [7]},
        {"architectures": {"a": 1}},
    ],
    ids=str,
)
def test_a_config_chooses_among_models_only(folder: Path, tmp_path: Path, config: dict[str, object]) -> None:
    model, _ = model_load.load_model(strange(folder, tmp_path / "model", **config), ["a dog"])
    assert type(model) is transformers.BertModel


@pytest.mark.parametrize("config", [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"dtype": "load"}], ids=str)
def test_a_config_that_breaks_transformers(folder: Path, tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(
        CheckpointError, match=r"model must hold a model that transformers can load: (?s:.)+ \(\w+Error\)$"
    ):
        model_load.load_model(strange(folder, tmp_path / "model", **config), ["a dog"])


def test_dry_run_says_what_would_stop_a_method(folder: Path, tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text("a dog")
    options = "--pattern", "2:4", "--method", "wanda", "--dry-run", "--calibration"
    assert run("prune", folder, tmp_path / "out", *options, text).exit_code == 0
    for src, calibration, said in (
        (folder, tmp_path / "none.txt", "calibration must be a file of text"),
        (folder / "model.safetensors", text, "src must be a Hugging Face folder"),
    ):
        result = run("prune", src, tmp_path / "out", *options, calibration)
        assert result.exit_code == 2
        assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_names_cannot_drive_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = PruneReport("2:4", "dual", (), (("embed\x1b[31m.weight", "embedding"),), 0.0)
    monkeypatch.setattr(model_folder, "prune_folder", lambda *_, **__: report)
    text, _ = methods.prune_by("wanda", tmp_path, tmp_path / "out\nx", Pattern(2, 4), tmp_path, lambda *_: None)
    assert "embed\\x1b[31m.weight" in text
    assert text.endswith(f"wrote {tmp_path}/out\\nx")


def test_transformers_prints_no_names(folder: Path, tmp_path: Path) -> None:
    """It says which tensors its model has no place for, escapes and all."""
    other, name = strange(folder, tmp_path / "model"), "\x1b]0;title\x07\u202e"
    save_file({**load_file(other / "model.safetensors"), name: torch.ones(3)}, other / "model.safetensors")
    code = "import sys; from pathlib import Path; from nmflow.torch.model_load import load_model as l; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}l(Path(sys.argv[1]), ['a dog'])", other], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_text_in_what_is_replaced_is_spared(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "out" / "text.txt"
    text.parent.mkdir()
    text.write_text("a dog")
    with pytest.raises(InputValueError, match=r"dst must not hold .*text\.txt, which is read"):
        model_folder.prune_folder(folder, tmp_path / "out", Pattern.parse("2:4"), "wanda", text, overwrite=True)
    (tmp_path / "text.txt").write_text("a dog")
    with pytest.raises(DestinationExistsError, match="dst must be a checkpoint to be overwritten"):
        model_folder.prune_folder(
            folder, tmp_path / "out", Pattern.parse("2:4"), "wanda", tmp_path / "text.txt", overwrite=True
        )
    assert text.read_text() == "a dog"


def test_layers_of_somebody_else_are_spared(tmp_path: Path) -> None:
    layers = tmp_path / ".out.nmflow-layers"
    layers.mkdir()
    (layers / "notes.new").write_text("mine")
    with (
        pytest.raises(DestinationExistsError, match=r"and it holds 'notes\.new'; move it"),
        layers_beside(tmp_path / "out", {}, resume=False),
    ):
        pass
    assert [path.name for path in layers.iterdir()] == ["notes.new"]


def test_nothing_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are pickled weights read, which may lie beside others of a name that transformers does not know."""
    given: dict[str, dict[str, Any]] = {}

    def noting(kind: Any) -> Callable[..., Any]:
        real = kind.from_pretrained

        def noted(*args: Any, **options: Any) -> Any:
            given.setdefault(kind.__name__, options)
            return real(*args, **options)

        return noted

    for kind in (transformers.AutoConfig, transformers.BertModel, transformers.AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", noting(kind))
    model_load.load_model(folder, ["a dog"])
    assert list(given) == ["AutoConfig", "BertModel", "AutoTokenizer"]
    assert all(options["local_files_only"] and options["trust_remote_code"] is False for options in given.values())
    assert given["BertModel"]["use_safetensors"]


@pytest.mark.parametrize("most", [None, -1, 600])
def test_texts_end_somewhere(most: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many positions a model has, and whatever its config says: BLOOM's says nothing, and XLNet's -1."""
    real = transformers.BertModel.from_pretrained

    def changed(*args: Any, config: Any, **options: Any) -> Any:
        found = real(*args, config=config, **options)
        found[0].embeddings.position_embeddings = nn.Embedding(1000, 32, padding_idx=1)  # as Longformer's
        vars(config)["max_position_embeddings"] = most
        return found

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", changed)
    _, [batch] = model_load.load_model(folder, ["dog " * 700])
    assert batch["input_ids"].shape == (1, 512)


def test_a_tokenizer_without_padding_pads_by_the_end_of_texts(folder: Path, tmp_path: Path) -> None:
    """As GPT-2's; and this one knows no unknown word."""
    other = strange(folder, tmp_path / "model")
    (other / "vocab.txt").unlink()
    vocabulary = {word: place for place, word in enumerate(["end", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end").save_pretrained(other)
    _, [batch] = model_load.load_model(other, ["a dog runs", "dog"])
    assert batch["input_ids"].tolist() == [[3, 0, 0], [2, 3, 14]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_memory_that_runs_out_is_no_fault_of_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", short)
    with pytest.raises(MemoryError):
        model_load.load_model(folder, ["a dog"])


def test_samples_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("  a dog \n\n \nruns\n")
    assert model_folder.read_texts(tmp_path / "text.txt") == ["a dog", "runs"]
    with pytest.raises(SourceNotFoundError, match=r"calibration must be a file of text, and .* is none"):
        model_folder.read_texts(tmp_path)


def test_what_a_file_and_a_model_do_not_both_have_is_left(tmp_path: Path) -> None:
    """Biases; and a weight may be known by the second name of a parameter."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    save_file({name: torch.ones(8, 8) for name in ("0.weight", "1.weight")} | {"0.bias": torch.ones(8)},
              tmp_path / "model.safetensors")  # fmt: skip
    plan = make_plan(tmp_path / "model.safetensors", Pattern(2, 4))
    data = model_folder._changed(plan, model, {name: name for name in ("0.weight", "1.weight")})
    whole = model[0].weight.detach().numpy().tobytes()
    assert data == {"0.weight": whole, "1.weight": whole}
    with torch.no_grad():
        model[0].weight[2, 3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"tensor 'stored': weights must be finite, .* the first at \(2, 3\)"):
        model_folder._check_finite(model, {"stored": ["1.weight"]})


@pytest.mark.parametrize(("stored", "loaded"), [(torch.float32, torch.bfloat16), (torch.float32, torch.float16)])
def test_what_a_run_leaves_alone_keeps_its_bits_where_the_model_holds_fewer(
    stored: torch.dtype, loaded: torch.dtype, tmp_path: Path
) -> None:
    """A config may name another dtype than the file has: a weight that stays is not rounded for it, nor a bias."""
    old = {"weight": torch.randn(8, 8).to(stored), "bias": torch.randn(8).to(stored)}
    old["weight"][0, 0] = 1e-30  # which float16 takes for zero
    save_file(old, tmp_path / "model.safetensors")
    model = nn.Linear(8, 8).to(loaded)
    model.load_state_dict(old)
    with torch.no_grad():
        model.weight[:, ::2] = 0
        model.weight[1, 1] = model.bias[1] = 3
    plan = make_plan(tmp_path / "model.safetensors", Pattern(2, 4))
    data = model_folder._changed(plan, model, {"weight": "weight"})
    weight, bias = (torch.frombuffer(bytearray(data[name]), dtype=stored) for name in ("weight", "bias"))
    old["weight"][:, ::2] = 0
    old["weight"][1, 1] = old["bias"][1] = 3
    assert torch.equal(weight.reshape(8, 8), old["weight"])
    assert torch.equal(bias, old["bias"])


def test_what_the_file_cannot_hold_is_an_error(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(8, 8).half(), "bias": torch.zeros(8).half()}, tmp_path / "model.safetensors")
    model = nn.Linear(8, 8)
    plan = make_plan(tmp_path / "model.safetensors", Pattern(2, 4))
    for parameter in (model.bias, model.weight):
        with torch.no_grad():
            parameter[0] = 1e5
        name = "bias" if parameter is model.bias else "weight"
        with pytest.raises(CheckpointError, match=rf"^'{name}' must fit into F16, .* up to 100000; raise damping"):
            model_folder._changed(plan, model, {"weight": "weight"})
        with torch.no_grad():
            parameter[0] = 0


def test_what_a_killed_run_left_behind_its_layers_stops_nobody(tmp_path: Path) -> None:
    """Killed before the first was finished, or as one was written."""
    layers = tmp_path / ".out.nmflow-layers"
    for resume in (True, False):
        layers.mkdir()
        with Journal(layers / "journal", {"pattern": "2:4"}, resume=False):
            pass
        if not resume:
            (layers / "0.new").touch()
        with layers_beside(tmp_path / "out", {"pattern": "1:4"}, resume=resume) as work:
            assert sorted(path.name for path in work.iterdir()) == ["journal", "lock"]
        assert not layers.exists()


def test_layers_lie_beside_the_folder_where_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with layers_beside(Path(), {}, resume=False) as work:
        assert work == tmp_path / ".out.nmflow-layers"


def test_an_error_before_the_first_layer_says_nothing_of_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early") as caught, layers_beside(tmp_path / "out", {}, resume=False):
        raise ValueError("early")
    assert not hasattr(caught.value, "__notes__")
