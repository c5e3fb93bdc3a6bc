"""The command line, ``nmflow``. Thin: it reads options, calls the library, prints."""

from nmflow.cli.app import app, main

__all__ = ["app", "main"]
