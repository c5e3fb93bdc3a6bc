"""What a report shows of one mask: a block with its weights, and the whole layer in a small grid."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Matrix
from nmflow.checkpoint.arrays import map_array
from nmflow.checkpoint.inspection import exported_format
from nmflow.checkpoint.report import TensorReport
from nmflow.checkpoint.source import open_source
from nmflow.errors import CheckpointError, InputValueError, NmflowError
from nmflow.formats.given import bits_of

__all__ = ["MaskPicture", "picture_mask"]

CELLS = 64
"""Most cells of the grid along each side."""

PART_ENTRIES = 1 << 22
"""Entries that are read at a time."""


@dataclass(frozen=True, slots=True)
class MaskPicture:
    """A mask, as far as it is shown.

    Attributes
    ----------
    tensor : str
    matrix : int or None
        Which matrix of a stack, if it is one.
    block : (int, int)
        Block row and block column of the block that is shown.
    corner : (int, int)
        First row and first column of that block.
    magnitude : ndarray of float64, shape of the block
        Of the weights before pruning; 0 where that is not known.
    kept : ndarray of bool, shape of the block
        Nonzero after pruning.
    grid : ndarray of float64, shape (<= 64, <= 64)
        With the source: share of the score that each cell keeps. Without: kept score, the largest cell being 1.
    cell : (int, int)
        Rows and columns of a cell, multiples of the block's.
    from_source : bool
        Whether the weights before pruning are known.
    """

    tensor: str
    matrix: int | None
    block: tuple[int, int]
    corner: tuple[int, int]
    magnitude: npt.NDArray[np.float64] = field(repr=False)
    kept: npt.NDArray[np.bool_] = field(repr=False)
    grid: npt.NDArray[np.float64] = field(repr=False)
    cell: tuple[int, int]
    from_source: bool


def picture_mask(
    dst: str | os.PathLike[str],
    tensor: TensorReport,
    block_shape: tuple[int, int],
    *,
    source: str | os.PathLike[str] | None = None,
    strict: bool = False,
    block: tuple[int, ...] = (0, 0),
) -> MaskPicture:
    """Read one mask of a pruned checkpoint.

    Parameters
    ----------
    dst : path
    tensor : TensorReport
        A weight of it.
    block_shape : (int, int)
        Rows and columns of a block of its pattern.
    source : path, optional
        The checkpoint before it was pruned. Not used if it is not there or is another one, unless `strict`.
    strict : bool
        Whether that is an error.
    block : tuple of int
        Block row and block column; before them the matrix, in a stack.

    Raises
    ------
    CheckpointError, SourceNotFoundError
        If `dst` does not hold the weight, or a `strict` source is not what it was pruned from.
    InputValueError
        If it has no such block.

    Notes
    -----
    Kept is what is not +0: a weight that was +0 and is kept cannot be told from one that is dropped. Memory: a few
    million entries at a time.
    """
    pruned = _matrix(dst, tensor, block)
    (rows, cols), (height, width) = pruned.shape, block_shape
    row, col = block[-2:]
    if row < 0 or col < 0 or row * height >= rows or col * width >= cols:
        raise InputValueError(
            f"block must lie within {-(-rows // height)} x {-(-cols // width)} blocks of {tensor.name!r}, not at "
            f"{row},{col}"
        )
    place = slice(row * height, min((row + 1) * height, rows)), slice(col * width, min((col + 1) * width, cols))
    here = pruned.part(*place)
    dense = None
    if source is not None:
        try:
            dense = _before(source, tensor, block, pruned)
        except (NmflowError, OSError):
            if strict:
                raise
    cell = tuple(-(-length // (side * CELLS)) * side for length, side in zip((rows, cols), block_shape, strict=True))
    return MaskPicture(
        tensor.name,
        _number(tensor, block),
        (row, col),
        (place[0].start, place[1].start),
        np.abs((here if dense is None else dense.part(*place)).astype(np.float64)),
        bits_of(np.ascontiguousarray(here)) != 0,
        _grid(pruned, dense, (cell[0], cell[1])),
        (cell[0], cell[1]),
        dense is not None,
    )


def _number(tensor: TensorReport, block: tuple[int, ...]) -> int | None:
    """Which matrix of a stack `block` means."""
    axes = 3 if tensor.layout == "batch" else 2
    if not (isinstance(block, tuple) and len(block) in (2, axes) and all(type(number) is int for number in block)):
        raise InputValueError(
            f"block must be a block row and a block column{', after a matrix' if axes == 3 else ''}, not {block}"
        )
    if axes == 2:
        return None
    number = block[0] if len(block) == 3 else 0
    if not 0 <= number < tensor.shape[0]:
        raise InputValueError(f"block must name one of {tensor.shape[0]} matrices of {tensor.name!r}, not {number}")
    return number


def _matrix(path: str | os.PathLike[str], tensor: TensorReport, block: tuple[int, ...]) -> Matrix:
    """The matrix that a block lies in, mapped."""
    number = _number(tensor, block)
    for shard in open_source(path).shards:
        for entry in shard.entries:
            if (entry.name, entry.shape, entry.dtype) == (tensor.name, tensor.shape, tensor.dtype):
                array = map_array(shard.path, entry)
                return Matrix(array if number is None else array[number])
    advice = "prune again" if exported_format(path) is None else "take the folder that was exported"
    raise CheckpointError(
        f"{path} must hold the tensor {tensor.name!r}, {tensor.dtype} of shape {tensor.shape}, as its report says; "
        f"{advice}"
    )


def _before(path: str | os.PathLike[str], tensor: TensorReport, block: tuple[int, ...], pruned: Matrix) -> Matrix:
    """The matrix before pruning: what is kept has the same bits there, and what is dropped is not all 0."""
    found = _matrix(path, tensor, block)
    (rows, cols), more = pruned.shape, False
    step = max(1, PART_ENTRIES // cols)
    for start in range(0, rows, step):
        parts = (matrix.rows(start, min(start + step, rows)) for matrix in (found, pruned))
        before, after = (bits_of(np.ascontiguousarray(part)) for part in parts)
        if not np.array_equal(after, np.where(after != 0, before, 0)):
            raise CheckpointError(f"{path} must hold what {tensor.name!r} was pruned from, and its weights differ")
        more |= bool(np.any(before != after))
    if not more:
        raise CheckpointError(f"{path} must hold {tensor.name!r} before it was pruned, and it is pruned there already")
    return found


def _grid(pruned: Matrix, dense: Matrix | None, cell: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Kept score of each cell: as a share of the cell's score, or of the largest cell's."""
    with np.errstate(over="ignore", invalid="ignore"):  # float64 can add up to more than it holds
        kept = _sums(pruned, cell)
        whole = np.full(kept.shape, kept.max()) if dense is None else _sums(dense, cell)
        return np.divide(kept, whole, out=np.ones(kept.shape), where=whole > 0)


def _sums(matrix: Matrix, cell: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Sum of magnitudes of each cell."""
    rows, cols = matrix.shape
    sums = np.zeros((-(-rows // cell[0]), cols))
    step = max(1, PART_ENTRIES // cols)
    for i, top in enumerate(range(0, rows, cell[0])):
        bottom = min(top + cell[0], rows)
        for start in range(top, bottom, step):
            part = matrix.rows(start, min(start + step, bottom))
            sums[i] += np.abs(part.astype(np.float64)).sum(axis=0)
    cells: npt.NDArray[np.float64] = np.add.reduceat(sums, np.arange(0, cols, cell[1]), axis=1)
    return cells
