"""Checkpoints on disk: safetensors pruned, and checked, tensor by tensor."""

from nmflow.checkpoint.diff import Difference, TensorDifference, diff_checkpoints
from nmflow.checkpoint.engine import Executor, Progress
from nmflow.checkpoint.export import export_checkpoint
from nmflow.checkpoint.export_report import ExportedTensor, ExportReport
from nmflow.checkpoint.header import Entry, Header, read_header
from nmflow.checkpoint.inspection import Inspection, exported_format, inspect_path
from nmflow.checkpoint.packed import PackedVerification, verify_packed
from nmflow.checkpoint.plan import Plan, PlannedTensor, make_plan
from nmflow.checkpoint.prune import prune_checkpoint
from nmflow.checkpoint.report import Report, TensorReport
from nmflow.checkpoint.report_file import read_report
from nmflow.checkpoint.report_html import write_reports
from nmflow.checkpoint.rules import EXCLUDED, WEIGHTS
from nmflow.checkpoint.source import Source, open_source
from nmflow.checkpoint.unit import Done, Unit, work
from nmflow.checkpoint.verify import Checked, Verification, Violation, verify_checkpoint

__all__ = [
    "EXCLUDED",
    "WEIGHTS",
    "Checked",
    "Difference",
    "Done",
    "Entry",
    "Executor",
    "ExportReport",
    "ExportedTensor",
    "Header",
    "Inspection",
    "PackedVerification",
    "Plan",
    "PlannedTensor",
    "Progress",
    "Report",
    "Source",
    "TensorDifference",
    "TensorReport",
    "Unit",
    "Verification",
    "Violation",
    "diff_checkpoints",
    "export_checkpoint",
    "exported_format",
    "inspect_path",
    "make_plan",
    "open_source",
    "prune_checkpoint",
    "read_header",
    "read_report",
    "verify_checkpoint",
    "verify_packed",
    "work",
    "write_reports",
]
