"""The model in a Hugging Face folder and texts as its inputs: refused where transformers would make something up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmflow.errors import CheckpointError, MissingLibraryError
from nmflow.torch.versions import TRANSFORMERS, is_older

__all__ = ["load_model"]

BATCH, TOKENS = 32, 512
"""Texts of a batch, and where a text is cut off."""


def load_model(folder: Path, texts: list[str]) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """The model, and its inputs in batches of texts of about the same length."""
    try:
        import transformers
    except ImportError as error:
        raise MissingLibraryError(
            'this method needs transformers, which is not installed; pip install "nmflow[transformers]", or use method '
            "magnitude"
        ) from error
    if is_older(transformers.__version__, TRANSFORMERS):
        raise MissingLibraryError(
            f"this method needs transformers {TRANSFORMERS} or newer, not {transformers.__version__}; "
            'pip install --upgrade "nmflow[transformers]"'
        )
    # No code of the folder's, nor what it names elsewhere: None would ask at the terminal whether to run it.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            if config.is_encoder_decoder:
                raise ValueError(
                    f"{config.model_type} has an encoder and a decoder, which take more than lines of text; use method "
                    f"magnitude, or nmflow.torch.calibrate with batches of your own"
                )
            kind: Any = _class_of(transformers, config)
            # A config may name kernels for attention, which are fetched and run; None is the default of the model.
            model, found = kind.from_pretrained(
                folder,
                config=config,
                dtype="auto",
                attn_implementation=None,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            if found["missing_keys"]:  # of one of another shape it says so itself
                raise ValueError(f"{min(found['missing_keys'])} is missing, and transformers would make it up")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            most = getattr(config, "max_position_embeddings", None) or TOKENS
            longest = min(TOKENS, most if most > 0 else TOKENS, _positions(model))  # XLNet has -1, for no limit
            texts = sorted(texts, key=len)
            batches = [
                dict(tokenizer(texts[start : start + BATCH], padding=True, truncation=True, max_length=longest,
                               return_tensors="pt"))
                for start in range(0, len(texts), BATCH)
            ]  # fmt: skip
            _check_tokens(batches, tokenizer, model)
    except MemoryError:
        raise
    except Exception as error:  # transformers checks little of what a folder says
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{folder} must hold a model that transformers can load without code of the folder's own, which is "
                f"never run; use method magnitude, or load it yourself and prune it with nmflow.torch.calibrate"
            ) from error
        raise CheckpointError(
            f"{folder} must hold a model that transformers can load: {error} ({type(error).__name__})"
        ) from error
    return model, batches


def _class_of(transformers: Any, config: Any) -> Any:
    """The class of models that a config names first; that of its type where it names none, or what is no model."""
    named = config.architectures
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    kind = getattr(transformers, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) else transformers.AutoModel


def _check_tokens(batches: Sequence[dict[str, torch.Tensor]], tokenizer: Any, model: nn.Module) -> None:
    """Raise ValueError unless a tokenizer knows the texts, and the model its tokens: else others are calibrated on.

    Without files of its own a folder gets a tokenizer from transformers that knows no word.
    """
    ids = torch.cat([batch["input_ids"].reshape(-1) for batch in batches])
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches]
    real = torch.cat([mask.reshape(-1) for mask in masks]).bool()
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    marks = {getattr(tokenizer, name, None) for name in names}  # of texts
    words = ids[real & ~torch.isin(ids, torch.tensor([mark for mark in marks if mark is not None], dtype=ids.dtype))]
    # GPT-2 has one token for all of these, and knows every byte
    unknown = 0 if tokenizer.unk_token_id in {None, *marks} else int((words == tokenizer.unk_token_id).sum())
    if unknown and 2 * unknown >= len(words):
        raise ValueError(
            f"its tokenizer knows {len(words) - unknown} of {len(words)} tokens of the texts; are its files there?"
        )
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    if int(ids.max()) >= len(embedding.weight):
        raise ValueError(
            f"its tokenizer gives token {int(ids.max())}, and the model embeds {len(embedding.weight)}; it is another's"
        )


def _positions(model: nn.Module) -> int:
    """Tokens that an embedding of positions has room for: those of RoBERTa begin after the one of padding."""
    places = [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    begun = [(place.num_embeddings, place.padding_idx) for place in places if place.padding_idx is not None]
    return min((count - padding - 1 for count, padding in begun), default=TOKENS)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence the progress bars of transformers, which would stand among our own lines, and what it says.

    It prints names of tensors as they are, and a stranger's could drive the terminal; what stops it is an error anyway.
    """
    logging = transformers.utils.logging
    shown, said = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if shown:
            logging.enable_progress_bar()
