"""Pattern and Budget: meaning, text, and every refusal."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

import nmflow
from nmflow.errors import NmflowError, PatternError
from nmflow.pattern import MAX_GROUP, Budget, Pattern


def test_square_pattern() -> None:
    pattern = Pattern(2, 4)
    assert (pattern.n, pattern.m, pattern.block_shape) == (2, 4, (4, 4))
    assert (pattern.row_budget, pattern.col_budget) == (2, 2)
    assert pattern.row_exact
    assert pattern.col_exact
    assert pattern.transposable
    assert pattern.density == 0.5


def test_row_and_column_budgets_differ() -> None:
    pattern = Pattern(row="2:4", col="4:8")
    assert pattern.block_shape == (8, 4)  # 8 rows, because a column group has 8 entries
    assert (pattern.row_budget, pattern.col_budget) == (2, 4)
    assert pattern.density == 0.5
    assert Pattern(row=Budget(2, 4), col=Budget(4, 8)) == pattern


def test_free_columns() -> None:
    pattern = Pattern(2, 4, transposable=False)
    assert pattern.block_shape == (4, 4)
    assert pattern.col_budget == 4
    assert pattern.row_exact
    assert not pattern.col_exact
    assert not pattern.transposable
    assert pattern.density == 0.5
    assert Pattern(row="2:4", transposable=False) == pattern


def test_density_of_unequal_totals_is_that_of_the_smaller_side() -> None:
    assert Pattern(row="1:4", col="2:4", fill="at-most").density == 0.25


@pytest.mark.parametrize("text", ["2:4", " 2 : 4 ", "02:04"])
def test_parse(text: str) -> None:
    assert Pattern.parse(text) == Pattern(2, 4)


def test_whole_numbers_of_any_kind() -> None:
    pattern = Pattern(np.int64(2), np.uint8(4))  # type: ignore[arg-type]
    assert pattern == Pattern(2, 4)
    assert type(pattern.n) is int
    assert hash(pattern) == hash(Pattern(2, 4))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Pattern(2, 4), "2:4"),
        (Pattern(2, 4, fill="at-most"), "2:4 at-most"),
        (Pattern(2, 4, transposable=False), "2:4 rows only"),
        (Pattern(row="2:4", col="4:8"), "row 2:4 col 4:8"),
    ],
)
def test_text(pattern: Pattern, text: str) -> None:
    assert str(pattern) == text
    assert repr(pattern) == f"Pattern.parse('{text}')"
    assert Pattern.parse(text) == pattern


def test_limits_are_included() -> None:
    assert Pattern(1, 1).density == 1.0
    assert Pattern(MAX_GROUP, MAX_GROUP).block_shape == (64, 64)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pattern(2, 4).fill = "at-most"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 5, "m": 4}, "n must be between 1 and m=4, not 5"),
        ({"n": 0, "m": 4}, "n must be between 1 and m=4, not 0"),
        ({"n": -1, "m": 4}, "n must be between 1 and m=4, not -1"),
        ({"n": 2, "m": 65}, "m must be between 1 and 64, not 65"),
        ({"n": 0, "m": 0}, "m must be between 1 and 64, not 0"),
        ({"n": 2.0, "m": 4}, "n must be a whole number, not 2.0"),
        ({"n": 2, "m": "4"}, "m must be a whole number, not '4'"),
        ({"n": True, "m": 4}, "n must be a whole number, not True"),
        ({"n": 2}, "n and m must be given together"),
        ({"m": 4}, "n and m must be given together"),
        ({}, "pattern must be given"),
        ({"col": "2:4"}, "pattern must be given"),
        ({"n": 2, "m": 4, "row": "2:4"}, "give either n and m or row= and col=, not both"),
        ({"n": 2, "m": 4, "col": "2:4"}, "give either n and m or row= and col=, not both"),
        ({"row": "2:4"}, "row= needs col= as well"),
        ({"row": "2:4", "col": "2:4", "transposable": False}, "col= cannot be used with transposable=False"),
        ({"row": "2:4", "col": "3:4"}, 'fill="exact" is infeasible for row 2:4 with col 3:4: a 4x4 block would keep 8'),
        ({"row": "2-4", "col": "2:4"}, 'pattern must be "n:m", for example "2:4", not \'2-4\''),
        ({"row": "2:4", "col": 4}, 'pattern must be "n:m", for example "2:4", not 4'),
        ({"n": "2:4"}, "n must be a whole number, not '2:4'; a text is given by name: pattern=\"2:4\""),
        ({"n": 2, "m": 4, "transposable": "no"}, "transposable must be True or False, not 'no'"),
        ({"n": 2, "m": 4, "fill": "most"}, 'fill must be "exact" or "at-most", not \'most\''),
        ({"n": 2, "m": 4, "fill": np.array(["exact", "at-most"])}, 'fill must be "exact" or "at-most", not array'),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)) as caught:
        Pattern(**arguments)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, NmflowError)


def test_a_text_that_says_all_takes_nothing_beside_it() -> None:
    for given in ({"fill": "at-most"}, {"transposable": False}):
        with pytest.raises(PatternError, match="fill and transposable must be part of '2:4 at-most', not given beside"):
            Pattern.parse("2:4 at-most", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "2", "2:4:8", "two:four", "-2:4", "2.0:4", None, 24])
def test_parse_refuses(text: object) -> None:
    with pytest.raises(PatternError, match='pattern must be "n:m"'):
        Pattern.parse(text)  # type: ignore[arg-type]


def test_a_number_that_equals_a_whole_one_is_none() -> None:
    weights = np.ones((4, 4))
    nmflow.solve(weights, 1, 4)
    for n in (1.0, True):
        with pytest.raises(PatternError, match="n must be a whole number"):
            nmflow.solve(weights, n, 4)
