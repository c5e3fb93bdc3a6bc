"""The matrix of blocks behind a tensor: any layout as one padded matrix, and a mask of it as the tensor's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from nmflow.arrays import Layout
from nmflow.pattern import Pattern

__all__ = ["BlockGrid"]


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The matrices of a tensor one below the other, each padded with zeros to whole blocks.

    Attributes
    ----------
    scores : Tensor, shape (tall * R, wide * C)
        A view of the tensor where it is one matrix of whole blocks, else a copy.
    shape : tuple of int
        Of the tensor.
    layout : {None, "conv", "batch"}
    matrices : int
    matrix_shape : (int, int)
        Of each matrix, not padded.
    pattern : Pattern
    """

    scores: torch.Tensor
    shape: tuple[int, ...]
    layout: Layout | None
    matrices: int
    matrix_shape: tuple[int, int]
    pattern: Pattern

    @classmethod
    def of(cls, tensor: torch.Tensor, pattern: Pattern, layout: Layout | None, groups: int) -> BlockGrid:
        """Lay a tensor out; the arguments are checked before."""
        shape = tuple(tensor.shape)
        if layout == "conv":
            stack = tensor.movedim(1, -1).reshape(groups, shape[0] // groups, -1)
        else:
            stack = tensor.reshape(-1, *shape[-2:]) if layout == "batch" else tensor[None]
        count, height, width = stack.shape
        rows, cols = pattern.block_shape
        extra = (0, -width % cols, 0, -height % rows)
        if any(extra):
            stack = functional.pad(stack, extra)
        flat = stack[0] if count == 1 else stack.reshape(-1, stack.shape[2])
        return cls(flat, shape, layout, count, (height, width), pattern)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, cols = self.pattern.block_shape
        return self.scores.shape[0] // rows, self.scores.shape[1] // cols

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of blocks of each matrix."""
        tall, wide = self.size
        return ((tall // self.matrices, wide),) * self.matrices

    def edges(self, number: int, count: int) -> tuple[int, int]:
        """Rows of blocks where a band begins and ends, one of `count`."""
        tall = self.size[0]
        return number * tall // count, (number + 1) * tall // count

    def band(self, number: int, count: int) -> BlockGrid:
        """One of `count` bands of rows of blocks; only its scores mean something."""
        return self if count == 1 else replace(self, scores=self.cut_rows(self.scores, number, count))

    def cut_rows(self, flat: torch.Tensor, number: int, count: int) -> torch.Tensor:
        """View a band of a matrix like `scores`."""
        first, last = self.edges(number, count)
        rows = self.pattern.block_shape[0]
        return flat[first * rows : last * rows]

    def per_matrix(self, duals: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Duals of all matrices as a Solution holds them: a tensor for each, or the only one."""
        return duals if self.matrices == 1 else duals.chunk(self.matrices)

    def mask(self, flat: torch.Tensor) -> torch.Tensor:
        """A mask of `scores` as one of the tensor."""
        stack = flat.reshape(self.matrices, -1, flat.shape[1])[:, : self.matrix_shape[0], : self.matrix_shape[1]]
        if self.layout == "conv":
            out, channels, *kernel = self.shape
            return stack.reshape(out, *kernel, channels).movedim(-1, 1)
        return stack.reshape(self.shape)

    def blocks(self, numbers: torch.Tensor) -> torch.Tensor:
        """Copy the scores of some blocks: shape (k, R, C)."""
        return self.scores[self._index(numbers)]

    def put(self, flat: torch.Tensor, numbers: torch.Tensor, blocks: torch.Tensor) -> None:
        """Write some blocks of a matrix like `scores`."""
        flat[self._index(numbers)] = blocks

    def _index(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, cols = self.pattern.block_shape
        wide = self.size[1]
        across = torch.arange(cols, device=numbers.device)
        down = torch.arange(rows, device=numbers.device)
        i = (numbers // wide * rows)[:, None, None] + down[None, :, None]
        return i, (numbers % wide * cols)[:, None, None] + across[None, None, :]
