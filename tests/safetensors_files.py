"""Safetensors files for tests: real ones by the reference library, and broken ones byte by byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

BF16 = np.dtype(ml_dtypes.bfloat16)


def raw_file(path: Path, header: dict[str, Any] | str | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file with any header at all."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file in a folder, by its path there."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """A small model with every kind of tensor that pruning meets."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    return {
        "embeddings.word.weight": normal(16, 8).astype("f4"),
        "encoder.f16.weight": normal(8, 12).astype("f2"),
        "encoder.bf16.weight": normal(8, 12).astype(BF16),
        "encoder.f32.weight": normal(12, 8).astype("f4"),
        "encoder.f32.bias": normal(12).astype("f4"),
        "encoder.f64.weight": normal(8, 8),
        "encoder.ragged.weight": normal(10, 7).astype("f4"),
        "encoder.conv1d.weight": normal(8, 4, 3).astype("f4"),
        "encoder.conv2d.weight": normal(8, 3, 3, 3).astype("f2"),
        "encoder.conv3d.weight": normal(4, 3, 2, 2, 2).astype("f4"),
        "encoder.depthwise.weight": normal(8, 1, 3, 3).astype("f4"),
        "encoder.experts.up_proj": normal(3, 8, 12).astype("f4"),
        "encoder.attention.in_proj_weight": normal(12, 8).astype("f4"),
        "encoder.quantised.weight": rng.integers(-128, 128, (8, 8), dtype="i1"),
        "encoder.flags.weight": rng.integers(0, 2, (8, 8)).astype(bool),
        "encoder.layer_norm.weight": normal(8).astype("f4"),
        "encoder.tiny.weight": normal(2, 8).astype("f4"),
        "encoder.nothing.weight": np.zeros((0, 8), "f4"),
        "encoder.steps": np.array(7, "i8"),
        "encoder.gamma": normal(8, 8).astype("f4"),
        "lm_head.weight": normal(16, 8).astype("f4"),
    }


PRUNED = (
    "encoder.f16.weight",
    "encoder.bf16.weight",
    "encoder.f32.weight",
    "encoder.f64.weight",
    "encoder.ragged.weight",
    "encoder.conv1d.weight",
    "encoder.conv2d.weight",
    "encoder.conv3d.weight",
    "encoder.experts.up_proj",
    "encoder.attention.in_proj_weight",
)
"""Names that are pruned at 2:4 by default."""


def write(path: Path, values: dict[str, np.ndarray] | None = None) -> Path:
    """Write a real file with the reference library."""
    save_file(tensors() if values is None else values, path, metadata={"format": "pt"})
    return path


def sharded(folder: Path) -> Path:
    """A folder with two shards and their index."""
    folder.mkdir()
    whole = tensors()
    weight_map = {}
    for number, names in enumerate((list(whole)[::2], list(whole)[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        write(folder / name, {key: whole[key] for key in names})
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(path: Path) -> dict[str, np.ndarray]:
    return load_file(path)


def as_matrices(name: str, array: np.ndarray) -> list[np.ndarray]:
    """The matrices that a pattern is laid on."""
    if name == "encoder.experts.up_proj":
        return list(array)
    if array.ndim > 2:
        return [np.moveaxis(array, 1, -1).reshape(len(array), -1)]
    return [array]


def most_nonzero(matrix: np.ndarray, m: int) -> tuple[int, int]:
    """Most nonzero entries of a group of m, along rows and along columns; counted the slow way."""
    used = matrix != 0
    rows, cols = used.shape
    along_rows = max(int(used[i, j : j + m].sum()) for i in range(rows) for j in range(0, cols, m))
    along_cols = max(int(used[i : i + m, j].sum()) for j in range(cols) for i in range(0, rows, m))
    return along_rows, along_cols


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def edit_record(folder: Path, change: Callable[[dict[str, Any]], object], *, renew: bool = True) -> None:
    """Change what nmflow.json says; its digest is renewed, as if it had been written so."""
    side = json.loads((folder / "nmflow.json").read_text())
    change(side)
    if renew and side.pop("sha256", None):
        side["sha256"] = hashlib.sha256(json.dumps(side, sort_keys=True).encode()).hexdigest()
    (folder / "nmflow.json").write_text(json.dumps(side))


def leftovers(folder: Path) -> list[str]:
    """What staging would have left behind."""
    return [path.name for path in folder.iterdir() if path.name.endswith(".nmflow")]
