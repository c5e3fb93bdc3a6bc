"""JSON from a file that nobody vouches for: headers, indexes, side files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from nmflow.errors import CheckpointError

__all__ = ["load_json", "short"]


def load_json(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object strictly: UTF-8, no key twice, no NaN.

    Raises
    ------
    CheckpointError
        Naming `path` and `what`.
    """

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{path}: {what} must name each key once, not {short(key)} twice")
            found[key] = value
        return found

    def no_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=object_of, parse_constant=no_constant)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} must be JSON, not text that cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {what} must be a JSON object, not {type(value).__name__}")
    return value


def short(value: object) -> str:
    """A value for a message, cut so that a hostile header cannot flood a terminal."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
