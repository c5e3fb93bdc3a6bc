"""The recipe of docs/torch.md for Hugging Face's Trainer, run as it stands there, broken off and resumed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nmflow.torch as nt

DOCS = Path(__file__).resolve().parents[1] / "docs" / "torch.md"


def pieces() -> tuple[Any, type[Any], type[nn.Module], list[dict[str, torch.Tensor]]]:
    """transformers, the callback of the recipe, and a model with data."""
    transformers = pytest.importorskip("transformers", reason="needs transformers and accelerate")
    pytest.importorskip("accelerate", reason="needs transformers and accelerate")
    code = DOCS.read_text(encoding="utf-8").split("class Sparse(transformers")[1].split("args = ")[0]
    names: dict[str, Any] = {"transformers": transformers, "torch": torch}
    exec("class Sparse(transformers" + code, names)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.layer(x)
            return {"loss": (found - labels).square().mean(), "logits": found}

    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(16, generator=generator), "labels": torch.ones(16)} for _ in range(64)]
    return transformers, names["Sparse"], Model, data


@pytest.mark.slow
def test_trainer_recipe(tmp_path: Path) -> None:
    transformers, sparse, model_type, data = pieces()

    def train(where: str, checkpoint: str | None) -> Any:
        model = model_type()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        training = nt.SparseTraining(model, optimizer, 2, 4, every=3)
        args = transformers.TrainingArguments(
            str(tmp_path / where), max_steps=12, save_steps=7, per_device_train_batch_size=8, report_to=[],
            use_cpu=True, disable_tqdm=True, seed=0, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[sparse(training, checkpoint)]
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        assert [record.step for record in training.history] == [3, 6, 9, 12]
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of transformers
        whole, resumed = train("runs", None), train("elsewhere", str(tmp_path / "runs" / "checkpoint-7"))
    assert int((whole.layer.weight != 0).sum()) == 128
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


@pytest.mark.slow
def test_the_best_model_has_the_masks_it_was_measured_with(tmp_path: Path) -> None:
    """At this rate the loss grows: the best checkpoint is the first, and masks have changed since."""
    transformers, sparse, model_type, data = pieces()
    model = model_type()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    training = nt.SparseTraining(model, optimizer, 2, 4, every=3)
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=8, save_steps=2, eval_steps=2, eval_strategy="steps", load_best_model_at_end=True,
        per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of transformers
        trainer = transformers.Trainer(
            model, args, train_dataset=data, eval_dataset=data, optimizers=(optimizer, None),
            callbacks=[sparse(training)],
        )  # fmt: skip
        trainer.train()
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)
    assert int((model.layer.weight != 0).sum()) == 128
