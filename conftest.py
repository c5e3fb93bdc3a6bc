"""What is not collected: kernels that are imported where Triton is, and is new enough, and nowhere else."""

import runpy
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

_KERNELS = "nmflow/torch/device/kernels"
_versions = runpy.run_path(str(Path(__file__).parent / "nmflow" / "torch" / "versions.py"))  # without loading torch
_usable = find_spec("triton") is not None and not _versions["is_older"](version("triton"), _versions["TRITON"])
collect_ignore = [] if _usable else [_KERNELS]
