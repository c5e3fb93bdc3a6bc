"""What pruning a checkpoint did, tensor by tensor: frozen values, no algorithms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nmflow.formats.side_file import NAME

__all__ = ["RECORDS", "REPORT", "REPORTS", "Report", "TensorReport", "percent", "total"]

REPORT = "nmflow-report.json"
"""Name of the file in a folder that holds the report."""

REPORTS = (REPORT, "nmflow-report.html", "nmflow-report.md")
"""Names of all files in a folder that speak of what was done to it."""

RECORDS = (*REPORTS, NAME)
"""Those, and what export says of a folder's data: none of them fits once the data is another."""


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What was done to one weight.

    Attributes
    ----------
    name, shard, dtype : str
    shape : tuple of int
    layout : str or None
    dense, kept, rows_only : float
        Sum of magnitudes of all entries, of those kept, and of those that the best rows-only mask would keep.
    gap : float or None
        What the best mask could keep more, at most; 0.0 where proven, None if that was not asked for.
    n_blocks, n_proven : int
    seconds : float
        Time of reading, solving and writing its pieces, one after the other; threads do several at a time.
    """

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    layout: str | None
    dense: float
    kept: float
    rows_only: float
    gap: float | None
    n_blocks: int
    n_proven: int
    seconds: float

    @property
    def matrices(self) -> tuple[int, int, int]:
        """How many matrices it is seen as, and the rows and columns of each."""
        if self.layout == "batch":
            return math.prod(self.shape[:-2]), self.shape[-2], self.shape[-1]
        return 1, self.shape[0], math.prod(self.shape[1:])

    @property
    def kept_percent(self) -> float:
        """Kept score in percent of the dense one."""
        return percent(self.kept, self.dense)

    @property
    def gap_percent(self) -> float | None:
        """The gap in percent of the kept score."""
        return None if self.gap is None else percent(self.gap, self.kept, 0.0)

    @property
    def loss_percent(self) -> float:
        """What columns cost: score lost against the best rows-only mask, in percent of that mask's score."""
        return 100.0 - percent(self.kept, self.rows_only)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TensorReport:
        """Read what `to_dict` or a journal wrote; null is infinity again, but for the gap."""
        known = {name: values[name] for name in cls.__slots__}
        for name in ("dense", "kept", "rows_only"):
            known[name] = math.inf if known[name] is None else known[name]
        return cls(**{**known, "shape": tuple(known["shape"])})

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON, which has no infinity: a sum beyond float64 is null there."""
        values = {**asdict(self), "kept_percent": self.kept_percent, "loss_percent": self.loss_percent}
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What pruning a checkpoint did.

    Attributes
    ----------
    source, destination, pattern, solver : str
    tensors : tuple of TensorReport
    skipped : tuple of (str, str)
        Name of each tensor that was copied as it is, and why.
    copied_files : tuple of str
        Other files of the folder.
    unpruned_files : tuple of str
        Those among them that look like weights too: a loader that prefers one of them gets weights as they were.
    seconds : float
        Wall time of the whole.
    """

    source: str
    destination: str
    pattern: str
    solver: str
    tensors: tuple[TensorReport, ...]
    skipped: tuple[tuple[str, str], ...]
    copied_files: tuple[str, ...]
    unpruned_files: tuple[str, ...]
    seconds: float

    @property
    def total(self) -> TensorReport:
        """All weights as if they were one."""
        gaps = [tensor.gap for tensor in self.tensors]
        return TensorReport(
            "total",
            "",
            "",
            (sum(math.prod(tensor.shape) for tensor in self.tensors),),
            None,
            total(tensor.dense for tensor in self.tensors),
            total(tensor.kept for tensor in self.tensors),
            total(tensor.rows_only for tensor in self.tensors),
            None if None in gaps else total(gap for gap in gaps if gap is not None),
            sum(tensor.n_blocks for tensor in self.tensors),
            sum(tensor.n_proven for tensor in self.tensors),
            self.seconds,
        )

    @property
    def proven(self) -> bool:
        """Whether every block of every weight is proven to be the best, and there is one."""
        return bool(self.tensors) and all(tensor.n_proven == tensor.n_blocks for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        total = self.total.to_dict()
        return {
            "source": self.source,
            "destination": self.destination,
            "pattern": self.pattern,
            "solver": self.solver,
            "proven": self.proven,
            "seconds": self.seconds,
            "total": {
                "entries": total["shape"][0],
                **{key: total[key] for key in ("dense", "kept", "rows_only", "kept_percent", "loss_percent")},
                **{key: total[key] for key in ("gap", "n_blocks", "n_proven")},
            },
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "copied_files": list(self.copied_files),
            "unpruned_files": list(self.unpruned_files),
        }


def total(values: Iterable[float]) -> float:
    """Sum of numbers that are not negative, correctly rounded; infinite where it is beyond float64."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def percent(part: float, whole: float, of_nothing: float = 100.0) -> float:
    """Share in percent; of nothing, all is kept."""
    return 100.0 * (part / whole) if whole else of_nothing
