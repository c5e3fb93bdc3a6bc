"""How a pruned matrix is stored: one file a format, one table of them.

>>> from nmflow import formats
>>> formats.names()
('dense', 'nibble', 'cutlass-24')
>>> formats.get("cutlass-24").requirements["float16"]
Requirement(pattern='2:4', rows=64, cols=64)
"""

from __future__ import annotations

from nmflow.errors import UnknownFormatError
from nmflow.formats.base import Format
from nmflow.formats.cutlass_24 import Cutlass24
from nmflow.formats.dense import Dense
from nmflow.formats.layout import PART, Place, Requirement, Spec
from nmflow.formats.nibble import Nibble

__all__ = ["PART", "Format", "Place", "Requirement", "Spec", "get", "names"]

_TABLE: dict[str, Format] = {format_.name: format_ for format_ in (Dense(), Nibble(), Cutlass24())}


def names() -> tuple[str, ...]:
    """Names of all formats."""
    return tuple(_TABLE)


def get(name: str) -> Format:
    """Look a format up by its name.

    Raises
    ------
    UnknownFormatError
        If there is none of this name.
    """
    if isinstance(name, str) and name in _TABLE:
        return _TABLE[name]
    raise UnknownFormatError(f"format must be one of {', '.join(_TABLE)}, not {name!r}{_why_not(name)}")


def _why_not(name: object) -> str:
    if isinstance(name, str) and name == "sparse-24-bitmask":
        return "; current readers refuse that one or load it with random weights (see docs/formats.md)"
    return ""
