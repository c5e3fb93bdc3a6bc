"""Selection networks select: all of the table, their mirror images, and what a sort is pruned to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evolve import live
from benchmarks.networks import GREEN, Cases, hypercube, outcomes, search
from nmflow.kernels.found_networks import FOUND, comparators
from nmflow.kernels.networks import selection_network

Array = np.ndarray[Any, np.dtype[Any]]


def selected(values: Array, wanted: int, count: int) -> Array:
    """What a network makes of values, (inputs, count): the two wanted ones, in order."""
    wires = list(values.T)
    for i, j, use_max, use_min in selection_network(count, (wanted - 1, wanted), unordered=True):
        a, b = wires[i], wires[j]
        if use_max:
            wires[i] = np.maximum(a, b)
        if use_min:
            wires[j] = np.minimum(a, b)
    return np.sort(np.stack(wires[wanted - 1 : wanted + 1], axis=1), axis=1)


def least_and_next(values: Array, wanted: int) -> Array:
    return np.sort(values, axis=1)[:, -wanted - 1 :][:, :2]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 9, 12, 16])
def test_every_input_of_zeros_and_ones_comes_out_right(count: int) -> None:
    """Then all inputs do: the 0-1 principle."""
    inputs = (np.arange(1 << count)[:, None] >> np.arange(count) & 1).astype(np.uint8)
    for wanted in range(1, count):
        assert (selected(inputs, wanted, count) == least_and_next(inputs, wanted)).all(), wanted


def test_groups_that_are_sorted_are() -> None:
    wires = list((np.arange(1 << 16)[:, None] >> np.arange(16) & 1).astype(np.uint8).T)
    for i, j in hypercube(16, 4) + comparators(GREEN):
        wires[i], wires[j] = wires[i] | wires[j], wires[i] & wires[j]
    assert (np.diff(np.stack(wires).astype(np.int8), axis=0) <= 0).all()


@pytest.mark.parametrize(("count", "wanted"), FOUND, ids=str)
def test_networks_of_the_table_select(count: int, wanted: int) -> None:
    net = np.array(comparators(FOUND[count, wanted]), np.int16)
    assert (net[:, 0] < net[:, 1]).all()
    assert net.max() < count
    every = 2 * len(net)
    assert (
        live(net, wanted, count, np.empty(every, np.uint8))
        == operations(count, wanted)
        < sorted_operations(count, wanted)
    )
    rng = np.random.default_rng(count)
    for values in (rng.integers(-9, 9, (500, count)), rng.standard_normal((500, count))):
        for kept in (wanted, count - wanted):
            assert (selected(values, kept, count) == least_and_next(values, kept)).all()


@pytest.mark.parametrize(("count", "wanted"), [key for key in FOUND if key[0] > 16], ids=str)
def test_large_networks_of_the_table_select_from_all_that_their_cubes_leave(count: int, wanted: int) -> None:
    net = np.array(comparators(FOUND[count, wanted]), np.int16)
    cubes = {levels: hypercube(count, levels) for levels in range(5) if not count % (1 << levels)}
    levels = max(levels for levels, cube in cubes.items() if net[: len(cube)].tolist() == list(map(list, cube)))
    rest = net[len(cubes[levels]) :]
    cases = Cases(count, wanted, np.array(outcomes(levels), np.uint8))
    rng = np.random.default_rng(0)
    assert cases.wrong(rest, rng) is None
    assert cases.wrong(np.delete(rest, len(rest) // 2, axis=0), rng) is not None


def test_a_cube_of_all_wires_leaves_nothing_to_put_beside_it() -> None:
    cases = Cases(4, 1, np.array(outcomes(2), np.uint8))
    rng = np.random.default_rng(0)
    assert cases.wrong(np.array([(1, 2)], np.int16), rng) is None
    assert cases.wrong(np.empty((0, 2), np.int16), rng) is not None


def operations(count: int, wanted: int) -> int:
    network = selection_network(count, (wanted - 1, wanted), unordered=True)
    return sum(use_max + use_min for _, _, use_max, use_min in network)


def sorted_operations(count: int, wanted: int) -> int:
    """Of a pruned sort."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmflow.kernels.networks.FOUND", {})
        return sum(a + b for *_, a, b in selection_network.__wrapped__(count, (wanted - 1, wanted), unordered=True))


def test_the_page_on_performance_counts_their_operations() -> None:
    page = " ".join((Path(__file__).parents[1] / "docs" / "performance.md").read_text(encoding="utf-8").split())
    taken = [operations(2 * n, n) for n in (2, 4, 8, 16)]
    assert "it has {} minima and maxima at 2:4, {} at 4:8, {} at 8:16 and {} at 16:32".format(*taken) in page
    sorts = [sorted_operations(2 * n, n) for n in (8, 16)]
    assert "has {} and {} of the last two".format(*sorts) in page


def test_a_search_finds_what_takes_less_than_a_sort(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nmflow.kernels.networks.FOUND", {})
        patch.setattr("benchmarks.networks.FOUND", {})
        selection_network.cache_clear()
        search(4, 1, 1, False, False, 0.05, 0)
        selection_network.cache_clear()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith('    (4, 1): "')
    assert len(line.split('"')[1]) == 8  # four comparators; six operations, where a pruned sort takes eight
