"""The page about the commands, written from the commands themselves whenever the site is built."""

from __future__ import annotations

import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    command = [sys.executable, "-m", "typer", "nmflow.cli.app", "utils", "docs", "--name", "nmflow"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    files.append(File.generated(config, "commands.md", content=text.replace("# `nmflow`", "# Commands", 1)))
    return files
