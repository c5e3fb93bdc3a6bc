"""Blocks of whole numbers that no float64 holds: in 64 bits where what they have in common can be taken off."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
from oracles import best_score, best_total, blocks, exact

import nmflow
from nmflow.solvers import paths

WITHIN = ("int64_limits", "uint64_limits", "subnormal_float64")
"""Families whose magnitudes lie within 2**53 steps of each other."""


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are solved in Python's integers."""
    blocks: list[int] = []
    solved = paths._Whole.solved

    def counted(self: Any, chunk: Any) -> Any:
        blocks.append(self.block)
        return solved(self, chunk)

    monkeypatch.setattr(paths._Whole, "solved", counted)
    return blocks


@pytest.mark.parametrize("family", WITHIN)
@pytest.mark.parametrize("pattern", ["2:4", "20:40", "3:5 rows only", "row 1:4 col 2:8"])
def test_what_is_close_together_is_solved_in_64_bits(family: str, pattern: str, in_python: list[int]) -> None:
    weights = families.FAMILIES[family]((40, 80), 3)
    solution = nmflow.solve(weights, pattern=pattern)
    assert solution.certificate.proven
    assert solution.stats.get("integers", 0) > 0 or "rows only" in pattern  # duals of rows alone may be float64
    assert not in_python


@pytest.mark.parametrize("family", ["int64_limits", "signed_int64_limits", "subnormal_float64", "no_float_duals"])
@pytest.mark.parametrize("pattern", ["2:4", "1:3", "2:3 at-most", "1:2 rows only"])
def test_what_is_kept_is_the_most(family: str, pattern: str) -> None:
    weights = {**families.FAMILIES, **families.SIGNED}[family]((24, 24), 5)
    signed = family.startswith("signed")
    solution = nmflow.solve(weights, pattern=pattern, **({"scores": weights} if signed else {}))
    scores = exact(weights, absolute=not signed)
    assert solution.certificate.proven
    assert sum(scores[solution.mask]) == best_total(scores, nmflow.Pattern.parse(pattern))


def test_what_must_be_kept_and_dropped_is() -> None:
    weights, rng = families.int64_limits((24, 24), 5), np.random.default_rng(0)
    keep = rng.random(weights.shape) < 0.05
    drop = ~keep & (rng.random(weights.shape) < 0.05)
    solution = nmflow.solve(weights, pattern="2:4", keep=keep, drop=drop)
    assert solution.certificate.proven
    assert solution.stats["integers"] > 0
    assert not (keep & ~solution.mask | drop & solution.mask).any()
    pattern = nmflow.Pattern(2, 4)
    scores, kept, dropped = exact(weights), blocks(keep, pattern), blocks(drop, pattern)
    found = blocks(solution.mask, pattern)
    for (_, block), (_, mask), (_, must), (_, may_not) in zip(
        blocks(scores, pattern), found, kept, dropped, strict=True
    ):
        assert sum(block[mask]) == best_score(block, pattern, must, may_not)


def test_what_lies_far_apart_takes_integers_of_any_size(in_python: list[int]) -> None:
    solution = nmflow.solve(families.no_float_duals((48, 48), 3), 1, 3)
    assert solution.certificate.proven
    assert 0 < len(in_python) <= solution.stats["integers"]
