"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# a slow machine must not fail a test: benchmarks measure time, tests do not
settings.register_profile("nmflow", deadline=None)
settings.load_profile("nmflow")
