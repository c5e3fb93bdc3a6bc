"""FlowNetwork: the formulation, its inverses, its exports, and duals from potentials."""

from __future__ import annotations

import re
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nmflow import network
from nmflow.errors import InfeasibleError, InputTypeError, InputValueError, MissingLibraryError, NonFiniteError
from nmflow.pattern import Pattern

PATTERNS = [
    Pattern(1, 2),
    Pattern(2, 3),
    Pattern(2, 3, fill="at-most"),
    Pattern(2, 3, transposable=False),
    Pattern(1, 3, transposable=False, fill="at-most"),
    Pattern(row="1:2", col="2:4"),
    Pattern(row="2:3", col="1:2", fill="at-most"),
    Pattern(row="1:2", col="2:3", fill="at-most"),
]
SCORES = st.integers(-4, 4)


def block_of(pattern: Pattern, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-9, 10, pattern.block_shape) / 4


def duals(net: network.FlowNetwork, potentials: Any) -> tuple[Any, Any]:
    unit = Fraction(2) ** net.exponent
    u, v = net.duals_of(potentials)
    return u * unit, v * unit


def test_the_textbook_instance() -> None:
    net = network.build(np.array([[3.0, 1.0], [0.5, 2.0]]), "1:2")
    assert net.pattern == Pattern(1, 2)
    assert net.tail.tolist() == [0, 0, 1, 1]
    assert net.head.tolist() == [2, 3, 2, 3]
    assert net.capacity.tolist() == [1, 1, 1, 1]
    assert net.unit_cost.tolist() == [-6, -2, -1, -4]
    assert net.exponent == -1
    assert net.supply.tolist() == [1, 1, -1, -1]
    assert net.names == ("row 0", "row 1", "column 0", "column 1")
    assert (net.n_nodes, net.n_arcs, net.slack) == (4, 4, None)
    assert net.cost(np.array([1, 0, 0, 1])) == -10


def test_at_most_has_a_slack_node() -> None:
    net = network.build(np.ones((3, 2)), Pattern(row="1:2", col="2:3", fill="at-most"))
    assert net.slack == 5
    assert net.names[-1] == "slack"
    assert net.supply.tolist() == [1, 1, 1, -2, -2, 1]
    assert net.supply.sum() == 0
    assert list(zip(net.tail[6:].tolist(), net.head[6:].tolist(), strict=True)) == [
        (0, 5),
        (1, 5),
        (2, 5),
        (5, 3),
        (5, 4),
    ]
    assert net.unit_cost[6:].tolist() == [0] * 5


def test_free_columns_have_slack_on_the_column_side_only() -> None:
    net = network.build(np.ones((2, 2)), Pattern(1, 2, transposable=False))
    assert list(zip(net.tail[4:].tolist(), net.head[4:].tolist(), strict=True)) == [(4, 2), (4, 3)]
    assert net.supply.tolist() == [1, 1, -2, -2, 2]


def test_keep_takes_units_and_drop_takes_arcs() -> None:
    keep, drop = np.zeros((2, 2), bool), np.zeros((2, 2), bool)
    keep[0, 1], drop[0, 0] = True, True
    net = network.build(np.array([[5.0, 1.0], [2.0, 7.0]]), Pattern(1, 2), keep, drop)
    assert net.entry.tolist() == [2, 3]
    assert net.supply.tolist() == [0, 1, -1, 0]
    assert net.kept_score == 1
    assert net.mask_of(np.array([1, 0])).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_masks_and_flows_are_inverse_and_scores_agree(pattern: Pattern) -> None:
    scores = block_of(pattern)
    net = network.build(scores, pattern)
    numbers = oracles.exact(scores, absolute=False)
    count = 0
    for mask in oracles.masks(pattern):
        flow = net.flow_of(mask)
        assert net.is_feasible(flow)
        assert np.array_equal(net.mask_of(flow), mask)
        assert (net.kept_score - net.cost(flow)) * Fraction(2) ** net.exponent == numbers[mask].sum()
        count += 1
    assert count > 1


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_potentials_exist_exactly_for_the_best_masks(pattern: Pattern) -> None:
    scores = block_of(pattern, 3)
    numbers = oracles.exact(scores, absolute=False)
    best = oracles.best_score(numbers, pattern)
    assert best == max(numbers[mask].sum() for mask in oracles.masks(pattern))
    net = network.build(scores, pattern)
    for mask in oracles.masks(pattern):
        potentials = net.potentials(net.flow_of(mask))
        assert (potentials is not None) == (numbers[mask].sum() == best)
        if potentials is not None:
            u, v = duals(net, potentials)
            assert oracles.proves(numbers, mask, pattern, u, v)
            assert oracles.dual_bound(numbers, pattern, u, v) == best
            back = net.duals_of(net.potentials_of(*net.duals_of(potentials)))
            assert all(np.array_equal(a, b) for a, b in zip(back, net.duals_of(potentials), strict=True))


@given(st.sampled_from(PATTERNS), st.data())
def test_keep_and_drop_against_enumeration(pattern: Pattern, data: st.DataObject) -> None:
    scores = data.draw(hnp.arrays(np.int64, pattern.block_shape, elements=SCORES))
    state = data.draw(hnp.arrays(np.int8, pattern.block_shape, elements=st.sampled_from([0, 0, 0, 1, -1])))
    keep, drop = state == 1, state == -1
    numbers = oracles.exact(scores, absolute=False)
    best = oracles.best_score(numbers, pattern, keep, drop)
    fitting = [mask for mask in oracles.masks(pattern) if oracles.is_feasible(mask, pattern, keep, drop)]
    assert (best is None) == (not fitting)
    try:
        net = network.build(scores, pattern, keep, drop)
    except InfeasibleError:
        assert best is None
        return
    for mask in fitting:
        potentials = net.potentials(net.flow_of(mask))
        assert (potentials is not None) == (numbers[mask].sum() == best)
        if potentials is not None:
            u, v = duals(net, potentials)
            assert oracles.proves(numbers, mask, pattern, u, v, keep, drop)
            assert oracles.dual_bound(numbers, pattern, u, v, keep, drop) == best


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_networkx_round_trip(pattern: Pattern) -> None:
    import networkx

    scores = block_of(pattern, 5)
    net = network.build(scores, pattern)
    graph = net.to_networkx()
    assert all(type(data[name]) is int for _, _, data in graph.edges(data=True) for name in ("capacity", "weight"))
    assert [graph.nodes[node]["name"] for node in range(net.n_nodes)] == list(net.names)
    cost, flow = networkx.network_simplex(graph)
    by_arc = net.flow_from_networkx(flow)
    assert net.cost(by_arc) == cost
    numbers = oracles.exact(scores, absolute=False)
    assert numbers[net.mask_of(by_arc)].sum() == oracles.best_score(numbers, pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_dimacs_says_the_network(pattern: Pattern) -> None:
    net = network.build(block_of(pattern, 7), pattern)
    fields = [line.split() for line in net.to_dimacs().splitlines()]
    assert [f for f in fields if f[0] == "p"] == [["p", "min", str(net.n_nodes), str(net.n_arcs)]]
    supply = {int(node): int(amount) for kind, node, amount in (f for f in fields if f[0] == "n") if kind}
    assert supply == {node + 1: amount for node, amount in enumerate(net.supply.tolist()) if amount}
    arcs = np.array([[int(x) for x in f[1:]] for f in fields if f[0] == "a"], object)
    assert np.array_equal(arcs[:, 0] - 1, net.tail)
    assert np.array_equal(arcs[:, 1] - 1, net.head)
    assert not arcs[:, 2].any()
    assert np.array_equal(arcs[:, 3], net.capacity)
    assert np.array_equal(arcs[:, 4], net.unit_cost)
    mask = next(oracles.masks(pattern))
    flow = net.flow_of(mask)
    lines = [f"f {t + 1} {h + 1} {x}" for t, h, x in zip(net.tail, net.head, flow, strict=True) if x]
    solution = "\n".join(["c a solution", f"s {net.cost(flow)}", *lines])
    assert np.array_equal(net.flow_from_dimacs(solution), flow)


def test_dimacs_text_is_golden() -> None:
    text = network.build(np.array([[3.0, 1.0], [0.5, 2.0]]), Pattern(1, 2)).to_dimacs()
    assert text.splitlines() == [
        "c nmflow 1:2, one block; cost = COST * 2**(-1)",
        "c node 1 = row 0",
        "c node 2 = row 1",
        "c node 3 = column 0",
        "c node 4 = column 1",
        "p min 4 4",
        "n 1 1",
        "n 2 1",
        "n 3 -1",
        "n 4 -1",
        "a 1 3 0 1 -6",
        "a 1 4 0 1 -2",
        "a 2 3 0 1 -1",
        "a 2 4 0 1 -4",
    ]


def test_costs_of_any_range_are_exact() -> None:
    scores = np.array([[1e300, 5e-324], [0.0, -1.5]])
    net = network.build(scores, Pattern(1, 2))
    unit = Fraction(2) ** net.exponent
    assert [-cost * unit for cost in net.unit_cost] == list(oracles.exact(scores, absolute=False).ravel())
    given_whole = network.build(np.array([[10**40, 1], [0, 3]], object), Pattern(1, 2), exponent=-7)
    assert given_whole.unit_cost.tolist() == [-(10**40), -1, 0, -3]
    assert given_whole.exponent == -7


def test_potentials_tell_a_flow_that_is_not_optimal() -> None:
    net = network.build(np.array([[3.0, 1.0], [0.5, 2.0]]), Pattern(1, 2))
    assert net.potentials(np.array([0, 1, 1, 0])) is None


@pytest.mark.parametrize("flow", [[1, 1, 0, 0], [2, -1, -1, 2]])
def test_mask_of_refuses(flow: list[int]) -> None:
    net = network.build(np.ones((2, 2)), Pattern(1, 2))
    with pytest.raises(InputValueError, match="flow must meet every capacity and supply"):
        net.mask_of(np.array(flow))


def test_lists_are_taken_as_arrays_are() -> None:
    net = network.build([[3.0, 1.0], [0.5, 2.0]], "1:2")
    flow, mask = [1, 0, 0, 1], [[True, False], [False, True]]
    assert net.is_feasible(flow)
    assert net.cost(flow) == -10
    assert net.mask_of(flow).tolist() == mask
    assert net.flow_of(mask).tolist() == flow
    potentials = net.potentials(flow)
    assert potentials is not None
    u, v = net.duals_of(potentials.tolist())
    assert net.potentials_of(u.tolist(), v.tolist()).tolist() == potentials.tolist()


@pytest.mark.parametrize("method", ["is_feasible", "cost", "mask_of", "potentials"])
def test_what_is_no_flow_is_refused(method: str) -> None:
    of = getattr(network.build(np.ones((2, 2)), "1:2"), method)
    for flow in (None, [1, 0, 0, 1, 0], [[1, 0], [0, 1]], [1]):
        with pytest.raises(InputValueError, match="flow must be of the 4 arcs of the network, not of shape"):
            of(flow)
    for flow in ([1.0, 0.0, 0.0, 1.0], np.array([1, 0, 0, 2**63], np.uint64), [2**70, 0, 0, 1]):
        with pytest.raises(InputTypeError, match="flow must hold whole numbers that int64 holds, not"):
            of(flow)
    with pytest.raises(InputTypeError, match="flow must be numbers, not <U1"):
        of(["1", "0", "0", "1"])


@pytest.mark.parametrize("pattern", [Pattern(1, 2), Pattern(1, 2, fill="at-most")], ids=str)
def test_flow_of_refuses(pattern: Pattern) -> None:
    drop = np.array([[False, False], [False, True]])
    net = network.build(np.ones((2, 2)), pattern, drop=drop)
    for mask in ([[True, True], [False, False]], [[True, False], [False, True]]):
        with pytest.raises(InputValueError, match="mask must keep to the pattern and to keep and drop"):
            net.flow_of(np.array(mask))


def test_what_is_no_solution_is_refused() -> None:
    net = network.build(np.ones((2, 2)), Pattern(1, 2))
    with pytest.raises(InputValueError, match=r"mask must have shape \(2, 2\), not \(4,\)"):
        net.flow_of(np.zeros(4, bool))
    with pytest.raises(InputTypeError, match="mask must be boolean, not int64"):
        net.flow_of([[1, 0], [0, 1]])
    with pytest.raises(InputValueError, match="potentials must be of the 4 nodes of the network, not of shape"):
        net.duals_of([0, 0])
    for u, v, wrong in (([0], [0, 0], "u must be of the 2 rows"), ([0, 0], None, "v must be of the 2 columns")):
        with pytest.raises(InputValueError, match=wrong):
            net.potentials_of(u, v)  # type: ignore[arg-type]
    for flow in ({}, None, {0: {2: 1, 3: 0}, 1: {2: 0}}, {0: {2: 1, 3: 0}, 1: {2: 0, 3: 0.5}}):
        with pytest.raises(InputValueError, match=r"flow must be a mapping flow\[tail\]\[head\] of whole numbers"):
            net.flow_from_networkx(flow)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="text must be the text of a solution, not bytes"):
        net.flow_from_dimacs(b"f 1 3 1")  # type: ignore[arg-type]
    for line in ("f 1 9 1", "f 1 3", "f 1 3 x", f"f 1 3 {2**70}"):
        with pytest.raises(InputValueError, match=f"text must hold lines 'f TAIL HEAD FLOW' .* not '{line}'"):
            net.flow_from_dimacs(line)


def test_build_refuses() -> None:
    pattern, ones = Pattern(1, 2), np.ones((2, 2))
    with pytest.raises(InputValueError, match=re.escape("scores_block must have the block shape (2, 2), not (2, 3)")):
        network.build(np.ones((2, 3)), pattern)
    with pytest.raises(InputTypeError, match="scores_block must be float16"):
        network.build(np.ones((2, 2), bool), pattern)
    with pytest.raises(InputTypeError, match="exponent must be a whole number, not None"):
        network.build(ones, pattern, exponent=None)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="scores_block must hold Python integers if its dtype is object"):
        network.build(np.array([[1, 2], [3, 1.5]], object), pattern)
    bad = np.array([[1.0, np.inf], [np.nan, 1.0]])
    with pytest.raises(NonFiniteError, match=r"scores_block must be finite.* at 2 of 4 entries, the first at \(0, 1\)"):
        network.build(bad, pattern)
    with pytest.raises(InputTypeError, match="keep must be boolean"):
        network.build(ones, pattern, keep=ones)
    marked = np.array([[False, True], [False, False]])
    with pytest.raises(InfeasibleError, match=r"keep and drop must not mark the same entry, as they do at \(0, 1\)"):
        network.build(ones, pattern, marked, marked)
    with pytest.raises(InfeasibleError, match="keep must mark at most 1 entries of a row, not 2 in row 1"):
        network.build(ones, pattern, keep=np.array([[False, False], [True, True]]))
    with pytest.raises(InfeasibleError, match="keep must mark at most 1 entries of a column, not 2 in column 0"):
        network.build(ones, pattern, keep=np.array([[True, False], [True, False]]))
    everything = np.array([[True, True], [False, False]])
    with pytest.raises(InfeasibleError, match='drop must leave 1 entries of a row under fill="exact", not 0 in row 0'):
        network.build(ones, pattern, drop=everything)
    network.build(ones, Pattern(1, 2, fill="at-most"), drop=everything)


def test_networkx_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    net = network.build(np.ones((2, 2)), Pattern(1, 2))
    with pytest.raises(MissingLibraryError, match=r'networkx is not installed; pip install "nmflow\[reference\]"'):
        net.to_networkx()
