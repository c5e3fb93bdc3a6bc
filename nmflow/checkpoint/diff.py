"""Compare two checkpoints: which weights changed, and how far their masks are apart."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nmflow.arrays import Array
from nmflow.asked import check_functions, thread_count
from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.header import DTYPE_BITS, Entry, Header
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.source import open_source
from nmflow.checkpoint.stamp import as_long
from nmflow.checkpoint.tiles import Tile, cut_bytes, read_tile

__all__ = ["Difference", "TensorDifference", "diff_checkpoints"]

SIGNED = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Dtypes with a sign bit: they are zero exactly when all their other bits are."""
UNSIGNED = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""Dtypes that are zero exactly when all their bits are."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor that both checkpoints hold with the same dtype and shape.

    Attributes
    ----------
    name, dtype : str
    shape : tuple of int
    changed : int or None
        Entries whose bits differ; None if the dtype packs entries below a byte.
    sad : int or None
        Sparse Architecture Divergence: entries that are zero in exactly one of the two; None if the dtype has no zero
        that we know of.
    same : bool
        Whether all bytes are the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    changed: int | None
    sad: int | None
    same: bool

    @property
    def flip_rate(self) -> float | None:
        """Share of entries that are zero in exactly one of the two; 0 of none."""
        return None if self.sad is None else self.sad / max(math.prod(self.shape), 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """How two checkpoints differ.

    Attributes
    ----------
    a, b : str
    tensors : tuple of TensorDifference
        Those that can be compared, in the order of `a`.
    only_a, only_b : tuple of str
        Names that one of them alone holds.
    unlike : tuple of (str, str, str)
        Name, and dtype and shape in `a` and in `b`, where those differ.
    """

    a: str
    b: str
    tensors: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: tuple[tuple[str, str, str], ...]

    @property
    def same(self) -> bool:
        """Whether both hold the same tensors with the same bytes."""
        return all(tensor.same for tensor in self.tensors) and not (self.only_a or self.only_b or self.unlike)

    def to_dict(self) -> dict[str, Any]:
        """The difference for JSON."""
        return {
            **asdict(self),
            "same": self.same,
            "tensors": [{**asdict(tensor), "flip_rate": tensor.flip_rate} for tensor in self.tensors],
            "unlike": [{"name": name, "a": a, "b": b} for name, a, b in self.unlike],
        }


def diff_checkpoints(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Difference:
    """Compare the tensors of two checkpoints, by name and whatever shard they are in.

    Parameters
    ----------
    a, b : path
        As for prune_checkpoint.
    threads : int, optional
    progress : callable, optional
        Called before each tensor and at the end.

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If one of them is not a sound checkpoint in safetensors. A difference is no error but a result.

    Notes
    -----
    Both are read once, in pieces; memory does not grow with them.

    References
    ----------
    A. Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021 (SAD).
    """
    check_functions(progress=progress)
    first, second = _entries(a), _entries(b)
    unlike, tensors = [], []
    both = [name for name in first if name in second]
    done, total = 0, sum(first[name][1].n_bytes for name in both)
    with Pool(thread_count(threads)) as pool:
        for name in both:
            if progress:
                progress(name, done, total)
            one, other = first[name], second[name]
            done += one[1].n_bytes
            if _kind(one[1]) == _kind(other[1]):
                tensors.append(_compare(one, other, pool))
            else:
                unlike.append((name, _kind(one[1]), _kind(other[1])))
    if progress:
        progress("", done, total)
    return Difference(
        str(a),
        str(b),
        tuple(tensors),
        tuple(name for name in first if name not in second),
        tuple(name for name in second if name not in first),
        tuple(unlike),
    )


def _entries(path: str | os.PathLike[str]) -> dict[str, tuple[Header, Entry]]:
    return {entry.name: (shard, entry) for shard in open_source(path).shards for entry in shard.entries}


def _kind(entry: Entry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def _compare(one: tuple[Header, Entry], other: tuple[Header, Entry], pool: Pool) -> TensorDifference:
    entry = one[1]
    if entry.n_bytes != other[1].n_bytes:  # an unknown dtype may take any number of bytes
        return TensorDifference(entry.name, entry.dtype, entry.shape, None, None, False)
    bits = DTYPE_BITS.get(entry.dtype, 0)
    kind = np.dtype(f"u{bits // 8}" if bits >= 8 else "u1")  # what is packed below a byte is compared as bytes
    magnitude = kind.type((1 << (8 * kind.itemsize - (entry.dtype in SIGNED))) - 1)

    def piece(tile: Tile) -> tuple[int, int]:
        x, y = _read(first, one, tile).view(kind), _read(second, other, tile).view(kind)
        changed = int(np.count_nonzero(x != y))
        if not changed:
            return 0, 0
        return changed, int(np.count_nonzero(((x & magnitude) == 0) != ((y & magnitude) == 0)))

    with one[0].opened() as first, other[0].opened() as second:
        parts = list(pool.map(piece, cut_bytes(entry.n_bytes)))
    changed, sad = (sum(part[k] for part in parts) for k in range(2))
    has_zero = entry.dtype in SIGNED or entry.dtype in UNSIGNED
    return TensorDifference(
        entry.name, entry.dtype, entry.shape, changed if bits >= 8 else None, sad if has_zero else None, not changed
    )


def _read(file: int, place: tuple[Header, Entry], tile: Tile) -> Array:
    """A piece of a tensor as bytes; it is cut at a multiple of every entry's size."""
    shard, entry = place
    with as_long(f"{shard.path}: tensor {entry.name!r}"):
        return read_tile(file, entry.start, (entry.n_bytes,), tile, np.dtype(np.uint8))
