"""Reports in files: where they lie beside a pruned checkpoint, and how one is read back and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from nmflow.asked import as_path
from nmflow.checkpoint.disk import write_new
from nmflow.checkpoint.report import REPORT, Report, TensorReport
from nmflow.checkpoint.strict_json import load_json
from nmflow.errors import CheckpointError, PatternError, SourceNotFoundError
from nmflow.formats.side_file import MAX_AXES
from nmflow.pattern import Pattern

__all__ = ["pattern_of", "read_record", "read_report", "report_path", "run_of", "write_text"]

MAX_BYTES = 1 << 28
"""Longest report that is read: half a million tensors."""


def report_path(dst: str | os.PathLike[str], kind: str) -> Path:
    """Where a report of some kind ("json", "md", "html") lies: in the folder of a checkpoint, or beside a file.

    Examples
    --------
    >>> report_path("no/such/model.safetensors", "html").as_posix()
    'no/such/model.nmflow-report.html'
    """
    dst = Path(dst)
    name = Path(REPORT).with_suffix(f".{kind}")
    return dst / name if dst.is_dir() else dst.with_name(f"{dst.name.removesuffix('.safetensors')}.{name}")


def read_report(dst: str | os.PathLike[str]) -> Report:
    """Read the report of a pruned checkpoint.

    Parameters
    ----------
    dst : path
        The folder that `prune_checkpoint` wrote.

    Raises
    ------
    SourceNotFoundError
        If there is no report.
    CheckpointError
        If it is not one.
    """
    return read_record(dst)[0]


def read_record(dst: str | os.PathLike[str]) -> tuple[Report, dict[str, Any]]:
    """A report as `read_report` reads it, and all that its file holds: what the run was asked for, and its sums."""
    path = as_path(dst, "dst") / REPORT
    if not path.is_file():
        raise SourceNotFoundError(
            f"{path} must exist, and it does not; pruning writes it into a folder, but not with --method; "
            f"for a single file say --report when it is pruned"
        )
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} must be a report of at most {MAX_BYTES:,} bytes, not {path.stat().st_size:,}")
    found = load_json(path, path.read_bytes(), "report")
    get = _Reader(path, found)
    report = Report(
        source=get("source", _is_text),
        destination=get("destination", _is_text),
        pattern=get("pattern", _is_text),
        solver=get("solver", _is_text),
        tensors=tuple(_tensor(_Reader(path, row)) for row in get("tensors", _is_rows)),
        skipped=tuple(
            (each("name", _is_text), each("reason", _is_text))
            for each in (_Reader(path, row) for row in get("skipped", _is_rows))
        ),
        copied_files=tuple(get("copied_files", _is_texts)),
        unpruned_files=tuple(get("unpruned_files", _is_texts)),
        seconds=float(get("seconds", _is_time)),
    )
    return report, found


def run_of(dst: str | os.PathLike[str], found: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The full path of what the run behind a record read, and names of the files of weights that it wrote.

    Raises
    ------
    CheckpointError
        If the report does not say.
    """
    try:
        source = found["asked"]["source"]
        return str(source["path"]), tuple(map(str, source["shards"]))
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{Path(dst) / REPORT} must name the files of weights that it speaks of; prune again"
        ) from None


def pattern_of(report: Report) -> Pattern:
    """The pattern that a report names.

    Raises
    ------
    CheckpointError
        If it is not one.
    """
    try:
        return Pattern.parse(report.pattern)
    except PatternError as error:
        raise CheckpointError(f"pattern of a report must be one: {error} ({report.pattern!r}); prune again") from None


def write_text(dst: Path, path: Path, text: str) -> None:
    """Write a file about a checkpoint that is whole at any moment: the old one, or the new one."""
    new = path.with_name(f".{path.name}.new")
    try:
        write_new(new, text, dst.glob("*.safetensors") if dst.is_dir() else [dst])
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _tensor(get: _Reader) -> TensorReport:
    values = {field.name: get(field.name, _TENSOR[field.name]) for field in fields(TensorReport)}
    for name in ("dense", "kept", "rows_only"):  # JSON has no infinity
        values[name] = math.inf if values[name] is None else float(values[name])
    axes = len(values["shape"])
    if axes < (3 if values["layout"] == "batch" else 2) or (values["layout"] is None and axes != 2):
        raise get.error("shape")
    if values["n_proven"] > values["n_blocks"]:
        raise get.error("n_proven")
    return TensorReport(**{**values, "shape": tuple(values["shape"])})


class _Reader:
    """Values of an object in a report, each checked."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path, self._values = path, values

    def __call__(self, name: str, fits: Callable[[Any], bool]) -> Any:
        if name not in self._values or not fits(self._values[name]):
            raise self.error(name)
        return self._values[name]

    def error(self, name: str) -> CheckpointError:
        """What to raise where a value cannot be."""
        value = str(self._values.get(name))[:60]
        return CheckpointError(f"{self._path}: {name} must be as nmflow prune writes it, not {value!r}; prune again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_shape(value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= MAX_AXES  # of millions the product takes for ever
    return few and all(map(_is_count, value)) and 0 < math.prod(value) < 1 << 63


def _is_amount(value: Any) -> bool:
    # A number beyond float64 is read as infinite.
    return _is_count(value) or (isinstance(value, float) and 0.0 <= value < math.inf)


def _is_time(value: Any) -> bool:
    return _is_amount(value) and value < 1e12


_TENSOR: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "shard", "dtype"), _is_text),
    "shape": _is_shape,
    "layout": lambda value: value in (None, "conv", "batch"),
    **dict.fromkeys(("dense", "kept", "rows_only", "gap"), lambda value: value is None or _is_amount(value)),
    **dict.fromkeys(("n_blocks", "n_proven"), _is_count),
    "seconds": _is_time,
}
"""What each field of a tensor's row must be."""
