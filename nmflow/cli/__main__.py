"""``python -m nmflow.cli`` is the ``nmflow`` command."""

from nmflow.cli.app import main

main()
