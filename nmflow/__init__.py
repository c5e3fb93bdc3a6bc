"""Exact transposable N:M sparsity masks, each with a proof.

>>> import numpy as np, nmflow
>>> weights = np.random.default_rng(0).standard_normal((64, 64)).astype("float32")
>>> solution = nmflow.solve(weights, 2, 4)
>>> solution.proven
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nmflow.errors import NmflowError
from nmflow.pattern import Pattern

if TYPE_CHECKING:
    from nmflow import diversity, formats, network, solvers
    from nmflow.diversity import count_masks, divergence, mask_diversity
    from nmflow.pipeline import certify, solve
    from nmflow.solution import Certificate, Solution, Status

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "NmflowError",
    "Pattern",
    "Solution",
    "Status",
    "__version__",
    "certify",
    "count_masks",
    "divergence",
    "diversity",
    "formats",
    "mask_diversity",
    "network",
    "solve",
    "solvers",
]

_LAZY = {
    "Certificate": "nmflow.solution",
    "Solution": "nmflow.solution",
    "Status": "nmflow.solution",
    "certify": "nmflow.pipeline",
    "count_masks": "nmflow.diversity",
    "divergence": "nmflow.diversity",
    "mask_diversity": "nmflow.diversity",
    "solve": "nmflow.pipeline",
}
_MODULES = {"diversity", "formats", "network", "solvers"}


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Load a public name when it is first used, so that ``import nmflow`` loads nothing more."""
        if name in _LAZY:
            value = getattr(import_module(_LAZY[name]), name)
        elif name in _MODULES:
            value = import_module(f"nmflow.{name}")
        else:
            raise AttributeError(f"module 'nmflow' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
