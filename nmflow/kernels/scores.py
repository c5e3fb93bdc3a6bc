"""Reading scores: the dtypes that kernels read, their loads as vectors, and their exponents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import config

from nmflow.kernels.simd import F32, F64, I16, I32, I64, LANES, Emitter, vector

__all__ = ["BY_CODE", "KINDS", "ScoreKind"]

Value = Any


@cache
def converts_halves() -> bool:
    """Whether the processor that Numba compiles for has an instruction from float16 to float32; exact, like ours."""
    # as Numba's settings name it, if they do
    name, features = getattr(config, "CPU_NAME", None), getattr(config, "CPU_FEATURES", None)
    if features is None:
        return name is None and bool(get_host_cpu_features().get("f16c"))
    return "+f16c" in features.split(",")


@dataclass(frozen=True)
class ScoreKind:
    """A dtype that kernels read.

    Attributes
    ----------
    code : int
        Number of this kind among KINDS, for literal arguments of kernels.
    itemsize : int
        Bytes of an entry.
    raw : ir.Type
        Integer type of an entry's bits.
    mantissa : int
        Bits of the stored mantissa.
    work : ir.Type
        Type in which scores are compared: every entry is exact in it.
    """

    code: int
    itemsize: int
    raw: ir.Type
    mantissa: int
    work: ir.Type

    @property
    def work_size(self) -> int:
        """Bytes of a number of the work type."""
        return 8 if self.work == F64 else 4

    @property
    def work_dtype(self) -> str:
        """Name of the work type for NumPy."""
        return "float64" if self.work == F64 else "float32"

    @property
    def work_fields(self) -> tuple[ir.Type, int, int]:
        """Integer type of the work type's bits, place of its exponent field, and its bias."""
        return (I64, 52, 1023) if self.work == F64 else (I32, 23, 127)

    @property
    def largest(self) -> float:
        """The largest number of the work type."""
        return float(np.finfo(self.work_dtype).max)

    @property
    def sign_mask(self) -> int:
        """All bits of an entry but its sign."""
        return (1 << (8 * self.itemsize - 1)) - 1

    @property
    def infinity(self) -> int:
        """Bits of infinity: magnitudes at or above it are not finite."""
        return self.sign_mask >> self.mantissa << self.mantissa

    def load_bits(self, emit: Emitter, address: Value, count: int) -> Value:
        """Bits of `count` magnitudes, as integers that are ordered as the magnitudes are."""
        bits = emit.load(address, vector(self.raw, count))
        return emit.builder.and_(bits, emit.splat(self.raw, count, self.sign_mask))

    def load(self, emit: Emitter, address: Value, count: int, absolute: bool) -> Value:
        """Load `count` scores in the work type, exactly."""
        return self.widened(emit, self._raw(emit, address, count, absolute), count)

    def _raw(self, emit: Emitter, address: Value, count: int, absolute: bool) -> Value:
        """Bits of `count` scores."""
        return self.load_bits(emit, address, count) if absolute else emit.load(address, vector(self.raw, count))

    def widened(self, emit: Emitter, bits: Value, count: int) -> Value:
        """Scores of these bits in the work type."""
        builder = emit.builder
        if self.itemsize >= 4:
            return builder.bitcast(bits, vector(self.work, count))
        if self.mantissa == 10 and converts_halves():
            return builder.fpext(builder.bitcast(bits, vector(ir.HalfType(), count)), vector(F32, count))
        bits = builder.zext(bits, vector(I32, count))
        if self.mantissa == 7:  # bfloat16 is the upper half of a float32
            return builder.bitcast(builder.shl(bits, emit.splat(I32, count, 16)), vector(F32, count))
        # float16: move the fields into place; the product by 2**112 rebiases normals and subnormals alike, exactly
        magnitude = builder.shl(builder.and_(bits, emit.splat(I32, count, 0x7FFF)), emit.splat(I32, count, 13))
        value = builder.fmul(builder.bitcast(magnitude, vector(F32, count)), emit.splat(F32, count, 2.0**112))
        sign = builder.shl(builder.and_(bits, emit.splat(I32, count, 0x8000)), emit.splat(I32, count, 16))
        return builder.bitcast(builder.or_(builder.bitcast(value, vector(I32, count)), sign), vector(F32, count))

    def load_doubles(self, emit: Emitter, address: Value, count: int, absolute: bool) -> Value:
        """Load `count` scores as float64, exactly."""
        score = self.load(emit, address, count, absolute)
        return score if self.work == F64 else emit.builder.fpext(score, vector(F64, count))

    def load_kept(self, emit: Emitter, address: Value, kept: Value, absolute: bool) -> Value:
        """Load 32 scores, divided by `kept_scale`, as float64, exactly, in any order, with 0 for what is not kept."""
        builder = emit.builder
        bits = builder.select(kept, emit.load(address, vector(self.raw, LANES)), emit.splat(self.raw, LANES, 0))
        if self._moves_kept(absolute):
            return self._moved_apart(emit, bits)
        score = self.widened(emit, bits, LANES)
        if absolute:
            score = emit.call("llvm.fabs", score)
        return score if self.work == F64 else builder.fpext(score, vector(F64, LANES))

    def _moved_apart(self, emit: Emitter, bits: Value) -> Value:
        """Magnitudes as float64 over `kept_scale`: the first of each 64 bits, then the second ones, and so on.

        A shift and a mask put each where it belongs, less than to take vectors apart and convert what they hold.
        """
        builder, shape = emit.builder, vector(I64, LANES * self.itemsize // 8)
        words, to = builder.bitcast(bits, shape), 52 - self.mantissa
        parts = []
        for at in range(0, 64, 8 * self.itemsize):
            move, by = (builder.shl, to - at) if at < to else (builder.lshr, at - to)
            moved = move(words, emit.splat(I64, shape.count, by))
            parts.append(builder.and_(moved, emit.splat(I64, shape.count, self.sign_mask << to)))
        while len(parts) > 1:
            parts = [emit.shuffle(a, b, range(2 * a.type.count)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return builder.bitcast(parts[0], vector(F64, LANES))

    def kept_scale(self, absolute: bool) -> float:
        """A power of two: bits of magnitudes go where a float64 has them, whose exponents have another bias.

        Sums of what they are there are those of the scores over this, subnormals and all, and take no conversion.
        """
        exponent_bits = 8 * self.itemsize - 1 - self.mantissa
        return 2.0 ** (1024 - (1 << (exponent_bits - 1))) if self._moves_kept(absolute) else 1.0

    def _moves_kept(self, absolute: bool) -> bool:
        return absolute and self.work == F32

    def load_pairs(self, emit: Emitter, address: Value, count: int, absolute: bool) -> list[Value]:
        """Load `count` times 64 scores of bfloat16 as words of two: vectors of the even ones, then of the odd ones.

        To tell the halves of a word apart takes an operation each, less than to widen 16 bits.
        """
        builder = emit.builder
        even, odd = [], []
        for k in range(count):
            words = emit.load(emit.at(address, k * LANES * 4), vector(I32, LANES))
            low = builder.shl(words, emit.splat(I32, LANES, 16))
            if absolute:
                low = builder.and_(low, emit.splat(I32, LANES, 0x7FFFFFFF))
            high = builder.and_(words, emit.splat(I32, LANES, 0x7FFF0000 if absolute else -1 << 16))
            even.append(builder.bitcast(low, vector(F32, LANES)))
            odd.append(builder.bitcast(high, vector(F32, LANES)))
        return even + odd


KINDS = {
    "float32": ScoreKind(0, 4, I32, 23, F32),
    "float64": ScoreKind(1, 8, I64, 52, F64),
    "float16": ScoreKind(2, 2, I16, 10, F32),
    "bfloat16": ScoreKind(3, 2, I16, 7, F32),
}
"""The dtypes that kernels read, by name."""
BY_CODE = {kind.code: kind for kind in KINDS.values()}
