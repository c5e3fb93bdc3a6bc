"""Threads that work on the chunks of a call: kept for later calls, since to start one takes as long as a small matrix.

A call takes idle threads for itself and gives them back, so calls from several threads never wait for one another. They
are daemons that wait without a timeout: they cost nothing, and hold up no exit. A forked child has none of them, and
starts its own.

A thread does what it is given in the interpreter, or helps with an operation without it (`nmflow.kernels.together`).
To be woken takes a thread some 50 microseconds, so who waits watches for a moment first.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from nmflow.arithmetic import in_plain_arithmetic
from nmflow.kernels.boxes import ABSENT, BUSY, COUNT, NOT_ENDED, SIZE, STATE
from nmflow.workspace import held, with_own_workspace

__all__ = ["call_on_threads", "map_on_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_IDLE = 64
"""Most threads that wait for work; others end."""
SOON = 1e-3
"""Seconds in which calls follow one another, so that it pays to wake a thread for a small one."""
POLL = 5e-5
"""Seconds between looks whether a thread that was interrupted in the middle of a task has ended it."""


class _Job:
    """What a thread is to do in the interpreter, which keeps its own errors; and whether that has ended."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.ended = threading.Event()
        self._word = np.zeros(1, np.int64)
        self.word_at: int = self._word.ctypes.data

    def wait(self) -> bool:
        """Wait for its end."""
        from nmflow.kernels.together import watch_kernel

        return self.ended.is_set() or bool(watch_kernel()(self.word_at)) or self.ended.wait()


class _Worker:
    """A thread that does one job after another."""

    @in_plain_arithmetic  # for what that compiles
    def __init__(self) -> None:
        from nmflow.kernels.together import help_kernel

        # compiled here: a thread that takes locks when its caller has gone on would leave them closed in a forked child
        self._help = help_kernel()
        self._box = np.zeros(SIZE, np.int64)
        self.box_at: int = self._box.ctypes.data
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._serve, name="nmflow", daemon=True).start()

    def give(self, job: _Job | None) -> None:
        """Let it do this next; None ends it."""
        self._box[COUNT] += 1
        self._jobs.put(job)

    def wake(self) -> None:
        """Let it watch its box, if it does not."""
        if self._box[STATE] == ABSENT:
            self.give(_Job(_nothing))

    def is_busy(self) -> bool:
        """Whether it is at a task."""
        return bool(self._box[STATE] == BUSY)

    @in_plain_arithmetic
    def _serve(self) -> None:
        done = 0
        while (job := self._jobs.get()) is not None:
            done += 1
            work, job.work = job.work, _nothing  # what it holds may be large
            try:
                _work(work)
            finally:
                del work
                job.ended.set()
            self._help(self.box_at, job.word_at, done)


def _nothing() -> None:
    pass


@with_own_workspace
def _work(work: Callable[[], object]) -> None:
    work()


_idle: list[_Worker] = []
_last_call = [0.0]
"""When the last one ended."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


class _Crew:
    """The threads of a call."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []

    def hire(self, count: int) -> None:
        """Take so many idle threads, or new ones; fewer where the system starts no more."""
        for _ in range(count):
            try:
                worker = _idle.pop() if _idle else _Worker()
            except IndexError:  # another call was faster
                worker = _Worker()
            except RuntimeError:
                break
            self.workers.append(worker)  # an interrupt before this leaves a thread that sleeps

    def dismiss(self) -> None:
        """Give them back."""
        while self.workers:
            worker = self.workers.pop()
            if len(_idle) < MOST_IDLE:
                _idle.append(worker)
            else:
                worker.give(None)


def map_on_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Apply `work` to all items on our own threads, in any order; results in the items' order.

    The first error is raised, once all threads have ended what they were at.

    Examples
    --------
    >>> map_on_threads(abs, [-1, 2, -3], 2)
    [1, 2, 3]
    """
    threads = min(threads, len(items))
    if threads <= 1:
        return [work(item) for item in items]
    results: list[Any] = [None] * len(items)
    # no lock, which an interrupt could leave closed: the interpreter's own makes each of these steps one
    numbers, stop, helping = iter(range(len(items))), [False], [False] * (threads - 1)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not stop[0] and (number := next(numbers, None)) is not None:
                results[number] = work(items[number])
        except BaseException as error:
            stop[0] = True
            errors.append(error)

    def help_out(place: int) -> None:
        helping[place] = True
        run()  # which does nothing where nobody may wait for it any more
        helping[place] = False

    crew, jobs, waiting = _Crew(), list[_Job](), True
    try:
        crew.hire(threads - 1)
        for place, worker in enumerate(crew.workers):
            job = _Job(partial(help_out, place))
            worker.give(job)
            jobs.append(job)  # an interrupt before this leaves a job that is not among these
        run()
    finally:
        stop[0] = True
        while waiting:
            # Interrupts notwithstanding: threads still write where the caller may write next. Not in a function of its
            # own, for one can come as that is entered, outside of any `try`.
            try:
                for job in jobs:
                    job.wait()
                while any(helping):
                    time.sleep(POLL)
                waiting = False
            except BaseException as error:
                errors.insert(0, error)
        crew.dismiss()
    if errors:
        raise errors[0]
    return results


def _task(operation: int, job: Sequence[int], room: int) -> int:
    """Write a task, and so many zeros, to memory that the thread keeps; its address."""
    words = _words(2 + len(job), room)
    task, at = held("task", words.size)
    words.pack_into(task.data, 0, operation, at + 16, *job)
    return at


@cache
def _words(count: int, zeros: int = 0) -> struct.Struct:
    """So many int64, and zeros after them."""
    return struct.Struct(f"{count}q{8 * zeros}x")


def call_on_threads(operation: int, job: Sequence[int], room: int, threads: int, *, wake: bool = True) -> int:
    """Call an operation on several threads at a time, each of which does as much as it finds, and once when they ended.

    operation : address of one that takes an address and a number (`nmflow.kernels.together`). There are the numbers of
    the job, and as many zeros as `room` says. wake : whether threads that sleep are woken for it, too, where the last
    call was not just before.

    Returns
    -------
    int
        What the last call says.
    """
    from nmflow.kernels.together import call_kernel

    at = _task(operation, job, room)
    if threads == 1:
        return int(call_kernel()(at, 0, 0))
    crew, result, waiting = _Crew(), NOT_ENDED, True
    errors: list[BaseException] = []
    try:
        crew.hire(threads - 1)
        if wake or time.perf_counter() - _last_call[0] < SOON:
            for worker in crew.workers:
                worker.wake()
        count = len(crew.workers)
        memory, boxes = held("boxes", 8 * count)
        _words(count).pack_into(memory.data, 0, *(worker.box_at for worker in crew.workers))
        while result == NOT_ENDED:
            result = int(call_kernel()(at, boxes, count))
            _wait_for(crew.workers)
    finally:
        while waiting:
            try:  # as above
                _wait_for(crew.workers)
                waiting = False
            except BaseException as error:
                errors.insert(0, error)
        crew.dismiss()
        _last_call[0] = time.perf_counter()
    if errors:
        raise errors[0]
    return result


def _wait_for(workers: Sequence[_Worker]) -> None:
    """Wait until none is at a task. In plain loops: an interrupt that comes while a generator is closed is lost."""
    for worker in workers:
        while worker.is_busy():
            time.sleep(POLL)
