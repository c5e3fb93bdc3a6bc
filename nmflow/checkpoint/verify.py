"""Check that a checkpoint on disk keeps to a pattern, in both directions, and say where it first does not."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nmflow.arrays import Array, Matrix
from nmflow.asked import check_functions, thread_count
from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.groups import group_counts
from nmflow.checkpoint.plan import PlannedTensor, make_plan
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.stamp import as_long
from nmflow.checkpoint.tensor import FLOATS
from nmflow.checkpoint.tiles import Tile, as_blocks, cut, read_tile
from nmflow.pattern import Pattern
from nmflow.pipeline import as_pattern

__all__ = ["Checked", "Verification", "Violation", "verify_checkpoint"]


@dataclass(frozen=True, slots=True)
class Violation:
    """The first group of a tensor that keeps too much.

    Attributes
    ----------
    shard, tensor : str
    direction : {"row", "column"}
        Which lines of the matrix the group lies along.
    line : int
        Number of that row or column.
    group : int
        Number of the group along the line.
    nonzero, allowed, length : int
        Entries of the group that are not zero, how many may be, and of how many: fewer than m at a ragged edge.
    start : int
        The first entry of the group along the line.
    matrix : int or None
        Which matrix of a stack, if it is one.
    """

    shard: str
    tensor: str
    direction: str
    line: int
    group: int
    nonzero: int
    allowed: int
    length: int
    start: int
    matrix: int | None = None

    def __str__(self) -> str:
        stack = "" if self.matrix is None else f"matrix {self.matrix}, "
        last = self.start + self.length - 1
        return (
            f"{self.shard}: tensor {self.tensor!r}: {stack}{self.direction} {self.line}, group {self.group} "
            f"(entries {self.start} to {last}) has {self.nonzero} nonzero, at most {self.allowed} may be"
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """One weight: entries, how many are not zero, groups that keep too much, and the first of them."""

    name: str
    shape: tuple[int, ...]
    entries: int
    nonzero: int
    bad_groups: int
    first: Violation | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying a checkpoint found.

    Attributes
    ----------
    path, pattern : str
    tensors : tuple of Checked
    skipped : tuple of (str, str)
        Tensors that were not checked, and why.
    unchecked_files : tuple of str
        Other files of the folder that look like weights, as those of another variant.
    """

    path: str
    pattern: str
    tensors: tuple[Checked, ...]
    skipped: tuple[tuple[str, str], ...]
    unchecked_files: tuple[str, ...] = ()

    @property
    def first(self) -> Violation | None:
        """The first violation, or None."""
        return next((tensor.first for tensor in self.tensors if tensor.first), None)

    @property
    def ok(self) -> bool:
        """Whether every weight keeps to the pattern."""
        return self.first is None

    def to_dict(self) -> dict[str, Any]:
        """The verification for JSON."""
        return {
            "path": self.path,
            "pattern": self.pattern,
            "ok": self.ok,
            "first_violation": asdict(self.first) if self.first else None,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "unchecked_files": list(self.unchecked_files),
        }


def verify_checkpoint(
    path: str | os.PathLike[str],
    pattern: str | Pattern,
    *,
    transposable: bool = True,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check that each weight has at most n nonzero in each group of m, along its rows and along its columns.

    An entry is nonzero if ``value != 0``: NaN is, -0.0 is not. Weights are chosen as prune_checkpoint chooses them, and
    read in pieces: memory does not grow with them.

    Raises
    ------
    CheckpointError, SourceNotFoundError, InputValueError, PatternError
        As prune_checkpoint. A violation is no error but a result.
    """
    check_functions(progress=progress)
    wanted = as_pattern(None, None, pattern, transposable=transposable)
    plan = make_plan(path, wanted, include=include, exclude=exclude)
    plan.check()
    tensors = []
    done, total = 0, sum(tensor.entry.n_bytes for tensor in plan.pruned)
    with Pool(thread_count(threads)) as pool:
        for tensor in plan.pruned:
            if progress:
                progress(tensor.entry.name, done, total)
            tensors.append(_check(tensor, plan.pattern, pool))
            done += tensor.entry.n_bytes
    if progress:
        progress("", done, total)
    shown = str(plan.pattern).removesuffix(" at-most")
    skipped = tuple((tensor.entry.name, tensor.reason) for tensor in plan.skipped)
    others = tuple(str(path) for path in plan.source.other_weights)
    return Verification(str(plan.source.path), shown, tuple(tensors), skipped, others)


def _check(tensor: PlannedTensor, pattern: Pattern, pool: Pool) -> Checked:
    """Count one weight, a few pieces at a time."""
    entry, dtype = tensor.entry, FLOATS[tensor.entry.dtype]
    shape, layout = as_blocks(entry.shape, tensor.layout, pattern.block_shape[0])
    stacked = entry.shape[-2] if tensor.layout == "batch" else None
    # Every float is zero exactly when all its bits but the sign are.
    bits = np.dtype(f"u{dtype.itemsize}")
    magnitude = bits.type((1 << (8 * bits.itemsize - 1)) - 1)
    group_lengths = {"row": pattern.row.m, "column": pattern.block_shape[0]}

    def piece(tile: Tile) -> tuple[int, int, Violation | None]:
        used = (read_tile(file, entry.start, shape, tile, bits) & magnitude) != 0
        nonzero, bad_groups, first = int(np.count_nonzero(used)), 0, None
        for number, array in enumerate(used if layout == "batch" else (used,)):
            found, line, corner = _count(Matrix(array).rows(0, len(array)), pattern)
            bad_groups += found
            if line is None or first is not None:
                continue
            # From the piece to the matrix: a convolution's columns are kernel position by kernel position.
            rows, cols = tile[-2:] if layout == "batch" else tile[:2]
            position, channel = divmod(corner[1], cols.stop - cols.start)
            at_row = rows.start + corner[0]
            at_col = position * (shape[1] if layout == "conv" else 0) + cols.start + channel
            matrix = None
            if stacked is not None:
                matrix, at_row = divmod(at_row, stacked) if layout is None else (tile[0].start + number, at_row)
            at_line, start = (at_row, at_col) if line.direction == "row" else (at_col, at_row)
            first = replace(
                line,
                shard=tensor.shard.path.name,
                tensor=entry.name,
                line=at_line,
                group=start // group_lengths[line.direction],
                start=start,
                matrix=matrix,
            )
        return nonzero, bad_groups, first

    with as_long(f"{tensor.shard.path}: tensor {entry.name!r}"), tensor.shard.opened() as file:
        parts = list(pool.map(piece, cut(shape, bits.itemsize, layout, pattern.block_shape)))
    return Checked(
        entry.name,
        entry.shape,
        math.prod(entry.shape),
        sum(part[0] for part in parts),
        sum(part[1] for part in parts),
        next((part[2] for part in parts if part[2] is not None), None),
    )


def _count(used: Array, pattern: Pattern) -> tuple[int, Violation | None, tuple[int, int]]:
    """Count the groups of a matrix that keep too much; describe the first, and give the row and column it begins at."""
    bad_groups = 0
    first: Violation | None = None
    corner = (0, 0)
    checks = [("row", used, pattern.row)]
    if pattern.col is not None:
        checks.append(("column", used.T, pattern.col))
    for direction, lines, budget in checks:
        counts = group_counts(lines, budget.m)
        over = counts > budget.n
        found = int(np.count_nonzero(over))
        bad_groups += found
        if found and first is None:
            i, j = (int(index) for index in np.argwhere(over)[0])
            start = j * budget.m
            length = min(budget.m, lines.shape[1] - start)
            first = Violation("", "", direction, i, j, int(counts[i, j]), budget.n, length, start)
            corner = (i, start) if direction == "row" else (start, i)
    return bad_groups, first, corner
