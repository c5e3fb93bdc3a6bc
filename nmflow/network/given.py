"""What a caller gives a network, checked: flows, potentials and duals, of its nodes and arcs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError
from nmflow.given import viewed
from nmflow.network.dimacs import Arc

__all__ = ["as_duals", "as_flow", "as_numbers", "of_mapping"]


def as_flow(value: object, n_arcs: int) -> npt.NDArray[np.int64]:
    """View a flow by arc: whole numbers that int64 holds."""
    flow = as_numbers(value, n_arcs, "flow", "arcs")
    if flow.size and (flow.dtype.kind not in "iu" or flow.dtype == np.uint64):
        raise InputTypeError(f"flow must hold whole numbers that int64 holds, not {flow.dtype}; convert it first")
    return flow.astype(np.int64, copy=False)


def as_numbers(value: object, count: int, name: str, of: str) -> Array:
    """View one number for each of `count` nodes, arcs or lines; Python integers (dtype object) are numbers too."""
    array = viewed(value, name)
    if array.shape != (count,):
        raise InputValueError(f"{name} must be of the {count} {of} of the network, not of shape {array.shape}")
    if array.dtype.kind not in "iufO":
        raise InputTypeError(f"{name} must be numbers, not {array.dtype}")
    return array


def as_duals(u: object, v: object, shape: tuple[int, int]) -> tuple[Array, Array]:
    """View the duals of the rows and of the columns of a block of this shape."""
    return as_numbers(u, shape[0], "u", "rows"), as_numbers(v, shape[1], "v", "columns")


def of_mapping(flow: object, arcs: Sequence[Arc]) -> npt.NDArray[np.int64]:
    """The flow by arc of a mapping flow[tail][head]."""
    try:
        return as_flow([flow[tail][head] for tail, head, _, _ in arcs], len(arcs))  # type: ignore[index]
    except (TypeError, LookupError):  # of as_flow, too
        raise InputValueError(
            "flow must be a mapping flow[tail][head] of whole numbers for each arc, as networkx makes it"
        ) from None
