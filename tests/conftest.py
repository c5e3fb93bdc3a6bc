"""Settings of the whole suite."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import settings

# a slow machine must not fail a test: benchmarks measure time, tests do not
settings.register_profile("nmflow", deadline=None)
settings.load_profile("nmflow")


def pytest_collection_finish() -> None:
    """Thousands of tests and the libraries they import stay to the end: the garbage collector need not look at them."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries that count what is left at the end find it collected."""
    gc.unfreeze()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint in one file, with every kind of tensor."""
    from safetensors_files import write

    return write(tmp_path / "model.safetensors")
