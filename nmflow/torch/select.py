"""Which parameters of a model get a mask, how each is seen as a matrix, and why the others are left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from nmflow.asked import as_globs, check_flags, check_functions
from nmflow.errors import InputTypeError, InputValueError
from nmflow.pattern import Pattern
from nmflow.torch.overlap import overlap
from nmflow.torch.slots import Layer, Slot, identity, impossible, layout_of, too_small
from nmflow.torch.verdicts import ELIGIBLE, OUTSIDE, Filter, is_named, is_sized, matches, verdict

__all__ = ["Filter", "Layer", "Selection", "Slot", "select", "unwrapped"]


UNDER = "under a mask of a SparseTraining already; finish() or release() that first"
COMPUTED = "computed, not a parameter of the module"
SCRIPTED = "scripted or traced, so that its type cannot be told; prune the model before that"


@dataclass(frozen=True, slots=True)
class Selection:
    """Layers to prune, and (name, reason) of what is left alone."""

    layers: tuple[Layer, ...]
    skipped: tuple[tuple[str, str], ...]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel, DataParallel, torch.compile or Lightning's Fabric: users know its names."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", getattr(model, "_forward_module", None)), nn.Module):
            model = inner
        else:
            return model


def select(
    model: nn.Module,
    pattern: Pattern,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    filter_fn: Filter | None = None,
    strict: bool = False,
    trainable: bool = False,
) -> Selection:
    """Decide for each parameter of a model whether it gets a mask.

    What modules share gets one mask. Of parameters that have only some entries in common, or see them in another order,
    the first gets it.

    Parameters
    ----------
    model : Module
    pattern : Pattern
    include, exclude : iterable of str, optional
        Globs over names of parameters or modules (``*`` also matches dots); a module stands for all that is in it.
        With `include`, nothing else is taken; `exclude` wins over all else. An entry of `include` that is the plain
        name, without wildcards, of a parameter or its module also takes what would be left alone for its type or size,
        or as a router of experts; any glob of more than stars takes a depthwise convolution, adapter or output head.
    filter_fn : callable (module name, module) -> bool or None, optional
        True takes a module of any type, with all its parameters of two axes or more that `include` names; False leaves
        it; None lets the other rules decide.
    strict : bool
        Refuse a layer that is not made of whole blocks.
    trainable : bool
        Leave parameters alone that require no gradient.

    Raises
    ------
    InputValueError
        If no layer is eligible, a glob matches nothing, a plain name of `include` nothing that can be pruned, or a
        layer is ragged under `strict`.
    InputTypeError
        If globs are no list of text, the filter is no function or answers neither bool nor None, or `strict` is no
        bool.
    """
    check_flags(strict=strict)
    check_functions(filter_fn=filter_fn)
    wanted = None if include is None else as_globs(include, "include")
    unwanted = as_globs(() if exclude is None else exclude, "exclude")
    slots, skipped = _slots(model, filter_fn)
    _check_globs(model, wanted, unwanted)
    layers: list[Layer] = []
    left: list[tuple[Slot, str]] = []
    for shared in slots.values():
        verdicts = [verdict(slot, answer, wanted, unwanted) for slot, answer in shared]
        refused = next((hard for hard, _ in verdicts if hard), "")
        soft = [reason for _, reason in verdicts]
        # asked for under one of its names, it is asked for
        mild = next((reason for reason in soft if reason and reason != OUTSIDE), "") or (
            OUTSIDE if all(reason == OUTSIDE for reason in soft) else ""
        )
        named = any(is_named(slot, answer, wanted) for slot, answer in shared)
        places = tuple(slot for slot, _ in shared)
        reason = refused or ("" if named else mild)
        if not reason:
            layout, groups = layout_of(places[0])
            reason = impossible(places[0], layout, groups, pattern, strict, trainable)
            if not reason and not any(is_sized(slot, wanted) for slot in places):
                reason = too_small(places[0], layout, groups, pattern)
            layer = Layer(places, layout, groups)
            reason = reason or _overlapping(layer, layers)
            if not reason:
                layers.append(layer)
        if reason:
            skipped.append((places[0].name, reason))
            left += [(slot, "" if refused else reason) for slot in places]
    if not layers:
        seen = "; ".join(f"{name}: {reason}" for name, reason in skipped[:12]) or "no parameter of two axes or more"
        more = f"; and {len(skipped) - 12} more" if len(skipped) > 12 else ""
        raise InputValueError(f"model must have a layer that {pattern} can prune; seen: {seen}{more}")
    taken = [slot for layer in layers for slot in layer.slots]
    for name in wanted or ():
        if not any(fnmatchcase(name, glob) for glob in unwanted):
            _check_named(name, taken, left, skipped, pattern)
    return Selection(tuple(layers), tuple(skipped))


def _check_named(
    name: str, taken: Iterable[Slot], left: Iterable[tuple[Slot, str]], skipped: Iterable[tuple[str, str]],
    pattern: Pattern,
) -> None:  # fmt: skip
    """Raise InputValueError if a plain name names nothing that is taken: what is named is pruned, or nothing is.

    left : others, and why; without a reason where the caller left them out.
    """
    if any(char in name for char in "*?[") or any(matches(slot, name) for slot in taken):
        return
    reasons = [reason for plain, reason in skipped if plain in (name, f"{name}.weight")]
    reasons += [reason for slot, reason in left if matches(slot, name)]
    if reasons and not all(reasons):
        return
    reason = reasons[0] if reasons else "it has no parameter of two axes or more"
    raise InputValueError(f"include must name what {pattern} can prune, and {name!r} is not: {reason}")


def _overlapping(layer: Layer, taken: Iterable[Layer]) -> str:
    """Why a parameter would be masked twice; empty if it has its memory to itself."""
    rivals = (other.name for other in taken if overlap(layer.parameters[0], other.parameters[0]))
    return next((f"has entries in common with {name}, which gets a mask" for name in rivals), "")


Shared = dict[tuple[object, ...], list[tuple[Slot, bool | None]]]


def _slots(model: nn.Module, filter_fn: Filter | None) -> tuple[Shared, list[tuple[str, str]]]:
    """All parameters that could be asked for, those that are one in memory together; and modules without one."""
    found: Shared = {}
    skipped: list[tuple[str, str]] = []
    seen: set[int] = set()
    heads = _heads(model)
    for name, module in model.named_modules(remove_duplicate=False):
        answer = None if filter_fn is None else filter_fn(name, module)
        if answer is not None and not isinstance(answer, bool):
            raise InputTypeError(f"filter_fn must answer True, False or None, not {answer!r} for {name!r}")
        if isinstance(module, torch.jit.ScriptModule):
            wide = [own for own, parameter in module.named_parameters(recurse=False) if parameter.ndim > 1]
            skipped += [(f"{name}.{own}" if name else own, SCRIPTED) for own in wide]
            continue
        missing = _missing(module) if isinstance(module, ELIGIBLE) else ""
        if missing:
            if id(module) not in seen:
                skipped.append((f"{name}.weight" if name else "weight", missing))
            seen.add(id(module))
            if missing != COMPUTED:  # what a weight is computed from may be asked for
                continue
        if isinstance(module, parametrize.ParametrizationList) and any(map(_is_mask, module)):
            owner, _, attribute = name.rpartition("parametrizations.")
            plain = owner + attribute
            if (plain, UNDER) not in skipped:
                skipped.append((plain, UNDER))
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is None or not _wide(attribute, parameter):
                continue
            found.setdefault(identity(parameter), []).append((Slot(name, module, attribute, module in heads), answer))
    return found, skipped


def _heads(model: nn.Module) -> set[nn.Module]:
    """What models of transformers say gives a score to each word, whatever its name; RWKV's is a ``head``."""
    heads: set[nn.Module] = set()
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)
        with contextlib.suppress(AttributeError, NotImplementedError):  # of models that have none
            if callable(ask) and isinstance(head := ask(), nn.Module):
                heads.add(head)
    return heads


def _missing(module: nn.Module) -> str:
    """Why a Linear or convolution has no matrix to look at; empty if it has."""
    weight = module._parameters.get("weight")
    if weight is None:
        listed: Any = getattr(module, "parametrizations", {})
        if any(_is_mask(one) for some in listed.values() for one in some):
            return UNDER
        if "weight_orig" in module._parameters and "weight_mask" in module._buffers:  # spectral_norm has the former
            return "computed by torch.nn.utils.prune; call its remove(module, 'weight') first"
        return COMPUTED
    if not nn.parameter.is_lazy(weight) and weight.ndim < 2:
        return f"of shape {tuple(weight.shape)}, not a matrix; where a model is sharded, a rank holds a part of it"
    return ""


def _is_mask(module: nn.Module) -> bool:
    """Whether a parametrization is one of ours, which are known by name: they are made in a room above."""
    return f"{type(module).__module__}.{type(module).__name__}" == "nmflow.torch.masking.Masked"


def _wide(attribute: str, parameter: nn.Parameter) -> bool:
    """Whether it has two axes or more; before a model has run, names must tell."""
    return attribute == "weight" if nn.parameter.is_lazy(parameter) else parameter.ndim > 1


def _check_globs(model: nn.Module, wanted: tuple[str, ...] | None, unwanted: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    names += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for argument, globs in (("include", wanted or ()), ("exclude", unwanted)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise InputValueError(
                    f"{argument} must match the name of a parameter or module, not {glob!r}; names here look like "
                    f"{names[-1]!r}"
                )
