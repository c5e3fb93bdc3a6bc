"""What a caller asked for beside arrays, checked: words, flags, numbers, threads, paths, globs, functions."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nmflow.cores import cores
from nmflow.errors import InputTypeError, InputValueError

__all__ = [
    "amount",
    "as_globs",
    "as_path",
    "check_choice",
    "check_flags",
    "check_functions",
    "thread_count",
    "whole",
]


def check_choice(value: object, choices: Sequence[str], name: str) -> None:
    """Raise InputValueError unless `value` is one of these words."""
    if not (isinstance(value, str) and value in choices):
        *others, last = (f'"{choice}"' for choice in choices)
        raise InputValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")


def check_flags(**flags: object) -> None:
    """Raise InputTypeError unless all are True or False: any text would be true, "no" too."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise InputTypeError(f"{name} must be True or False, not {value!r}")


def check_functions(**functions: object) -> None:
    """Raise InputTypeError unless all can be called, or are None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise InputTypeError(f"{name} must be a function, not {value!r}")


def whole(value: Any, name: str, least: int) -> int:
    """A whole number of at least `least`; an error says what it is called."""
    try:
        if isinstance(value, bool):  # a flag in the wrong place
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputTypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise InputValueError(f"{name} must be at least {least}, not {number}")
    return number


def amount(value: Any, name: str, *, finite: bool = True) -> float:
    """A number that is not negative, and finite unless it need not be; an error says what it is called."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except OverflowError:  # of a whole number
        number = math.inf
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor
        raise InputTypeError(f"{name} must be a number, not {value!r}") from None
    if not (number >= 0 and (number < math.inf or not finite)):
        raise InputValueError(f"{name} must be {'finite and ' if finite else ''}not negative, not {value!r}")
    return number


def thread_count(threads: int | None) -> int:
    """Threads to use: by default the cores that this process may use.

    Raises
    ------
    InputValueError
        If `threads` is not a whole number of at least 1; NumPy's are whole numbers too.
    """
    if threads is None:
        return cores()
    try:
        count = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = 0
    if count < 1:
        raise InputValueError(f"threads must be a whole number of at least 1, not {threads!r}")
    return count


def as_path(value: object, name: str) -> Path:
    """A path given as text or as an object that stands for one.

    Raises
    ------
    InputTypeError
        If it is neither, bytes for example.
    InputValueError
        If it is empty, which `pathlib.Path` would take for the current folder, or holds the character 0.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InputTypeError(f"{name} must be a path, as text or an object such as pathlib.Path, not {value!r}")
    if not text:
        raise InputValueError(f'{name} must have a path, not ""; "." is the current folder')
    if "\0" in text:
        raise InputValueError(f"{name} must be a path, which has no character 0, not {text!r}")
    return Path(text)


def as_globs(value: Iterable[str], name: str) -> tuple[str, ...]:
    """Globs that were given as a list.

    Raises
    ------
    InputTypeError
        If they are anything else: of a lone text, each letter would be one.
    """
    if isinstance(value, str):
        raise InputTypeError(f"{name} must be a list of globs, not the text {value!r}; write [{value!r}]")
    globs = tuple(value) if isinstance(value, Iterable) else (value,)
    for glob in globs:
        if not isinstance(glob, str):
            raise InputTypeError(f"{name} must be a list of globs, which are text, and has {glob!r}")
    return globs
