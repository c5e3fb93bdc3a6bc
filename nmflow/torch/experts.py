"""Experts of a mixture that transformers keeps in one parameter for all: each apart, as Linears that hooks can see."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from nmflow.asked import as_globs
from nmflow.errors import InputValueError
from nmflow.torch.select import Layer, unwrapped
from nmflow.torch.slots import is_fused, is_fused_turned, is_sorted

__all__ = ["experts_apart", "may_be_idle", "tokens_of"]


class ExpertLinear(nn.Linear):
    """One matrix of one expert: a Linear that shares the memory of a parameter of all, and may see no token at all."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, kept_turned: bool) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.kept_turned = kept_turned
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.register_parameter("bias", nn.Parameter(bias, requires_grad=False))


class _Expert(nn.Module):
    """One expert; `rule` is what it came from, without parameters: it knows the activation."""

    def __init__(self, fused: nn.Module, rule: Any, number: int, joined: bool) -> None:
        super().__init__()
        self._rule = [rule]  # in a list: no module of the model
        up = "gate_up_proj" if rule.has_gate else "up_proj"
        turned = rule.is_transposed
        weight, bias = _matrix(fused, up, number, turned)
        whole, half = slice(None), len(weight) // 2
        parts = {up: whole} if joined else {"gate_proj": slice(half), "up_proj": slice(half, None)}
        for name, rows in parts.items():
            part = None if bias is None else bias[rows]
            self.add_module(name, ExpertLinear(weight[rows], part, kept_turned=turned))
        self._ups = tuple(parts)
        self.down_proj = ExpertLinear(*_matrix(fused, "down_proj", number, turned), kept_turned=turned)

    def forward(self, value: torch.Tensor, tokens: tuple[torch.Tensor, int]) -> torch.Tensor:
        """What this expert makes of some tokens."""
        (rule,) = self._rule
        value = _marked(value, tokens)
        parts = [self._modules[name](value) for name in self._ups]  # type: ignore[misc]
        both = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        inner = rule._apply_gate(both) if rule.has_gate else rule.act_fn(both)
        found = self.down_proj(_marked(inner, tokens))
        return rule.post_expert_norm(found) if getattr(rule, "has_post_expert_norm", False) else found  # type: ignore[no-any-return]


class _Apart(nn.Module):
    """All experts of a layer, called as transformers calls what it takes the place of."""

    def __init__(self, fused: nn.Module, joined: bool) -> None:
        super().__init__()
        rule: Any = copy.copy(fused)
        rule.__dict__ = {**fused.__dict__, "_parameters": {}}
        rule.has_gate = getattr(fused, "has_gate", True)
        rule.is_transposed = is_fused_turned(fused)
        if is_sorted(fused):
            rule._apply_gate = lambda both: both.chunk(2, -1)[1] * rule.act_fn(both.chunk(2, -1)[0])
        for number in range(len(fused.get_parameter("down_proj"))):
            self.add_module(str(number), _Expert(fused, rule, number, joined))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of what the chosen experts make of each token."""
        found = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.children()):
            tokens, place = torch.where(top_k_index == number)
            if len(tokens):
                part = expert(hidden_states[tokens], (tokens, len(hidden_states)))
                found.index_add_(0, tokens, (part * top_k_weights[tokens, place, None]).to(found.dtype))
        return found


class _Sorted(_Apart):
    """The same for Llama 4, which multiplies tokens by what the router gives them before, not after."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """What each expert makes of each token, one expert after the other, as they came in."""
        sorted_ = hidden_states.view(len(self._modules), -1, hidden_states.shape[-1])
        found = torch.zeros_like(sorted_)
        for rows, out, expert in zip(sorted_, found, self.children(), strict=True):
            tokens = rows.any(-1).nonzero()[:, 0]  # of zeros it makes zeros
            if len(tokens):
                out[tokens] = expert(rows[tokens], (tokens, len(rows)))
        return found.view_as(hidden_states)


@contextlib.contextmanager
def experts_apart(model: nn.Module, *, joined: Iterable[str] = ()) -> Iterator[list[str]]:
    """Show the experts of a mixture as Linears while a block of code runs, so that they can be calibrated and pruned.

    transformers keeps what all experts of a layer are multiplied by in one parameter, which no method that looks at
    inputs could take apart. Here each is a submodule: ``...experts.7.gate_proj``, ``.up_proj`` and ``.down_proj``. They
    share the memory of that parameter, so what is done to them is done to it. An expert that no token comes to is
    pruned by magnitude.

    Parameters
    ----------
    model : Module
    joined : iterable of str
        Globs over names of parameters, such as ``*.gate_up_proj``: gate and projection of these are one Linear,
        ``gate_up_proj``, as they always are where their rows alternate. Blocks differ only if a gate's rows are no
        whole blocks.

    Yields
    ------
    list of str
        Names of the modules that were taken apart.

    Raises
    ------
    InputTypeError
        If the model is no Module, or `joined` no list of text.
    InputValueError
        If the model is itself a mixture, or experts have an adapter.

    Notes
    -----
    Within the block the model computes the same, one expert after the other, without gradients for experts. Afterwards
    it is as it was, with the new weights in its own parameters. Those kept as (experts, in, out) are seen as (out, in):
    give them patterns that are the same along rows and columns.
    """
    inner = unwrapped(model)
    globs = as_globs(joined, "joined")
    found = [(name, module) for name, module in inner.named_modules() if is_fused(module)]
    if is_fused(inner):
        raise InputValueError("model must hold the mixture of experts, and is one; give what calls it")
    places: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for name, module in found:
            parent, _, own = name.rpartition(".")
            holder = inner.get_submodule(parent)
            if hasattr(holder, "parameter_name"):  # PEFT's way of adapting parameters
                raise InputValueError(
                    f"model must hold its experts as they are, and {name} are in a {type(holder).__name__}; "
                    f"merge or remove the adapter of their parameters first"
                )
            rows = f"{name}.gate_up_proj"
            apart = getattr(module, "has_gate", True) and getattr(module, "is_concatenated", True)
            together = not apart or any(fnmatchcase(rows, glob) for glob in globs)
            holder._modules[own] = (_Sorted if is_sorted(module) else _Apart)(module, together)
            places.append((holder, own, module))
        yield [name for name, _ in found]
    finally:
        for holder, own, module in places:
            holder._modules[own] = module


def _matrix(fused: nn.Module, name: str, number: int, turned: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight of one expert as (out, in), and its bias; both share memory with the parameters."""
    weight = fused.get_parameter(name).detach()[number]
    bias = fused._parameters.get(f"{name}_bias")
    return (weight.mT if turned else weight), None if bias is None else bias.detach()[number]


def _marked(value: torch.Tensor, tokens: tuple[torch.Tensor, int]) -> torch.Tensor:
    """Note on a tensor which tokens its rows are, and of how many."""
    value.tokens = tokens  # type: ignore[attr-defined]
    return value


def tokens_of(value: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """Which tokens the rows of an expert's input are, and of how many; None for any other tensor."""
    return getattr(value, "tokens", None)


def may_be_idle(layer: Layer) -> bool:
    """Whether it is of an expert that was taken apart: no token need ever come to it."""
    return all(isinstance(slot.module, ExpertLinear) for slot in layer.slots)
