"""``python -m nmflow`` is the ``nmflow`` command."""

from nmflow.cli.app import main

main()
