"""Threads that are kept from call to call."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Literal

import families
import numpy as np
import pytest

import nmflow
from nmflow import crew, workspace
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


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal to a thread here")
def test_an_interrupt_is_raised_rather_than_an_error_that_came_before() -> None:
    main, barrier, numbers = threading.get_ident(), threading.Barrier(3), iter(range(2))

    def work(_: int) -> None:
        barrier.wait(10)
        if threading.get_ident() == main:
            return
        if next(numbers) == 0:
            raise ValueError("before")
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            map_on_threads(work, range(3), 3)
    finally:
        signal.signal(signal.SIGINT, before)


# calls within calls, and interrupts anywhere


@pytest.mark.parametrize("place", ["_task", "settle", "held", "call_on_threads"])
def test_a_call_that_begins_within_another_has_memory_of_its_own(place: str) -> None:
    """As one that a signal's handler makes, or what the garbage collector runs."""
    outer, inner = families.gaussian((256, 256), 0), families.gaussian((512, 512), 1)
    expected = nmflow.solve(outer, 8, 16, threads=2), nmflow.solve(inner, 8, 16, threads=2)
    found: list[nmflow.Solution] = []

    def hook(frame: FrameType, event: str, arg: object) -> None:
        if event == "return" and frame.f_code.co_name == place and len(found) < 3:
            sys.setprofile(None)
            found.append(nmflow.solve(inner, 8, 16, threads=2))
            sys.setprofile(hook)

    sys.setprofile(hook)
    try:
        whole = nmflow.solve(outer, 8, 16, threads=2)
    finally:
        sys.setprofile(None)
    assert found
    for one, other in ((whole, expected[0]), *((each, expected[1]) for each in found)):
        assert np.array_equal(one.mask, other.mask)
        assert one.objective == other.objective
        assert one.proven


def interrupted_anywhere(call: Callable[[], object], settled: Callable[[], bool]) -> int:
    """Interrupt a call at one place in our module after the other; how often something went on after it had ended."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fired = count = late = 0
    try:
        while fired == count and count < 150:  # until there is no such place any more
            count += 1
            seen = 0

            def hook(frame: FrameType, event: str, arg: object) -> None:
                nonlocal seen, fired
                if frame.f_code.co_filename == crew.__file__ and threading.current_thread() is threading.main_thread():
                    seen += 1
                    if seen == count:  # noqa: B023 (within this turn)
                        fired += 1
                        signal.raise_signal(signal.SIGINT)

            sys.setprofile(hook)
            try:
                call()
            except KeyboardInterrupt:
                sys.setprofile(None)
                late += not settled()
            finally:
                sys.setprofile(None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert count > 20
    return late


def test_no_thread_works_on_after_an_interrupt_wherever_it_comes() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.005)
        done.append(item)

    def settled() -> bool:
        known = len(done)
        time.sleep(0.015)
        return len(done) == known

    assert interrupted_anywhere(lambda: map_on_threads(work, range(3), 3), settled) == 0
    assert map_on_threads(abs, range(-50, 0), 3) == list(range(50, 0, -1))


@pytest.mark.parametrize("order", ["C", "F"])  # threads share a chunk, and each has chunks of its own
def test_nothing_is_written_after_an_interrupt_wherever_it_comes(order: Literal["C", "F"]) -> None:
    weights = np.asarray(families.gaussian((256, 2048), 0), order=order)
    out = np.zeros(weights.shape, np.bool_)
    expected = nmflow.solve(weights, 8, 16, threads=3).mask

    def settled() -> bool:
        out[...] = False
        time.sleep(0.003)
        return not out.any()

    assert interrupted_anywhere(lambda: nmflow.solve(weights, 8, 16, threads=3, out=out), settled) == 0
    assert np.array_equal(nmflow.solve(weights, 8, 16, threads=3, out=out).mask, expected)


def test_fewer_threads_do_where_the_system_starts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = families.gaussian((512, 512), 0)
    expected = nmflow.solve(weights, 2, 4, threads=1).mask

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(crew, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert np.array_equal(nmflow.solve(weights, 2, 4, threads=4).mask, expected)
    assert map_on_threads(abs, range(-9, 0), 4) == list(range(9, 0, -1))


def test_threads_hold_nothing_of_a_call_that_has_ended() -> None:
    """It can be a matrix of any size, and they sleep until another call comes."""
    weights = np.zeros(1 << 10)
    known = weakref.ref(weights)
    barrier = threading.Barrier(3)

    def work(_: int, weights: np.ndarray = weights) -> float:
        barrier.wait(10)
        return float(weights[0])

    assert map_on_threads(work, range(3), 3) == [0.0, 0.0, 0.0]
    del work, weights
    gc.collect()
    assert known() is None


def test_threads_that_are_too_many_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_idle", [])
    monkeypatch.setattr(crew, "MOST_IDLE", 1)
    barrier, threads = threading.Barrier(4), set[threading.Thread]()

    def work(_: int) -> None:
        threads.add(threading.current_thread())
        barrier.wait(10)

    map_on_threads(work, range(4), 4)
    threads.discard(threading.main_thread())
    for _ in range(1000):
        if sum(thread.is_alive() for thread in threads) == 1:
            break
        time.sleep(0.01)
    assert sum(thread.is_alive() for thread in threads) == len(crew._idle) == 1


def test_no_thread_takes_more_work_after_an_error_of_another() -> None:
    done: list[int] = []
    main = threading.get_ident()
    failed = threading.Event()

    def work(item: int) -> None:
        if threading.get_ident() != main:
            failed.set()
            raise ValueError(f"item {item}")
        failed.wait(10)
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(ValueError, match="item"):
        map_on_threads(work, range(100), 2)
    assert len(done) < 50


def test_a_call_within_a_call_within_a_call_has_memory_of_its_own() -> None:
    addresses: list[int] = []

    @workspace.with_own_workspace
    def call(depth: int) -> None:
        addresses.append(workspace.held("depth", 64)[1])
        if depth:
            call(depth - 1)

    for _ in range(2):
        addresses.clear()
        call(3)
        assert len(set(addresses)) == 4


def test_a_call_within_the_work_of_a_thread_has_memory_of_its_own() -> None:
    """As one that the garbage collector runs there."""
    main, barrier = threading.get_ident(), threading.Barrier(2)

    @workspace.with_own_workspace
    def call() -> int:
        return workspace.held("within", 64)[1]

    def work(_: int) -> bool:
        barrier.wait(10)
        return threading.get_ident() == main or workspace.held("within", 64)[1] != call()

    assert map_on_threads(work, range(2), 2) == [True, True]


def test_memory_of_threads_that_ended_is_kept_for_few() -> None:
    leases = [workspace._Lease() for _ in range(workspace.MOST_FREE + 20)]
    del leases
    assert len(workspace._free) <= workspace.MOST_FREE


def test_a_call_keeps_its_memory_for_the_next() -> None:
    @workspace.with_own_workspace
    def call() -> int:
        return workspace.held("next", 64)[1]

    assert call() == call()
    assert not workspace._lease().busy


@pytest.mark.parametrize("place", ["held", "settle", "_settled_and_graded", "_best_duals"])
def test_a_call_that_begins_while_a_mask_is_graded_has_memory_of_its_own(place: str) -> None:
    weights, inner = families.gaussian((256, 256), 0), families.gaussian((256, 256), 1)
    masks = [nmflow.solve(array[::-1], 8, 16).mask for array in (weights, inner)]
    expected = nmflow.certify(weights, masks[0], 8, 16, absolute=True, threads=1)
    count = 0

    def hook(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        if event == "return" and frame.f_code.co_name == place and count < 3:
            count += 1
            sys.setprofile(None)
            nmflow.certify(inner, masks[1], 8, 16, absolute=True, threads=1)
            sys.setprofile(hook)

    sys.setprofile(hook)
    try:
        graded = nmflow.certify(weights, masks[0], 8, 16, absolute=True, threads=1)
    finally:
        sys.setprofile(None)
    assert count
    assert (graded.objective, graded.gap, graded.bound) == (expected.objective, expected.gap, expected.bound)
    assert np.array_equal(graded.unproven, expected.unproven)
    assert np.array_equal(graded.gaps, expected.gaps)


def test_no_more_threads_are_hired_than_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_idle", [])
    assert map_on_threads(abs, [-1, 2], 8) == [1, 2]
    assert len(crew._idle) == 1


def test_an_idle_thread_that_another_call_takes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken(list[crew._Worker]):
        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr(crew, "_idle", Taken())
    assert map_on_threads(abs, range(-3, 0), 3) == [3, 2, 1]
    assert len(crew._idle) == 2
