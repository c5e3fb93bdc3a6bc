"""How old the libraries may be that this room builds on; loaded before any of them."""

from __future__ import annotations

import re

__all__ = ["TORCH", "TRANSFORMERS", "TRITON", "is_older"]

TORCH = "2.5"
"""Before it, models in sparse training could not be compiled."""
TRANSFORMERS = "4.56"
"""Before it, the dtype of a model was an option of another name."""
TRITON = "3.6"
"""That of torch 2.10. Those before stop at our kernels, some in a failed assertion of their compiler."""


def is_older(version: str, least: str) -> bool:
    """Whether a version, such as 2.13.0+cpu, is below another, of two numbers.

    Examples
    --------
    >>> is_older("2.9.1", "2.13"), is_older("2.13.0+cpu", "2.13")
    (True, False)
    """
    found, wanted = (tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, least))
    return found < wanted
