"""``nmflow prune --method``: what looks at activations, and so needs the model and not only its weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmflow.asked import amount
from nmflow.cli.text import printable
from nmflow.errors import InputValueError, MissingLibraryError
from nmflow.pattern import Pattern

if TYPE_CHECKING:
    from nmflow.checkpoint import Plan, Progress

__all__ = ["check_by", "check_options", "prune_by"]


def check_options(method: str, calibration: Path | None, damping: float | None, others: dict[str, bool]) -> None:
    """Raise InputValueError where options do not go together, or the damping is none."""
    if damping is not None:
        if method in ("magnitude", "wanda"):
            raise InputValueError(f"--damping must come with --method sparsegpt, adaprune or alps, not {method}")
        amount(damping, "--damping")
    if method == "magnitude":
        if calibration is not None:
            raise InputValueError(
                "--calibration must come with --method wanda, sparsegpt, adaprune or alps, not magnitude"
            )
        return
    if calibration is None:
        raise InputValueError(f"--calibration must be given for --method {method}: a file of text, a sample a line")
    wrong = next((name for name, given in others.items() if given), None)
    if wrong is not None:
        raise InputValueError(f"{wrong} must be left out with --method {method}; it goes with magnitude")


def check_by(method: str, plan: Plan, calibration: Path) -> None:
    """Raise what pruning by a method would raise before it loads the model; libraries are seen only in a real run."""
    if find_spec("torch") is not None:
        from nmflow.torch.model_folder import check_folder

        check_folder(plan, method, calibration)


def prune_by(
    method: str, src: Path, dst: Path, pattern: Pattern, calibration: Path, progress: Progress, **options: Any
) -> tuple[str, dict[str, Any]]:
    """Prune a folder; the report as text for people, and as plain values."""
    if find_spec("torch") is None:  # nmflow.torch would name its own extra, which is not enough
        raise MissingLibraryError(
            'this method needs torch, which is not installed; pip install "nmflow[transformers]", or use method '
            "magnitude"
        )
    from nmflow.torch.model_folder import prune_folder

    report = prune_folder(src, dst, pattern, method, calibration, progress=progress, **options)
    proof = "every block proven optimal for its score" if report.proven else "not every block proven"
    lines = *str(report).split("\n"), f"{proof}; wrote {dst}"
    return "\n".join(map(printable, lines)), {**report.to_dict(), "source": str(src), "destination": str(dst)}
