"""Tensor <-> array: dtypes that NumPy lacks, other devices, and transfers that run while the last tensor is solved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError

__all__ = ["FLOATS", "arrays", "checked", "to_array", "to_mask"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights that get a mask."""


def to_array(tensor: torch.Tensor, name: str = "tensor") -> Array:
    """View a tensor as a NumPy array; only tensors of other devices are copied.

    Parameters
    ----------
    tensor : Tensor, any strides
        Not modified. bfloat16 comes out as ml_dtypes' bfloat16: the same 16 bits.
    name : str
        What an error calls it.

    Returns
    -------
    ndarray, same shape

    Raises
    ------
    InputTypeError
        If it is not a tensor, or a sparse or quantised one, or has a dtype that NumPy cannot hold.
    InputValueError
        If it has no data (meta device).

    Examples
    --------
    >>> to_array(torch.ones(2, 2, dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    """
    return _started(tensor, name)()


def arrays(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Array]:
    """View tensors as arrays, one after the other; the next one travels while the caller works on this one.

    From a CUDA device the copy goes into pinned memory on a stream of its own. At most two copies are alive here.
    """
    waiting: Callable[[], Array] | None = None
    for name, tensor in tensors:
        started = _started(tensor, name)
        if waiting is not None:
            yield waiting()
        waiting = started
    if waiting is not None:
        yield waiting()


def checked(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A dense tensor with data, without its graph; the errors are those of `to_array`."""
    if not isinstance(tensor, torch.Tensor):
        raise InputTypeError(f"{name} must be a tensor, not {type(tensor).__name__}; for arrays use nmflow.solve")
    if hasattr(tensor, "full_tensor"):  # a DTensor
        raise InputTypeError(
            f"{name} must be whole, not a {type(tensor).__name__}, of which each rank has a part; use .full_tensor()"
        )
    if isinstance(tensor, torch.sparse.SparseSemiStructuredTensor):  # which calls its layout strided
        raise InputTypeError(f"{name} must be a dense tensor, not a {type(tensor).__name__}; use .to_dense()")
    if tensor.layout != torch.strided:
        raise InputTypeError(f"{name} must be a dense tensor, not {tensor.layout} of {tensor.dtype}; use .to_dense()")
    if tensor.is_meta:
        raise InputValueError(f"{name} must have data, not be on the meta device; load its weights first")
    return tensor.detach().resolve_neg()


def to_mask(mask: Array | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Bring a boolean array to a device as a contiguous tensor; a tensor stays as it is."""
    if isinstance(mask, torch.Tensor):
        return mask.to(device)
    return torch.from_numpy(np.ascontiguousarray(mask)).to(device)


def _started(tensor: torch.Tensor, name: str) -> Callable[[], Array]:
    """Begin to bring a tensor to the CPU; the returned function waits for it."""
    tensor = checked(tensor, name)
    if tensor.device.type != "cuda":
        host = tensor.cpu()
        return lambda: _view(host, name)
    stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)  # not the default device
        pinned.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        done = stream.record_event()

    def wait() -> Array:
        done.synchronize()
        return _view(pinned, name)

    return wait


def _view(tensor: torch.Tensor, name: str) -> Array:
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        # NumPy has no bfloat16 of its own: take the bits as integers, then name them
        array: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise InputTypeError(
            f"{name} must have a dtype that NumPy can hold, not {tensor.dtype}; use .float() or .dequantize()"
        ) from error
