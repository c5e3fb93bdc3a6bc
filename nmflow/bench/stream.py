"""The yardstick: read a float32 matrix, write a byte for each entry by a threshold, nothing else.

No program that reads the weights and writes a mask can be much faster (stores past the caches, which this loop does not
make, save some of its traffic); a time given as a multiple of this one says more about a solver, and less about the
machine, than nanoseconds do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Self

import numpy as np

from nmflow.arrays import Array

__all__ = ["Stream", "stream_kernel"]

THRESHOLD = 0.5
"""Any number does: the loop has no branch."""
PART_ENTRIES = 1 << 20
"""Entries of a part: some 0.1 ms of work. A further part costs 2 us to take, a thread 30 us or more to wake: with less
than a part for each thread, one alone is faster."""


@cache
def stream_kernel() -> Callable[[Array, Array, float], None]:
    """Compile the loop for contiguous float32 in and int8 out, before anything is timed."""
    from numba import types

    from nmflow.kernels.compile import compiled

    def stream(matrix, mask, threshold):  # type: ignore[no-untyped-def]
        for i in range(matrix.shape[0]):
            for j in range(matrix.shape[1]):
                mask[i, j] = matrix[i, j] > threshold

    source = types.Array(types.float32, 2, "C", readonly=True)
    made: Callable[[Array, Array, float], None] = compiled(
        stream, types.void(source, types.Array(types.int8, 2, "C"), types.float32)
    )
    return made


class Stream:
    """The loop over one matrix, on threads that stay, into an output that stays.

    Parameters
    ----------
    matrix : ndarray, shape (R, C)
        Read as it is if it is contiguous float32; else a float32 matrix of its shape takes its place.
    threads : int
        At most. Each takes one part of the rows after the other, so that a core that is busy elsewhere does not hold up
        all. There are no more threads than parts: a small matrix is read by the caller alone, which is faster.

    Examples
    --------
    >>> with Stream(np.eye(4, dtype=np.float32), threads=2) as stream:
    ...     stream()
    >>> int(stream.mask.sum())
    4
    """

    def __init__(self, matrix: Array, threads: int) -> None:
        if matrix.dtype != np.float32 or not matrix.flags.c_contiguous or not matrix.flags.aligned:
            # filled with ones: pages of fresh zeros would all be the same physical page, and cost no memory traffic
            matrix = np.ones(matrix.shape, np.float32)
        matrix = matrix.view()
        matrix.flags.writeable = False
        self.entries = matrix.size
        self.threads = max(1, min(threads, len(matrix), matrix.size // PART_ENTRIES))
        self.mask = np.ones(matrix.shape, np.int8)  # written once, so that its pages are there
        count = min(len(matrix), max(self.threads, matrix.size // PART_ENTRIES))
        cuts = [len(matrix) * k // count for k in range(count + 1)]
        self._parts = [(matrix[a:b], self.mask[a:b]) for a, b in itertools.pairwise(cuts)]
        self._pool = ThreadPoolExecutor(self.threads)  # kept: starting a thread takes as long as a small matrix
        self._kernel = stream_kernel()
        self()

    def __call__(self) -> None:
        """Run the loop once."""
        parts = iter(self._parts)
        running = [self._pool.submit(self._run, parts) for _ in range(self.threads - 1)]
        self._run(parts)
        for done in running:
            done.result()

    def _run(self, parts: Iterator[tuple[Array, Array]]) -> None:
        """Take parts until none is left; the interpreter's lock makes taking one from a list's iterator atomic."""
        for matrix, mask in parts:
            self._kernel(matrix, mask, THRESHOLD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._pool.shutdown()
