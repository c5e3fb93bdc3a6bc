"""Whether two tensors have entries in common, such as a matrix and its transpose, or all of it and a part."""

from __future__ import annotations

import torch

__all__ = ["overlap"]


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether an entry belongs to both of two dense tensors with data.

    Notes
    -----
    Exact for tensors of one dtype: columns of a matrix lie between each other and have nothing in common. Where that is
    the question it takes a byte for each entry from the first of both to the last. Two dtypes in one memory are not
    looked at any closer.
    """
    if one.device != other.device or one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    if one.dtype != other.dtype:
        return True
    (begin, end), (start, stop) = _span(one), _span(other)
    if end <= start or stop <= begin:
        return False
    first = min(begin, start)
    marks = torch.zeros(max(end, stop) - first, dtype=torch.bool, device="cpu")
    marks.as_strided(one.shape, one.stride(), begin - first).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), start - first).any())


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Where the first entry of a tensor is in its storage, and the place behind the last."""
    begin = int(tensor.storage_offset())
    last = sum(int(step) * (size - 1) for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return begin, begin + last + 1
