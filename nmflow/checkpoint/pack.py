"""The unit of export: a weight is read, encoded and written a rectangle at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from nmflow.arrays import Array
from nmflow.checkpoint.arrays import DTYPES
from nmflow.checkpoint.export_report import ExportedTensor
from nmflow.checkpoint.keep import KeepMask
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.support import Support, find_support
from nmflow.checkpoint.tiles import (
    TILE_BYTES,
    Tile,
    combine,
    digest,
    in_words,
    inside,
    is_whole,
    read_tile,
    sha256_of,
    squares,
    write_tile,
)
from nmflow.checkpoint.unit import CopyUnit, Done, Unit, copy, flushed, opened, read
from nmflow.errors import CheckpointError, NmflowError
from nmflow.formats import PART, Format, Place, Spec, get
from nmflow.formats.given import bits_of

__all__ = ["DenseUnit", "PackUnit", "Stored"]

SIDE = 16 * PART
"""Rows and columns of a rectangle of entries up to 16 bits, and twice those of a rectangle of wider ones: each stretch
of adjacent bytes then has a kilobyte or two, in the arrays of W as in those of its transpose."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix in the arrays of a format, seen a rectangle at a time.

    Attributes
    ----------
    format : Format
    dtype : str
        Name of the dtype in safetensors.
    shape : tuple of int
        Of the tensor.
    starts : tuple of (str, int)
        First byte of each array of the format in its file.
    """

    format: Format
    dtype: str
    shape: tuple[int, ...]
    starts: tuple[tuple[str, int], ...]

    @property
    def plain(self) -> tuple[int, ...]:
        """The shape in which rectangles are counted: a format that takes any mask takes any entries one by one."""
        return self.shape if self.format.requirement(DTYPES[self.dtype]).pattern else (math.prod(self.shape),)

    @property
    def whole(self) -> tuple[int, ...]:
        """That shape, padded."""
        return self.format.requirement(DTYPES[self.dtype]).padded(self.plain)

    @property
    def specs(self) -> dict[str, Spec]:
        """Dtype and shape of each array."""
        return self.format.specs(self.whole, DTYPES[self.dtype])

    def tiles(self) -> Iterator[Tile]:
        """Its rectangles, in the padded matrix."""
        side = SIDE if DTYPES[self.dtype].itemsize <= 2 else SIDE // 2
        return squares(self.whole, side, TILE_BYTES // 8)

    def places(self, tile: Tile) -> dict[str, Place]:
        """Where a rectangle lies in each array."""
        return self.format.places(self.whole, DTYPES[self.dtype], tile)

    def write(self, file: int, tile: Tile, arrays: dict[str, Array]) -> list[Array]:
        """Write the arrays of a rectangle; returned in the order of `starts`."""
        places, parts = self.places(tile), []
        for key, start in self.starts:
            part = np.ascontiguousarray(arrays[key])
            write_tile(file, start, places[key].shape, places[key].area, part)
            parts.append(part)
        return parts

    def read(self, file: int, tile: Tile) -> dict[str, Array]:
        """Read the arrays of a rectangle."""
        places, specs = self.places(tile), self.specs
        own = self.format.specs(tuple(axis.stop - axis.start for axis in tile), DTYPES[self.dtype])
        return {
            key: read_tile(file, start, places[key].shape, places[key].area, specs[key].dtype).reshape(own[key].shape)
            for key, start in self.starts
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PackUnit(Unit):
    """A weight to store in a format.

    Attributes
    ----------
    format : str
    starts : tuple of (str, int)
        First byte of each array of the format in the target.
    mask : KeepMask or None
        Its mask; None: its support.
    """

    format: str
    starts: tuple[tuple[str, int], ...]
    mask: KeepMask | None = None

    @property
    def stored(self) -> Stored:
        """Where its arrays go."""
        return Stored(get(self.format), self.entry.dtype, self.entry.shape, self.starts)

    def do(self, pool: Pool) -> Done:
        """Encode the weight; its row holds an ExportedTensor and the SHA-256 of each array."""
        stored = self.stored
        need = stored.format.requirement(DTYPES[self.entry.dtype])
        with opened(self, write=True, also=self.mask) as (source, target, masks):

            def piece(tile: Tile) -> tuple[int, _Piece]:
                started = time.perf_counter()
                weight, *given = self._read(source, masks, stored, tile)
                read_digest = digest(weight, *given)
                try:
                    support = self._support(weight, given, need.pattern)
                    arrays = stored.format.encode(weight, support.mask, pad=True, threads=1)
                except NmflowError as error:
                    place = "" if is_whole(tile, stored.whole) else f" (counted within {in_words(tile)})"
                    advice = (
                        f"; {weight.dtype} is stored at {need.pattern}: prune at that, or leave it alone with exclude "
                        "(--exclude)"
                    )
                    if need.pattern == "1:2":
                        advice += "; for 2:4, convert the checkpoint to float16 or bfloat16 and prune that"
                    raise CheckpointError(f"{self.where}: {error}{place}{'' if given else advice}") from error
                parts = stored.write(target, tile, arrays)
                return sum(part.nbytes for part in parts), _Piece(
                    read_digest, digest(*parts),
                    int(np.count_nonzero(support.mask)), support.n_blocks, support.completed, support.unfilled,
                    time.perf_counter() - started,
                    int(np.count_nonzero(weight[~support.mask])) if given else 0,
                    0 if given or need.pattern else int(np.count_nonzero(support.mask) - np.count_nonzero(weight)),
                )  # fmt: skip

            pieces = flushed(target, pool.map(piece, stored.tiles()))
        spans = [(start, stored.specs[key].n_bytes) for key, start in self.starts]
        with opened(self, write=False) as (_, target, _):
            sums = list(pool.map(lambda span: sha256_of(target, *span), spans))
        report = ExportedTensor(
            name=self.entry.name,
            shard=self.source.name,
            dtype=DTYPES[self.entry.dtype].name,
            shape=self.entry.shape,
            stored_shape=need.padded(self.entry.shape),
            pattern=need.pattern,
            kept=sum(each.kept for each in pieces),
            n_blocks=sum(each.n_blocks for each in pieces),
            completed=sum(each.completed for each in pieces),
            unfilled=sum(each.unfilled for each in pieces),
            dense_bytes=self.entry.n_bytes,
            stored_bytes=sum(n_bytes for _, n_bytes in spans),
            seconds=math.fsum(each.seconds for each in pieces),
            dropped=sum(each.dropped for each in pieces),
            negative_zeros=sum(each.negative_zeros for each in pieces),
        )
        return Done(
            self.source.name,
            self.entry.name,
            combine(each.read for each in pieces),
            combine(each.written for each in pieces),
            {"report": asdict(report), "sha256": {key: sum_ for (key, _), sum_ in zip(self.starts, sums, strict=True)}},
        )

    def check(self, done: Done, pool: Pool) -> tuple[bool, bool]:
        """Compare checksums of weight and mask, and of the arrays."""
        stored = self.stored
        with opened(self, write=False, also=self.mask) as (source, target, masks):

            def piece(tile: Tile) -> tuple[bytes, bytes]:
                arrays = stored.read(target, tile)
                return digest(*self._read(source, masks, stored, tile)), digest(*arrays.values())

            pairs = list(pool.map(piece, stored.tiles()))
        return combine(each for each, _ in pairs) == done.read, combine(each for _, each in pairs) == done.written

    def _read(self, source: int, masks: int, stored: Stored, tile: Tile) -> list[Array]:
        """A rectangle of the weight without padding, and of its mask, as bytes, if one is given."""
        real = inside(tile, stored.plain)
        parts = [read(self, source, stored.plain, real, DTYPES[self.entry.dtype])]
        if self.mask is not None:
            parts.append(self.mask.read(masks, stored.plain, real))
        return parts

    def _support(self, weight: Array, given: list[Array], pattern: str | None) -> Support:
        if not given:
            if pattern is not None:
                return find_support(weight, pattern, threads=1)
            return Support(bits_of(weight) != 0, 0, 0, 0)  # not by value: a -0.0 was kept, as what is dropped is +0
        return Support(given[0].view(np.bool_), 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseUnit(CopyUnit):
    """A tensor that is left dense: copied, and its row holds the SHA-256 of its bytes."""

    def do(self, pool: Pool) -> Done:
        """Copy the bytes, and take the digest of what the target holds then."""
        done = copy(self, pool)
        with opened(self, write=False) as (_, target, _):
            return replace(done, row={"sha256": sha256_of(target, self.start, self.entry.n_bytes)})


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was done to a rectangle."""

    read: bytes
    written: bytes
    kept: int
    n_blocks: int
    completed: int
    unfilled: int
    seconds: float
    dropped: int
    negative_zeros: int
