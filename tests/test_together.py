"""Operations that several threads do at a time, without the interpreter."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from nmflow import crew
from nmflow.crew import call_on_threads, map_on_threads
from nmflow.kernels.boxes import ABSENT, BUSY, IDLE, LAST, MORE, NOT_ENDED, SIZE, STATE
from nmflow.kernels.compile import operation
from nmflow.kernels.memory import add_word, read_word, write_word

PARTS = 40
SLOW = 5_000_000
"""Steps that take longer than a call watches its threads."""


@cache
def counting() -> int:
    """An operation that adds 1 to a count for each part, in as many rounds as it is told.

    Its job: the next part, rounds that are left, steps that a part takes of the caller and of threads that help, and
    the address of the counts, the last of which is of parts that threads did that help.
    """
    parts, last, more = PARTS, LAST, MORE

    def count(job, number):  # type: ignore[no-untyped-def]
        while True:
            k = add_word(job, 1)
            if k >= parts:
                break
            steps = read_word(job + (24 if number > 0 else 16))
            for _ in range(steps):  # an addition takes some nanoseconds
                add_word(job + 40, 1)
            add_word(read_word(job + 32) + 8 * k, 1)
            if number > 0:
                add_word(read_word(job + 32) + 8 * parts, 1)
        if number != last:
            return 0
        left = read_word(job + 8) - 1
        write_word(job + 8, left)
        write_word(job, 0)
        return more if left else 7

    return operation(count, 2)


def counted(threads: int, rounds: int = 1, own: int = 100, helping: int = 100, *, wake: bool = True) -> int:
    """Have each part done once a round; how many were done by threads that help."""
    counts = np.zeros(PARTS + 1, np.int64)
    said = call_on_threads(counting(), (0, rounds, own, helping, counts.ctypes.data), 1, threads, wake=wake)
    assert said == 7
    assert (counts[:-1] == rounds).all()
    return int(counts[-1])


@pytest.mark.parametrize("threads", [1, 2, 5, PARTS + 3])
@pytest.mark.parametrize("rounds", [1, 3])
def test_each_part_is_done_once_a_round(threads: int, rounds: int) -> None:
    for _ in range(20):
        counted(threads, rounds)


def test_threads_do_what_the_caller_leaves() -> None:
    """Those that help are fast here, and the caller is not."""
    assert counted(1, own=SLOW // 5) == 0
    assert counted(2, own=SLOW // 5) > PARTS // 2


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_call_waits_for_a_thread_that_takes_long(rounds: int) -> None:
    """Longer than it watches: that thread writes into the caller's memory."""
    # a busy machine may give no processor to those that help before all is done
    assert any(counted(3, rounds, own=SLOW // 100, helping=SLOW) for _ in range(50))


def test_a_call_may_go_without_threads_that_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SOON", 0.0)
    for _ in range(5):
        time.sleep(0.01)
        counted(4, 2, wake=False)


def test_calls_at_the_same_time_share_no_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rounds: counted(3, rounds), [1, 2, 3] * 40))


def test_threads_go_from_one_kind_of_work_to_the_other() -> None:
    for k in range(50):
        counted(3)
        assert map_on_threads(abs, range(-k, 0), 3) == list(range(k, 0, -1))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal to a thread here")
def test_an_interrupt_leaves_no_thread_at_a_task() -> None:
    main, begun = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born to ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        begun.set()
        with pytest.raises(KeyboardInterrupt):  # at the latest when the kernel has returned
            [counted(3, own=SLOW // 100, helping=SLOW) for _ in range(1000)]
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not any(worker.is_busy() for worker in crew._idle)
    counted(3)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to choose a processor here")
def test_threads_on_one_processor_end() -> None:
    """A thread that only waits lets the others run."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        for worker in crew._idle[:]:
            worker.give(None)
            crew._idle.remove(worker)
        for _ in range(20):
            counted(4, 3, own=SLOW // 100, helping=SLOW // 100)
    finally:
        crew._idle.clear()  # they were born to one processor
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("soon", [0.0, 60.0])
def test_threads_are_woken_for_a_small_call_that_follows_another(soon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[crew._Worker] = []
    monkeypatch.setattr(crew, "SOON", soon)
    monkeypatch.setattr(crew, "_last_call", [-1e9])
    monkeypatch.setattr(crew._Worker, "wake", lambda worker: woken.append(worker))
    monkeypatch.setattr(crew, "_idle", [])
    counted(3)
    assert len(woken) == len(crew._idle) == 2
    counted(3, wake=False)
    assert len(woken) == (4 if soon else 2)


def test_a_call_is_made_again_when_threads_have_ended_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a call watches them, which depends on the machine."""
    waited: list[int] = []
    said = iter([NOT_ENDED, NOT_ENDED, 7])
    monkeypatch.setattr("nmflow.kernels.together.call_kernel", lambda: lambda *_: next(said))
    monkeypatch.setattr(crew, "_wait_for", lambda workers: waited.append(len(workers)))
    assert call_on_threads(0, (), 0, 3) == 7
    assert waited == [2] * 4  # and at the end


def test_an_interrupt_while_a_call_waits_at_its_end_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    def wait(workers: Sequence[crew._Worker]) -> None:
        waited.append(len(workers))
        if len(waited) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("nmflow.kernels.together.call_kernel", lambda: lambda *_: 7)
    monkeypatch.setattr(crew, "_wait_for", wait)
    with pytest.raises(KeyboardInterrupt):
        call_on_threads(0, (), 0, 3)
    assert waited == [2] * 3


def test_threads_that_watch_their_boxes_need_not_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    worker = crew._Worker.__new__(crew._Worker)
    worker._box = np.zeros(SIZE, np.int64)
    monkeypatch.setattr(crew._Worker, "give", lambda self, job: given.append(int(self._box[STATE])))
    for state in (IDLE, ABSENT, BUSY):
        worker._box[STATE] = state
        worker.wake()
    assert given == [ABSENT]
