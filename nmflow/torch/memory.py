"""Whether an error says that memory ran out."""

from __future__ import annotations

import torch

__all__ = ["ran_out_of_memory"]

WORDS = ("can't allocate memory", "out of memory")
"""What torch's allocator of the CPU says, and Triton where it loads a kernel: of no type of their own."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, on the CPU or on a device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in WORDS)
