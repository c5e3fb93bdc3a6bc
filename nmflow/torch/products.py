"""torch's semi-structured tensors on a card, taken only if their products are right there, both ways.

torch has two kinds. Its own kernels, by CUTLASS, are for compute capability 8.x, and refuse newer cards. NVIDIA's
cuSPARSELt takes those as well; how it lays a matrix out is known to it alone. So it is not the stored arrays that are
compared but products with the columns of the identity, which are exact.
"""

from __future__ import annotations

import torch
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as CUSPARSELT

from nmflow.arrays import Array
from nmflow.torch.semi_structured import as_prototype, semi_structured

__all__ = ["ProductError", "by_cusparselt", "is_8_x", "multiplying"]

COLUMNS = 1024
"""Columns of the identity at a time."""


class ProductError(Exception):
    """torch does not multiply a weight where it lies; the text says why."""


def is_8_x(device: torch.device) -> bool:
    """Whether a CUDA device is of compute capability 8.x."""
    return torch.cuda.get_device_capability(device)[0] == 8


def by_cusparselt(weight: torch.Tensor) -> torch.Tensor:
    """Pack a weight that is 2:4 both ways, and its transpose, as cuSPARSELt wants them."""
    there, back = (torch._cslt_compress(way.contiguous()) for way in (weight, weight.t()))
    with as_prototype():
        tensor: torch.Tensor = CUSPARSELT(weight.shape, there, None, back, None, None)
    return tensor


def multiplying(weight: torch.Tensor, mask: Array) -> torch.Tensor:
    """Pack a weight whose zeros are at least those of a 2:4 mask, and its transpose, for products on its device.

    Raises
    ------
    ProductError
        If torch refuses to, or a product is wrong.
    """
    try:
        tensor = semi_structured(weight, mask) if is_8_x(weight.device) else by_cusparselt(weight)
        right = _multiplies(tensor, weight) and _multiplies(tensor.t(), weight.t())
    except (RuntimeError, NotImplementedError, AttributeError) as error:  # the last where torch has no such operation
        raise ProductError((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    if not right:
        raise ProductError("its products are wrong")
    return tensor


def _multiplies(sparse: torch.Tensor, dense: torch.Tensor) -> bool:
    """Whether products with columns of the identity are the columns."""
    length = dense.shape[1]
    for first in range(0, length, COLUMNS):
        columns = dense[:, first : first + COLUMNS]
        one = torch.zeros(length, columns.shape[1], dtype=dense.dtype, device=dense.device)
        one[first : first + COLUMNS].fill_diagonal_(1.0)
        if not torch.equal(torch.mm(sparse, one), columns):
            return False
    return True
