"""nmflow.json: what the file beside exported tensors says, and its strict reading.

::

    {"format": "cutlass-24", "version": 1, "writer": "nmflow 0.1.0",
     "tensors": {"layer.weight": {"file": "model.safetensors", "dtype": "float16", "shape": [64, 96],
                                  "stored_shape": [64, 128], "pattern": "2:4",
                                  "arrays": {"packed": {"name": "layer.weight.packed", "sha256": "..."}, ...}}},
     "left_dense": {"layer.bias": "1-D"},
     "files": {"model.safetensors": {"header": "...", "dense": {"layer.bias": "..."}}},
     "others": ["config.json"],
     "index": {},
     "sha256": "..."}

`stored_shape` is `shape` unless the matrix was padded. Digests are SHA-256 in hex: that of an array or tensor is of its
bytes; that of a header of all that precedes the data, so of names, dtypes, shapes and places; that of an index, by its
name, of all of it; the last is of everything else that this file says. `others` are files that were copied, and an
index. A file with neither `files` nor `sha256`, or without `others`, was written by an earlier nmflow.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from nmflow.asked import as_path
from nmflow.errors import FormatError, SourceNotFoundError

__all__ = ["MAX_AXES", "NAME", "SideFile", "StoredArray", "StoredFile", "StoredTensor", "read_side_file"]

NAME = "nmflow.json"

MAX_BYTES = 1 << 28
"""Longest that is read: hundreds of thousands of tensors."""

MAX_AXES = 64
"""Most axes of a tensor: NumPy's limit, and a bound on the work that a hostile shape can cause."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """Name of an array in its safetensors file, and the SHA-256 of its bytes in hex."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """How one tensor of the checkpoint is stored; fields as in the module's text."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    pattern: str | None
    arrays: Mapping[str, StoredArray]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """SHA-256 of the header of a safetensors file, and of each tensor in it that is left dense, in hex."""

    header: str
    dense: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SideFile:
    """The whole side file but its own digest; `files` is empty, and `others` None, if an earlier nmflow wrote it."""

    format: str
    version: int
    writer: str
    tensors: Mapping[str, StoredTensor]
    left_dense: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    others: tuple[str, ...] | None = None
    index: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> frozenset[str]:
        """The safetensors files that it speaks of."""
        return frozenset(self.files) | {tensor.file for tensor in self.tensors.values()}

    def shards(self, folder: Path) -> list[str]:
        """The files that hold what was exported; others beside them were copied, as another variant of the model."""
        if self.files:
            return sorted(self.named)
        # An earlier nmflow did not name those that are left dense as a whole.
        return sorted(self.named | {file.name for file in folder.glob("*.safetensors")})

    def to_json(self) -> str:
        """Text of the file."""
        record = asdict(self)
        return json.dumps({**record, "sha256": _digest(record)}, indent=1) + "\n"


def read_side_file(folder: str | os.PathLike[str]) -> SideFile:
    """Read and check the side file of an exported folder.

    Raises
    ------
    SourceNotFoundError
        If there is none.
    FormatError
        If it is no file, is not what it should be, has not the digest that it holds, names no tensor, or a file outside
        the folder.
    """
    path = as_path(folder, "path") / NAME
    try:
        info = path.stat()  # a pipe would be waited for
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_BYTES:
            raise FormatError(f"{path} must be a file of at most {MAX_BYTES:,} bytes; export again")
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFoundError(f"{path} must exist beside exported tensors; export the checkpoint first") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be JSON in UTF-8 ({error}); export again") from error
    try:
        raw = json.loads(text)
        # Both are there, or neither: that of a file from before, not of one in which a name was changed.
        digest = raw.pop("sha256") if "sha256" in raw or "files" in raw else None
        sound = digest is None or digest == _digest(raw)
        found = SideFile(
            _text(raw["format"]),
            _whole(raw["version"]),
            _text(raw["writer"]),
            {_text(name): _tensor(info) for name, info in raw["tensors"].items()},
            {_text(name): _text(reason) for name, reason in raw["left_dense"].items()},
            {_file(name): _stored_file(info) for name, info in raw.get("files", {}).items()},
            None if raw.get("others") is None else tuple(_text(name) for name in raw["others"]),
            {_file(name): _text(digest) for name, digest in raw.get("index", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} must describe exported tensors ({type(error).__name__}: {error}); export again"
        ) from error
    if not sound:
        raise FormatError(
            f"{path} must have the digest that it holds, and it was changed; copy it again, or export again"
        )
    if not found.tensors:
        raise FormatError(f"{path} must name a tensor that is stored by format, and it names none; export again")
    return found


def _digest(record: Mapping[str, Any]) -> str:
    """Digest of what a side file says, however it is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _tensor(info: Any) -> StoredTensor:
    pattern = info["pattern"]
    return StoredTensor(
        _file(info["file"]),
        _text(info["dtype"]),
        _shape(info["shape"]),
        _shape(info["stored_shape"]),
        None if pattern is None else _text(pattern),
        {
            _text(key): StoredArray(_text(array["name"]), _text(array["sha256"]))
            for key, array in info["arrays"].items()
        },
    )


def _stored_file(info: Any) -> StoredFile:
    return StoredFile(_text(info["header"]), {_text(name): _text(digest) for name, digest in info["dense"].items()})


def _file(name: Any) -> str:
    # A name with a folder in it could lead out of the export; none is ever written.
    if PurePath(_text(name)).name != name or name in ("", ".."):
        raise ValueError(f"file must be a name, not {name!r}")
    return str(name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_AXES:  # of millions the product takes for ever
        raise ValueError(f"{value!r:.40} is not a list of at most {MAX_AXES} lengths")
    return tuple(map(_whole, value))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.40} is not a whole number")
    return value
