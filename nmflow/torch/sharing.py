"""One process's share of the solves, and everybody's results: layers are shared out over the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from nmflow.arrays import Array
from nmflow.errors import InputValueError

__all__ = ["Found", "Ranks"]


@dataclass(slots=True)
class Found:
    """The mask of one layer and the duals that prove it, one pair for each matrix (none if not asked for).

    Arrays; or tensors, where the mask was found on a device.
    """

    mask: Any
    duals: tuple[tuple[Any, Any], ...] = ()

    def as_arrays(self) -> Found:
        """The same on the CPU."""

        def array(side: Any) -> Array:
            return side.cpu().numpy() if isinstance(side, torch.Tensor) else side

        return Found(array(self.mask), tuple((array(u), array(v)) for u, v in self.duals))


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train one model.

    Attributes
    ----------
    rank, count : int
    group : ProcessGroup or None
        None where there is one process.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def current(cls, group: Any = None) -> Ranks:
        """The processes of `group`, or of the default group where there is one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        group = group if group is not None else distributed.group.WORLD
        count = distributed.get_world_size(group)
        return cls(distributed.get_rank(group), count, group) if count > 1 else cls()

    def owners(self, sizes: Sequence[int]) -> list[int]:
        """Share out work: the largest first, each to the rank with least so far. The same on all ranks."""
        load, owner = [0] * self.count, [0] * len(sizes)
        for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
            owner[number] = min(range(self.count), key=lambda rank: (load[rank], rank))
            load[owner[number]] += sizes[number]
        return owner

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do something on every rank. Whatever goes wrong on one is raised there, and an error on all, so none waits.

        Raises
        ------
        InputValueError
            If another rank failed.
        """
        try:
            yield
        except Exception as error:
            self._told(f"{type(error).__name__}: {error}")
            raise
        for rank, failure in enumerate(self._told("")):
            if failure:
                raise InputValueError(f"masks must be found on every rank, and rank {rank} could not: {failure}")

    def agree(self, values: Mapping[str, Any]) -> None:
        """Raise InputValueError on every rank unless all give the same values."""
        given = self._told(dict(values))
        for rank, others in enumerate(given):
            if apart := [name for name, value in given[0].items() if others[name] != value]:
                raise InputValueError(
                    f"{', '.join(apart)} must be the same on every rank, and rank {rank} differs from rank 0; make the "
                    f"training alike on each, and load its state on each"
                )

    def _told(self, value: Any) -> list[Any]:
        """What each rank says, told to all."""
        values = [value] * self.count
        if self.group is not None:
            with _waiting():
                distributed.all_gather_object(values, value, group=self.group)
        return values

    def send(self, tensor: torch.Tensor, owner: int) -> None:
        """Broadcast a tensor of any strides from its owner, in place."""
        if self.group is None:
            return
        sent = tensor.contiguous()
        with _waiting():
            distributed.broadcast(sent, distributed.get_global_rank(self.group, owner), group=self.group)
        if sent is not tensor:
            tensor.copy_(sent)

    def exchange(
        self, found: dict[int, Found], owners: Sequence[int], templates: Sequence[torch.Tensor]
    ) -> list[Found]:
        """Give every rank the results of all.

        Parameters
        ----------
        found : dict
            What this rank has found, by layer number.
        owners : sequence of int
            The rank that has found it, for each layer.
        templates : sequence of Tensor
            For each layer a tensor of the mask's shape, on the device that the backend sends from.
        """
        if self.group is None:
            return [found[number] for number in range(len(owners))]
        mine = {n: [(side.shape, side.dtype.str) for pair in one.duals for side in pair] for n, one in found.items()}
        forms = self._told(mine)
        out = []
        for number, (owner, template) in enumerate(zip(owners, templates, strict=True)):
            one = found.get(number) or Found(np.empty(tuple(template.shape), np.bool_))
            duals = [array for pair in one.duals for array in pair] or [
                np.empty(shape, dtype) for shape, dtype in forms[owner][number]
            ]
            mask = self._sent(np.ascontiguousarray(one.mask).view(np.uint8), owner, template.device).view(np.bool_)
            sent = [self._sent(array, owner, template.device) for array in duals]
            out.append(Found(mask, tuple(zip(sent[::2], sent[1::2], strict=True))))
        return out

    def _sent(self, array: Array, owner: int, device: torch.device) -> Array:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        self.send(tensor, owner)
        return tensor.cpu().numpy()


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    """Say what may have kept the other ranks away, in a note to torch's error."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            "nmflow waited for the other ranks: each must take the same number of optimizer steps, without join(), and "
            "make, load, refresh and freeze its training as the others do; look for the first error of each"
        )
        raise
