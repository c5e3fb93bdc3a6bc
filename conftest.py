"""What is not collected: kernels that are imported where Triton is, and nowhere else."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["nmflow/torch/device/kernels"]
