"""What commands and their terminal say to each other: exit statuses, errors in one line, progress, interrupts, JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from nmflow.cli.text import printable
from nmflow.errors import NmflowError

if TYPE_CHECKING:
    from nmflow.checkpoint import Progress

__all__ = [
    "VIOLATION",
    "catch_signals",
    "check_interrupts",
    "empty_streams",
    "on_output",
    "one_line_errors",
    "open_streams",
    "print_json",
    "progress_of",
    "say",
]

VIOLATION, ERROR, KILLED = 1, 2, 128
"""Exit statuses; `KILLED` and the number of a signal where that ended it, as a shell reports it: 130 for Ctrl-C."""
UNREAD = KILLED + 13
"""Where nobody reads the output any more, as after SIGPIPE, which Windows does not have."""
_interrupts: list[int] = []


def catch_signals() -> None:
    """Let a polite kill take the same way out as Ctrl-C, so that what was done is kept for --resume."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _report_lost


def _interrupt(number: int, frame: object) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _report_lost(lost: sys.UnraisableHookArgs) -> None:
    """Say nothing of an interrupt that a callback could not pass on, as while a kernel is compiled: it is kept."""
    if not (_interrupts and isinstance(lost.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(lost)


def open_streams() -> None:
    """Let standard output show what its encoding has no character for as an escape, as standard error does.

    Where the caller closed one of them, what is said there is lost, and the work goes on.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (to the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def empty_streams() -> None:
    """Drop what could not be written: Python tries once more as it ends, and would end with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_interrupts(*args: object) -> None:
    """Raise again what was lost: Python drops an exception that a signal raises inside a destructor or a callback."""
    if _interrupts:
        raise KeyboardInterrupt


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can act on into one line and an exit status; others are defects and keep their trace."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        raise typer.Exit(UNREAD) from None
    except (NmflowError, OSError, MemoryError) as error:
        _complain(str(error) or "there must be more memory; use fewer threads", error)
        raise typer.Exit(ERROR) from None
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        _complain("the system must let threads start, and lets no more; allow more, or use fewer threads", error)
        raise typer.Exit(ERROR) from None
    except KeyboardInterrupt as error:
        _complain("interrupted", error)
        raise typer.Exit(KILLED + (_interrupts or [signal.SIGINT])[-1]) from None


def _complain(text: str, error: BaseException) -> None:
    """Say what went wrong, and what was noted on the error on its way here: how to go on."""
    line = printable("; ".join((f"nmflow: {text}", *getattr(error, "__notes__", ()))))
    with contextlib.suppress(OSError):  # nobody may read it: the exit status says it too
        typer.echo(line, err=True)


@contextlib.contextmanager
def progress_of(verb: str) -> Iterator[Progress]:
    """What is called before each tensor: a progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield check_interrupts
        return
    from nmflow.cli import show

    with show.progress_bar(verb) as update:

        def update_or_stop(name: str, done: int, total: int) -> None:
            check_interrupts()
            update(name, done, total)

        yield update_or_stop


@contextlib.contextmanager
def on_output() -> Iterator[None]:
    """Name standard output in errors of the system: it may be a file on a full disk, which has no name here."""
    from nmflow.checkpoint.disk import named

    with named(Path("standard output")):
        yield


def say(found: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Show what was found to people, or print it as JSON."""
    with on_output():
        if as_json:
            print_json(found.to_dict())
        else:
            show(found)


def print_json(value: dict[str, Any]) -> None:
    """Print JSON, which has no NaN."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))
