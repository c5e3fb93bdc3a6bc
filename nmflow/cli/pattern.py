"""The pattern that --pattern, --row, --col, --fill and --rows-only name together."""

from __future__ import annotations

from nmflow.errors import PatternError
from nmflow.pattern import Fill, Pattern

__all__ = ["pattern_of"]


def pattern_of(text: str | None, row: str | None, col: str | None, fill: Fill, rows_only: bool) -> Pattern:
    """Read the options; PatternError where they contradict each other, in their own names.

    A text may say all, as reports do: "row 2:4 col 4:8 at-most".
    """
    if text is None:
        if row is None or (col is None) is not rows_only:
            raise PatternError(
                "a pattern must be given as --pattern 2:4, as --row 2:4 --col 4:8, or by rows only as "
                "--row 2:4 --rows-only"
            )
        return Pattern(row=row, col=col, fill=fill, transposable=not rows_only)
    if row is not None or col is not None:
        raise PatternError("--pattern must be given without --row and --col, which are for two different patterns")
    said = Pattern.parse(text)
    if said == Pattern(said.n, said.m):
        return Pattern(said.n, said.m, fill=fill, transposable=not rows_only)
    if fill != "exact" or rows_only:
        raise PatternError(f"--fill and --rows-only must be left out with --pattern {text!r}, which says both")
    return said
