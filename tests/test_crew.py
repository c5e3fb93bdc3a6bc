"""Threads that are kept from call to call."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nmflow import crew
from nmflow.crew import map_on_threads


def idents(barrier: threading.Barrier) -> set[int]:
    """Which threads work on a call for two."""

    def work(_: int) -> int:
        barrier.wait(10)
        return threading.get_ident()

    return set(map_on_threads(work, range(2), 2))


def test_threads_work_for_later_calls() -> None:
    barrier = threading.Barrier(2)
    first, second = idents(barrier), idents(barrier)
    assert len(first) == 2
    assert first == second
    assert threading.get_ident() in first


def test_calls_at_the_same_time_have_threads_of_their_own() -> None:
    """All of them wait for each other: one that waited for the thread of another would end the test."""
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(idents, [barrier] * 4))
    assert len(set().union(*found)) == 8


def test_the_first_error_is_raised_and_the_threads_go_on_to_serve() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError(f"item {item}")
        return item

    for _ in range(3):
        with pytest.raises(ValueError, match="item 3"):
            map_on_threads(work, range(50), 3)
    assert map_on_threads(abs, range(-50, 0), 3) == list(range(50, 0, -1))


def test_a_call_inside_a_call_ends() -> None:
    def work(item: int) -> int:
        return sum(map_on_threads(lambda other: item * other, range(4), 2))

    assert map_on_threads(work, range(6), 3) == [6 * item for item in range(6)]


def test_threads_beyond_the_most_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_idle", [])
    monkeypatch.setattr(crew, "MOST_IDLE", 1)
    barrier = threading.Barrier(4)
    map_on_threads(lambda _: barrier.wait(10), range(4), 4)
    assert len(crew._idle) == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal to a thread here")
def test_an_interrupt_waits_for_what_threads_are_at() -> None:
    """They write into the caller's `out`, which is theirs no longer once the call has ended."""
    ended: list[int] = []
    main = threading.get_ident()
    barrier = threading.Barrier(2)

    def work(item: int) -> None:
        barrier.wait(10)
        if threading.get_ident() != main:
            for _ in range(2):  # while the main thread waits for this one
                time.sleep(0.1)
                signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.1)
            ended.append(item)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born to ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            map_on_threads(work, range(2), 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 1
    assert map_on_threads(abs, range(-50, 0), 3) == list(range(50, 0, -1))
