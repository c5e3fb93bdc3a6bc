"""torch's own semi-structured tensors, both ways, from a weight and its mask or from an exported folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS as CUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from nmflow.arrays import Array
from nmflow.asked import as_path, check_flags
from nmflow.errors import CheckpointError, FormatError, InputValueError, NmflowError, SourceNotFoundError
from nmflow.formats import Spec, get
from nmflow.formats.side_file import NAME, SideFile, StoredTensor, read_side_file
from nmflow.torch.convert import to_array

if TYPE_CHECKING:
    from nmflow.checkpoint.header import Header

__all__ = ["as_prototype", "load_semi_structured", "semi_structured"]


def semi_structured(
    weight: Array | torch.Tensor, mask: Array | torch.Tensor, *, device: torch.device | str | None = None
) -> torch.Tensor:
    """Pack a masked matrix as torch.sparse.SparseSemiStructuredTensorCUTLASS, W and its transpose.

    Parameters
    ----------
    weight : Tensor or ndarray, shape (R, C)
        int8, float16, bfloat16 or float32; R and C multiples as format cutlass-24 requires. No gradient leads to it.
    mask : Tensor or ndarray of bool, shape (R, C)
        2:4 both ways; 1:2 for float32.
    device : torch.device or str, optional
        Default: that of weight. On the CPU ``t()`` and ``to_dense()`` work and multiplication does not;
        torch multiplies on CUDA devices of compute capability 8.x alone.

    Returns
    -------
    Tensor
        Its ``to_dense()`` is the masked weight, and that of its ``t()`` the transpose. For float32 it is a subclass of
        torch's class, whose own ``to_dense`` changes some numbers there; at 16 bits that quiets signalling NaN.

    Raises
    ------
    InputTypeError, InputValueError
        As encoding in the format does, or if there is no such device.
    """
    _check_device(device)
    if isinstance(weight, torch.Tensor):
        device = weight.device if device is None else device
        weight = to_array(weight, "weight")
    if isinstance(mask, torch.Tensor):
        mask = to_array(mask, "mask")
    arrays = get("cutlass-24").encode(weight, mask)
    return _tensor({name: _to_torch(array) for name, array in arrays.items()}, device)


def load_semi_structured(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    padded: bool = False,
    verify: bool = True,
) -> dict[str, torch.Tensor]:
    """Load what ``nmflow export --format cutlass-24`` wrote, as a state dict.

    Parameters
    ----------
    path : path
        The exported folder, or one of its .safetensors files.
    device : torch.device or str, optional
        Default: the CPU.
    padded : bool
        Accept weights that were padded; their tensors have the padded shape.
    verify : bool
        Compare every byte with its digest in ``nmflow.json`` first, and each packed weight with its transpose.

    Returns
    -------
    dict of str to Tensor
        Packed weights as SparseSemiStructuredTensorCUTLASS under their own names; other tensors as they are. For
        ``model.load_state_dict(..., assign=True)``.

    Raises
    ------
    SourceNotFoundError, FormatError, InputValueError
        If the folder is not an export in this format, a file is not what the side file says or none that it names, a
        weight was padded, or there is no such device.

    Notes
    -----
    Exports of earlier versions hold fewer digests (`nmflow verify` says so): tensors left dense are not checked then.
    """
    from safetensors import SafetensorError, safe_open

    from nmflow.checkpoint.header import read_header

    check_flags(padded=padded, verify=verify)
    _check_device(device)
    path = as_path(path, "path")
    if not path.exists():
        raise SourceNotFoundError(f"{path} must exist; check the path")
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    side = read_side_file(folder)
    format_ = get("cutlass-24")
    if (side.format, side.version) != (format_.name, format_.version):
        raise FormatError(
            f"{folder / NAME}: format must be {format_.name} version {format_.version}, "
            f"not {side.format} version {side.version}; export again"
        )
    shards = side.shards(folder)
    if only and only not in shards:
        raise InputValueError(f"{path} must be a file that {NAME} names, one of {', '.join(shards)}; load the folder")
    state: dict[str, torch.Tensor] = {}
    for file in [only] if only else shards:
        try:
            header = read_header(folder / file)  # of a file: a pipe would be waited for
            with safe_open(folder / file, framework="pt") as opened:
                held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, CheckpointError) as error:
            raise FormatError(f"{folder / file} must be a sound safetensors file ({error}); export again") from error
        if verify:
            _check_digests(header, held, side)
        for name, stored in side.tensors.items():
            if stored.file == file:
                state[name] = _load(f"{folder / file}: tensor {name!r}", held, stored, device, padded, verify)
        state |= {name: tensor.to(device) for name, tensor in held.items()}
    return state


def _load(
    where: str,
    held: dict[str, torch.Tensor],
    stored: StoredTensor,
    device: torch.device | str | None,
    padded: bool,
    verify: bool,
) -> torch.Tensor:
    """Take the arrays of one weight out of a file's tensors and make its tensor."""
    if stored.shape != stored.stored_shape and not padded:
        raise InputValueError(
            f"{where} must not be padded, and {stored.shape} is stored as {stored.stored_shape}; "
            f"say padded=True, or leave it dense when exporting"
        )
    missing = [array.name for array in stored.arrays.values() if array.name not in held]
    if missing:
        raise FormatError(f"{where} must have its array {missing[0]!r} in the file; export again")
    parts = {key: held[array.name] for key, array in stored.arrays.items()}
    for array in stored.arrays.values():
        held.pop(array.name, None)
    try:
        arrays, format_ = {key: to_array(part, key) for key, part in parts.items()}, get("cutlass-24")
        # kernels trust the shapes
        format_.check_specs({key: Spec(array.dtype, array.shape) for key, array in arrays.items()})
        if verify:
            format_.decode(arrays, shape=stored.shape)
    except NmflowError as error:
        raise FormatError(f"{where}: {error}") from error
    return _tensor(parts, device)


def _check_digests(header: Header, held: Mapping[str, torch.Tensor], side: SideFile) -> None:
    """Raise FormatError unless a file holds what was written, as far as the side file has digests of it."""
    path = header.path
    told = {array.name: array.sha256 for tensor in side.tensors.values() for array in tensor.arrays.values()}
    whole = side.files.get(path.name)
    if whole is not None:
        told |= whole.dense
        if hashlib.sha256(header.read_head()).hexdigest() != whole.header:
            raise FormatError(f"{path}: header must have the digest of {NAME}; it was changed, export again")
    for name, tensor in held.items():
        raw = tensor.reshape(-1).view(torch.uint8).numpy().data
        if name in told and hashlib.sha256(raw).hexdigest() != told[name]:
            raise FormatError(f"{path}: tensor {name!r} must have the digest of {NAME}; it was changed, export again")


def _check_device(device: torch.device | str | None) -> None:
    """Raise InputValueError if torch cannot use a device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:
        raise InputValueError(f"device must be one that torch can use here, not {device!r} ({error})") from error


class _Float32(CUTLASS):
    """torch's class with an exact ``to_dense``: its own moves halves of float32 as float16, which quiets some."""

    def to_dense(self) -> torch.Tensor:  # type: ignore[override]
        """The dense matrix: one of two float32 is two of four halves, which torch moves as integers."""
        packed: Any = self.packed
        halves: torch.Tensor = sparse_semi_structured_to_dense_cutlass(  # type: ignore[no-untyped-call]
            packed.view(torch.int16), self.meta
        )
        return halves.view(torch.float32)


def _tensor(parts: Mapping[str, torch.Tensor], device: torch.device | str | None) -> torch.Tensor:
    """torch's tensor from the five arrays."""
    moved = {name: part.to(device) for name, part in parts.items()}
    shape = torch.Size((moved["packed"].shape[0], moved["packed_t"].shape[0]))
    with as_prototype():
        tensor: torch.Tensor = (_Float32 if moved["packed"].dtype == torch.float32 else CUTLASS)(
            shape,
            packed=moved["packed"],
            meta=moved["meta"],
            packed_t=moved["packed_t"],
            meta_t=moved["meta_t"],
            compressed_swizzled_bitmask=moved["threads_masks"],
        )
    return tensor


@contextlib.contextmanager
def as_prototype() -> Iterator[None]:
    """Make torch's tensors without its warning that they are a prototype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype", UserWarning)
        yield


def _to_torch(array: Array) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
