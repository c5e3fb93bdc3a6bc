"""Hooks around the steps of an optimizer: once for each, also where a class calls the step of its base."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from nmflow.errors import InputTypeError

__all__ = ["Steps", "inner_optimizer"]

TORCH = Optimizer.register_step_pre_hook.__code__.co_filename
"""The file from which torch calls hooks."""
Before = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], Any]


class Steps:
    """What is called before and after each step of an optimizer, until `remove`.

    torch calls the hooks of an optimizer around every `step` in its class and in the bases of that of which an
    optimizer was made before: around a step within a step, too. That is told by the stack.
    Nothing is called around a step that only makes the optimizer's state.

    Parameters
    ----------
    optimizer : Optimizer
    before : function (optimizer, args, kwargs) -> (args, kwargs) or None
    after : function (optimizer) -> None
    """

    def __init__(self, optimizer: Optimizer, before: Before, after: Callable[[Optimizer], None]) -> None:
        aside: Any = torch.compiler.disable  # else Dynamo, compiling the optimizer's step, would trace into the solver
        idle = False

        def begins(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal idle
            if _is_within_another(optimizer):
                return None
            idle = all(given is None for given in (*args[1:], *kwargs.values())) and _moves_nothing(optimizer)
            return None if idle else before(optimizer, args, kwargs)

        def ended(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not (idle or _is_within_another(optimizer)):
                after(optimizer)

        self._hooks = [
            optimizer.register_step_pre_hook(aside(begins)),
            optimizer.register_step_post_hook(aside(ended)),
        ]

    def remove(self) -> None:
        """Call nothing any more."""
        for hook in self._hooks:
            hook.remove()


def _is_within_another(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks run now was called by a step of the same optimizer."""
    frame, found = sys._getframe(1), 0
    while frame is not None:
        if frame.f_code.co_filename == TORCH and frame.f_locals.get("self") is optimizer:
            found += 1
        frame = frame.f_back  # type: ignore[assignment]
    return found > 1


def _moves_nothing(optimizer: Optimizer) -> bool:
    """Whether rates and gradients are zero and no state is there: torch.distributed.checkpoint has one made like that.

    A warm-up from a rate of zero has gradients, and its first step counts.
    """
    groups = optimizer.param_groups
    if optimizer.state or any(group.get("lr", 1.0) != 0 for group in groups):
        return False
    grads = [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]
    return not any(grad.layout != torch.strided or bool(grad.any()) for grad in grads)


def inner_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer itself, inside a wrapper such as accelerate's.

    Raises
    ------
    InputTypeError
        If it is none, or one that has no hooks as its class leaves out ``Optimizer.__init__``.
    """
    inner = getattr(optimizer, "optimizer", None)
    found = inner if isinstance(inner, Optimizer) else optimizer
    if not isinstance(found, Optimizer):
        raise InputTypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if not hasattr(found, "_optimizer_step_pre_hooks"):
        held = [name for name, value in vars(found).items() if isinstance(value, Optimizer)]
        instead = f"give the one in it, .{held[0]}" if held else "give the one that updates the weights"
        raise InputTypeError(
            f"optimizer must have hooks, and this {type(found).__name__} has none, since its class does not call "
            f"Optimizer.__init__; {instead}"
        )
    return found
