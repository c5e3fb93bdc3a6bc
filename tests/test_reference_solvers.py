"""The reference solvers, chunk by chunk: right, proven in exact arithmetic, and clear about what they refuse."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any

import families
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_lanes import unproven

import nmflow
from nmflow import solvers
from nmflow.blocks import Chunk, load, store
from nmflow.cutting import places
from nmflow.errors import (
    InputTypeError,
    InputValueError,
    MissingLibraryError,
    SolverLimitError,
    UnknownSolverError,
)
from nmflow.pattern import Pattern
from nmflow.problem import Problem
from nmflow.solvers import or_tools
from nmflow.solvers.base import BlockDuals, BlockSolver, ChunkSolution, Solver
from nmflow.solvers.enumeration import Enumerate, all_masks
from nmflow.solvers.lp import LinearProgram
from nmflow.solvers.network_simplex import NetworkSimplex
from nmflow.solvers.or_tools import OrTools

PATTERNS = [
    Pattern(2, 4),
    Pattern(1, 3),
    Pattern(2, 4, fill="at-most"),
    Pattern(2, 4, transposable=False),
    Pattern(row="1:2", col="2:4"),
    Pattern(row="1:3", col="2:4", fill="at-most"),
]
REFERENCE: list[BlockSolver] = [NetworkSimplex(), OrTools(on_loss="round"), LinearProgram(), Enumerate()]
EVERY_FAMILY = {**families.FAMILIES, **families.SIGNED}


def solve(solver: Solver, problem: Problem) -> tuple[Any, list[tuple[Chunk, ChunkSolution]]]:
    solver.check(problem)
    mask, masks = problem.new_mask()
    matrices = problem.matrices(problem.scores)
    solved = []
    for place in places(problem).all:
        chunk = load(problem, matrices, masks, place)
        solved.append((chunk, solver.solve(chunk)))
        store(chunk, masks)
    return mask, solved


def duals_of(solution: ChunkSolution, block: int) -> BlockDuals:
    """Duals of one block of a reference solver, which gives them block by block."""
    assert solution.duals.special is not None
    return solution.duals.special[block]


def check_block(
    solver: Solver, chunk: Chunk, block: int, duals: BlockDuals, scores: Any, keep: Any = None, drop: Any = None
) -> None:
    """Feasible; as good as the best, or as the solver promises; and proven in exact arithmetic if it is the best."""
    pattern, mask = chunk.pattern, chunk.mask[chunk.corner(block)]
    assert oracles.is_feasible(mask, pattern, keep, drop)
    best = oracles.best_score(scores, pattern, keep, drop)
    assert best is not None
    objective = Fraction(scores[mask].sum())
    u, v = oracles.fractions_of(duals)
    bound = oracles.dual_bound(scores, pattern, u, v, keep, drop)
    assert bound is not None
    assert bound >= best
    allowed = Fraction(0)
    if solver.tolerance is not None:
        allowed = Fraction(solver.tolerance) * mask.size * max(abs(scores.ravel()))
    elif isinstance(solver, OrTools):  # rounding: costs keep at least 50 bits, and no more entries move than there are
        allowed = Fraction(2) ** -50 * mask.size * max(abs(scores.ravel()))
    assert best - allowed <= objective <= best
    assert bound <= best + allowed * 2
    if solver.exact and not isinstance(solver, OrTools):
        assert objective == best
    assert oracles.proves(scores, mask, pattern, u, v, keep, drop) == (objective == best == bound)
    if objective == best:
        assert bound == best


@pytest.mark.parametrize("solver", REFERENCE, ids=lambda solver: solver.name)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_families(solver: BlockSolver, pattern: Pattern, name: str) -> None:
    rows, cols = pattern.block_shape
    array = EVERY_FAMILY[name]((rows + 1, 2 * cols), 11)  # ragged below
    problem = Problem(array, name in families.FAMILIES, pattern)
    exact = dict(oracles.blocks(oracles.exact(array, absolute=problem.absolute), pattern))
    _, solved = solve(solver, problem)
    for chunk, solution in solved:
        for block in range(chunk.n_blocks):
            where = chunk.where(block)[1:]
            check_block(solver, chunk, block, duals_of(solution, block), exact[where])


@pytest.mark.parametrize("solver", REFERENCE, ids=lambda solver: solver.name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_keep_and_drop(solver: BlockSolver, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(PATTERNS))
    array = data.draw(hnp.arrays(np.int64, pattern.block_shape, elements=st.integers(-4, 4)))
    state = data.draw(hnp.arrays(np.int8, pattern.block_shape, elements=st.sampled_from([0, 0, 0, 1, -1])))
    keep, drop = state == 1, state == -1
    scores = oracles.exact(array, absolute=False)
    problem = Problem.build(array, pattern, scores=array, keep=keep, drop=drop)
    if oracles.best_score(scores, pattern, keep, drop) is None:
        assert solve(solver, problem)[1][0][1].infeasible == (0,)
        return
    _, ((chunk, solution),) = solve(solver, problem)
    check_block(solver, chunk, 0, duals_of(solution, 0), scores, keep, drop)


@pytest.mark.parametrize("solver", REFERENCE, ids=lambda solver: solver.name)
def test_contradictions_that_only_several_lines_show(solver: BlockSolver) -> None:
    """Two rows may keep the one same column only: each line alone could be filled."""
    array, drop = np.ones((3, 9)), np.zeros((3, 9), bool)
    drop[:2, 3:5] = True
    problem = Problem.build(array, Pattern(1, 3), drop=drop)
    _, ((_, solution),) = solve(solver, problem)
    assert solution.infeasible == (1,)


@pytest.mark.parametrize("solver", REFERENCE, ids=lambda solver: solver.name)
def test_the_instance_where_at_most_beats_exact(solver: BlockSolver) -> None:
    array = np.full((3, 3), 10.0)
    array[[0, 0, 1, 2], [0, 1, 2, 2]] = 0.0
    for fill, best in (("exact", 40.0), ("at-most", 50.0)):
        mask, _ = solve(solver, Problem.build(array, Pattern(2, 3, fill=fill)))
        assert array[mask].sum() == best


@pytest.mark.parametrize("solver", REFERENCE, ids=lambda solver: solver.name)
def test_negative_scores_are_not_kept_under_at_most_fill(solver: BlockSolver) -> None:
    scores = np.full((2, 2), -1.0)
    mask, ((_, solution),) = solve(solver, Problem.build(scores, Pattern(1, 2, fill="at-most"), scores=scores))
    assert not mask.any()
    u, v = oracles.fractions_of(duals_of(solution, 0))
    bound = oracles.dual_bound(oracles.exact(scores, absolute=False), Pattern(1, 2, fill="at-most"), u, v)
    assert bound == 0


@pytest.mark.parametrize("solver", [NetworkSimplex(), OrTools()], ids=lambda solver: solver.name)
@pytest.mark.parametrize("pattern", [Pattern(4, 8), Pattern(8, 16), Pattern(3, 7, fill="at-most")], ids=str)
def test_larger_blocks_end_proven(solver: BlockSolver, pattern: Pattern) -> None:
    array = families.gaussian(pattern.block_shape, 4)
    _, ((chunk, solution),) = solve(solver, Problem.build(array, pattern))
    u, v = oracles.fractions_of(duals_of(solution, 0))
    assert oracles.proves(oracles.exact(array), chunk.mask, pattern, u, v)


@pytest.mark.parametrize("name", ["network-simplex", "enumerate"])
def test_duals_that_prove_only_as_integers_are_counted(name: str) -> None:
    """What floats make of them is rounded."""
    array = families.gaussian_float64((8, 20), 4)
    solution = nmflow.solve(array, 2, 4, solver=name, duals=True)
    assert solution.proven
    assert unproven(array, solution, absolute=True) <= solution.stats.get("integers", 0)


def test_ortools_refuses_what_it_cannot_hold() -> None:
    array = families.huge_among_tiny((4, 8), 0)
    problem = Problem.build(array, Pattern(2, 4))
    with pytest.raises(SolverLimitError) as caught:
        solve(OrTools(), problem)
    message = str(caught.value)
    assert "scores must fit in OR-Tools' 64-bit costs, not need" in message
    assert "rounding them would lose at most 8 * 2**(" in message
    assert 'allow it with OrTools(on_loss="round"), or use solver="dual"' in message
    assert "(block row 0, block column 1 of matrix 0)" in message  # the first block has no huge entry
    solve(OrTools(on_loss="round"), problem)


def test_ortools_rounding_keeps_to_its_bound() -> None:
    """Scores of 80 bits that differ only in the lowest ones: rounding cannot tell them apart."""
    numbers = (1 << 79) + np.random.default_rng(0).integers(0, 1000, (4, 4)).astype(object)
    pattern = Pattern(2, 4)
    mask, duals = OrTools(on_loss="round").solve_block(numbers, 0, pattern, None)
    best = oracles.best_score(numbers, pattern)
    assert best is not None
    unit = 2 ** (80 - 56)
    assert best - 8 * unit <= numbers[mask].sum() <= best
    assert duals is not None
    bound = oracles.dual_bound(numbers, pattern, *oracles.fractions_of(duals))
    assert bound is not None
    assert best <= bound <= best + 16 * unit


def test_ortools_takes_the_largest_costs_that_it_says_it_takes() -> None:
    for size in range(1, 65):
        pattern = Pattern(1, size)
        bits = 63 - 3 - (2 * size + 1).bit_length()
        numbers = np.full((size, size), (1 << bits) - 1, object)
        numbers[::2] = -numbers[::2]
        mask, _ = OrTools().solve_block(numbers, 0, pattern, None)
        assert oracles.is_feasible(mask, pattern)


def test_ortools_says_when_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(or_tools, "HEADROOM_BITS", -3)
    numbers = np.full((4, 4), 1 << 61, object)
    with pytest.raises(SolverLimitError, match=r"OR-Tools must end with OPTIMAL, not .*BAD_COST_RANGE"):
        OrTools().solve_block(numbers, 0, Pattern(2, 4), None)


def test_ortools_on_loss_is_checked() -> None:
    with pytest.raises(InputValueError, match='on_loss must be "refuse" or "round", not \'ignore\''):
        OrTools(on_loss="ignore")  # type: ignore[arg-type]


class _Answer:
    """What linprog returns, as far as it is read."""

    def __init__(self, status: int, x: Any) -> None:
        self.status, self.x, self.message = status, x, "Iteration limit reached."


def test_lp_says_when_highs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    problem = Problem.build(np.ones((2, 2)), Pattern(1, 2))
    monkeypatch.setattr(scipy.optimize, "linprog", lambda *a, **k: _Answer(1, None))
    with pytest.raises(SolverLimitError, match='HiGHS must end with an optimum, not "Iteration limit'):
        solve(LinearProgram(), problem)
    monkeypatch.setattr(scipy.optimize, "linprog", lambda *a, **k: _Answer(0, np.full(4, 0.5)))
    with pytest.raises(SolverLimitError, match="HiGHS must end at an integral vertex, not at a fractional flow"):
        solve(LinearProgram(), problem)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (Pattern(1, 2), 2),
        (Pattern(1, 4), 24),
        (Pattern(2, 4), 90),
        (Pattern(2, 5), 2040),
        (Pattern(1, 8), 40320),
        (Pattern(2, 4, transposable=False), 6**4),
        (Pattern(2, 4, transposable=False, fill="at-most"), 11**4),
        (Pattern(1, 3, fill="at-most"), 34),
    ],
    ids=str,
)
def test_enumeration_counts(pattern: Pattern, count: int) -> None:
    """1:m is m!, 2:4 and 2:5 are known counts, and 34 is the number of partial permutations of 3."""
    masks = all_masks(pattern)
    assert len(masks) == count == len(np.unique(masks, axis=0))
    for mask in masks[:: max(1, count // 50)]:
        assert oracles.is_feasible(mask.reshape(pattern.block_shape), pattern)


@pytest.mark.parametrize(
    "pattern", [Pattern(3, 6), Pattern(4, 8), Pattern(32, 64), Pattern(3, 5, fill="at-most")], ids=str
)
def test_enumeration_refuses_at_the_door(pattern: Pattern) -> None:
    problem = Problem.build(np.ones(pattern.block_shape), pattern)
    with pytest.raises(SolverLimitError, match='pattern must have at most 131072 masks for solver="enumerate"'):
        Enumerate().check(problem)


@pytest.mark.parametrize("bits", [10, 62, 63, 200])
def test_enumeration_scores_integers_of_any_size(bits: int) -> None:
    rng = np.random.default_rng(bits)
    numbers = np.array([[int(rng.integers(-5, 6)) * (1 << bits) // 7 for _ in range(4)] for _ in range(4)], object)
    mask, _ = Enumerate().solve_block(numbers, 0, Pattern(2, 4), None)
    assert numbers[mask].sum() == oracles.best_score(numbers, Pattern(2, 4))


def test_the_table() -> None:
    assert set(solvers.names()) >= {"dual", "network-simplex", "ortools", "lp", "enumerate"}
    assert solvers.names()[0] == "dual"
    assert solvers.get("ortools") == OrTools()
    configured = OrTools(on_loss="round")
    assert solvers.get(configured) is configured
    with pytest.raises(UnknownSolverError, match=r"solver must be one of dual, network-simplex, .*, not 'simplex'"):
        solvers.get("simplex")
    for wrong in (None, 3, OrTools):
        with pytest.raises(InputTypeError, match="solver must be a name or a Solver, not"):
            solvers.get(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [NetworkSimplex(), OrTools(), LinearProgram()], ids=lambda solver: solver.name)
def test_a_missing_library_is_named(solver: BlockSolver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert solver.library is not None
    monkeypatch.setitem(sys.modules, solver.library, None)
    message = f'solver "{solver.name}" needs {solver.library}, which is not installed; pip install "nmflow\\[reference'
    for asked in (solver.name, solver):
        with pytest.raises(MissingLibraryError, match=message):
            solvers.get(asked)
