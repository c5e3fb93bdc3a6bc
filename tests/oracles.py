"""Independent answers to compare with. Nothing here imports a solver, a kernel or the certificate.

Everything is exact: scores become Python integers by way of `fractions.Fraction`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def exact(array: Array, *, absolute: bool = True) -> Array:
    """Scores as an object array of Fractions, without loss."""
    numbers = map(int, array.flat) if array.dtype.kind in "iuO" else array.astype(np.float64).ravel().tolist()
    out = np.empty(array.size, object)
    out[:] = [Fraction(abs(number) if absolute else number) for number in numbers]
    return out.reshape(array.shape)


def budgets(pattern: Any) -> tuple[int, int, int, bool, int, bool]:
    """Rows, columns, row budget, whether rows are full, column budget, whether columns are full: from the numbers."""
    rows = pattern.col.m if pattern.col else pattern.row.m
    cols = pattern.row.m
    full = pattern.fill == "exact"
    return rows, cols, pattern.row.n, full, pattern.col.n if pattern.col else rows, full and pattern.col is not None


def row_choices(cols: int, budget: int, full: bool) -> list[tuple[int, ...]]:
    """All ways to fill one row, as tuples of 0 and 1."""
    return [
        tuple(int(j in kept) for j in range(cols))
        for count in ([budget] if full else range(budget + 1))
        for kept in itertools.combinations(range(cols), count)
    ]


def masks(pattern: Any) -> Iterator[Array]:
    """Every mask of a block, the plain way: all rows by all rows, then the columns checked. For tiny blocks."""
    rows, cols, r, rows_full, c, cols_full = budgets(pattern)
    for chosen in itertools.product(row_choices(cols, r, rows_full), repeat=rows):
        mask = np.array(chosen, bool)
        sums = mask.sum(0)
        if (sums == c).all() if cols_full else (sums <= c).all():
            yield mask


def best_score(scores: Array, pattern: Any, keep: Array | None = None, drop: Array | None = None) -> Fraction | None:
    """Score of the best mask of one block, exactly; None if there is no mask.

    Goes through all rows and remembers, for each vector of column sums, the best way to reach it: an enumeration of
    all masks in which beginnings that leave the same to do are compared at once.
    """
    denominator = math.lcm(*(Fraction(x).denominator for x in scores.ravel()))
    numbers = tuple(tuple(int(x * denominator) for x in row) for row in scores)
    kept, dropped = (None if state is None else tuple(map(tuple, state.tolist())) for state in (keep, drop))
    best = _best_sum(numbers, budgets(pattern), kept, dropped)
    return None if best is None else Fraction(best, denominator)


@lru_cache(1 << 12)
def _best_sum(numbers: Any, limits: tuple[int, int, int, bool, int, bool], keep: Any, drop: Any) -> int | None:
    rows, cols, r, rows_full, c, cols_full = limits
    moves, full = _moves(cols, r, rows_full, c)
    total = sum(abs(x) for row in numbers for x in row)
    out_of_reach = -4 * total - 1  # stays below -total, whatever is added
    best = np.full((c + 1) ** cols, out_of_reach, np.int64 if total < 1 << 58 else object)
    best[0] = 0
    for i in range(rows):
        after = np.full_like(best, out_of_reach)
        for choice, before, then in moves:
            if keep and any(must and not kept for kept, must in zip(choice, keep[i], strict=True)):
                continue
            if drop and any(must and kept for kept, must in zip(choice, drop[i], strict=True)):
                continue
            gain = sum(x for x, kept in zip(numbers[i], choice, strict=True) if kept)
            after[then] = np.maximum(after[then], best[before] + gain)
        best = after
    highest = int(best[full] if cols_full else best.max())
    return highest if highest >= -total else None


@cache
def _moves(cols: int, budget: int, rows_full: bool, c: int) -> tuple[list[tuple[tuple[int, ...], Array, Array]], int]:
    """What one more row does to the column sums, which are the digits of a number: by choice, from where to where.

    And the number of columns that are all full.
    """
    sums = np.indices((c + 1,) * cols).reshape(cols, -1)
    place = (c + 1) ** np.arange(cols)[::-1]
    moves = []
    for choice in row_choices(cols, budget, rows_full):
        room = np.flatnonzero((sums + np.array(choice)[:, None] <= c).all(axis=0))
        moves.append((choice, room, room + int(place @ np.array(choice))))
    return moves, (c + 1) ** cols - 1


def is_feasible(mask: Array, pattern: Any, keep: Array | None = None, drop: Array | None = None) -> bool:
    """Whether one block keeps to the pattern in both directions, and to keep and drop."""
    _, _, r, rows_full, c, cols_full = budgets(pattern)
    by_row, by_col = [sum(map(bool, row)) for row in mask], [sum(map(bool, col)) for col in mask.T]
    return (
        all(count == r if rows_full else count <= r for count in by_row)
        and all(count == c if cols_full else count <= c for count in by_col)
        and (keep is None or bool(mask[keep].all()))
        and (drop is None or not mask[drop].any())
    )


def violations(mask: Array, pattern: Any) -> list[str]:
    """Groups of a whole matrix that keep too many, or, where they lie in full blocks, too few: a two-way checker."""
    rows, cols, r, rows_full, c, cols_full = budgets(pattern)
    inner_rows, inner_cols = len(mask) // rows * rows, mask.shape[1] // cols * cols
    found = []
    for direction, part, size, budget, full, inner, length in (
        ("row", mask, cols, r, rows_full, inner_rows, inner_cols),
        ("column", mask.T, rows, c, cols_full, inner_cols, inner_rows),
    ):
        for i, line in enumerate(part):
            for start in range(0, len(line), size):
                count = int(np.count_nonzero(line[start : start + size]))
                whole = i < inner and start < length
                if count > budget or (full and whole and count < budget):
                    found.append(f"{direction} {i} from {start}: {count} kept")
    return found


def blocks(array: Array, pattern: Any) -> Iterator[tuple[tuple[int, int], Array]]:
    """Blocks of a matrix, padded with zeros at its edges, each with its block row and block column."""
    rows, cols = budgets(pattern)[:2]
    for i in range(0, len(array), rows):
        for j in range(0, array.shape[1], cols):
            part = array[i : i + rows, j : j + cols]
            whole = np.zeros((rows, cols), array.dtype)
            whole[: part.shape[0], : part.shape[1]] = part
            yield (i // rows, j // cols), whole


def best_total(scores: Array, pattern: Any) -> Fraction:
    """Score of the best mask of a whole matrix of Fractions, ragged edges padded."""
    total = Fraction(0)
    for _, block in blocks(scores, pattern):
        best = best_score(block, pattern)
        assert best is not None
        total += best
    return total


def dual_bound(
    scores: Array, pattern: Any, u: Array, v: Array, keep: Array | None = None, drop: Array | None = None
) -> Fraction | None:
    """The bound that duals give on the score of any mask; None if they have a sign that they must not have."""
    _, _, r, rows_full, c, cols_full = budgets(pattern)
    if (not rows_full and any(x < 0 for x in u)) or (not cols_full and any(x < 0 for x in v)):
        return None
    total = Fraction(r * sum(u) + c * sum(v))
    for i, j in np.ndindex(scores.shape):
        reduced = scores[i, j] - u[i] - v[j]
        if keep is not None and keep[i, j]:
            total += reduced
        elif drop is None or not drop[i, j]:
            total += max(Fraction(0), reduced)
    return total


def proves(
    scores: Array, mask: Array, pattern: Any, u: Array, v: Array, keep: Array | None = None, drop: Array | None = None
) -> bool:
    """Whether duals prove a mask optimal by complementary slackness, every sign taken exactly.

    kept => S-u-v >= 0 and not kept => S-u-v <= 0 for free entries; where a side need not be full, duals are >= 0 and a
    line with a positive one is full.
    """
    _, _, r, rows_full, c, cols_full = budgets(pattern)
    if not is_feasible(mask, pattern, keep, drop):
        return False
    for duals, full, budget, lines in ((u, rows_full, r, mask), (v, cols_full, c, mask.T)):
        if not full and any(x < 0 or (x > 0 and sum(line) < budget) for x, line in zip(duals, lines, strict=True)):
            return False
    for i, j in np.ndindex(scores.shape):
        if (keep is not None and keep[i, j]) or (drop is not None and drop[i, j]):
            continue
        reduced = scores[i, j] - u[i] - v[j]
        if reduced < 0 if mask[i, j] else reduced > 0:
            return False
    return True


def fractions_of(duals: Any) -> tuple[Array, Array]:
    """Row and column duals of a BlockDuals as Fractions."""
    unit = Fraction(2) ** duals.exponent
    u, v = exact(np.asarray(duals.row), absolute=False), exact(np.asarray(duals.col), absolute=False)
    return u * unit, v * unit
