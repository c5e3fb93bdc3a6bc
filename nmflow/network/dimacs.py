"""A network as text for other solvers, and their flows read back: DIMACS ``.min``.

References
----------
First DIMACS Implementation Challenge, "The DIMACS challenge format: network flows", 1990/1991: problem line
``p min NODES ARCS``, ``n ID SUPPLY`` for nodes with supply, ``a TAIL HEAD LOW CAPACITY COST`` for arcs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nmflow.errors import InputTypeError, InputValueError

__all__ = ["Arc", "read", "write"]

Arc: TypeAlias = tuple[int, int, int, int]
"""Tail, head, capacity and unit cost."""


def write(title: str, names: Sequence[str], supply: Sequence[int], arcs: Sequence[Arc]) -> str:
    """Nodes with a supply, then arcs; which node is which stands in comments."""
    lines = [f"c {title}"]
    lines += [f"c node {node} = {name}" for node, name in enumerate(names, 1)]
    lines.append(f"p min {len(names)} {len(arcs)}")
    lines += [f"n {node} {units}" for node, units in enumerate(supply, 1) if units]
    lines += [f"a {tail + 1} {head + 1} 0 {capacity} {cost}" for tail, head, capacity, cost in arcs]
    return "\n".join(lines) + "\n"


def read(text: str, arcs: Sequence[Arc]) -> npt.NDArray[np.int64]:
    """The flow by arc of lines ``f TAIL HEAD FLOW``; raise InputValueError at one that is not of these arcs."""
    if not isinstance(text, str):
        raise InputTypeError(f"text must be the text of a solution, not {type(text).__name__}")
    number = {(tail + 1, head + 1): arc for arc, (tail, head, _, _) in enumerate(arcs)}
    flow = np.zeros(len(arcs), np.int64)
    for line in text.splitlines():
        if line.startswith("f "):
            try:
                tail, head, amount = map(int, line.split()[1:])
                flow[number[tail, head]] = amount
            except (ValueError, KeyError, OverflowError):
                raise InputValueError(
                    f"text must hold lines 'f TAIL HEAD FLOW' of arcs of this network, not {line!r}"
                ) from None
    return flow
