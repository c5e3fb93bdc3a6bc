"""Settings from before any library is imported, and what is not collected: Triton's kernels where it is not usable."""

import os
import runpy
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # a worker has a core: libraries that share their work among all cores would mostly wait for one another there
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_KERNELS = "nmflow/torch/device/kernels"
_versions = runpy.run_path(str(Path(__file__).parent / "nmflow" / "torch" / "versions.py"))  # without loading torch
try:
    _usable = find_spec("triton") is not None and not _versions["is_older"](version("triton"), _versions["TRITON"])
except PackageNotFoundError:  # of another name, as those of torch's nightly builds
    _usable = False
collect_ignore = [] if _usable else [_KERNELS]
