"""Which parameter of a model each tensor of its folder is: by name, and by what it holds where names have changed."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from nmflow.checkpoint import Plan, PlannedTensor
from nmflow.checkpoint.arrays import map_array
from nmflow.checkpoint.header import Entry
from nmflow.errors import CheckpointError
from nmflow.torch.convert import to_array
from nmflow.torch.slots import is_fused, is_turned

__all__ = ["DTYPES", "fused_names", "read_entry", "stored_names"]

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def fused_names(plan: Plan, model: nn.Module) -> dict[str, str]:
    """Name of the parameter for each planned tensor that holds a matrix of all experts of a layer.

    By name; where a folder has other names, as Granite's have, by what it holds.
    """
    known = {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        if is_fused(module)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }
    found: dict[str, str] = {}
    left = []
    for tensor in plan.pruned:
        name = _match(tensor.entry.name, known)
        if name is not None and tuple(known[name].shape) == tensor.entry.shape:
            found[tensor.entry.name] = name
        elif tensor.layout == "batch":
            left.append(tensor)
    free = {name: parameter for name, parameter in known.items() if name not in found.values()}
    return found | _by_content(left, free)


def stored_names(plan: Plan, model: nn.Module, fused: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of the parameters for each planned tensor, while experts are apart: one, or that of each expert.

    The file may have, or lack, the prefix of the inner model; and transformers may give a layer another name, such as
    an expert's: then a tensor is found by what it holds.

    Raises
    ------
    CheckpointError
        If a tensor is the weight of no Linear or convolution.
    """
    known = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or is_turned(module)
    }
    found: dict[str, list[str]] = {}
    left: list[PlannedTensor] = []
    for tensor in plan.pruned:
        stored = tensor.entry.name
        if stored in fused:
            experts, _, own = fused[stored].rpartition(".")
            found[stored] = [f"{experts}.{number}.{own}.weight" for number in range(tensor.entry.shape[0])]
            continue
        name = _match(stored, known)
        if name is None or tuple(known[name].weight.shape) != tensor.entry.shape:
            left.append(tensor)
        else:
            found[stored] = [name]
    taken = {name for names in found.values() for name in names}
    free = {name: module.weight for name, module in known.items() if name not in taken}
    found |= {stored: [name] for stored, name in _by_content(left, free).items()}
    lost = next((tensor.entry.name for tensor in left if tensor.entry.name not in found), None)
    if lost is not None:
        raise CheckpointError(
            f"{lost!r} must be the weight of a Linear or convolution of the model, and is not; "
            f"leave it out with exclude, or use method magnitude"
        )
    return found


def _match(name: str, known: Iterable[str]) -> str | None:
    """A name that is the same, or the only one that ends as the other does."""
    if name in known:
        return name
    ends = [other for other in known if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return ends[0] if len(ends) == 1 else None


def _by_content(left: Iterable[PlannedTensor], free: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Match tensors and parameters that hold the same numbers; of several alike, in the order of their names."""
    holders: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    shapes = {tensor.entry.shape for tensor in left}
    for name, weight in free.items():
        if tuple(weight.shape) in shapes:
            holders[_print_of(weight)].append(name)
    dtypes = {weight.dtype for weight in free.values()}
    alike: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for tensor in left:
        for dtype in dtypes:  # that of the model may be another than the file's
            key = _print_of(read_entry(tensor.shard.path, tensor.entry).to(dtype))
            if key in holders:
                alike[key].append(tensor.entry.name)
    return {
        stored: name
        for key, names in alike.items()
        if len(names) == len(holders[key])
        for stored, name in zip(sorted(names, key=_in_order), sorted(holders[key], key=_in_order), strict=True)
    }


def _print_of(weight: torch.Tensor) -> tuple[object, ...]:
    data = to_array(weight.detach().contiguous())
    return weight.dtype, tuple(weight.shape), hashlib.blake2b(data.tobytes(), digest_size=16).digest()


def read_entry(path: Path, entry: Entry) -> torch.Tensor:
    """A tensor of a file, in the dtype that it has there."""
    raw = bytearray(map_array(path, entry).tobytes())
    return torch.frombuffer(raw, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
