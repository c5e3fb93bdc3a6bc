"""nmflow.json: what the file beside exported tensors says, and its strict reading.

::

    {"format": "cutlass-24", "version": 1, "writer": "nmflow 0.1.0",
     "tensors": {"layer.weight": {"file": "model.safetensors", "dtype": "float16", "shape": [64, 96],
                                  "stored_shape": [64, 128], "pattern": "2:4",
                                  "arrays": {"packed": {"name": "layer.weight.packed", "sha256": "..."}, ...}}},
     "left_dense": {"layer.bias": "1-D"}}

`stored_shape` is `shape` unless the matrix was padded. A digest is that of the array's bytes in its file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from nmflow.errors import FormatError, SourceNotFoundError

__all__ = ["NAME", "SideFile", "StoredArray", "StoredTensor", "read_side_file"]

NAME = "nmflow.json"


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
class SideFile:
    """The whole side file."""

    format: str
    version: int
    writer: str
    tensors: Mapping[str, StoredTensor]
    left_dense: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_side_file(folder: str | os.PathLike[str]) -> SideFile:
    """Read and check the side file of an exported folder.

    Raises
    ------
    SourceNotFoundError
        If there is none.
    FormatError
        If it is not what it should be, or names a file outside the folder.
    """
    path = Path(folder) / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFoundError(f"{path} must exist beside exported tensors; export the checkpoint first") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be JSON in UTF-8 ({error}); export again") from error
    try:
        raw = json.loads(text)
        found = SideFile(
            _text(raw["format"]),
            _whole(raw["version"]),
            _text(raw["writer"]),
            {_text(name): _tensor(info) for name, info in raw["tensors"].items()},
            {_text(name): _text(reason) for name, reason in raw["left_dense"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} must describe exported tensors ({type(error).__name__}: {error}); export again"
        ) from error
    return found


def _tensor(info: Any) -> StoredTensor:
    file = _text(info["file"])
    # A name with a folder in it could lead out of the export; none is ever written.
    if PurePath(file).name != file or file in ("", ".."):
        raise ValueError(f"file must be a name, not {file!r}")
    pattern = info["pattern"]
    return StoredTensor(
        file,
        _text(info["dtype"]),
        tuple(_whole(length) for length in info["shape"]),
        tuple(_whole(length) for length in info["stored_shape"]),
        None if pattern is None else _text(pattern),
        {
            _text(key): StoredArray(_text(array["name"]), _text(array["sha256"]))
            for key, array in info["arrays"].items()
        },
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.40} is not a whole number")
    return value
