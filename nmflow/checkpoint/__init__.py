"""Checkpoints on disk: safetensors pruned, and checked, tensor by tensor."""

from nmflow.checkpoint.header import Entry, Header, read_header
from nmflow.checkpoint.plan import EXCLUDED, WEIGHTS, Plan, PlannedTensor, make_plan
from nmflow.checkpoint.prune import Progress, prune_checkpoint
from nmflow.checkpoint.report import Report, TensorReport
from nmflow.checkpoint.source import Source, open_source
from nmflow.checkpoint.verify import Checked, Verification, Violation, verify_checkpoint

__all__ = [
    "EXCLUDED",
    "WEIGHTS",
    "Checked",
    "Entry",
    "Header",
    "Plan",
    "PlannedTensor",
    "Progress",
    "Report",
    "Source",
    "TensorReport",
    "Verification",
    "Violation",
    "make_plan",
    "open_source",
    "prune_checkpoint",
    "read_header",
    "verify_checkpoint",
]
