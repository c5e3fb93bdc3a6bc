"""Layers that are finished, kept in a folder, so that a run that was broken off goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nmflow.asked import as_path
from nmflow.errors import InputValueError

__all__ = ["Saved", "Store", "keeping", "layers_in", "remove_layers"]

DIGEST = 32
"""Bytes of the SHA-256 that a file begins with."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished layer: new weight, new bias or None, and its report as plain values."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    report: Mapping[str, Any]


_kept: ContextVar[list[Store] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Keep what runs have finished until this block of code has done something with it, without an error."""
    stores: list[Store] = []
    token = _kept.set(stores)
    try:
        yield
    finally:
        _kept.reset(token)
    for store in stores:
        store.clear()


def layers_in(folder: Path) -> list[Path]:
    """Files of finished layers."""
    return sorted(folder.glob("*.layer"))


def remove_layers(folder: Path) -> None:
    """Remove them, and what a run left that was killed as it wrote one."""
    for path in (*layers_in(folder), *folder.glob("*.new")):
        path.unlink(missing_ok=True)


class Store:
    """A folder with a file for each finished layer; without a folder it keeps nothing.

    A file is used again only where options and all that was signed are the same, byte for byte: batches, model, scores.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self._signature = folder, hashlib.sha256(key.encode())

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> Store:
        """Make the folder.

        Raises
        ------
        InputValueError
            If it is a file, or cannot be made.
        """
        path = None if folder is None else as_path(folder, "resume")
        if path is not None:
            try:
                path.mkdir(0o700, parents=True, exist_ok=True)  # weights lie there
            except OSError as error:
                raise InputValueError(f"resume must be a folder that can be written, not {path}: {error}") from None
        return cls(path, json.dumps(key, sort_keys=True, default=str))

    def __bool__(self) -> bool:
        return self.folder is not None

    def sign(self, values: Iterable[Any]) -> None:
        """Take values into what must be the same, before the first layer is looked for."""
        if self.folder is not None:
            for value in values:
                _digest(value, self._signature)

    def load(self, name: str) -> Saved | None:
        """A finished layer, or None; a file that was broken off or changed is none."""
        if self.folder is None or not (place := self._place(name)).exists():
            return None
        try:
            raw = place.read_bytes()
            if hashlib.sha256(raw[DIGEST:]).digest() != raw[:DIGEST]:
                return None
            found = torch.load(io.BytesIO(raw[DIGEST:]), weights_only=True)
            return Saved(found["weight"], found["bias"], json.loads(found["report"]))
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError):
            return None

    def save(self, name: str, saved: Saved) -> None:
        """Write a finished layer; it appears whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written, as on a full disk; it names the file and notes the layer.
        """
        if self.folder is None:
            return
        from nmflow.checkpoint.disk import named
        from nmflow.checkpoint.publish import sync_folder

        place, stored = self._place(name), io.BytesIO()
        torch.save({"weight": saved.weight, "bias": saved.bias, "report": json.dumps(dict(saved.report))}, stored)
        new = place.with_suffix(".new")
        try:
            # not by torch, whose own error hides that of a full disk
            with named(new), new.open("wb") as file:
                file.write(hashlib.sha256(stored.getbuffer()).digest())
                file.write(stored.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, place)
            sync_folder(self.folder)
        except BaseException as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.add_note(f"layer {name!r} could not be kept")
            raise

    def clear(self) -> None:
        """Remove what is kept, as the run is complete; within `keeping`, at its end."""
        kept = _kept.get()
        if kept is not None:
            kept.append(self)
            return
        if self.folder is None or not self.folder.is_dir():
            return
        remove_layers(self.folder)
        with contextlib.suppress(OSError):  # other files are the user's
            self.folder.rmdir()

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        digest = self._signature.copy()
        digest.update(f"\n{name}".encode())
        return self.folder / f"{digest.hexdigest()[:32]}.layer"


def _digest(value: Any, digest: Any) -> None:
    """Take a value into a digest, with its type and size: tensors by their bytes, containers by what they hold.

    Raises
    ------
    InputValueError
        If it is a thing whose bytes cannot be told.
    """
    size = len(value) if isinstance(value, Mapping | tuple | list | str) else ""
    digest.update(f"{type(value).__qualname__} {size}:".encode())
    if isinstance(value, torch.Tensor):
        plain = type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta
        if plain and not value.is_quantized:
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().resolve_conj().resolve_neg().reshape(-1).contiguous()
            digest.update(flat.view(torch.uint8).numpy())
        else:  # sparse, quantised, or without data: a model may hold any
            stored = io.BytesIO()
            torch.save(value, stored)
            digest.update(stored.getbuffer())
    elif isinstance(value, Mapping):
        for key in value:
            _digest(key, digest)
            _digest(value[key], digest)
    elif isinstance(value, tuple | list):
        for each in value:
            _digest(each, digest)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif value is None or isinstance(value, str | int | float | complex):
        digest.update(f"{value!r};".encode())
    else:
        try:
            digest.update(pickle.dumps(value))
        except Exception as error:
            raise InputValueError(
                f"batches must be tensors, arrays, or what can be pickled, to be known again with resume, "
                f"and a {type(value).__name__} is not: {error}"
            ) from error
