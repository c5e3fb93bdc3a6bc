"""Pattern: how many entries are kept, in which direction, and how strictly.

A pattern cuts a matrix into blocks and gives each line of a block a budget.
`n` counts what is **kept**, as in "2:4".
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from nmflow.errors import PatternError

__all__ = ["MAX_GROUP", "Budget", "Fill", "Pattern"]

MAX_GROUP = 64
"""Largest group length m: the kernels keep the columns of a block in one machine word."""

Fill = Literal["exact", "at-most"]
_TEXT = re.compile(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", re.ASCII)
_WHOLE = re.compile(
    r"(?:row (\d{1,9}:\d{1,9}) col (\d{1,9}:\d{1,9})|(\d{1,9}:\d{1,9})( rows only)?)( at-most)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Budget:
    """n kept of m consecutive entries along one direction."""

    n: int
    m: int

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            value: Any = getattr(self, name)
            if isinstance(value, bool):
                raise PatternError(f"{name} must be a whole number, not {value!r}; write 2, 4 for 2:4")
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise PatternError(f"{name} must be a whole number, not {value!r}; write 2, 4 for 2:4") from None
        if not 1 <= self.m <= MAX_GROUP:
            raise PatternError(f"m must be between 1 and {MAX_GROUP}, not {self.m}; hardware uses groups of 2 to 32")
        if not 1 <= self.n <= self.m:
            raise PatternError(f"n must be between 1 and m={self.m}, not {self.n}; n counts the entries kept of m")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "n:m".

        Raises
        ------
        PatternError
            If `text` is not two whole numbers with a colon between, or out of range.
        """
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise PatternError(f'pattern must be "n:m", for example "2:4", not {text!r}')
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True, init=False)
class Pattern:
    """An N:M pattern: budgets along rows and columns, and how they are filled.

    Parameters
    ----------
    n, m : int
        Keep n of m consecutive entries, 1 <= n <= m <= 64, in rows and (if `transposable`) in columns.
    row, col : str or Budget, optional
        Different budgets in the two directions, instead of n and m: ``row="2:4"`` keeps 2 of 4 consecutive
        entries along a row, ``col="4:8"`` keeps 4 of 8 along a column; blocks are then col.m rows by row.m columns.
    fill : {"exact", "at-most"}
        Whether every line keeps exactly its budget, or no more than it.
    transposable : bool
        False constrains rows only and leaves columns free.

    Raises
    ------
    PatternError
        If a number is out of range, the arguments contradict each other, or no mask has the pattern.

    Examples
    --------
    >>> Pattern(2, 4).block_shape
    (4, 4)
    >>> print(Pattern.parse("4:8", fill="at-most"))
    4:8 at-most
    """

    row: Budget
    col: Budget | None
    fill: Fill
    block_shape: tuple[int, int] = field(init=False, compare=False)
    """Rows and columns of a block: col.m by row.m (square when columns are free)."""

    def __init__(
        self,
        n: int | None = None,
        m: int | None = None,
        *,
        row: str | Budget | None = None,
        col: str | Budget | None = None,
        fill: Fill = "exact",
        transposable: bool = True,
    ) -> None:
        if not isinstance(fill, str) or fill not in ("exact", "at-most"):
            raise PatternError(f'fill must be "exact" or "at-most", not {fill!r}')
        if type(transposable).__name__ not in ("bool", "bool_"):  # NumPy's too
            raise PatternError(f"transposable must be True or False, not {transposable!r}")
        if isinstance(n, str) and m is None:
            raise PatternError(f'n must be a whole number, not {n!r}; a text is given by name: pattern="2:4"')
        if (n is None) != (m is None):
            raise PatternError("n and m must be given together; for example n=2, m=4")
        if n is not None and m is not None:
            if row is not None or col is not None:
                raise PatternError("give either n and m or row= and col=, not both")
            along_row = Budget(n, m)
            along_col: Budget | None = along_row
        elif row is not None:
            along_row = row if isinstance(row, Budget) else Budget.parse(row)
            if col is None and transposable:
                raise PatternError('row= needs col= as well, for example col="4:8"; or transposable=False')
            along_col = col if col is None or isinstance(col, Budget) else Budget.parse(col)
        else:
            raise PatternError('pattern must be given: n and m, or pattern="2:4", or row= and col=')
        if not transposable:
            if col is not None:
                raise PatternError("col= cannot be used with transposable=False, which leaves columns free")
            along_col = None
        object.__setattr__(self, "row", along_row)
        object.__setattr__(self, "col", along_col)
        object.__setattr__(self, "fill", fill)
        rows, cols = (along_col or along_row).m, along_row.m
        object.__setattr__(self, "block_shape", (rows, cols))
        if fill == "exact" and along_col and rows * self.row_budget != cols * self.col_budget:
            raise PatternError(
                f'fill="exact" is infeasible for row {along_row} with col {along_col}: a {rows}x{cols} block would '
                f'keep {rows * self.row_budget} by rows and {cols * self.col_budget} by columns; use fill="at-most" '
                "(--fill at-most)"
            )

    @classmethod
    def parse(cls, text: str, *, fill: Fill = "exact", transposable: bool = True) -> Pattern:
        """Read "n:m", or any pattern as `str` writes it.

        Raises
        ------
        PatternError
            If `text` is neither, or `fill` or `transposable` are given beside a text that says them.

        Examples
        --------
        >>> Pattern.parse("row 1:2 col 2:4 at-most").block_shape
        (4, 2)
        """
        whole = _WHOLE.fullmatch(text) if isinstance(text, str) else None
        row, col, square, rows_only, at_most = whole.groups() if whole else (None,) * 5
        if not (row or rows_only or at_most):
            budget = Budget.parse(text)
            return cls(budget.n, budget.m, fill=fill, transposable=transposable)
        if (fill, transposable) != ("exact", True):
            raise PatternError(f"fill and transposable must be part of {text!r}, not given beside it")
        fill = "at-most" if at_most else "exact"
        return cls.parse(square, fill=fill, transposable=not rows_only) if square else cls(row=row, col=col, fill=fill)

    @property
    def n(self) -> int:
        """Entries kept of `m` along a row."""
        return self.row.n

    @property
    def m(self) -> int:
        """Group length along a row."""
        return self.row.m

    @property
    def transposable(self) -> bool:
        """Whether columns are constrained too."""
        return self.col is not None

    @property
    def row_budget(self) -> int:
        """Most entries that a row of a block keeps."""
        return self.row.n

    @property
    def col_budget(self) -> int:
        """Most entries that a column of a block keeps; all of them when columns are free."""
        return self.col.n if self.col else self.block_shape[0]

    @property
    def row_exact(self) -> bool:
        """Whether a row keeps exactly its budget."""
        return self.fill == "exact"

    @property
    def col_exact(self) -> bool:
        """Whether a column keeps exactly its budget."""
        return self.fill == "exact" and self.col is not None

    @property
    def density(self) -> float:
        """Largest share of entries that a mask of this pattern can keep."""
        rows, cols = self.block_shape
        return min(rows * self.row_budget, cols * self.col_budget) / (rows * cols)

    def __str__(self) -> str:
        if self.col is None:
            text = f"{self.row} rows only"
        else:
            text = str(self.row) if self.row == self.col else f"row {self.row} col {self.col}"
        return text if self.fill == "exact" else f"{text} {self.fill}"

    def __repr__(self) -> str:
        return f"Pattern.parse({str(self)!r})"
