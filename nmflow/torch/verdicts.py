"""What speaks for or against a mask of one parameter: its kind, its name, and what the caller asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from nmflow.names import left_alone
from nmflow.torch.slots import Slot, depthwise, is_fused, is_turned, router, standardises

__all__ = ["ELIGIBLE", "OUTSIDE", "Filter", "is_named", "is_sized", "matches", "verdict"]

Filter = Callable[[str, nn.Module], bool | None]
"""(module name, module) -> True to take it, False to leave it, None to let the other rules decide."""

ELIGIBLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Types whose weight gets a mask unless it is told otherwise."""

OUTSIDE = "not in include"


def verdict(
    slot: Slot, answer: bool | None, wanted: tuple[str, ...] | None, unwanted: tuple[str, ...]
) -> tuple[str, str]:
    """Why a parameter must not be taken, and why it is not unless it is named; each empty if there is no reason."""
    glob = next((glob for glob in unwanted if matches(slot, glob)), None)
    if glob is not None:
        return f"excluded by {glob!r}", ""
    if answer is False:
        return "left out by filter_fn", ""
    if wanted is not None and not any(matches(slot, glob) for glob in wanted):
        return "", OUTSIDE
    kind = type(slot.module).__name__
    if is_fused(slot.module):
        return "", "of all experts at once; take them apart with experts_apart, or give its plain name in include"
    if not (isinstance(slot.module, ELIGIBLE) or is_turned(slot.module)):
        return "", f"in a {kind}, not a Linear, Conv1d or Conv2d; give its plain name in include, or a filter_fn"
    if slot.attribute != "weight":
        return "", f"not the weight of its {kind}; give its plain name in include, or a filter_fn"
    if depthwise(slot):
        return "", "depthwise convolution; name it in include to prune it"
    if kind := _special(slot):
        return "", f"{kind}; name it in include to prune it"
    if router(slot):
        return "", "router of experts; give its plain name in include, or a filter_fn"
    return "", ""


def is_named(slot: Slot, answer: bool | None, wanted: tuple[str, ...] | None) -> bool:
    """Whether a parameter is asked for by itself, so that its type does not matter."""
    inside = wanted is None or any(matches(slot, glob) for glob in wanted)
    return bool(answer and inside) or _plain(slot, wanted) or (_unusual(slot) and _globbed(slot, wanted))


def is_sized(slot: Slot, wanted: tuple[str, ...] | None) -> bool:
    """Whether size does not matter either: a depthwise convolution never has more than a row or two for a group."""
    return _plain(slot, wanted) or depthwise(slot)


def _plain(slot: Slot, wanted: tuple[str, ...] | None) -> bool:
    return not {slot.name, slot.module_name}.isdisjoint(wanted or ())


def _unusual(slot: Slot) -> bool:
    """Whether any glob of more than stars must ask for it."""
    return depthwise(slot) or bool(_special(slot))


def _special(slot: Slot) -> str:
    """What it is, if its model, type or name says that it is pruned only where it is asked for; else nothing."""
    if standardises(slot):
        return "convolution that standardises its weight, and so uses no zeros of it"
    return "output head" if slot.head else left_alone(slot.name)


def _globbed(slot: Slot, wanted: tuple[str, ...] | None) -> bool:
    """A glob of nothing but stars names nobody, nor does the name of what it is part of."""
    return any(glob.strip("*") and _matches_itself(slot, glob) for glob in wanted or ())


def matches(slot: Slot, glob: str) -> bool:
    """Whether a glob matches a parameter, its module, or one that this is part of, which stands for all in it."""
    return _matches_itself(slot, glob) or any(fnmatchcase(name, glob) for name in _around(slot.module_name))


def _matches_itself(slot: Slot, glob: str) -> bool:
    return fnmatchcase(slot.name, glob) or fnmatchcase(slot.module_name, glob)


def _around(name: str) -> Iterator[str]:
    """Names of the modules that a module is part of; the model itself has none."""
    while name := name.rpartition(".")[0]:
        yield name
