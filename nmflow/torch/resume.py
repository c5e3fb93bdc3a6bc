"""Layers that are finished, kept in a folder, so that a run that was broken off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nmflow.errors import InputValueError
from nmflow.torch.convert import to_array

__all__ = ["Saved", "Store"]


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished layer: new weight, new bias or None, and its report as plain values."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    report: Mapping[str, Any]


class Store:
    """A folder with a file for each finished layer; without a folder it keeps nothing.

    A file is used again only where options, batches and the layer's weights are the same, byte for byte.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self._key, self._batches = folder, key, ""

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> Store:
        """Make the folder.

        Raises
        ------
        InputValueError
            If it is a file, or cannot be made.
        """
        path = None if folder is None else Path(folder)
        if path is not None:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputValueError(f"resume must be a folder that can be written, not {path}: {error}") from None
        return cls(path, json.dumps(key, sort_keys=True, default=str))

    def __bool__(self) -> bool:
        return self.folder is not None

    def sign(self, batches: Iterable[Any]) -> None:
        """Take the batches into what must be the same."""
        if self.folder is None:
            return
        digest = hashlib.sha256()
        for batch in batches:
            _digest(batch, digest)
        self._batches = digest.hexdigest()

    def load(self, name: str, state: tuple[torch.Tensor, ...]) -> Saved | None:
        """A finished layer, or None; a file that was broken off is none."""
        if self.folder is None or not self._place(name, state).exists():
            return None
        try:
            found = torch.load(self._place(name, state), weights_only=True)
            return Saved(found["weight"], found["bias"], json.loads(found["report"]))
        except (OSError, RuntimeError, KeyError, ValueError, EOFError):
            return None

    def save(self, name: str, state: tuple[torch.Tensor, ...], saved: Saved) -> None:
        """Write a finished layer; it appears whole or not at all."""
        if self.folder is None:
            return
        place = self._place(name, state)
        values = {"weight": saved.weight, "bias": saved.bias, "report": json.dumps(dict(saved.report))}
        new = place.with_suffix(".new")
        torch.save(values, new)
        os.replace(new, place)

    def clear(self) -> None:
        """Remove what is kept, as the run is complete."""
        if self.folder is None:
            return
        for path in self.folder.glob("*.layer"):
            path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _place(self, name: str, state: tuple[torch.Tensor, ...]) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(f"{self._key}\n{self._batches}\n{name}".encode())
        for tensor in state:
            _digest(tensor, digest)
        return self.folder / f"{digest.hexdigest()[:32]}.layer"


def _digest(value: Any, digest: Any) -> None:
    """Take a value into a digest: tensors by their bytes, containers by what they hold."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        array = to_array(value.contiguous())
        digest.update(array.reshape(-1).view("u1"))
    elif isinstance(value, Mapping):
        for key in value:
            digest.update(str(key).encode())
            _digest(value[key], digest)
    elif isinstance(value, tuple | list):
        for each in value:
            _digest(each, digest)
    else:
        digest.update(repr(value).encode())
