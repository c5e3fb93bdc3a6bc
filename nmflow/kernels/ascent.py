"""Dual ascent over many blocks at once: candidates for the duals, in 16-bit integers.

The dual of one block (see `nmflow.certificate`) is minimised by turns over its row duals u and its column duals v.
With v fixed, row i is optimal for any u_i between the n-th and the (n+1)-th largest of S[i, :] - v; from the
midpoint most blocks come near their optimum, and stepping a little past it (over-relaxation) gets there about twice as
fast. Steps along one line at a time may also rest where the dual is not least: nothing is claimed of where they end.
32 blocks stand side by side in a vector, so a row step and a column step are the same code, and the two order
statistics come from a pruned selection network.

References
----------
Hubara et al., "Accelerated Sparse Neural Training", NeurIPS 2021 (the linear program);
D. Bertsekas, "Network Optimization", 1998, chapter 6 (dual coordinate ascent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nmflow.kernels.ahead import Ahead
from nmflow.kernels.compile import call_address, once, operation
from nmflow.kernels.networks import select_wires
from nmflow.kernels.segments import BITS, VECTOR, first_bits
from nmflow.kernels.simd import I16, I64, LANES, Emitter, literal, loop, vector

__all__ = ["ascend", "ascent_of"]

IN_REGISTERS = 16
"""Most entries of a block whose lanes all stay in vector registers while it ascends."""
HELD = 8
"""Most duals across that stay in registers from line to line."""
EARLY = 3
"""Rounds after the first whose steps are shorter than those of later ones, in blocks of more than 16 a side."""
NOT_LONG = 3
"""Rounds of an ascent of longer steps that have none: the first, which has nothing to go past, and the last two."""


@intrinsic(prefer_literal=True)
def ascend(  # type: ignore[no-untyped-def]
    typing, ascent, lanes, rows_at, cols_at, row_floors, col_floors, rounds, long, ahead, rows, cols, r, c, free,
    clamp_rows, clamp_cols,
):  # fmt: skip
    """Rounds of row and column steps of 32 blocks from the column duals that are there, and a last row step.

    ascent : what `ascent_of` gives for this pattern; small blocks do without the call. lanes : address of rows x cols
    lane vectors. rows_at, cols_at : of the duals; row duals are only written. row_floors, col_floors : of their least
    values, where clamped. rounds : at least 1, and none if columns are `free`. long : 1 for longer steps, but in the
    last rounds and in the smallest blocks, else 0: they get further in many rounds, and less near in few. ahead : see
    `nmflow.kernels.ahead`. Scores of blocks that `first_bits` gives fewer than 16 have at most 15, so that differences
    stay within 16, but for duals far from the scores, which are poor candidates and no more.
    """
    shape = tuple(literal(x) for x in (rows, cols, r, c, free, clamp_rows, clamp_cols))
    here = shape[0] * shape[1] <= IN_REGISTERS or getattr(ascent, "literal_value", None) == 0

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if here:
            _ascend(Emitter(builder), args[1:9], *shape)
        else:
            call_address(builder, args[0], args[1:9])
        return context.get_dummy_value()

    arguments = (
        ascent, lanes, rows_at, cols_at, row_floors, col_floors, types.int64, types.int64, types.int64, rows, cols,
        r, c, free, clamp_rows, clamp_cols,
    )  # fmt: skip
    return types.none(*arguments), codegen


@once
def ascent_of(rows: int, cols: int, r: int, c: int, free: int, clamp_rows: int, clamp_cols: int) -> int:
    """Compile the ascent of one pattern, for any kind of scores; 0 for small blocks.

    Returns
    -------
    operation (lanes, rows_at, cols_at, row_floors, col_floors, rounds, long, ahead) -> 0
    """
    if rows * cols <= IN_REGISTERS:
        return 0

    def rise(lanes, rows_at, cols_at, row_floors, col_floors, rounds, long, ahead):  # type: ignore[no-untyped-def]
        ascend(
            0, lanes, rows_at, cols_at, row_floors, col_floors, rounds, long, ahead,
            rows, cols, r, c, free, clamp_rows, clamp_cols,
        )  # fmt: skip
        return 0

    return operation(rise, 8)


def _ascend(
    emit: Emitter, addresses: Any, rows: int, cols: int, r: int, c: int, free: int, clamp_rows: int, clamp_cols: int
) -> None:
    builder = emit.builder
    lanes, rows_at, cols_at, row_floors, col_floors, rounds, long, ahead = addresses
    kind = vector(I16, LANES)
    sides = (
        _Side(rows, cols, r, cols * VECTOR, VECTOR, rows_at, cols_at, row_floors if clamp_rows else None),
        _Side(cols, rows, c, VECTOR, cols * VECTOR, cols_at, rows_at, col_floors if clamp_cols else None),
    )
    small, one = rows * cols <= IN_REGISTERS, ir.Constant(I64, 1)
    if small:
        scores = [emit.load(emit.at(lanes, t * VECTOR), kind, VECTOR) for t in range(rows * cols)]
        errand = Ahead(emit, ahead, cols, 1)
        for i in range(rows):
            errand.row(ir.Constant(I64, i), one)
        held = [
            [emit.variable(emit.load(emit.at(side.duals, t * VECTOR), kind, VECTOR)) for t in range(side.lines)]
            for side in sides
        ]

        def half(side: int, past: Any, parts: Any) -> None:
            across = [builder.load(slot) for slot in held[1 - side]]
            for i in range(sides[side].lines):
                line = [scores[i * cols + j] if side == 0 else scores[j * cols + i] for j in range(len(across))]
                floor = sides[side].floor(emit, i)
                old = builder.load(held[side][i]) if past else None
                builder.store(_moved(emit, sides[side], line, across, floor, old, past), held[side][i])

    else:
        errand = Ahead(emit, ahead, cols)

        def half(side: int, past: Any, parts: Any) -> None:
            _half_round(emit, sides[side], lanes, past, errand if sides[side].lines == rows else None, parts)

    parts = _parts(builder, rounds)
    half(0, None, parts)
    if not free:
        half(1, None, parts)
        until = ir.Constant(I64, 0) if small else builder.mul(long, builder.sub(rounds, ir.Constant(I64, NOT_LONG)))
        with cgutils.for_range(builder, builder.sub(rounds, one)) as turn:
            past = _past(emit, turn.index, until)
            half(0, past, one)
            half(1, past, one)
        half(0, None, parts)
    if small:
        for side, slots in zip(sides, held, strict=True):
            for t, slot in enumerate(slots):
                emit.store(builder.load(slot), emit.at(side.duals, t * VECTOR), VECTOR)


@dataclass(frozen=True)
class _Side:
    """The lines of one direction: how many, of how many entries, their budget, strides in bytes, addresses."""

    lines: int
    count: int
    budget: int
    line_step: int
    entry_step: int
    duals: Any
    across: Any
    floors: Any

    @property
    def full(self) -> bool:
        """Whether scores take all bits of a lane."""
        return first_bits(max(self.lines, self.count)) > BITS

    def floor(self, emit: Emitter, line: int) -> Any:
        """Least value of the dual of a line, or None."""
        if self.floors is None:
            return None
        return emit.load(emit.at(self.floors, line * VECTOR), vector(I16, LANES), VECTOR)


def _past(emit: Emitter, turn: Any, until: Any) -> tuple[Any, Any]:
    """How far to step past the midpoint: parts of the step to it, by how many bits they are shorter.

    until : the first turn whose step is no longer one. Lines of up to 8 entries take the first part alone, others the
    second too, which is 3 for up to 16.
    """
    builder, one, two, three = emit.builder, *(ir.Constant(I16, bits) for bits in (1, 2, 3))
    is_long = builder.icmp_signed("<", turn, until)
    early = builder.or_(is_long, builder.icmp_signed("<", turn, ir.Constant(I64, EARLY)))
    first, second = builder.select(is_long, one, two), builder.select(early, three, two)
    return emit.broadcast(first, LANES), emit.broadcast(second, LANES)


def _parts(builder: Any, rounds: Any) -> Any:
    """Parts of a row to ask for in the first two half rounds and the last, so that all of it is asked for."""
    one, two, three, four = (ir.Constant(I64, count) for count in (1, 2, 3, 4))
    few, single = builder.icmp_signed("<", rounds, four), builder.icmp_signed("==", rounds, one)
    return builder.select(single, three, builder.select(few, two, one))


def _half_round(emit: Emitter, side: _Side, lanes: Any, past: Any, errand: Ahead | None, parts: Any) -> None:
    """A step of each line, whose scores are in memory; past : as `_moved` has it. parts : as `Ahead` has it."""
    builder, kind = emit.builder, vector(I16, LANES)

    def duals_across() -> list[Any]:
        return [emit.load(emit.at(side.across, t * VECTOR), kind, VECTOR) for t in range(side.count)]

    across = duals_across() if side.count <= HELD else None
    with loop(builder, side.lines) as turn:
        if errand:
            errand.row(turn.index, parts)
        line = emit.beyond(lanes, turn.index, side.line_step)
        ahead = builder.mul(turn.index, ir.Constant(I64, VECTOR))
        dual = builder.add(side.duals, ahead)
        scores = [emit.load(emit.at(line, t * side.entry_step), kind, VECTOR) for t in range(side.count)]
        floor = None if side.floors is None else emit.load(builder.add(side.floors, ahead), kind, VECTOR)
        old = emit.load(dual, kind, VECTOR) if past else None
        fresh = _moved(emit, side, scores, across or duals_across(), floor, old, past)
        emit.store(fresh, dual, VECTOR)
    if errand:
        errand.next(parts)


def _moved(
    emit: Emitter, side: _Side, scores: Sequence[Any], across: Sequence[Any], floor: Any, old: Any, past: Any
) -> Any:
    """The dual of a line: the midpoint of the budget-th and the next largest, or past it as seen from the old one.

    old, past : None for the midpoint; else what `_past` gives.
    """
    builder, count, budget, full = emit.builder, side.count, side.budget, side.full

    def less(a: Any, b: Any) -> Any:
        return emit.call("llvm.ssub.sat", a, b) if full else builder.sub(a, b)

    def more(a: Any, b: Any) -> Any:
        return emit.call("llvm.sadd.sat", a, b) if full else builder.add(a, b)

    wires = [less(score, dual) for score, dual in zip(scores, across, strict=True)]
    ranks = (budget - 1, budget) if budget < count else (budget - 1,)
    select_wires(emit, wires, ranks)
    one = emit.splat(I16, LANES, 1)
    if budget < count:
        # rounded up: an entry that equals the dual is kept, since all that was cut off it is more
        a, b = wires[budget - 1], wires[budget]
        if full:  # what both have, and half of what one has, is half of their sum
            fresh = builder.sub(builder.or_(a, b), builder.ashr(builder.xor(a, b), one))
        else:
            fresh = builder.ashr(builder.add(builder.add(a, one), b), one)
    else:
        fresh = less(wires[budget - 1], one)
    if past:
        # larger blocks gain from a larger step: 1 + 1/4, and 1/8 more, and at last 1/4; a long one has 1/2 for 1/4
        step = less(fresh, old)
        fresh = more(fresh, builder.ashr(step, past[0]))
        if count > 8:
            fresh = more(fresh, builder.ashr(step, past[1] if count > 16 else emit.splat(I16, LANES, 3)))
    return fresh if floor is None else emit.call("llvm.smax", fresh, floor)
