"""From scores, a pattern and fixed entries to the network of a block."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from nmflow.arithmetic import in_plain_arithmetic
from nmflow.arrays import Array
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError, NonFiniteError
from nmflow.given import as_array, as_mask, check_disjoint, count_marked
from nmflow.integers import integers_of
from nmflow.network.flow import FlowNetwork
from nmflow.pattern import Pattern

__all__ = ["build"]


@in_plain_arithmetic
def build(
    scores_block: object,
    pattern: str | Pattern,
    keep: object | None = None,
    drop: object | None = None,
    *,
    exponent: int = 0,
) -> FlowNetwork:
    """Formulate one block as a flow network.

    Parameters
    ----------
    scores_block : array of numbers, shape ``pattern.block_shape``
        Scores, signed, as given (no absolute value). An object array of Python integers is taken exactly.
    pattern : str or Pattern
    keep, drop : array of bool, shape ``pattern.block_shape``, optional
        Entries that must be kept, must be dropped.
    exponent : int
        The scores are ``scores_block * 2**exponent``.

    Returns
    -------
    FlowNetwork
        With R*C arcs for entries and up to R + C for slack.

    Raises
    ------
    PatternError
        If the pattern is not one.
    InputTypeError
        If the scores have no usable dtype, keep or drop is not boolean, or exponent is no whole number.
    InputValueError
        If a shape differs from the pattern's block.
    NonFiniteError
        If a score is NaN or infinite.
    InfeasibleError
        If keep and drop leave a row or a column no way to meet its budget. Contradictions that show only in several
        lines together are found by solving.

    Examples
    --------
    >>> net = build([[3.0, 1.0], [0.5, 2.0]], Pattern(1, 2))
    >>> net.tail, net.head
    (array([0, 0, 1, 1]), array([2, 3, 2, 3]))
    >>> [int(c) for c in net.unit_cost], net.exponent
    ([-6, -2, -1, -4], -1)
    >>> net.supply
    array([ 1,  1, -1, -1])
    """
    pattern = pattern if isinstance(pattern, Pattern) else Pattern.parse(pattern)
    try:
        exponent = operator.index(exponent)
    except TypeError:
        raise InputTypeError(f"exponent must be a whole number, not {exponent!r}") from None
    numbers, shift = _numbers(scores_block, pattern)
    rows, cols = pattern.block_shape
    kept, dropped = (
        np.zeros((rows, cols), np.bool_) if given is None else as_mask(given, (rows, cols), name)
        for given, name in ((keep, "keep"), (drop, "drop"))
    )
    check_disjoint(kept, dropped)
    free = ~kept & ~dropped
    row_need = _need("row", kept.sum(1), free.sum(1), pattern.row_budget, pattern.row_exact)
    col_need = _need("column", kept.sum(0), free.sum(0), pattern.col_budget, pattern.col_exact)

    row, col = np.nonzero(free)
    tails, heads, capacities = [row], [col + rows], [np.ones(row.size, np.int64)]
    slack = rows + cols
    # One more than a line can leave unused: never binding, so that a reduced cost of a slack arc is never
    # negative. That is what makes the duals of at-most lines nonnegative.
    if not pattern.row_exact:
        tails.append(np.arange(rows))
        heads.append(np.full(rows, slack))
        capacities.append(row_need + 1)
    if not pattern.col_exact:
        tails.append(np.full(cols, slack))
        heads.append(np.arange(rows, slack))
        capacities.append(col_need + 1)
    names = [f"row {i}" for i in range(rows)] + [f"column {j}" for j in range(cols)]
    supply = [row_need, -col_need]
    if len(tails) > 1:
        names.append("slack")
        supply.append(np.array([col_need.sum() - row_need.sum()]))
    unit_cost = np.zeros(sum(part.size for part in tails), object)
    unit_cost[: row.size] = -numbers[free]
    return FlowNetwork(
        tail=np.concatenate(tails),
        head=np.concatenate(heads),
        capacity=np.concatenate(capacities),
        unit_cost=unit_cost,
        exponent=exponent + shift,
        supply=np.concatenate(supply),
        names=tuple(names),
        entry=np.flatnonzero(free),
        kept=kept,
        kept_score=int(numbers[kept].sum()),
        pattern=pattern,
    )


def _numbers(scores_block: Any, pattern: Pattern) -> tuple[Array, int]:
    """The scores as Python integers and an exponent."""
    whole = isinstance(scores_block, np.ndarray) and scores_block.dtype == object
    scores = scores_block if whole else as_array(scores_block, "scores_block")
    if scores.shape != pattern.block_shape:
        raise InputValueError(f"scores_block must have the block shape {pattern.block_shape}, not {scores.shape}")
    if whole:
        if not all(isinstance(number, int) for number in scores.ravel()):
            raise InputTypeError("scores_block must hold Python integers if its dtype is object; else convert it")
        return scores, 0
    count, first = count_marked(~np.isfinite(row) for row in scores)
    if count:
        raise NonFiniteError.among("scores_block", count, scores.size, first)
    return integers_of(scores)


def _need(line: str, kept: Array, free: Array, budget: int, full: bool) -> npt.NDArray[np.int64]:
    """Units that each line still takes beside its kept entries."""
    need: npt.NDArray[np.int64] = (budget - kept).astype(np.int64)
    if (need < 0).any():
        i = int(np.flatnonzero(need < 0)[0])
        raise InfeasibleError(f"keep must mark at most {budget} entries of a {line}, not {int(kept[i])} in {line} {i}")
    if full and (free < need).any():
        i = int(np.flatnonzero(free < need)[0])
        left = int(kept[i] + free[i])
        raise InfeasibleError(
            f'drop must leave {budget} entries of a {line} under fill="exact", not {left} in {line} {i}; '
            f'drop fewer, or use fill="at-most"'
        )
    return need
