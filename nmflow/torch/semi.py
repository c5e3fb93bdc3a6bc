"""Hand pruned layers to torch's sparse kernels: two-way semi-structured tensors, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nmflow.arrays import Array
from nmflow.formats import get
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.torch.convert import to_array
from nmflow.torch.products import ProductError, multiplying
from nmflow.torch.prune import naming
from nmflow.torch.report import table
from nmflow.torch.select import Filter, Layer, select, unwrapped
from nmflow.torch.semi_structured import semi_structured

__all__ = ["SemiReport", "to_semi_structured_"]

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""What the two-way kernels multiply."""


@dataclass(frozen=True, slots=True, repr=False)
class SemiReport:
    """Which layers fit torch's two-way kernels; ``print(report)`` shows a table.

    Attributes
    ----------
    converted : tuple of str
        Parameters that are semi-structured tensors now.
    verified : tuple of str
        Parameters that fit, checked both ways, and stay dense as they are on no CUDA device.
    skipped : tuple of (str, str)
        Parameters that do not fit, or that torch does not multiply on their device, and why.
    """

    converted: tuple[str, ...]
    verified: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        counts = f"{len(self.converted)} converted, {len(self.verified)} verified, {len(self.skipped)} skipped"
        return f"<SemiReport: {counts}>"

    def __str__(self) -> str:
        verified = "fits both ways; stays dense, as torch multiplies it on CUDA devices alone"
        rows = [(name, "converted") for name in self.converted]
        rows += [(name, verified) for name in self.verified]
        return table([("semi-structured 2:4", ""), *rows, *self.skipped], left=(0, 1), rules=(1,))


def to_semi_structured_(
    model: nn.Module,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
) -> SemiReport:
    """Make torch's two-way semi-structured tensors of the Linear weights that are 2:4 in rows and columns.

    Parameters
    ----------
    model : Module
        Pruned to 2:4 both ways, for example by `prune_`; float16 or bfloat16. Elsewhere than on a CUDA device its
        weights are packed, unpacked, compared, and left as they are.
    include, exclude, filter_fn
        As for `prune_`.

    Returns
    -------
    SemiReport

    Raises
    ------
    InputValueError
        If the model has no layer that 2:4 could prune.
    NonFiniteError
        If a weight is NaN or infinite: the parameter is named.

    Notes
    -----
    Whether a weight is 2:4 both ways is asked of the exact solver: it is if, and only if, the best mask loses nothing.
    Tensors are `torch.sparse.SparseSemiStructuredTensorCUTLASS` on devices of compute capability 8.x and
    `SparseSemiStructuredTensorCUSPARSELT` on others. A weight is replaced only after the products of its tensor, and
    of the transpose, with the columns of the identity were right on its device.

    Torch saves no such tensors: keep the dense state dict.
    """
    pattern = Pattern(2, 4)
    selection = select(unwrapped(model), pattern, include=include, exclude=exclude, filter_fn=filter_fn)
    skipped = list(selection.skipped)
    from nmflow.checkpoint.support import find_support  # a Python made for a card may lack what files need

    fitting: list[tuple[Layer, Array]] = []
    for layer in selection.layers:
        weight = layer.parameters[0]
        reason = _unfit(layer)
        if not reason:
            array = to_array(weight, layer.name)
            with naming(layer.name):
                mask = solve(array, pattern=pattern).mask
            lost = int(np.count_nonzero(array[~mask]))
            if lost:
                reason = f"not 2:4 in rows and columns: at least {lost} entries too many; prune_(model, 2, 4) first"
            else:
                # A -0.0 has the score of what is dropped, and yet it was kept: it stays where there is room for it.
                mask = find_support(array, str(pattern)).mask
                _check_packing(layer, array, mask)
                fitting.append((layer, mask))
        if reason:
            skipped.append((layer.name, reason))
    converted, verified = [], []
    for layer, mask in fitting:
        weight = layer.parameters[0]
        if not _on_card(weight):
            verified.append(layer.name)
            continue
        try:
            tensor = multiplying(weight.detach(), mask)
        except ProductError as error:
            skipped.append((layer.name, f"fits both ways; stays dense, as torch does not multiply it here: {error}"))
            continue
        parameter = nn.Parameter(tensor, requires_grad=weight.requires_grad)
        for slot in layer.slots:
            setattr(slot.module, slot.attribute, parameter)
        converted.append(layer.name)
    return SemiReport(tuple(converted), tuple(verified), tuple(skipped))


def _on_card(weight: torch.Tensor) -> bool:
    return weight.is_cuda


def _unfit(layer: Layer) -> str:
    """Why the kernels cannot take a layer, whatever its values."""
    weight, module = layer.parameters[0], layer.slots[0].module
    if not all(isinstance(slot.module, nn.Linear) for slot in layer.slots):
        return f"in a {type(module).__name__}: torch multiplies semi-structured tensors in Linear layers only"
    if any(slot.attribute != "weight" for slot in layer.slots):
        return "not the weight of its Linear, by which alone torch multiplies"
    if weight.dtype not in DTYPES:
        return f"{weight.dtype}: the two-way kernels take float16 and bfloat16; model.half() or model.bfloat16()"
    need = get("cutlass-24").requirements[DTYPES[weight.dtype]]
    if weight.shape[0] % need.rows or weight.shape[1] % need.cols:
        shape = f"{weight.shape[0]} x {weight.shape[1]}"
        return f"{shape}: rows must be a multiple of {need.rows} and columns of {need.cols}"
    return ""


def _check_packing(layer: Layer, array: Array, mask: Array) -> None:
    """Pack a weight, unpack it both ways and compare."""
    tensor, dense = semi_structured(array, mask), layer.parameters[0].detach().cpu()
    for found, expected in ((tensor.to_dense(), dense), (tensor.t().to_dense(), dense.t())):
        if not torch.equal(found, expected):  # a defect of ours or of this torch, never of the user's
            raise AssertionError(f"{layer.name}: packed and unpacked, the weight is not what it was")
