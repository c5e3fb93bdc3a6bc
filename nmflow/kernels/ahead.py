"""Memory fetched ahead: the next group's scores and this group's mask, asked for while lanes ascend.

An ascent computes for long and touches little memory; what comes before and after it reads and writes much, in rows too
short for the processor to see where they go on. So each step of a row asks for a few lines. What is left to ask for is
said in `WORDS` int64 in the workspace: of the scores, and then of the mask, where the first row goes on, where it ends,
and the bytes between rows; and whether scores have 32 bits or more.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from nmflow.kernels.carry import block_at
from nmflow.kernels.compile import part
from nmflow.kernels.memory import LINE, write_word
from nmflow.kernels.simd import I64, LANES, Emitter

__all__ = ["SMALL", "WORDS", "Ahead", "plan_ahead"]

WORDS = 7
"""Numbers that say what is left to ask for."""
SMALL, FAR = 16, 2
"""Most entries of a block whose group is ascended so fast that memory is asked for earlier, which counts where rows of
the matrix are short; and how many groups earlier."""
STEPS = 8
"""Parts in which it is asked for where scores have 32 bits: as many as four rounds have steps of rows or columns. Where
there are fewer rounds a step asks for several parts."""


@part
def plan_ahead(  # type: ignore[no-untyped-def]
    at, scores, stride, item, rows, cols, grid_cols, place, total, mask, mask_stride, whole
):
    """Ask for the scores of the group that begins with block `place` of `total`, and for the mask if it is `whole`.

    Of small blocks a later group is asked for.
    """
    if rows * cols <= SMALL:
        place += FAR * LANES
    count = min(LANES, grid_cols - place % grid_cols) if place < total else 0
    first = block_at(scores, stride, grid_cols, place, rows, cols * item)
    _plan_rows(at, first, count * cols * item, stride)
    _plan_rows(at + 24, mask, whole * LANES * cols, mask_stride)
    write_word(at + 48, item >= 4)


@part
def _plan_rows(at, first, size, step):  # type: ignore[no-untyped-def]
    """Ask for `size` bytes of each row, from the line in which they begin."""
    write_word(at, first & -LINE)
    write_word(at + 8, first + size if size else 0)
    write_word(at + 16, step)


class Ahead:
    """Emits the asking for what the words at an address say, for blocks of `cols` columns."""

    def __init__(self, emit: Emitter, words: Any, cols: int, steps: int = STEPS) -> None:
        # lines of a row at each step: scores of 16 bits and a mask take as many steps as scores of 32 bits
        narrow, wide, mask = (-(-LANES * cols * item // (LINE * steps)) for item in (2, 4, 1))
        self._emit, self._wide = emit, emit.at(words, 48)
        self._parts = [(emit.at(words, 0), narrow, wide, False), (emit.at(words, 24), mask, mask, True)]

    def row(self, index: Any, parts: Any) -> None:
        """Ask for the parts of a row that are due at this step."""
        for asked in self._parts:
            self._ask(*asked, index, parts)

    def mask_row(self, index: Any) -> None:
        """Ask for a part of a row of the mask."""
        self._ask(*self._parts[1], index, ir.Constant(I64, 1))

    def _ask(self, words: Any, few: int, lines: int, write: bool, index: Any, parts: Any) -> None:
        emit, builder = self._emit, self._emit.builder
        at, end, step = (emit.load(emit.at(words, 8 * k), I64) for k in range(3))
        with builder.if_then(builder.icmp_signed("<", at, end)):
            row, size = emit.beyond(at, index, step), self._size(few, lines)
            with cgutils.for_range(builder, parts) as turn:
                place = builder.add(row, builder.mul(turn.index, size))
                for k in range(few):
                    emit.prefetch(emit.at(place, k * LINE), write)
                if few < lines:
                    with builder.if_then(self._is_wide()):
                        for k in range(few, lines):
                            emit.prefetch(emit.at(place, k * LINE), write)

    def next(self, parts: Any) -> None:
        """Go on past these parts of each row."""
        emit, builder = self._emit, self._emit.builder
        for words, few, lines, _ in self._parts:
            by = builder.mul(parts, self._size(few, lines))
            emit.store(builder.add(emit.load(words, I64), by), words)

    def _size(self, few: int, lines: int) -> Any:
        """Bytes of a part."""
        narrow, wide = (ir.Constant(I64, count * LINE) for count in (few, lines))
        return self._emit.builder.select(self._is_wide(), wide, narrow)

    def _is_wide(self) -> Any:
        """Whether scores have 32 bits or more."""
        return self._emit.builder.icmp_signed("!=", self._emit.load(self._wide, I64), ir.Constant(I64, 0))
