"""The unit of pruning: a weight is read, solved, proven and written a piece at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from nmflow.arrays import Array, Layout
from nmflow.checkpoint.keep import KeepMask
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.report import TensorReport, total
from nmflow.checkpoint.tensor import FLOATS, row_sums
from nmflow.checkpoint.tiles import Tile, as_blocks, combine, cut, digest, is_whole, read_tile, write_tile
from nmflow.checkpoint.unit import Done, Unit, check_copy, copy, flushed, opened, read
from nmflow.errors import CheckpointError, NmflowError, NonFiniteError
from nmflow.pattern import Pattern
from nmflow.pipeline import solve
from nmflow.solution import Solution

__all__ = ["OnNonFinite", "PruneUnit"]

OnNonFinite = Literal["error", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneUnit(Unit):
    """A weight to prune.

    Attributes
    ----------
    layout : {None, "conv", "batch"}
    pattern : Pattern
    solver : str
    certify : bool
    on_nonfinite : {"error", "skip"}
        Whether a weight with NaN or infinity is an error, or copied as it is.
    keep : KeepMask or None
    """

    layout: Layout | None
    pattern: Pattern
    solver: str = "dual"
    certify: bool = False
    on_nonfinite: OnNonFinite = "error"
    keep: KeepMask | None = None

    def do(self, pool: Pool) -> Done:
        """Prune the weight; its row is that of a TensorReport."""
        try:
            return self._prune(pool)
        except NonFiniteError as error:
            count, first = self._non_finite(pool)
            if self.on_nonfinite == "skip":
                return copy(self, pool, f"NaN or infinite at {count} of {math.prod(self.entry.shape)} entries")
            raise NonFiniteError.among(
                self.where, count, math.prod(self.entry.shape), first,
                'repair it, leave it alone with exclude, or all such tensors with on_nonfinite="skip" '
                "(--on-nonfinite skip)",
            ) from error  # fmt: skip

    def check(self, done: Done, pool: Pool) -> tuple[bool, bool]:
        """Compare checksums of weight and masks, and of what was written."""
        if done.reason:  # copied by a run that was asked to skip such weights
            same, copied = check_copy(self, done, pool)
            return same, copied and self.on_nonfinite == "skip"
        with opened(self, write=False, also=self.keep) as (source, target, masks):
            view = _View(self, source, masks)

            def piece(tile: Tile) -> tuple[bytes, bytes]:
                written = read_tile(target, self.start, view.shape, tile, view.dtype)
                return digest(*view.read(tile)), digest(written)

            pairs = list(pool.map(piece, view.tiles()))
        return combine(each for each, _ in pairs) == done.read, combine(each for _, each in pairs) == done.written

    def _prune(self, pool: Pool) -> Done:
        with opened(self, write=True, also=self.keep) as (source, target, masks):
            view = _View(self, source, masks)

            def piece(tile: Tile) -> tuple[int, _Piece]:
                started = time.perf_counter()
                weights, *keep = view.read(tile)
                read_digest = digest(weights, *keep)
                solution = self._solve(weights, view, tile, keep[0] if keep else None)
                dense, rows_only = row_sums(weights, view.layout, self.pattern.row)
                # As integers: no float instruction sees the values, so no NaN or zero can change its bits.
                bits = weights.view(f"u{weights.itemsize}")
                np.multiply(bits, solution.mask, out=bits)
                write_tile(target, self.start, view.shape, tile, bits)
                gap, proven = None, 0
                if solution.certificate is not None:
                    gap, proven = solution.gap, solution.certificate.n_proven
                return bits.nbytes, _Piece(
                    read_digest, digest(bits), dense, solution.objective,
                    rows_only if self.pattern.transposable else solution.objective, gap,
                    solution.stats["blocks"], proven, time.perf_counter() - started,
                )  # fmt: skip

            pieces = flushed(target, pool.map(piece, view.tiles()))
        return self._done(pieces)

    def _solve(self, weights: Array, view: _View, tile: Tile, keep: Array | None) -> Solution:
        """The mask of a piece."""
        try:
            return solve(
                weights, pattern=self.pattern, solver=self.solver, certify=self.certify, layout=view.layout,
                keep=None if keep is None else keep.view(np.bool_), threads=1,
            )  # fmt: skip
        except NonFiniteError:
            raise
        except NmflowError as error:
            part = ", ".join(f"{axis.start} to {axis.stop - 1}" for axis in tile)
            place = "" if is_whole(tile, view.shape) else f" (counted within entries {part} of {view.shape})"
            # a solver knows its own arguments
            text = (
                str(error)
                if self.keep is None
                else str(error).replace("keep and drop", f"masks of {self.keep.path}", 1)
            )
            raise CheckpointError(f"{self.where}: {text}{place}") from error

    def _done(self, pieces: list[_Piece]) -> Done:
        gaps = [each.gap for each in pieces]
        report = TensorReport(
            name=self.entry.name,
            shard=self.source.name,
            dtype=self.entry.dtype,
            shape=self.entry.shape,
            layout=self.layout,
            dense=total(each.dense for each in pieces),
            kept=total(each.kept for each in pieces),
            rows_only=total(each.rows_only for each in pieces),
            gap=None if None in gaps else total(gap for gap in gaps if gap is not None),
            n_blocks=sum(each.n_blocks for each in pieces),
            n_proven=sum(each.n_proven for each in pieces),
            seconds=math.fsum(each.seconds for each in pieces),
        )
        return Done(
            self.source.name,
            self.entry.name,
            combine(each.read for each in pieces),
            combine(each.written for each in pieces),
            asdict(report),
        )

    def _non_finite(self, pool: Pool) -> tuple[int, tuple[int, ...]]:
        """How many entries of the weight are NaN or infinite, and where the first is."""
        with opened(self, write=False) as (source, _, masks):
            view = _View(self, source, masks)

            def piece(tile: Tile) -> tuple[int, int]:
                bad = np.argwhere(~np.isfinite(read(self, source, view.shape, tile, view.dtype)))
                if not len(bad):
                    return 0, math.prod(view.shape)
                place = 0  # NumPy's own function takes 32 axes at most
                for offset, axis, size in zip(bad[0].tolist(), tile, view.shape, strict=True):
                    place = place * size + axis.start + offset
                return len(bad), place

            found = list(pool.map(piece, view.tiles()))
        place, first = min(place for _, place in found), []
        for size in reversed(self.entry.shape):
            place, index = divmod(place, size)
            first.append(index)
        return sum(count for count, _ in found), tuple(reversed(first))


class _View:
    """A weight in its file, seen so that its pieces hold whole blocks, and the mask of what it must keep."""

    def __init__(self, unit: PruneUnit, source: int, masks: int) -> None:
        self.unit, self.source, self.masks = unit, source, masks
        self.block = unit.pattern.block_shape
        self.shape, self.layout = as_blocks(unit.entry.shape, unit.layout, self.block[0])
        self.dtype = FLOATS[unit.entry.dtype]

    def tiles(self) -> Iterator[Tile]:
        """Its pieces, in order."""
        return cut(self.shape, self.dtype.itemsize, self.layout, self.block)

    def read(self, tile: Tile) -> list[Array]:
        """A piece of the weight, and, if there is a mask, the same piece of it, as bytes."""
        parts = [read(self.unit, self.source, self.shape, tile, self.dtype)]
        if self.unit.keep is not None:
            parts.append(self.unit.keep.read(self.masks, self.shape, tile))
        return parts


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was done to a piece."""

    read: bytes
    written: bytes
    dense: float
    kept: float
    rows_only: float
    gap: float | None
    n_blocks: int
    n_proven: int
    seconds: float
