"""Selection networks: comparators that bring the k-th and (k+1)-th largest of some values to known places."""

from __future__ import annotations

from functools import cache
from typing import Any

from nmflow.kernels.found_networks import FOUND, comparators
from nmflow.kernels.simd import Emitter

__all__ = ["select_wires", "selection_network"]


def _merge_sort(low: int, count: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort of `count` wires (a power of two) from `low`."""
    if count <= 1:
        return []
    half = count // 2
    return _merge_sort(low, half) + _merge_sort(low + half, half) + _merge(low, count, 1)


def _merge(low: int, count: int, step: int) -> list[tuple[int, int]]:
    """Merge the two sorted halves of the wires low, low + step, ... below low + count."""
    double = 2 * step
    if double >= count:
        return [(low, low + step)]
    pairs = _merge(low, count, double) + _merge(low + step, count, double)
    return pairs + [(i, i + step) for i in range(low + step, low + count - step, double)]


def _found(count: int, wanted: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Comparators from the table for two neighbouring ranks, or the mirror image of those for the opposite ranks."""
    if len(wanted) != 2 or wanted[1] != wanted[0] + 1:
        return None
    if text := FOUND.get((count, wanted[1])):
        return comparators(text)
    if text := FOUND.get((count, count - wanted[1])):
        return [(count - 1 - j, count - 1 - i) for i, j in comparators(text)]
    return None


@cache
def selection_network(
    count: int, wanted: tuple[int, ...], *, unordered: bool = False
) -> tuple[tuple[int, int, bool, bool], ...]:
    """Comparators that leave the values of the `wanted` ranks on the wires of those numbers.

    One that a search found (`nmflow.kernels.found_networks`), where two neighbouring ranks are wanted in any order;
    else Batcher's odd-even merge sort (largest first), cut to `count` wires. It is pruned backwards to what the
    wanted ranks need: a comparator whose outputs nobody reads is dropped, one that is read on one side becomes
    a single maximum or minimum.

    Parameters
    ----------
    count : int
        Number of values.
    wanted : tuple of int
        Ranks, 0 the largest.
    unordered : bool
        Leave the values of the wanted ranks on the wanted wires in any order: enough for their sum.

    Returns
    -------
    tuple of (i, j, use_max, use_min)
        In turn: wire i becomes max(i, j) if use_max, wire j becomes min(i, j) if use_min.

    References
    ----------
    K. E. Batcher, "Sorting networks and their applications", AFIPS 1968.

    Examples
    --------
    >>> selection_network(2, (0,))
    ((0, 1, True, False),)
    """
    pairs = _found(count, wanted) if unordered else None
    if pairs is None:
        size = 1 << max(0, count - 1).bit_length()
        # wires beyond `count` would hold minus infinity: already in place, so their comparators do nothing
        pairs = [(i, j) for i, j in _merge_sort(0, size) if j < count]
    if unordered:
        last = max((k for k, pair in enumerate(pairs) if set(pair) & set(wanted)), default=-1)
        if last >= 0 and set(pairs[last]) == set(wanted):
            del pairs[last]  # a comparator that only puts the wanted ones in order
    needed = set(wanted)
    kept = []
    for i, j in reversed(pairs):
        use_max, use_min = i in needed, j in needed
        if use_max or use_min:
            kept.append((i, j, use_max, use_min))
            needed |= {i, j}
    return tuple(reversed(kept))


def select_wires(emit: Emitter, wires: list[Any], wanted: tuple[int, ...]) -> None:
    """Emit a network over vectors of integers, in place: those of the wanted ranks are on the wanted wires then.

    They are there in any order.
    """
    for i, j, use_max, use_min in selection_network(len(wires), wanted, unordered=True):
        a, b = wires[i], wires[j]
        if use_max:
            wires[i] = emit.call("llvm.smax", a, b)
        if use_min:
            wires[j] = emit.call("llvm.smin", a, b)
