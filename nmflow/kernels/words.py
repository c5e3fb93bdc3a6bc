"""One block, a line at a time: comparisons become the bits of a word, and distances move eight at once.

Lines hold float64, up to 64 of them, padded to whole vectors; `chunks` says to how many. What a line is compared with
is its own dual (`base`) and those across it (`across`): S - u - v is always rounded in this order, u a row's dual.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.bits import WIDTH, bits_of, each_vector, truths_of
from nmflow.kernels.simd import F64, I32, I64, Emitter, literal, vector

__all__ = ["SHAPE", "best_of", "compare_line", "move_line", "nearest_nodes", "prove_line", "relax_line"]

SHAPE = vector(F64, WIDTH)


def best_of(emit: Emitter, numbers: Any, order: str) -> Any:
    """The best of a vector, in all of its places."""
    for step in (4, 2, 1):
        numbers = emit.better(numbers, emit.pick(numbers, [t ^ step for t in range(WIDTH)]), order)
    return numbers


def _reduced(emit: Emitter, line: Any, base: Any, across: Any, place: Any, by_row: bool) -> Any:
    """S - u - v of one vector of a line."""
    builder = emit.builder
    other = emit.load(builder.add(across, place), SHAPE)
    first, second = (base, other) if by_row else (other, base)
    score = emit.load(builder.add(line, place), SHAPE)
    return builder.fsub(builder.fsub(score, first), second)


@intrinsic(prefer_literal=True)
def compare_line(typing, line, base, across, chunks, by_row):  # type: ignore[no-untyped-def]
    """Where S - u - v is positive, and where it is 0, as two words; bits of the padding are any."""
    by_row_ = bool(literal(by_row))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, base, across, chunks = args[:4]
        base, zero = emit.broadcast(base, WIDTH), emit.splat(F64, WIDTH, 0.0)
        words = [emit.variable(ir.Constant(I64, 0)) for _ in range(2)]

        def compare(number: Any, place: Any) -> None:
            reduced = _reduced(emit, line, base, across, place, by_row_)
            for word, order in zip(words, (">", "=="), strict=True):
                bits = bits_of(builder, builder.fcmp_ordered(order, reduced, zero), number)
                builder.store(builder.or_(builder.load(word), bits), word)

        each_vector(builder, chunks, compare)
        return context.make_tuple(builder, signature.return_type, [builder.load(word) for word in words])

    result = types.UniTuple(types.int64, 2)
    return result(types.int64, types.float64, types.int64, types.int64, by_row), codegen


@intrinsic(prefer_literal=True)
def relax_line(  # type: ignore[no-untyped-def]
    typing, line, base, across, chunks, start, keys, previous, node, ahead, by_row
):
    """Shorten the distances `keys` of the nodes across a line, where a bit of `ahead` says there is an arc.

    start : distance of the line's own node. previous : address of int64, set to `node` where a distance falls. Returns,
    as a word, the nodes whose distance falls to `start`.
    """
    by_row_ = bool(literal(by_row))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, base, across, chunks, start, keys, previous, node, ahead = args[:9]
        base, start, node = (emit.broadcast(x, WIDTH) for x in (base, start, node))
        zero = emit.splat(F64, WIDTH, 0.0)
        near = emit.variable(ir.Constant(I64, 0))

        def relax(number: Any, place: Any) -> None:
            if by_row_:  # a row adds an entry
                dual = emit.load(builder.add(across, place), SHAPE)
                score = emit.load(builder.add(line, place), SHAPE)
                cost = builder.fsub(builder.fadd(base, dual), score)
            else:  # a column drops one
                cost = _reduced(emit, line, base, across, place, False)
            positive = builder.fcmp_ordered(">", cost, zero)
            length = builder.select(positive, builder.fadd(start, cost), start)
            at, to = builder.add(keys, place), builder.add(previous, place)
            old, before = emit.load(at, SHAPE), emit.load(to, vector(I64, WIDTH))
            better = builder.and_(builder.fcmp_ordered("<", length, old), truths_of(builder, ahead, number))
            emit.store(builder.select(better, length, old), at)
            emit.store(builder.select(better, node, before), to)
            as_near = builder.and_(better, builder.fcmp_ordered("==", length, start))
            builder.store(builder.or_(builder.load(near), bits_of(builder, as_near, number)), near)

        each_vector(builder, chunks, relax)
        return builder.load(near)

    i8, f8 = types.int64, types.float64
    return i8(i8, f8, i8, i8, f8, i8, i8, i8, i8, by_row), codegen


@intrinsic
def nearest_nodes(typing, keys, down, across):  # type: ignore[no-untyped-def]
    """The least of all distances, and the nodes that have it: rows and columns, as two words.

    down, across : vectors of rows, and of columns after them.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        keys, down, across = args
        least = emit.variable(emit.splat(F64, WIDTH, float("inf")))

        def fold(number: Any, place: Any) -> None:
            builder.store(emit.better(emit.load(builder.add(keys, place), SHAPE), builder.load(least), "<"), least)

        each_vector(builder, builder.add(down, across), fold)
        every = best_of(emit, builder.load(least), "<")
        words = []
        for start, chunks in ((keys, down), (emit.beyond(keys, down, 8 * WIDTH), across)):
            word = emit.variable(ir.Constant(I64, 0))

            def find(number: Any, place: Any, start: Any = start, word: Any = word) -> None:
                equal = builder.fcmp_ordered("==", emit.load(builder.add(start, place), SHAPE), every)
                builder.store(builder.or_(builder.load(word), bits_of(builder, equal, number)), word)

            each_vector(builder, chunks, find)
            words.append(builder.load(word))
        value = builder.extract_element(every, ir.Constant(I32, 0))
        return context.make_tuple(builder, signature.return_type, [value, *words])

    return types.Tuple((types.float64, types.int64, types.int64))(types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def move_line(typing, duals, dist, chunks, settled, final, by_row):  # type: ignore[no-untyped-def]
    """Move the duals of settled nodes by how much nearer than the end they are: rows down, columns up."""
    by_row_ = bool(literal(by_row))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        duals, dist, chunks, settled, final = args[:5]
        final = emit.broadcast(final, WIDTH)

        def move(number: Any, place: Any) -> None:
            at = builder.add(duals, place)
            old = emit.load(at, SHAPE)
            step = builder.fsub(emit.load(builder.add(dist, place), SHAPE), final)
            moved = builder.fadd(old, step) if by_row_ else builder.fsub(old, step)
            emit.store(builder.select(truths_of(builder, settled, number), moved, old), at)

        each_vector(builder, chunks, move)
        return context.get_dummy_value()

    i8, f8 = types.int64, types.float64
    return types.none(i8, i8, i8, i8, f8, by_row), codegen


@intrinsic(prefer_literal=True)
def prove_line(typing, line, base, across, chunks, kept, ties, sums):  # type: ignore[no-untyped-def]
    """Where duals do not prove what a row keeps, as a word; bits of the padding are any.

    The sign of S - u - v is that of the real number: see `nmflow.kernels.proof`. ties : whether a score that equals the
    rounded u + v proves anything: not if it was rounded itself. sums : address of float64, to which the kept scores of
    each column are added.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        line, base, across, chunks, kept, ties, sums = args
        base, zero = emit.broadcast(base, WIDTH), emit.splat(F64, WIDTH, 0.0)
        ties = emit.broadcast(ties, WIDTH)
        wrong = emit.variable(ir.Constant(I64, 0))

        def prove(number: Any, place: Any) -> None:
            dual = emit.load(builder.add(across, place), SHAPE)
            score = emit.load(builder.add(line, place), SHAPE)
            high = builder.fadd(base, dual)
            part = builder.fsub(high, base)
            low = builder.fadd(builder.fsub(base, builder.fsub(high, part)), builder.fsub(dual, part))
            # with the rounding error of u + v where the score lies on it; NaN compares as false, and is wrong
            on = builder.and_(builder.fcmp_ordered("==", score, high), ties)
            above, below = (
                builder.or_(
                    builder.fcmp_ordered(order, score, high), builder.and_(on, builder.fcmp_ordered(order, zero, low))
                )
                for order in (">", "<")
            )
            tied = builder.and_(on, builder.fcmp_ordered("==", low, zero))
            chosen = truths_of(builder, kept, number)
            right = builder.or_(builder.select(chosen, above, below), tied)
            bits = bits_of(builder, builder.not_(right), number)
            builder.store(builder.or_(builder.load(wrong), bits), wrong)
            at = builder.add(sums, place)
            share = builder.select(chosen, score, zero)
            emit.store(builder.fadd(emit.load(at, SHAPE), share), at)

        each_vector(builder, chunks, prove)
        return builder.load(wrong)

    i8, f8 = types.int64, types.float64
    return i8(i8, f8, i8, i8, i8, types.boolean, i8), codegen
