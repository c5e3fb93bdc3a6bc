"""A chunk solved a part at a time: where scores are moved, much more is known of its blocks while they are solved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nmflow.blocks import Chunk
from nmflow.certificate import Proven
from nmflow.duals import Duals
from nmflow.solvers.base import ChunkSolution

__all__ = ["in_parts", "is_large"]

MOST_ENTRIES = 1 << 22
"""Entries of a part."""


def is_large(chunk: Chunk) -> bool:
    """Whether a chunk has more entries than a part, and can be cut."""
    return chunk.mask.size > MOST_ENTRIES and chunk.grid[0] > 1


def in_parts(chunk: Chunk, solve: Callable[[Chunk], ChunkSolution]) -> ChunkSolution:
    """Solve rows of blocks together, as many as a part may have; no entry is fixed."""
    (rows, cols), (tall, wide) = chunk.pattern.block_shape, chunk.grid
    step = max(1, MOST_ENTRIES // (rows * wide * cols))
    counts, kept, others = Counter[str](), 0.0, list[np.ndarray]()
    apart = list[tuple[np.ndarray, np.ndarray, np.ndarray]]()
    for first in range(0, tall, step):
        found = solve(_rows_of(chunk, first, min(first + step, tall)))
        if found.proven is None:  # a score is not finite
            return found
        counts.update(found.counts)
        kept += found.proven.objective
        others.append(found.proven.others + first * wide)
        _, _, blocks, u, v, _ = found.duals
        if blocks is not None and u is not None and v is not None:
            apart.append((blocks + first * wide, u, v))
    duals = Duals(*(chunk.duals or (None, None)))
    if apart:
        blocks, u, v = (np.concatenate(arrays) for arrays in zip(*apart, strict=True))
        duals = duals._replace(blocks=blocks, block_row=u, block_col=v)
    return ChunkSolution(duals, counts=counts, proven=Proven(kept, np.concatenate(others)))


def _rows_of(chunk: Chunk, first: int, end: int) -> Chunk:
    """Some rows of blocks of a chunk."""
    rows, place = chunk.pattern.block_shape[0], chunk.place
    lines, start = slice(first * rows, end * rows), place.block_rows.start
    return replace(
        chunk,
        scores=chunk.scores[lines],
        source=chunk.source[lines],
        mask=chunk.mask[lines],
        start=None if chunk.start is None else chunk.start[lines],
        warm=None if chunk.warm is None else chunk.warm[first:end],
        duals=None if chunk.duals is None else (chunk.duals[0][lines], chunk.duals[1][first:end]),
        place=replace(place, block_rows=slice(start + first, start + end)),
    )
