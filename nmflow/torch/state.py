"""The state of a sparse training: what it saves, and what it refuses to load."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from nmflow.errors import InputTypeError, InputValueError, NmflowError
from nmflow.pattern import Pattern
from nmflow.torch.sharing import Found

__all__ = ["Refresh", "TrainingStateError", "check", "check_duals", "packed", "unpacked"]

KEYS = {"version", "pattern", "step", "frozen", "masks", "duals", "history"}
VERSION = 1


class TrainingStateError(NmflowError, RuntimeError):
    """Something asked of a sparse training that it can no longer do."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """How the masks changed at one refresh.

    Attributes
    ----------
    step : int
        Optimizer steps before it.
    seconds : float
        Wall time: moving weights, solving, moving masks.
    sad : int
        Sparse Architecture Divergence (Zhou et al. 2021): entries that differ between the old masks and the new.
    entries : int
        Entries of all masks.
    layers : mapping of str to int
        `sad` of each parameter.
    """

    step: int
    seconds: float
    sad: int
    entries: int
    layers: Mapping[str, int]

    @property
    def flip_rate(self) -> float:
        """Share of entries that changed."""
        return self.sad / self.entries


def packed(
    pattern: Pattern,
    step: int,
    frozen: bool,
    masks: Mapping[str, torch.Tensor],
    found: Iterable[Found],
    history: Iterable[Refresh],
) -> dict[str, Any]:
    """A state as plain values and tensors of the CPU; what was found is in the order of masks."""
    return {
        "version": VERSION,
        "pattern": str(pattern),
        "step": step,
        "frozen": frozen,
        "masks": {name: mask.detach().cpu().clone() for name, mask in masks.items()},
        "duals": {name: _packed_duals(one) for name, one in zip(masks, found, strict=True)},
        "history": [{**asdict(record), "layers": dict(record.layers)} for record in history],
    }


def _packed_duals(found: Found) -> list[list[torch.Tensor]]:
    """Duals as tensors, u and v of each matrix."""
    return [[torch.as_tensor(side, device="cpu").clone() for side in pair] for pair in found.duals]


def unpacked(state: Mapping[str, Any], names: Iterable[str]) -> tuple[list[Found], int, list[Refresh]]:
    """Masks with duals in the order of names, step, and history of a state that `check` has let pass.

    Raises
    ------
    InputValueError
        If they are not what `SparseTraining.state_dict` makes of them.
    """
    try:
        found = [_found(state["masks"][name], state["duals"][name]) for name in names]
        if (step := operator.index(state["step"])) < 0:
            raise ValueError(f"step is {step}")
        if not isinstance(state["frozen"], bool):
            raise ValueError(f"frozen is {state['frozen']!r}")
        return found, step, [_refresh(record) for record in state["history"]]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputValueError(
            f"state must hold duals, step and history as SparseTraining.state_dict() made them, and does not: {error}"
        ) from error


def _found(mask: torch.Tensor, duals: Sequence[Sequence[torch.Tensor]]) -> Found:
    return Found(mask.cpu().numpy().copy(), tuple((u.cpu().numpy().copy(), v.cpu().numpy().copy()) for u, v in duals))


def check_duals(name: str, found: Found, count: int, shape: tuple[int, int], pattern: Pattern) -> None:
    """Raise InputValueError unless there are no duals, or finite ones that fit `count` matrices of a shape."""
    (rows, cols), (height, width) = shape, pattern.block_shape
    tall, wide = -(-rows // height), -(-cols // width)
    fitting = [((tall * height, wide), (tall, wide * width))] * count if found.duals else []
    fit = [(u.shape, v.shape) for u, v in found.duals] == fitting
    if not fit or not all(side.dtype.kind == "f" and np.isfinite(side).all() for pair in found.duals for side in pair):
        raise InputValueError(
            f"state must hold the duals of {name!r} as SparseTraining.state_dict() made them, and they are damaged; "
            f"load another checkpoint"
        )


def _refresh(record: Mapping[str, Any]) -> Refresh:
    return Refresh(**{**record, "layers": dict(record["layers"])})


def check(state: Any, pattern: Pattern, masks: Mapping[str, torch.Tensor]) -> None:
    """Raise InputValueError unless a state belongs to this pattern and these parameters."""
    if not isinstance(state, Mapping):
        raise InputTypeError(f"state must be a mapping from SparseTraining.state_dict(), not {type(state).__name__}")
    if missing := KEYS - set(state):
        raise InputValueError(f"state must come from SparseTraining.state_dict(), and lacks {sorted(missing)}")
    if state["version"] != VERSION:
        raise InputValueError(
            f"state must be of version {VERSION}, not {state['version']}; use the nmflow that wrote it"
        )
    if state["pattern"] != str(pattern):
        raise InputValueError(
            f"state must be of pattern {pattern}, not {state['pattern']}; make the training with that pattern"
        )
    if other := (set(masks) ^ set(state["masks"])) | (set(masks) ^ set(state["duals"])):
        raise InputValueError(f"state must hold the parameters of this training; it differs in {sorted(other)}")
    for name, mask in masks.items():
        given = state["masks"][name]
        if not isinstance(given, torch.Tensor) or given.shape != mask.shape or given.dtype != torch.bool:
            what = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else repr(given)
            raise InputValueError(
                f"state must hold a boolean mask of shape {tuple(mask.shape)} for {name!r}, not {what}"
            )
