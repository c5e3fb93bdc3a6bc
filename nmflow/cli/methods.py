"""``nmflow prune --method``: what looks at activations, and so needs the model and not only its weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmflow.errors import InputValueError, MissingLibraryError
from nmflow.pattern import Pattern

if TYPE_CHECKING:
    from nmflow.checkpoint import Progress

__all__ = ["check_options", "prune_by"]


def check_options(method: str, calibration: Path | None, others: dict[str, bool]) -> None:
    """Raise InputValueError where options do not go together."""
    if method == "magnitude":
        if calibration is not None:
            raise InputValueError("--calibration must come with --method wanda, sparsegpt or adaprune, not magnitude")
        return
    if calibration is None:
        raise InputValueError(f"--calibration must be given for --method {method}: a file of text, a sample a line")
    wrong = next((name for name, given in others.items() if given), None)
    if wrong is not None:
        raise InputValueError(f"{wrong} must be left out with --method {method}; it goes with magnitude")


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
    return f"{report}\n{proof}; wrote {dst}", {**report.to_dict(), "source": str(src), "destination": str(dst)}
