"""What a layer sees: its inputs as rows of a matrix, and sums over these rows in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from nmflow.errors import InputValueError, NonFiniteError
from nmflow.torch.experts import tokens_of
from nmflow.torch.gram import NARROW, add_gram, narrow
from nmflow.torch.select import Layer

__all__ = ["Moments", "from_matrices", "known", "matrices", "rows_of"]

PART_BYTES = 32 << 20
"""Rows are widened a part at a time, so that a batch never exists whole in that width."""


def known(layer: Layer) -> bool:
    """Whether the inputs that a layer's weight is multiplied by can be seen from outside."""
    return layer.turned or all(
        slot.attribute == "weight" and isinstance(slot.module, nn.Linear | nn.Conv1d | nn.Conv2d)
        for slot in layer.slots
    )


def matrices(layer: Layer, tensor: torch.Tensor) -> torch.Tensor:
    """See a tensor of the weight's shape as matrices, shape (groups, rows, columns), columns in the order of `solve`.

    Those of a convolution are (kernel . in), the channels last; a Conv1D of transformers is turned.
    """
    if layer.turned:
        return tensor.mT[None]
    moved = tensor.movedim(1, -1)
    return moved.reshape(layer.groups, moved.shape[0] // layer.groups, -1)


def from_matrices(layer: Layer, matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `matrices`: a tensor of the weight's shape."""
    if layer.turned:
        return matrix[0].mT
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def rows_of(module: nn.Module, value: torch.Tensor, wanted: Sequence[torch.Tensor] = ()) -> Iterator[torch.Tensor]:
    """Yield the input of a Linear or convolution as matrices, shape (groups, any, columns), a part at a time.

    Parameters
    ----------
    module : Linear, Conv1d, Conv2d, or a Conv1D of transformers
    value : Tensor
        What the module is called with. A convolution's windows are unfolded: one row for each place of each sample.
    wanted : sequence of Tensor of bool, shape (texts, tokens)
        Where one has the shape of a Linear's input without the last axis and those of one, be it with texts one after
        the other, or side by side (of square ones that is not seen), other rows are left out: padding. An expert's
        input says which tokens it holds.

    Raises
    ------
    InputValueError
        If two that differ fit.
    """
    if isinstance(module, _ConvNd):
        yield from _windows(module, value)
        return
    shape = value.shape[:-1]
    tokens = tokens_of(value)
    if tokens is None:
        bare = _bare(shape)
        fitting = [mask.reshape(shape) for mask in wanted if bare in (_bare(mask.shape), _bare([mask.numel()]))]
        # texts side by side
        fitting = fitting or [mask.T.reshape(shape) for mask in wanted if bare == _bare(mask.T.shape)]
    else:
        fitting = [mask.reshape(-1)[tokens[0]] for mask in wanted if mask.numel() == tokens[1]]
    if any(not torch.equal(fitting[0], other) for other in fitting[1:]):
        raise InputValueError(
            "batches must tell padding of the encoder from that of the decoder, and their texts have one length and "
            "other padding; pad them to different lengths"
        )
    if fitting:
        value = value[fitting[0]]
    flat = value.reshape(1, -1, value.shape[-1])
    step = max(1, PART_BYTES // ((4 if flat.dtype in NARROW else 8) * flat.shape[-1]))
    yield from torch.split(flat, step, dim=1)


def _bare(shape: Sequence[int]) -> list[int]:
    """A shape without axes of one: DeepSeek calls what makes keys and values with one for heads."""
    return [size for size in shape if size != 1]


def _windows(module: _ConvNd, value: torch.Tensor) -> Iterator[torch.Tensor]:
    """What each output place of a convolution is a product of, a few samples at a time."""
    inside, *sizes = module.weight.shape[1:]  # torch looks at nothing else: a weight may have been replaced
    flat = len(sizes) == 1  # unfold knows images: a signal is one of a single line
    if value.ndim == len(sizes) + 1:
        value = value[None]
    if not len(value):  # nothing would say how many rows to reshape it into
        return
    dilation, stride = (_each(given, len(sizes)) for given in (module.dilation, module.stride))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    value = nn.functional.pad(value, _padding(module, sizes, dilation), mode=mode)
    channels = inside * module.groups
    head = [1] if flat else []
    kernel, steps, strides = (tuple(head + each) for each in (sizes, dilation, stride))
    sample = 8 * channels * kernel[0] * kernel[1] * value[0, 0].numel()
    for part in torch.split(value, max(1, PART_BYTES // max(1, sample))):
        image = part[:, :, None] if flat else part
        found = nn.functional.unfold(image, kernel, dilation=steps, stride=strides)
        found = found.reshape(len(part), module.groups, inside, kernel[0] * kernel[1], -1)
        yield found.permute(1, 0, 4, 3, 2).reshape(module.groups, -1, kernel[0] * kernel[1] * inside)


def _padding(module: _ConvNd, sizes: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What is added before and after each axis, the last axis first; with zeros, as the module says now."""
    if module.padding_mode != "zeros":
        return list(module._reversed_padding_repeated_twice)
    if module.padding == "valid":
        return [0] * (2 * len(sizes))
    if module.padding == "same":
        wholes = [step * (size - 1) for step, size in zip(dilation, sizes, strict=True)]
        return [part for whole in reversed(wholes) for part in (whole // 2, whole - whole // 2)]
    return [amount for amount in reversed(_each(module.padding, len(sizes))) for _ in range(2)]


def _each(given: Any, count: int) -> list[int]:
    """A number for each axis, of one for all or of several."""
    return list(given) if isinstance(given, tuple | list) else [given] * count


@dataclass(slots=True)
class Moments:
    """Sums over all rows x that a layer was multiplied by; one for each group of a convolution.

    Attributes
    ----------
    count : int
        Rows of each group.
    total, square : Tensor of float64, shape (groups, K)
        Sums of x and of its squares.
    gram : Tensor of float64, shape (groups, K, K), or None
        Sum of x xᵀ.
    shift, drift, cross : Tensor of float64, shapes (groups, K), (groups, K) and (groups, K, K), or None
        Sums of d, of its squares and of d xᵀ, where d is the same row of the dense model less x: how far inputs have
        moved.
    """

    count: int
    total: torch.Tensor
    square: torch.Tensor
    gram: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    drift: torch.Tensor | None = None
    cross: torch.Tensor | None = None

    @classmethod
    def of(cls, layer: Layer, *, gram: bool, cross: bool = False) -> Moments:
        """Sums over nothing, on the device of the layer's parameter (or the CPU, where that has no float64)."""
        parameter = layer.parameters[0]
        groups, _, width = matrices(layer, parameter.detach()).shape
        options: dict[str, Any] = {"dtype": torch.float64, "device": accumulating(parameter.device)}

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, **options)

        return cls(
            0, zeros(groups, width), zeros(groups, width),
            zeros(groups, width, width) if gram else None,
            zeros(groups, width) if cross else None,
            zeros(groups, width) if cross else None,
            zeros(groups, width, width) if cross else None,
        )  # fmt: skip

    @property
    def norms(self) -> torch.Tensor:
        """Euclidean norm of each input over all rows, shape (groups, K)."""
        return self.square.sqrt()

    def add(self, part: torch.Tensor, dense: torch.Tensor | None = None) -> None:
        """Take in rows, shape (groups, any, K), and the same rows of the dense model.

        Raises
        ------
        NonFiniteError
            If a value is NaN or infinite.
        """
        part, dense = part.detach(), None if dense is None else dense.detach()  # a model may differentiate as it runs
        if part.shape[-1] != self.total.shape[-1]:
            return  # the module is about to say so itself
        rows = part.to(self.total.device)
        rows = rows.to(torch.float32 if self.gram is not None and narrow(rows) else torch.float64)
        bad = ~torch.isfinite(rows)
        if bad.any():
            first = tuple(int(index) for index in bad.nonzero()[0])
            raise NonFiniteError("inputs", int(bad.sum()), first)
        self.count += rows.shape[1]
        self.total += rows.sum(1, dtype=torch.float64)
        if self.gram is None:
            self.square += rows.square().sum(1)
        else:
            add_gram(self.gram, rows)
            self.square = self.gram.diagonal(dim1=-2, dim2=-1)
        if not torch.isfinite(self.square).all():
            raise NonFiniteError("squares of inputs", int((~torch.isfinite(self.square)).sum()), ())
        if self.cross is not None and self.shift is not None and self.drift is not None and dense is not None:
            rows = rows.to(torch.float64)  # what a row has moved by may need more bits than float32 has
            moved = dense.to(self.total.device).to(torch.float64) - rows
            self.shift += moved.sum(1)
            self.drift += moved.square().sum(1)
            torch.baddbmm(self.cross, moved.mT, rows, out=self.cross)


def accumulating(device: torch.device) -> torch.device:
    """Where float64 sums are kept for tensors of a device."""
    return torch.device("cpu") if device.type == "mps" else device
