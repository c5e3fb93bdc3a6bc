"""What a caller gives for each parameter, by its name or by a function of it: scores, counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from nmflow.arrays import Array
from nmflow.errors import InputTypeError, InputValueError
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import as_pattern
from nmflow.torch.convert import to_array
from nmflow.torch.select import Layer, unwrapped

__all__ = ["Counts", "Scores", "check_names", "check_values", "given_for", "patterns_of", "scores_of"]

Scores: TypeAlias = Mapping[str, torch.Tensor] | Callable[[str, nn.Module], torch.Tensor | None]
Counts: TypeAlias = int | Mapping[str, int] | None
"""n for all layers, or for each by the name of its parameter."""


def given_for(layer: Layer, values: Scores | None) -> tuple[str, torch.Tensor | None]:
    """What is given for a layer under any of its names, and under which; None if nothing is."""
    for slot in layer.slots if values is not None else ():
        found = values.get(slot.name) if isinstance(values, Mapping) else values(slot.name, slot.module)  # type: ignore[misc]
        if found is not None:
            return slot.name, found
    return layer.name, None


def scores_of(layer: Layer, scores: Scores | None) -> Array | None:
    """The scores given for a layer; InputValueError if they are of another shape, which NumPy might stretch."""
    name, found = given_for(layer, scores)
    if found is None:
        return None
    values, shape = to_array(found, f"scores of {name}"), tuple(layer.parameters[0].shape)
    if values.shape != shape:
        raise InputValueError(f"{name}: scores must have the shape {shape} of the weight, not {values.shape}")
    return values


def check_values(model: nn.Module, values: object, argument: str) -> None:
    """Raise InputTypeError unless tensors are given by name, by a function or not at all; InputValueError as below."""
    if not (values is None or isinstance(values, Mapping) or callable(values)):
        advice = "; calibrate(...).scores(name) makes one of a name" if argument == "scores" else ""
        raise InputTypeError(
            f"{argument} must be a mapping from parameter names to tensors, or a callable, not {values!r}{advice}"
        )
    check_names(model, values, argument)


def check_names(model: nn.Module, values: object, argument: str) -> None:
    """Raise InputValueError if a mapping names what is no parameter of the model."""
    if isinstance(values, Mapping):
        known = {name for name, _ in unwrapped(model).named_parameters(remove_duplicate=False)}
        unknown = next((name for name in values if name not in known), None)
        if unknown is not None:
            raise InputValueError(f"{argument} must be named like parameters of the model, not {unknown!r}")


def patterns_of(
    n: Counts, m: int | None, pattern: str | Pattern | None, fill: Fill
) -> tuple[Pattern, Callable[[Layer], Pattern | None]]:
    """A pattern whose blocks are those of all layers, and the pattern of each (None: it stays dense).

    Raises
    ------
    InputValueError
        If n is a mapping and m is missing or not that of an allocation, or there is a pattern too.
    """
    if not isinstance(n, Mapping):
        chosen = as_pattern(n, m, pattern, fill=fill)
        return chosen, lambda layer: chosen
    if m is None or pattern is not None:
        raise InputValueError("m must be given beside n for each layer, and no pattern; write n={...}, m=16")
    if getattr(n, "m", m) != m:  # of allocate or choose_n
        raise InputValueError(f"m must be {n.m}, for which n was chosen, not {m}")  # type: ignore[attr-defined]
    transposable = getattr(n, "transposable", True)
    table = {name: Pattern(count, m, fill=fill, transposable=transposable) for name, count in n.items()}
    if not table:
        raise InputValueError("n must name at least one parameter, not none")

    def of(layer: Layer) -> Pattern | None:
        found = next((table[slot.name] for slot in layer.slots if slot.name in table), None)
        return None if found is None or found.n == m else found

    return next(iter(table.values())), of
