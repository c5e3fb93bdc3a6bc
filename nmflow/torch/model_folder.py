"""A Hugging Face folder pruned with what its layers see in a text: from folder to folder, as ``nmflow prune`` does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nmflow.asked import as_path, check_choice, check_flags
from nmflow.checkpoint import Plan, make_plan
from nmflow.checkpoint.header import Entry
from nmflow.checkpoint.journal import identity, version
from nmflow.checkpoint.place import check_free, check_place
from nmflow.checkpoint.replace import replace_tensors
from nmflow.errors import CheckpointError, InputValueError, SourceNotFoundError
from nmflow.pattern import Pattern
from nmflow.torch.adaprune import adaprune_
from nmflow.torch.alps import alps_
from nmflow.torch.beside import layers_beside
from nmflow.torch.calibrate import calibrate
from nmflow.torch.convert import to_array
from nmflow.torch.damping import checked_damping
from nmflow.torch.experts import experts_apart
from nmflow.torch.finite import non_finite_error
from nmflow.torch.model_load import load_model
from nmflow.torch.model_names import DTYPES, fused_names, read_entry, stored_names
from nmflow.torch.post_report import PostReport
from nmflow.torch.prune import named_error, prune_
from nmflow.torch.report import PruneReport
from nmflow.torch.sparsegpt import sparsegpt_
from nmflow.torch.watch import OnStep

__all__ = ["METHODS", "check_folder", "prune_folder", "read_texts"]

_PRUNE: dict[str, Callable[..., PostReport]] = {
    "sparsegpt": sparsegpt_, "adaprune": partial(adaprune_, scores="obs"), "alps": alps_
}  # fmt: skip
METHODS = ("wanda", *_PRUNE)


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
    damping: float | None = None,
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
    method : {"wanda", "sparsegpt", "adaprune", "alps"}
        Masks by `wanda` alone; `sparsegpt_`; `adaprune_` with masks by "obs"; or `alps_`.
    calibration : path
        Text in UTF-8; every line that is not empty is a sample.
    include, exclude : iterable of str
        Globs over tensor names, as for `prune_checkpoint`: the same layers are pruned.
    solver, threads, overwrite
        As for `prune_checkpoint`.
    damping : float, optional
        As for `adaprune_`; not for "wanda".
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
        If the folder holds no model that transformers can load, a planned weight is in no Linear or convolution, or the
        run that was broken off was asked for something else.
    NonFiniteError
        If a weight is NaN or infinite: the tensor is named.
    DestinationBusyError
        If another process works on `dst`.
    """
    check_choice(method, ("magnitude", *METHODS), "method")
    check_flags(overwrite=overwrite, resume=resume)
    damping = checked_damping(damping)
    if damping is not None and method not in _PRUNE:
        raise InputValueError(f"damping must be None for method {method}, which refits nothing")
    dst, text = as_path(dst, "dst"), as_path(calibration, "calibration")
    plan = make_plan(src, pattern, include=include, exclude=exclude)
    plan.check()
    check_place(plan.source, dst, [text], overwrite=overwrite)
    check_free(dst, is_folder=True, overwrite=overwrite)  # before hours of work, and again after them
    texts = check_folder(plan, method, text)
    model, batches = load_model(plan.source.path, texts)
    fused = fused_names(plan, model)
    asked = {
        "command": "prune",
        "version": version(),
        "source": identity(plan.source),
        "pattern": str(pattern),
        "method": method,
        "solver": solver,
        "damping": damping,
        "calibration": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "pruned": [tensor.entry.name for tensor in plan.pruned],
    }
    with layers_beside(dst, asked, resume=resume) as work:
        with experts_apart(model, joined=fused.values()):
            names = stored_names(plan, model, fused)
            _check_finite(model, names)
            layers: dict[str, Any] = {
                "include": [name for parameters in names.values() for name in parameters],
                "solver": solver,
                "threads": threads,
            }
            report: PruneReport
            if method == "wanda":
                seen = calibrate(model, batches, include=layers["include"], gram=False, progress=progress)
                report = prune_(model, pattern=pattern, scores=seen.scores("wanda"), **layers)
            else:
                prune = _PRUNE[method]
                report = prune(
                    model, batches, pattern=pattern, damping=damping, resume=work, progress=progress, **layers
                )
            data = _changed(plan, model, {stored: apart[0] for stored, apart in names.items() if stored not in fused})
        data |= _changed(plan, model, fused)
        replace_tensors(plan.source, dst, data, {"command": "prune", "method": method}, overwrite=overwrite)
    # the plan knows why; to what pruned, the others were not in its list
    skipped = tuple((tensor.entry.name, tensor.reason) for tensor in plan.skipped if len(tensor.entry.shape) > 1)
    return replace(report, skipped=skipped)


def _check_finite(model: nn.Module, names: Mapping[str, Sequence[str]]) -> None:
    """Raise NonFiniteError, naming the tensor, if a weight is not finite; later the inputs of another would not be."""
    held = dict(model.named_parameters(remove_duplicate=False))
    for stored, parameters in names.items():
        for name in parameters:
            weight = held[name].detach()
            if not weight.isfinite().all():
                raise named_error(non_finite_error(weight, "weights", "repair them"), f"tensor {stored!r}")


def check_folder(plan: Plan, method: str, calibration: Path) -> list[str]:
    """The samples of a text; CheckpointError if `plan` is of no Hugging Face folder, and what `read_texts` raises."""
    if not (plan.source.path / "config.json").is_file():
        raise CheckpointError(
            f"src must be a Hugging Face folder with config.json for method {method}, and {plan.source.path} is not; "
            f"for a file of weights alone use method magnitude"
        )
    return read_texts(calibration)


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


def _changed(plan: Plan, model: nn.Module, names: Mapping[str, str]) -> dict[str, bytes]:
    """New data of pruned weights, and of biases that were refitted, in the dtypes of the file."""
    places = {entry.name: (shard.path, entry) for shard in plan.source.shards for entry in shard.entries}
    held = dict(model.named_parameters(remove_duplicate=False))
    values = {}
    for stored, name in names.items():
        values[stored] = _bytes(held[name], *places[stored])
        bias = _bias_of(stored)
        if bias in places and _bias_of(name) in held:
            values[bias] = _bytes(held[_bias_of(name)], *places[bias])
    return values


def _bias_of(name: str) -> str:
    """Name of a weight's bias; that of all experts is named after theirs."""
    return f"{name[:-6]}bias" if name.endswith("weight") else f"{name}_bias"


def _bytes(value: torch.Tensor, path: Path, entry: Entry) -> bytes:
    """What the file is to hold: where the model still holds what it took from there, the same bits.

    Raises
    ------
    CheckpointError
        If a number is too large for the dtype of the file.
    """
    value, dtype = value.detach().cpu(), DTYPES[entry.dtype]
    if value.dtype == dtype:
        return to_array(value).tobytes()
    old, new = read_entry(path, entry), value.to(dtype)
    # a config may name a dtype that rounds; what is zero may have been pruned, and may be more in the file
    new = torch.where((old.to(value.dtype) == value) & (value != 0), old, new)
    lost = value[value.isfinite() & ~new.isfinite()]
    if len(lost):
        raise CheckpointError(
            f"{entry.name!r} must fit into {entry.dtype}, the dtype of the file, and was refitted to numbers up to "
            f"{float(lost.abs().max()):g}; raise damping, or leave it out with exclude"
        )
    return to_array(new).tobytes()
