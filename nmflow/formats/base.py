"""The contract of a storage format, and the checks that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.asked import check_flags, thread_count
from nmflow.errors import FormatError, InputTypeError, InputValueError
from nmflow.formats.given import as_dtype, listed, padded_to, plain, shape_of, stored_shape
from nmflow.formats.layout import Area, Place, Requirement, Spec, check_arrays
from nmflow.formats.room import room
from nmflow.given import as_mask, viewed

__all__ = ["Format"]


class Format(ABC):
    """A way to store a matrix and its mask as named arrays.

    Attributes
    ----------
    name : str
        Its name in the table and in files.
    version : int
        Of the layout; a file says with which it was written.
    summary : str
        One line.
    two_way : bool
        Whether the transpose is stored too, so that columns must keep to the pattern as rows do.
    keeps_mask : bool
        Whether a kept entry that is +0 is told apart from one that is dropped.
    requirements : mapping of str to Requirement
        By the name of a dtype; others are refused.
    """

    name: str
    version: int
    summary: str
    two_way: bool
    keeps_mask: bool
    requirements: Mapping[str, Requirement]

    def specs(self, shape: Sequence[int], dtype: npt.DTypeLike) -> dict[str, Spec]:
        """The arrays that `encode` returns for a matrix, whose shape fits the requirement already.

        Raises
        ------
        InputTypeError, InputValueError
            As `check_shape` without padding.
        """
        kind = as_dtype(dtype)
        return self._specs(self.check_shape(shape, kind), kind)

    @abstractmethod
    def _specs(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Spec]:
        """The same of what was checked."""

    @abstractmethod
    def places(self, shape: tuple[int, ...], dtype: np.dtype[Any], area: Area) -> dict[str, Place]:
        """Where the arrays of a part of a matrix lie within those of the whole.

        Parameters
        ----------
        shape : tuple of int
            Of the whole matrix, as stored; it fits the requirement.
        dtype : dtype
        area : tuple of slice
            The part, one slice an axis; each begins at a multiple of `PART` and ends at one or where the axis ends.

        Returns
        -------
        dict of str to Place
            What `encode` returns for the part, seen in C order, belongs at ``whole.reshape(place.shape)[place.area]``.
        """

    @abstractmethod
    def _encode(self, weight: Array, mask: Array, out: Mapping[str, Array], threads: int) -> None:
        """Encode what was checked into arrays of `specs`; raise InputValueError if the mask breaks the pattern."""

    @abstractmethod
    def _decode(self, arrays: Mapping[str, Array], weight: Array, mask: Array, threads: int) -> None:
        """Decode arrays that have the dtypes and shapes of `specs`, into weight and mask."""

    @abstractmethod
    def source_of(self, arrays: Mapping[str, Spec]) -> Spec:
        """Dtype and shape of the matrix, read off one of the stored arrays.

        Raises
        ------
        FormatError
            If an array is missing.
        """

    def requirement(self, dtype: npt.DTypeLike, name: str = "weight") -> Requirement:
        """What is asked of a matrix of this dtype.

        Raises
        ------
        InputTypeError
            If that is no dtype, or the format cannot hold it.
        """
        dtype = as_dtype(dtype)
        found = self.requirements.get(dtype.newbyteorder("=").name)
        if found is None:
            raise InputTypeError(
                f"{name} must be {listed(tuple(self.requirements))} for format {self.name}, not {dtype}; "
                f"convert it first, or choose another format"
            )
        return found

    def check_shape(self, shape: Sequence[int], dtype: npt.DTypeLike, *, pad: bool = False) -> tuple[int, ...]:
        """The shape in which a matrix is stored: its own, or padded.

        Raises
        ------
        InputTypeError, InputValueError
            If shape is not of whole numbers, or the dtype, the number of axes, or the rows or columns do not fit, or
            the matrix is empty.
        """
        check_flags(pad=pad)
        kind = as_dtype(dtype)
        return stored_shape(shape_of(shape), self.requirement(kind), self.name, kind, pad)

    def encode(
        self,
        weight: object,
        mask: object,
        *,
        pad: bool = False,
        out: Mapping[str, Array] | None = None,
        threads: int | None = None,
    ) -> dict[str, Array]:
        """Store a matrix: what the mask keeps, bit for bit, and nothing else.

        Parameters
        ----------
        weight : array, shape (R, C)
            One of the dtypes of `requirements`; any strides; read-only too; as `nmflow.solve` takes it, by DLPack too.
        mask : array of bool, same shape
            True = kept. It alone decides: a kept zero is stored, a dropped number is not.
        pad : bool
            Fill rows and columns up with dropped zeros where they are no multiple of what the format needs.
        out : mapping of str to ndarray, optional
            Written and returned instead of new arrays, which the system must first find and clear: the arrays that
            `specs` names, C-contiguous and writable, with memory of their own. Those of an earlier call begin at
            multiples of 64 bytes, which is faster. If the mask keeps too many, what they hold is worth nothing; after
            any other error they are as they were.
        threads : int, optional
            Default: the cores that this process may use. The result does not depend on it.

        Returns
        -------
        dict of str to ndarray
            As `specs` says; new arrays, or those of `out`.

        Raises
        ------
        InputTypeError
            If NumPy cannot view an array, a dtype cannot be held, mask is not boolean, or out has other types.
        InputValueError
            If a shape does not fit, an array of out is not as said above, or the mask keeps too many in a group: the
            first such group is named.

        Notes
        -----
        A group that keeps fewer than n is filled with valid, ascending positions and +0. O(R C) time.
        """
        values = viewed(weight, "weight")
        padded = self.check_shape(values.shape, values.dtype, pad=pad)
        kept = as_mask(mask, values.shape, "mask")
        count = thread_count(threads)
        arrays = room(self.specs(padded, values.dtype.newbyteorder("=")), out, (values, kept))
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        if padded != values.shape:
            values, kept = padded_to(values, padded), padded_to(kept, padded)
        self._encode(plain(values), plain(kept), arrays, count)
        return arrays

    def decode(
        self,
        arrays: Mapping[str, Array],
        *,
        shape: tuple[int, ...] | None = None,
        out: Mapping[str, Array] | None = None,
        threads: int | None = None,
    ) -> tuple[Array, Array]:
        """Read a matrix back, from both of its sides where there are two, and check one against the other.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            As `encode` returned them.
        shape : tuple of int, optional
            Shape before padding; default: as it is stored.
        out : mapping of str to ndarray, optional
            Two arrays "weight" and "mask" of the stored shape, written and returned (or the part of them that `shape`
            says); otherwise as in `encode`. After a FormatError that names a tile, or padding that is kept, what they
            hold is worth nothing; after any other error they are as they were.
        threads : int, optional

        Returns
        -------
        weight : ndarray, shape (R, C)
            +0 where the mask drops.
        mask : ndarray of bool, shape (R, C)
            True = kept; where the format has no mask (`keeps_mask`), the entries that are not +0.

        Raises
        ------
        FormatError
            If an array is missing, or has another dtype or shape, or the arrays contradict each other: the first
            tile of 4 x 4 entries at fault is named.
        InputTypeError, InputValueError
            If arrays is no mapping, NumPy cannot view an array, out is not as said above, shape is not as many whole
            numbers as the matrix has axes, or threads is no number of threads.
        """
        if not isinstance(arrays, Mapping):
            raise InputTypeError(f"arrays must be a mapping of names to arrays, not {type(arrays).__name__}")
        held = {name: viewed(array, f"arrays[{name!r}]") for name, array in arrays.items()}
        source = self.check_specs({name: Spec(array.dtype, array.shape) for name, array in held.items()})
        part = source.shape if shape is None else shape_of(shape, len(source.shape))
        if part != source.shape and self.requirement(source.dtype).padded(part) != source.shape:
            raise FormatError(f"shape must be one that is padded to {source.shape}, not {part}")
        count = thread_count(threads)
        both = {"weight": source, "mask": Spec(np.dtype(np.bool_), source.shape)}
        weight, mask = room(both, out, held.values()).values()
        self._decode({name: plain(array) for name, array in held.items()}, weight, mask, count)
        if part == source.shape:
            return weight, mask
        if mask[part[0] :].any() or mask[:, part[1] :].any():
            raise FormatError(f"{self.name}: padding beyond {part} must be dropped, and some of it is kept")
        return weight[: part[0], : part[1]], mask[: part[0], : part[1]]

    def check_specs(self, given: Mapping[str, Spec]) -> Spec:
        """Check names, dtypes and shapes of stored arrays; return dtype and shape of the matrix.

        Raises
        ------
        FormatError
            Naming the array.
        """
        source = self.source_of(given)
        try:
            self.check_shape(source.shape, source.dtype)
        except (InputTypeError, InputValueError) as error:
            fault = str(error).partition(";")[0]  # what follows is for who encodes
            raise FormatError(f"{self.name}: stored arrays must be of a matrix that it can hold: {fault}") from error
        check_arrays(self.name, given, self.specs(source.shape, source.dtype))
        return source
