"""The ``nmflow`` command, run within the process of a test."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from nmflow.cli import app


def run(*args: object) -> Result:
    """What it says to these arguments, and its exit status."""
    return CliRunner().invoke(app, [str(arg) for arg in args])
