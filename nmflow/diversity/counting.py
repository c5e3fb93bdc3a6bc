"""How many masks one block of a pattern admits: exactly, and by an asymptotic formula where that would not finish."""

from __future__ import annotations

import math

import numpy as np

from nmflow.errors import PatternError, SolverLimitError
from nmflow.pattern import Pattern

__all__ = ["asymptotic_log_count", "count_masks", "exact_pattern"]

MOST_STEPS = 2e7
"""Steps beyond which a count is refused: 8:16 takes 1.3 million and some 5 s; this is about a minute."""
DIGIT = 7
"""Bits of a number of columns, of which a block has at most 64."""


def count_masks(pattern: str | Pattern) -> int:
    """Count the masks of one block, exactly.

    Parameters
    ----------
    pattern : str or Pattern
        Under ``fill="exact"``. Rows only: C(m, n) ** rows; else 0-1 matrices with the pattern's row and column sums.

    Returns
    -------
    int

    Raises
    ------
    PatternError
        If the pattern is at-most.
    SolverLimitError
        If counting would take longer than about a minute; every pattern of m <= 16 stays far below.

    Notes
    -----
    Rows are added one by one. What matters of the rows so far is how many columns have kept 0, 1, 2, ... entries, so
    one number for each such multiset is enough. The first half of the rows and the second half meet in the middle,
    where each column lacks what the other half brings. Kept and dropped change places where that makes budgets
    smaller. Time and memory grow with the number of multisets: 17 575 at 8:16, some 5 s in plain Python.

    Examples
    --------
    >>> count_masks("2:4"), count_masks("4:8"), count_masks(Pattern(row="1:2", col="2:4"))
    (90, 116963796250, 6)
    """
    chosen = exact_pattern(pattern)
    (rows, cols), r, c = chosen.block_shape, chosen.row_budget, chosen.col_budget
    if chosen.col is None:
        return int(math.comb(cols, r) ** rows)
    steps, (rows, cols, r, c) = min((_steps(*shape), shape) for shape in _same_count(rows, cols, r, c))
    if steps > MOST_STEPS:
        raise SolverLimitError(
            f"pattern must have a count that finishes within about a minute, not that of {chosen}; "
            f"asymptotic_log_count gives its logarithm"
        )
    half = rows // 2
    first = _halves(cols, r, c, half)
    second = first if rows == 2 * half else _halves(cols, r, c, rows - half)
    total = 0
    for state, ways in first.items():
        numbers = [state >> DIGIT * level & (1 << DIGIT) - 1 for level in range(c + 1)]
        others = second.get(sum(number << DIGIT * (c - level) for level, number in enumerate(numbers)))
        if others:
            # both count the column vectors of their multiset together; each vector pairs with one only
            vectors = math.factorial(cols)
            for number in numbers:
                vectors //= math.factorial(number)
            total += ways * others // vectors
    return total


def exact_pattern(pattern: str | Pattern) -> Pattern:
    """Read a pattern; raise PatternError if it is at-most."""
    chosen = pattern if isinstance(pattern, Pattern) else Pattern.parse(pattern)
    if chosen.fill != "exact":
        raise PatternError(f'fill must be "exact" to count masks, not "{chosen.fill}"; count the exact pattern')
    return chosen


def _same_count(rows: int, cols: int, r: int, c: int) -> set[tuple[int, int, int, int]]:
    """Shapes and budgets with the same number of masks: with the smaller of kept and dropped; and transposed."""
    if 2 * r > cols:
        r, c = cols - r, rows - c
    return {(rows, cols, r, c), (cols, rows, c, r)}


def _steps(rows: int, cols: int, r: int, c: int) -> float:
    """Steps of the longest row of the count: multisets of (kept so far, kept in this row) over the columns."""
    before = max(0, (rows + 1) // 2 - 1)
    found = np.zeros((cols + 1, before * r + 1, r + 1))
    found[0, 0, 0] = 1.0
    for level in range(min(before, c) + 1):
        for raised in (0, 1) if level < c else (0,):
            for size in range(1, cols + 1):  # in place: each kind of column may come up again
                found[size, level:, raised:] += found[size - 1, : found.shape[1] - level, : found.shape[2] - raised]
    return float(found[cols, -1, -1])


def _halves(cols: int, r: int, c: int, rows: int) -> dict[int, int]:
    """Matrices of some rows with r kept in each and at most c in a column, by how many columns keep 0, 1, ..., c.

    A state is one integer: digit k is the number of columns that keep k, the digit above them what is left of a row.
    """
    choices = [[math.comb(have, chosen) for chosen in range(have + 1)] for have in range(cols + 1)]
    digit, top = (1 << DIGIT) - 1, DIGIT * (c + 1)
    states = {cols: 1}
    for row in range(rows):
        now = {state | r << top: ways for state, ways in states.items()}
        for level in range(min(row, c - 1), -1, -1):  # from the top, so that no column is raised twice
            after: dict[int, int] = {}
            at = DIGIT * level
            one = (1 << at + DIGIT) - (1 << at) - (1 << top)  # a column goes up a level, and the row has one less left
            for state, ways in now.items():
                have, left = state >> at & digit, state >> top
                rest, below = 0, state & (1 << at) - 1
                while below:
                    rest, below = rest + (below & digit), below >> DIGIT
                for chosen in range(max(0, left - rest), min(have, left) + 1):
                    key = state + chosen * one
                    after[key] = after.get(key, 0) + ways * choices[have][chosen]
            now = after
        states = now
    return states


def asymptotic_log_count(pattern: str | Pattern) -> float:
    """Natural logarithm of the number of masks of one block, by an asymptotic formula.

    binomial(C, r)**R * binomial(R, c)**C / binomial(R C, R r) * ((R-1)/R)**((R-1)/2) * ((C-1)/C)**((C-1)/2) * exp(1/2)

    for R x C matrices of 0 and 1 with row sums r and column sums c; exact for rows only.

    Notes
    -----
    The last three factors tend to exp(-1/2), the limit of Canfield and McKay, as the block grows; written so they also
    fit small and narrow blocks. Measured error of the count: +.1% at 8:16, +.4% at 4:8, +.9% at 2:4, +4.4% at 1:4
    (docs/diversity.md has more). Where everything is kept there is one mask, and 0.0 is returned.

    References
    ----------
    E. R. Canfield, B. D. McKay, "Asymptotic enumeration of dense 0-1 matrices with equal row sums and equal column
    sums", Electronic J. Combinatorics 12, 2005, R29 (proven for several ranges, conjectured for all densities).

    Examples
    --------
    >>> round(asymptotic_log_count("4:8") - math.log(count_masks("4:8")), 4)
    0.0038
    """
    chosen = exact_pattern(pattern)
    (rows, cols), r, c = chosen.block_shape, chosen.row_budget, chosen.col_budget
    if chosen.col is None:
        return rows * math.log(math.comb(cols, r))
    if r == cols:
        return 0.0
    return (
        rows * math.log(math.comb(cols, r)) + cols * math.log(math.comb(rows, c))
        - math.log(math.comb(rows * cols, rows * r))
        + (_shrunk(rows) + _shrunk(cols) + 1.0) / 2.0
    )  # fmt: skip


def _shrunk(lines: int) -> float:
    """Logarithm of ((k-1)/k) ** (k-1); 0 of a single line."""
    return (lines - 1) * math.log1p(-1.0 / lines) if lines > 1 else 0.0
