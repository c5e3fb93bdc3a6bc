"""Check that a checkpoint on disk keeps to a pattern, in both directions, and say where it first does not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nmflow.checkpoint.engine import Progress
from nmflow.checkpoint.plan import PlannedTensor, as_pattern, make_plan
from nmflow.checkpoint.tensor import map_tensor
from nmflow.checkpoint.tiles import stripes
from nmflow.pattern import Budget, Pattern
from nmflow.problem import Array, Matrix

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
        Entries of the group that are not zero, how many may be, and of how many.
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
    matrix: int | None = None

    def __str__(self) -> str:
        stack = "" if self.matrix is None else f"matrix {self.matrix}, "
        first = self.group * self.length
        return (
            f"{self.shard}: tensor {self.tensor!r}: {stack}{self.direction} {self.line}, group {self.group} "
            f"(entries {first} to {first + self.length - 1}) has {self.nonzero} nonzero, at most {self.allowed} may be"
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
    """

    path: str
    pattern: str
    tensors: tuple[Checked, ...]
    skipped: tuple[tuple[str, str], ...]

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
        }


def verify_checkpoint(
    path: str | os.PathLike[str],
    pattern: str | Pattern,
    *,
    transposable: bool = True,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    progress: Progress | None = None,
) -> Verification:
    """Check that each weight has at most n nonzero in each group of m, along its rows and along its columns.

    An entry is nonzero if ``value != 0``: NaN is, -0.0 is not. Weights are chosen as prune_checkpoint chooses them.

    Raises
    ------
    CheckpointError, SourceNotFoundError, InputValueError, PatternError
        As prune_checkpoint. A violation is no error but a result.
    """
    plan = make_plan(path, as_pattern(pattern, "at-most", transposable), include=include, exclude=exclude)
    plan.check()
    tensors = []
    done, total = 0, sum(tensor.entry.n_bytes for tensor in plan.pruned)
    for tensor in plan.pruned:
        if progress:
            progress(tensor.entry.name, done, total)
        tensors.append(_check(tensor, plan.pattern))
        done += tensor.entry.n_bytes
    if progress:
        progress("", done, total)
    shown = str(plan.pattern).removesuffix(" at-most")
    skipped = tuple((tensor.entry.name, tensor.reason) for tensor in plan.skipped)
    return Verification(str(plan.source.path), shown, tuple(tensors), skipped)


def _check(tensor: PlannedTensor, pattern: Pattern) -> Checked:
    weights = map_tensor(tensor.shard.path, tensor.entry)
    # Every float is zero exactly when all its bits but the sign are.
    bits = weights.view(f"u{weights.itemsize}")
    magnitude = bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    nonzero = bad_groups = 0
    first: Violation | None = None
    for number, array in enumerate(bits if tensor.layout == "batch" else (bits,)):
        matrix = Matrix(array)
        for rows in stripes(array.shape, array.itemsize, pattern.block_shape[0]):
            used = (matrix.rows(rows.start, rows.stop) & magnitude) != 0
            nonzero += int(np.count_nonzero(used))
            checks = [("row", used, pattern.row, rows.start, 0)]
            if pattern.col is not None:
                checks.append(("column", used.T, pattern.col, 0, rows.start // pattern.col.m))
            for direction, lines, budget, line, group in checks:
                counts = _group_counts(lines, budget)
                over = counts > budget.n
                found = int(np.count_nonzero(over))
                bad_groups += found
                if found and first is None:
                    i, j = (int(index) for index in np.argwhere(over)[0])
                    first = Violation(
                        shard=tensor.shard.path.name,
                        tensor=tensor.entry.name,
                        direction=direction,
                        line=line + i,
                        group=group + j,
                        nonzero=int(counts[i, j]),
                        allowed=budget.n,
                        length=budget.m,
                        matrix=number if tensor.layout == "batch" else None,
                    )
    return Checked(tensor.entry.name, tensor.entry.shape, weights.size, nonzero, bad_groups, first)


def _group_counts(lines: Array, budget: Budget) -> Array:
    """Nonzero entries of each group of m along each line; the last group may be shorter."""
    shape = (lines.shape[0], -(-lines.shape[1] // budget.m))
    # Whole slices are added, in the memory order of `lines`: an axis of m entries would be too short to be fast.
    counts = np.zeros(shape, np.uint8, order="C" if lines.flags.c_contiguous else "F")
    for place in range(min(budget.m, lines.shape[1])):
        part = lines[:, place :: budget.m]
        counts[:, : part.shape[1]] += part
    return counts
