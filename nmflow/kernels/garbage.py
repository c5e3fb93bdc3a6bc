"""Looking for no garbage for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is looked for meanwhile; afterwards it is if it was before."""
    enabled = gc.isenabled()
    try:  # an interrupt can come at once
        gc.disable()
        yield
    finally:
        if enabled:
            gc.enable()
