"""What exporting a checkpoint did, tensor by tensor: frozen values, no algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ExportReport", "ExportedTensor"]


@dataclass(frozen=True, slots=True)
class ExportedTensor:
    """What was done to one weight.

    Attributes
    ----------
    name, shard, dtype : str
    shape, stored_shape : tuple of int
        The second is larger where it was padded.
    pattern : str or None
    kept : int
        Entries that the mask keeps.
    n_blocks, completed, unfilled : int
        As in `nmflow.checkpoint.support.Support`; zeros where the mask was given.
    dense_bytes, stored_bytes : int
    seconds : float
    dropped : int
        Entries that are not zero and that a given mask drops.
    negative_zeros : int
        Kept entries that are -0.0, where no mask was given and the format takes any.
    """

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    pattern: str | None
    kept: int
    n_blocks: int
    completed: int
    unfilled: int
    dense_bytes: int
    stored_bytes: int
    seconds: float
    dropped: int = 0
    negative_zeros: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportedTensor:
        """Read what a journal holds."""
        shapes = {name: tuple(values[name]) for name in ("shape", "stored_shape")}
        return cls(**{**values, **shapes})


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What exporting a checkpoint did.

    Attributes
    ----------
    source, destination, format : str
    masks : str or None
        Where masks came from, if they were given.
    tensors : tuple of ExportedTensor
    left_dense : tuple of (str, str)
        Tensors stored as they were, and why.
    """

    source: str
    destination: str
    format: str
    masks: str | None
    tensors: tuple[ExportedTensor, ...]
    left_dense: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {**asdict(self), "left_dense": [{"name": name, "reason": why} for name, why in self.left_dense]}
