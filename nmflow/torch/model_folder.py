"""A Hugging Face folder pruned with what its layers see in a text: from folder to folder, as ``nmflow prune`` does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmflow.asked import as_path, check_choice, check_flags
from nmflow.checkpoint import Plan, make_plan
from nmflow.checkpoint.disk import remove
from nmflow.checkpoint.place import check_free, check_place
from nmflow.checkpoint.replace import replace_tensors
from nmflow.errors import (
    CheckpointError,
    InputValueError,
    MissingLibraryError,
    SourceNotFoundError,
)
from nmflow.pattern import Pattern
from nmflow.torch.adaprune import adaprune_
from nmflow.torch.calibrate import calibrate
from nmflow.torch.convert import to_array
from nmflow.torch.prune import prune_
from nmflow.torch.report import PruneReport
from nmflow.torch.slots import is_turned
from nmflow.torch.sparsegpt import sparsegpt_
from nmflow.torch.versions import TRANSFORMERS, is_older
from nmflow.torch.watch import OnStep

__all__ = ["METHODS", "prune_folder", "read_texts"]

METHODS = ("wanda", "sparsegpt", "adaprune")
BATCH, TOKENS = 32, 512
"""Texts of a batch, and where a text is cut off."""
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def prune_folder(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    pattern: Pattern,
    method: str,
    calibration: str | os.PathLike[str],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    solver: str = "dual",
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: OnStep | bool | None = None,
) -> PruneReport:
    """Prune the model in a Hugging Face folder with a method that looks at activations.

    Parameters
    ----------
    src : path
        A folder with config.json, a tokenizer and weights in safetensors. Only read.
    dst : path
        The folder to write: the same files, with new data for what was pruned or refitted. It appears whole or not at
        all.
    pattern : Pattern
    method : {"wanda", "sparsegpt", "adaprune"}
        Masks by `wanda` alone; `sparsegpt_`; or `adaprune_` with masks by "obs".
    calibration : path
        Text in UTF-8; every line that is not empty is a sample.
    include, exclude : iterable of str
        Globs over tensor names, as for `prune_checkpoint`: the same layers are pruned.
    solver, threads, overwrite
        As for `prune_checkpoint`.
    resume : bool
        Take layers from a run that was broken off; they are kept beside `dst`.
    progress : callable (name, done, total) or bool, optional

    Returns
    -------
    PruneReport

    Raises
    ------
    MissingLibraryError
        If transformers is not installed.
    SourceNotFoundError, InputValueError
        If the text is missing, empty or not UTF-8; or the method is unknown.
    CheckpointError
        If the folder holds no model that transformers can load, or a planned weight is in no Linear or convolution.
    """
    check_choice(method, ("magnitude", *METHODS), "method")
    check_flags(overwrite=overwrite, resume=resume)
    dst, text = as_path(dst, "dst"), as_path(calibration, "calibration")
    plan = make_plan(src, pattern, include=include, exclude=exclude)
    plan.check()
    check_place(plan.source, dst, [text], overwrite=overwrite)
    check_free(dst, is_folder=True, overwrite=overwrite)  # before hours of work, and again after them
    if not plan.source.is_folder or not (plan.source.path / "config.json").is_file():
        raise CheckpointError(
            f"src must be a Hugging Face folder with config.json for method {method}, and {plan.source.path} is not; "
            f"for a file of weights alone use method magnitude"
        )
    texts = read_texts(text)
    model, batches = _load(plan.source.path, texts)
    names = _names(plan, model)
    layers: dict[str, Any] = {
        "include": list(names.values()),
        "solver": solver,
        "threads": threads,
        "progress": progress,
    }
    work = dst.absolute().parent / f".{dst.name}.nmflow-layers"
    if not resume:
        remove(work)
    report: PruneReport
    if method == "wanda":
        seen = calibrate(model, batches, include=layers["include"], gram=False, progress=progress)
        layers.pop("progress")
        report = prune_(model, pattern=pattern, scores=seen.scores("wanda"), **layers)
    elif method == "sparsegpt":
        report = sparsegpt_(model, batches, pattern=pattern, resume=work, **layers)
    else:
        report = adaprune_(model, batches, pattern=pattern, scores="obs", resume=work, **layers)
    replace_tensors(
        plan.source, dst, _changed(plan, model, names), {"command": "prune", "method": method}, overwrite=overwrite
    )
    # the plan knows why; to what pruned, the others were not in its list
    skipped = tuple((tensor.entry.name, tensor.reason) for tensor in plan.skipped if len(tensor.entry.shape) > 1)
    return replace(report, skipped=skipped)


def read_texts(path: Path) -> list[str]:
    """Lines of a file that are not empty.

    Raises
    ------
    SourceNotFoundError
        If there is no such file.
    InputValueError
        If it is not UTF-8, or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise SourceNotFoundError(
            f"calibration must be a file of text, and {path} is none; give one, a sample a line"
        ) from None
    except UnicodeDecodeError as error:
        raise InputValueError(f"calibration must be text in UTF-8, and {path} is not: {error}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputValueError(f"calibration must hold text, and {path} is empty; give a few hundred lines")
    return lines


def _load(folder: Path, texts: list[str]) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
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
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.is_encoder_decoder:
            raise ValueError(
                f"{config.model_type} has an encoder and a decoder, which take more than lines of text; use method "
                f"magnitude, or nmflow.torch.calibrate with batches of your own"
            )
        kind = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel)
        with _without_bars(transformers):
            model, found = kind.from_pretrained(
                folder, config=config, dtype="auto", local_files_only=True, output_loading_info=True
            )
        made_up = sorted({str(key) for name in ("missing_keys", "mismatched_keys") for key in found[name]})
        if made_up:
            raise ValueError(f"{made_up[0]} is missing or of another shape, and transformers would make it up")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        longest = min(TOKENS, getattr(config, "max_position_embeddings", TOKENS), _positions(model))
        texts = sorted(texts, key=len)
        batches = [
            dict(tokenizer(texts[start : start + BATCH], padding=True, truncation=True, max_length=longest,
                           return_tensors="pt"))
            for start in range(0, len(texts), BATCH)
        ]  # fmt: skip
        _check_tokens(batches, tokenizer, model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{folder} must hold a model that transformers can load: {error}") from error
    model.eval()
    return model, batches


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
def _without_bars(transformers: Any) -> Iterator[None]:
    """Silence the progress bars of transformers, which would stand among our own lines."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _names(plan: Plan, model: nn.Module) -> dict[str, str]:
    """Name of the parameter for each planned tensor: the file may have, or lack, the prefix of the inner model."""
    known = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or is_turned(module)
    }
    found = {}
    for tensor in plan.pruned:
        name = _match(tensor.entry.name, known)
        if name is None or tuple(known[name].weight.shape) != tensor.entry.shape:
            raise CheckpointError(
                f"{tensor.entry.name!r} must be the weight of a Linear or convolution of the model, and is not; "
                f"leave it out with exclude, or use method magnitude"
            )
        found[tensor.entry.name] = name
    return found


def _match(name: str, known: Iterable[str]) -> str | None:
    """A name that is the same, or the only one that ends as the other does."""
    if name in known:
        return name
    ends = [other for other in known if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return ends[0] if len(ends) == 1 else None


def _changed(plan: Plan, model: nn.Module, names: dict[str, str]) -> dict[str, bytes]:
    """New data of pruned weights, and of biases that were refitted, in the dtypes of the file."""
    entries = {entry.name: entry for shard in plan.source.shards for entry in shard.entries}
    values = {}
    for stored, name in names.items():
        values[stored] = _bytes(model.get_parameter(name), entries[stored].dtype)
        bias = stored.removesuffix("weight") + "bias"
        held = model.get_submodule(name.removesuffix(".weight"))._parameters.get("bias")
        if bias in entries and held is not None:
            values[bias] = _bytes(held, entries[bias].dtype)
    return values


def _bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    return to_array(tensor.detach().to(DTYPES[dtype]).contiguous()).tobytes()
