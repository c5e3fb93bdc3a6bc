"""Lines of blocks: their scores as integers, and the duals that follow from two order statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from nmflow.torch.device.kernels.common import power_of_two

__all__ = ["columns_apart", "given_duals", "last_step", "line_step", "to_number"]

NARROW = tl.constexpr(25)


@triton.jit
def _middle(w, NETWORK: tl.constexpr, BUDGET: tl.constexpr):
    """The BUDGET-th and the next largest of a line, the larger first.

    What no wanted wire of the network needs, the compiler drops.
    """
    for k in tl.static_range(len(NETWORK)):
        # the larger of two wires goes to the first
        w = (
            w[: NETWORK[k][0]]
            + (tl.maximum(w[NETWORK[k][0]], w[NETWORK[k][1]]),)
            + w[NETWORK[k][0] + 1 : NETWORK[k][1]]
            + (tl.minimum(w[NETWORK[k][0]], w[NETWORK[k][1]]),)
            + w[NETWORK[k][1] + 1 :]
        )
    return w[BUDGET - 1], w[BUDGET]


@triton.jit
def line_step(w, old, relax, less, NETWORK: tl.constexpr, BUDGET: tl.constexpr):
    """New duals of lines, from their scores less the duals across. relax: 0, or -1 to step past the midpoint.

    less : bits by which the last part of that step is shorter than one to the midpoint, where lines are long.
    """
    one, other = _middle(w, NETWORK, BUDGET)
    target = (one + other) >> 1
    step = (target - old) & relax
    target += step >> 2
    if len(w) > 16:
        target += step >> less
    elif len(w) > 8:
        target += step >> 3
    return target & -2


@triton.jit
def last_step(w, NETWORK: tl.constexpr, BUDGET: tl.constexpr):
    """New duals of lines, on the midpoint; and whether a line does not keep BUDGET of what is above them."""
    one, other = _middle(w, NETWORK, BUDGET)
    target = ((one + other) >> 1) & -2
    # all before these two are above the midpoint, and all after them are not
    return target, ((one > target) == (other > target)).to(tl.int32)


@triton.jit
def to_number(raw, shift, ABSOLUTE: tl.constexpr):
    """A score, rounded to odd, in half units; one unit is 2**-shift.

    Whole units go to an integer and back. A product that was flushed to zero was below one unit, and does not come
    back as the score; so no flushing can hide that there is more of it.
    """
    size = raw & 0x7FFFFFFF
    whole = (size.to(tl.float32, bitcast=True) * power_of_two(shift)).to(tl.int32)
    back = (whole.to(tl.float32) * power_of_two(-shift)).to(tl.int32, bitcast=True)
    number = 2 * whole + (back != size).to(tl.int32)
    if not ABSOLUTE:
        number = tl.where(raw < 0, -number, number)
    return number


@triton.jit
def given_duals(at, here, half):
    """Duals that are there, as even numbers in half units, cut off where they are far from the scores."""
    value = tl.load(at, mask=here, other=0.0) * half
    return tl.minimum(tl.maximum(value, -67108864.0), 67108864.0).to(tl.int32) & -2


@triton.jit
def columns_apart(table):
    """The columns of a table of shape (lanes, 4 to 32), one by one."""
    LANES: tl.constexpr = table.shape[0]
    parts = (table,)
    for level in tl.static_range(1, 6):
        if table.shape[1] >> level > 0:
            halves = ()
            for k in tl.static_range(len(parts)):
                pair = parts[k]
                if table.shape[1] >> level > 1:
                    pair = tl.permute(tl.reshape(pair, [LANES, 2, table.shape[1] >> level]), (0, 2, 1))
                first, second = tl.split(pair)
                halves = halves + (first, second)
            parts = halves
    return parts
