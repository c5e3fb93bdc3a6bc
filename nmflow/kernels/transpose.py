"""Transposes of vectors by shuffles: from the matrix's order to lanes, and back."""

from __future__ import annotations

from collections.abc import Sequence

from nmflow.kernels.simd import I16, LANES, Emitter, Value, vector

__all__ = ["deinterleave", "deinterleave_narrow", "interleave"]


def _strided(emit: Emitter, parts: Sequence[Value], count: int, lane_of: list[int]) -> Value:
    """Gather lanes of several vectors joined, by one two-input shuffle for each vector after the first."""
    joined = parts[0]
    done = [index if index < count else 0 for index in lane_of]
    if len(parts) == 1:
        return emit.pick(joined, done)
    for number in range(1, len(parts)):
        low = number * count
        lanes = []
        for place, index in enumerate(lane_of):
            if number == 1:
                lanes.append(index if index < 2 * count else place)
            else:
                lanes.append(index - low + count if low <= index < low + count else place)
        joined = emit.shuffle(joined, parts[number], lanes)
    return joined


def _factor(count: int) -> int:
    return next((f for f in (2, 3, 5, 7) if count % f == 0), count)


def deinterleave(emit: Emitter, parts: Sequence[Value], count: int = LANES) -> list[Value]:
    """Transpose: from vectors that hold x[b][j] in turn (b of `count`, j of len(parts)) to one vector for each j."""
    groups = len(parts)
    if groups == 1:
        return list(parts)
    f = _factor(groups)
    split = [
        [_strided(emit, parts[k : k + f], count, [lane * f + r for lane in range(count)]) for k in range(0, groups, f)]
        for r in range(f)
    ]
    out: list[Value] = [None] * groups
    for r in range(f):
        out[r::f] = deinterleave(emit, split[r], count)
    return out


def deinterleave_narrow(emit: Emitter, parts: Sequence[Value]) -> list[Value]:
    """The same of lanes of 32 bits, of which the lower 16 are kept.

    Cutting off is a choice of halves: where it also puts even entries before odd ones, what is left to do is cheaper.
    """
    builder = emit.builder
    if len(parts) % 2:
        return deinterleave(emit, [builder.trunc(part, vector(I16, LANES)) for part in parts])
    order = [*range(0, 2 * LANES, 4), *range(2, 2 * LANES, 4)]
    sorted_ = [emit.pick(builder.bitcast(part, vector(I16, 2 * LANES)), order) for part in parts]
    half = LANES // 2
    out: list[Value] = [None] * len(parts)
    for r in range(2):
        lanes = [*range(r * half, (r + 1) * half), *range(LANES + r * half, LANES + (r + 1) * half)]
        joined = [emit.shuffle(sorted_[k], sorted_[k + 1], lanes) for k in range(0, len(parts), 2)]
        out[r::2] = deinterleave(emit, joined)
    return out


def interleave(emit: Emitter, parts: Sequence[Value], count: int = LANES) -> list[Value]:
    """Inverse of `deinterleave`."""
    groups = len(parts)
    if groups == 1:
        return list(parts)
    f = _factor(groups)
    split = [interleave(emit, parts[r::f], count) for r in range(f)]
    out = []
    for k in range(groups // f):
        piece = [split[r][k] for r in range(f)]
        for part in range(f):
            flat = range(part * count, (part + 1) * count)
            out.append(_strided(emit, piece, count, [(t % f) * count + t // f for t in flat]))
    return out
