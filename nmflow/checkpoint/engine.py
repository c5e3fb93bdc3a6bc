"""Doing all units of work: here with threads, or with an executor that reaches other processes and machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol

from nmflow.asked import thread_count
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.unit import Done, Unit, check, work
from nmflow.errors import ChangedError, InputTypeError

__all__ = ["Executor", "Progress", "check_executor", "recheck", "run"]

PATIENCE = 30
"""Seconds in which units that cannot be cancelled may end after an error, elsewhere. It is better if nothing writes any
more when a run is over; nothing breaks if something does, and a worker that hangs must not hide the error."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a tensor that is done ("" at the end), the bytes done and the bytes in all."""


class Executor(Protocol):
    """What can do units of work elsewhere: any of `concurrent.futures`, or what looks like one.

    `submit` returns a future with `result()`, `cancel()` and `add_done_callback(function)`. Its workers must see the
    files under the same paths, and have the same nmflow.
    """

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Call `function(*args)` somewhere, and return a future of what it returns."""


def recheck(unit: Unit, done: Done, pool: Pool | None = None) -> Done:
    """Do a unit again unless it is done as `done` says.

    Raises
    ------
    ChangedError
        If its source is not what it was: then nothing fits together any more.
    """
    source, target = check(unit, done, pool)
    if not source:
        raise ChangedError(
            f"{unit.where} must not have changed since the unfinished run read it; put back what it was, or leave "
            f"resume (--resume) out to begin anew"
        )
    return done if target else work(unit, pool)


def check_executor(executor: object) -> None:
    """Raise InputTypeError unless it can be handed work, or is None."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise InputTypeError(
            f"executor must hand out work by submit, as those of concurrent.futures do, and {executor!r} does not"
        )


def run(
    units: Sequence[Unit],
    done: Mapping[tuple[str, str], Done],
    note: Callable[[Done], None],
    *,
    executor: Executor | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Done]:
    """Do all units.

    Parameters
    ----------
    units : sequence of Unit
    done : mapping from (shard, name) to Done
        What an earlier run says it did; each is checked, and done again where the target does not hold it.
    note : callable
        Called here with each result as it comes in.
    executor : Executor, optional
        Default: threads of this process.
    threads : int, optional
        How many of them; default: the cores that this process may use.
    progress : callable, optional

    Returns
    -------
    list of Done
        In the order of the units, which is not the order in which they were done.

    Raises
    ------
    Exception
        The first that a unit raised; the others are stopped or not begun. What was done by then is noted.
    """
    results: list[Done | None] = [None] * len(units)
    finished: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    futures: list[Any] = []
    total, reached = sum(unit.entry.n_bytes for unit in units), 0
    with ExitStack() as stack:
        # The last to enter is the first to leave: what has not begun is cancelled, then units of this process end
        # before the threads do that they wait for, and what all of them did is collected.
        collect = partial(_collect, futures, finished, note)
        if executor is None:
            pool = stack.enter_context(Pool(thread_count(threads)))
            stack.callback(collect)
            local = stack.enter_context(ThreadPoolExecutor(pool.count, "nmflow-unit"))
            stack.push(lambda kind, error, at: pool.stop() if kind else None)
            extra: tuple[Pool, ...] = (pool,)
            submit: Callable[..., Any] = local.submit
        else:
            stack.callback(collect)
            extra, submit = (), executor.submit
        stack.callback(_cancel, futures)
        for number, unit in enumerate(units):
            before = done.get((unit.source.name, unit.entry.name))
            future = submit(work, unit, *extra) if before is None else submit(recheck, unit, before, *extra)
            futures.append(future)
            future.add_done_callback(lambda found, number=number: finished.put((number, found)))
        left = set(range(len(units)))
        while left:
            number, future = finished.get()
            if number not in left:  # called back twice
                continue
            left.discard(number)
            futures[number] = None
            result = future.result()
            results[number] = result
            note(result)
            reached += units[number].entry.n_bytes
            if progress:
                progress(units[number].entry.name, reached, total)
        futures.clear()
    return [result for result in results if result is not None]


def _cancel(futures: list[Any]) -> None:
    """Cancel the futures that are left, and forget those that can be."""
    futures[:] = [future if future and not future.cancel() else None for future in futures]


def _collect(futures: Sequence[Any], finished: SimpleQueue[tuple[int, Any]], note: Callable[[Done], None]) -> None:
    """Note what the futures did that could not be cancelled: a pool has fetched their units already."""
    running = {number for number, future in enumerate(futures) if future}
    end = monotonic() + PATIENCE
    while running:
        try:
            number, future = finished.get(timeout=max(0, end - monotonic()))
        except Empty:
            return
        if number in running:
            running.discard(number)
            with contextlib.suppress(Exception):  # one is on its way already, and the disk may be why
                note(future.result())
