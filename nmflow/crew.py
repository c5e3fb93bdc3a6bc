"""Threads that work on the chunks of a call: kept for later calls, since to start one takes as long as a small matrix.

A call takes idle threads for itself and gives them back, so calls from several threads never wait for one another. They
are daemons that wait without a timeout: they cost nothing, and hold up no exit. A forked child has none of them, and
starts its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["map_on_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_IDLE = 64
"""Most threads that wait for work; others end."""


class _Worker:
    """A thread that does one job after another."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        threading.Thread(target=self._serve, name="nmflow", daemon=True).start()

    def _serve(self) -> None:
        wanted = True
        while wanted:
            job, ended = self.jobs.get()
            try:
                job()  # keeps its own errors
            finally:
                del job  # what it holds may be large
                wanted = len(_idle) < MOST_IDLE
                if wanted:
                    _idle.append(self)
                ended.set()


_idle: list[_Worker] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


def _hire() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


def map_on_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Apply `work` to all items on our own threads, in any order; results in the items' order.

    The first error is raised, once all threads have ended what they were at.

    Examples
    --------
    >>> map_on_threads(abs, [-1, 2, -3], 2)
    [1, 2, 3]
    """
    threads = min(threads, len(items))
    if threads == 1:
        return [work(item) for item in items]
    results: list[Any] = [None] * len(items)
    numbers, lock, stop = iter(range(len(items))), threading.Lock(), threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                results[number] = work(items[number])
        except BaseException as error:
            stop.set()
            errors.append(error)

    hired: list[threading.Event] = []
    try:
        for _ in range(threads - 1):
            ended = threading.Event()
            _hire().jobs.put((run, ended))
            hired.append(ended)  # an interrupt before this leaves a thread that nobody waits for, and that soon stops
        run()
    finally:
        stop.set()
        while not all(ended.is_set() for ended in hired):
            try:
                for ended in hired:
                    ended.wait()
            except BaseException as error:  # an interrupt: threads still write where the caller may write next
                errors.insert(0, error)
    if errors:
        raise errors[0]
    return results
