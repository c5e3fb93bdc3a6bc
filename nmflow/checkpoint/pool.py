"""Threads that do the pieces of tensors: a few at a time, whichever unit of work they belong to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

__all__ = ["MOST_THREADS", "Pool", "StoppedError"]

MOST_THREADS = 9
"""Threads for pieces: at some 40 MB each they stay below 400 MB, and they solve faster than disks write."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Raised in a unit of work whose pool was told to stop; it never reaches a caller."""


class Pool:
    """Threads shared by the units of work of one process.

    Parameters
    ----------
    threads : int
        Pieces that are solved at a time. One more thread reads and writes meanwhile.
    """

    def __init__(self, threads: int) -> None:
        self.count = min(threads + 1, MOST_THREADS)
        self._threads = ThreadPoolExecutor(self.count, "nmflow-tile")
        self._stopped = threading.Event()

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Apply `work` to all items; results in the items' order, with few pieces waiting at a time.

        Raises
        ------
        StoppedError
            If `stop` was called.
        Exception
            What `work` raised first; none of its calls runs any more then.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                if self._stopped.is_set():
                    raise StoppedError
                waiting.append(self._threads.submit(work, item))
                if len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()  # waits: its file may be closed next

    def stop(self) -> None:
        """Let every `map` that is running end soon."""
        self._stopped.set()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
