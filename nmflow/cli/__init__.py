"""The command line: ``nmflow prune`` and ``nmflow verify``. Thin: it reads options, calls the library, prints."""

from nmflow.cli.app import app, main

__all__ = ["app", "main"]
