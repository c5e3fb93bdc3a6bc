"""The order of metadata in CUTLASS's sm80 layout (ColumnMajorInterleaved<2> with reordered rows), and of mask tiles.

Word (r, c) of the row-major metadata goes to `flat = c' // 2 * 2 * R + 2 * r' + c' % 2`, where
`r' = r // G * G + r % 8 * I + r % G // 8` with (G, I) = (32, 4) for 16-bit words and (16, 2) for 32-bit ones; then
the off-diagonal words of each 2 x 2 swap: r' even and c odd go to (r' + 1, c - 1), r' odd and c even to
(r' - 1, c + 1). Source: reorder_meta() in CUTLASS's tools/util/include/cutlass/util/host_reorder.h, as reimplemented
in torch.sparse._semi_structured_conversions (2.13).

So a pair of columns of words is a stretch of its own, and in it the words of 16 lines a_0 .. a_7, b_0 .. b_7 come as
(a_k, b_k of column 0, then a_k, b_k of column 1) for k = 0 .. 7; 16-bit words take two such sixteens in turn. That is
an interleaving of vectors over k, which is how it is done here.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.carry import fill, put
from nmflow.kernels.compile import part
from nmflow.kernels.memory import move_bytes
from nmflow.kernels.simd import Emitter, literal, vector
from nmflow.kernels.transpose import deinterleave, interleave

__all__ = ["CHUNK", "EMPTY", "LINES", "get_tiles", "get_words", "put_tiles", "put_words", "word_size"]

Value = Any
LINES = 32
"""Lines of metadata that are reordered at once: the larger of the two G."""
LINE_BYTES = 16
"""Of each of these lines: 8 words of 16 bits or 4 of 32."""
CHUNK = LINES * LINE_BYTES
EMPTY = 0xEE
"""The codes of two empty groups, at 2:4 and at 1:2."""


def word_size(itemsize: int) -> int:
    """Bytes of a metadata word."""
    return 4 if itemsize == 1 else 2


@intrinsic(prefer_literal=True)
def swizzle_lines(typing, lines, step, chunk, word, back):  # type: ignore[no-untyped-def]
    """Reorder 16 bytes of each of 32 lines into a chunk, a stretch for each pair of columns, or `back`."""
    size, reverse = literal(word), literal(back)
    element, n_words = ir.IntType(8 * size), LINE_BYTES // size
    n_pairs, eighths = n_words // 2, LINES // 8

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit = Emitter(builder)
        eight, line = vector(element, 8), vector(element, n_words)

        def line_at(number: int) -> Value:
            return emit.beyond(args[0], args[1], number)

        def order(pair: int) -> list[list[tuple[int, int]]]:
            """(column, eighth) of the vectors that are interleaved, one list for each stretch of a pair."""
            quads = [[(2 * pair + c, q + half) for c in range(2) for half in range(2)] for q in range(0, eighths, 2)]
            return [quads[0] + quads[1]] if size == 2 else quads

        def place(pair: int, run: int, part: int, parts: int) -> Value:
            return emit.at(args[2], ((pair * (eighths * 2 // parts) + run) * parts + part) * 8 * size)

        if not reverse:
            words = []  # [eighth][column]
            for q in range(eighths):
                read = [emit.load(line_at(8 * q + k), line) for k in range(8)]
                if size == 4:
                    read = [emit.shuffle(a, b, range(8)) for a, b in zip(read[::2], read[1::2], strict=True)]
                words.append(deinterleave(emit, read, 8))
            for pair in range(n_pairs):
                for run, sources in enumerate(order(pair)):
                    mixed = interleave(emit, [words[q][c] for c, q in sources], 8)
                    for part, value in enumerate(mixed):
                        emit.store(value, place(pair, run, part, len(sources)))
            return context.get_dummy_value()
        table: list[list[Value]] = [[None] * n_words for _ in range(eighths)]
        for pair in range(n_pairs):
            for run, sources in enumerate(order(pair)):
                parts = len(sources)
                mixed = [emit.load(place(pair, run, part, parts), eight) for part in range(parts)]
                for (c, q), value in zip(sources, deinterleave(emit, mixed, 8), strict=True):
                    table[q][c] = value
        for q in range(eighths):
            written = interleave(emit, table[q], 8)
            if size == 4:
                written = [emit.pick(value, range(k, k + 4)) for value in written for k in (0, 4)]
            for k, value in enumerate(written):
                emit.store(value, line_at(8 * q + k))
        return context.get_dummy_value()

    return types.none(lines, step, chunk, word, back), codegen


@part
def put_words(codes, step, chunk, target, n_lines, n_bytes, word, large):  # type: ignore[no-untyped-def]
    """Write codes of 32 lines, 16 bytes a line of which n_bytes count, to metadata of n_lines lines."""
    if word == 4:
        swizzle_lines(codes, step, chunk, 4, 0)
    else:
        swizzle_lines(codes, step, chunk, 2, 0)
    for pair in range(n_bytes // (2 * word)):
        put(chunk + pair * LINES * 2 * word, 0, target + pair * n_lines * 2 * word, 0, 1, LINES * 2 * word, large)


@part
def get_words(codes, step, chunk, source, n_lines, n_bytes, word):  # type: ignore[no-untyped-def]
    """Inverse of `put_words`; the bytes that do not count are the codes of empty groups."""
    fill(chunk, CHUNK, EMPTY)
    for pair in range(n_bytes // (2 * word)):
        move_bytes(source + pair * n_lines * 2 * word, chunk + pair * LINES * 2 * word, LINES * 2 * word)
    if word == 4:
        swizzle_lines(codes, step, chunk, 4, 1)
    else:
        swizzle_lines(codes, step, chunk, 2, 1)


@part
def put_tiles(tiles, step, chunk, target, target_step, n_rows, n_bytes, large):  # type: ignore[no-untyped-def]
    """Write n_rows rows of 4 x 4 tiles as rows of 8 x 8 tiles: of each the upper two, then the lower two."""
    for i in range(n_rows // 2):
        upper = tiles + 2 * i * step
        for k in range(0, n_bytes, 4):
            move_bytes(upper + k, chunk + 2 * k, 4)
            move_bytes(upper + step + k, chunk + 2 * k + 4, 4)
        put(chunk, 0, target + i * target_step, 0, 1, 2 * n_bytes, large)


@part
def get_tiles(tiles, step, source, source_step, n_rows, n_bytes):  # type: ignore[no-untyped-def]
    """Inverse of `put_tiles`."""
    for i in range(n_rows // 2):
        upper, from_ = tiles + 2 * i * step, source + i * source_step
        for k in range(0, n_bytes, 4):
            move_bytes(from_ + 2 * k, upper + k, 4)
            move_bytes(from_ + 2 * k + 4, upper + step + k, 4)
