"""What a peer is: a contestant of another library, and how a matrix is brought to it block by block."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from nmflow.arrays import Array
from nmflow.bench.contest import Contestant, missing
from nmflow.errors import SolverLimitError
from nmflow.pattern import Pattern

__all__ = ["Array", "BlockPeer", "ManyBlocksPeer", "Peer", "grid"]

GRID_BITS = 30
"""Integer costs are scores as multiples of 2**-30 of the largest: far below float32's own precision of 24 bits."""


class Peer(Contestant):
    """A contestant of another library."""

    peer = True
    library = ""
    package = ""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def unable(self, pattern: Pattern) -> str:
        """Why it cannot do a pattern; empty if it can."""
        square = pattern.transposable and pattern.row == pattern.col and pattern.fill == "exact"
        return "" if square else f"{self.name} is set up for square patterns with exact fill, not {pattern}"

    def prepare(self, pattern: Pattern) -> Callable[[Array], Array]:
        reason = self.unable(pattern)
        if reason:
            raise SolverLimitError(reason)
        if self.library and find_spec(self.library) is None:
            raise missing(self.name, self.library, self.package)
        return self.ready(pattern.n, pattern.m)

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        raise NotImplementedError


class OneThread(Peer):
    """A peer that has no use for more."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__(1)


class ManyBlocksPeer(OneThread):
    """A peer whose problems hold many blocks, since to set one up takes long.

    Attributes
    ----------
    entries : int
        Of the blocks of a problem.
    """

    entries: int

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        most = max(1, self.entries // (m * m))
        solve = self.many(n, m, most)
        return lambda weights: _block_by_block(weights, m, most, solve)

    def many(self, n: int, m: int, most: int) -> Callable[[Array], Array]:
        """From the scores of up to so many blocks, float64, a row each, to their masks."""
        raise NotImplementedError


class BlockPeer(OneThread):
    """A peer that takes one block at a time."""

    def ready(self, n: int, m: int) -> Callable[[Array], Array]:
        one = self.one(n, m)

        def run(weights: Array) -> Array:
            mask = np.zeros(weights.shape, np.bool_)
            for i in range(0, weights.shape[0] - m + 1, m):
                for j in range(0, weights.shape[1] - m + 1, m):
                    mask[i : i + m, j : j + m] = one(np.abs(weights[i : i + m, j : j + m].astype(np.float64)))
            return mask

        return run

    def one(self, n: int, m: int) -> Callable[[Array], Array]:
        """From the scores of one block, float64, to its mask."""
        raise NotImplementedError


def _block_by_block(weights: Array, m: int, most: int, solve: Callable[[Array], Array]) -> Array:
    """The mask of a matrix from those of so many blocks at a time, each a row of scores."""
    tall, wide = weights.shape[0] // m, weights.shape[1] // m
    whole = np.abs(weights[: tall * m, : wide * m].astype(np.float64))
    blocks = whole.reshape(tall, m, wide, m).transpose(0, 2, 1, 3).reshape(-1, m * m)
    kept = np.concatenate([solve(blocks[k : k + most]) for k in range(0, len(blocks), most)])
    mask = np.zeros(weights.shape, np.bool_)
    mask[: tall * m, : wide * m] = kept.reshape(tall, wide, m, m).transpose(0, 2, 1, 3).reshape(tall * m, -1)
    return mask


def grid(scores: Array) -> Array:
    """Scores of each block as multiples of 2**-30 of its largest."""
    largest = scores.max(axis=-1, keepdims=True)
    return np.rint(scores * (2.0**GRID_BITS / np.where(largest > 0, largest, 1.0))).astype(np.int64)
