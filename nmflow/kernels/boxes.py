"""Boxes: how a call tells a thread that helps what to do (`nmflow.kernels.together`). An array of `SIZE` int64 each."""

from __future__ import annotations

__all__ = ["ABSENT", "BUSY", "COUNT", "IDLE", "LAST", "MORE", "NOT_ENDED", "NUMBER", "SIZE", "STATE"]

STATE, NUMBER, COUNT, SIZE = 0, 1, 8, 16
"""Which of them says what its thread is at, which number it has in a task, and which counts what it is given in the
interpreter: in a cache line of its own."""
ABSENT, IDLE, BUSY = 0, 1, 2
"""The thread is in the interpreter or sleeps, watches the box, or is at a task; else the address of one that it is
given."""
LAST = -1
"""The number of the last call of a task, when no thread is at it any longer."""
NOT_ENDED, MORE = -(1 << 62), -(1 << 61)
"""What a call is told while a thread is still at its task; and what the last call of an operation says that has found
more to share. No operation says the first."""
