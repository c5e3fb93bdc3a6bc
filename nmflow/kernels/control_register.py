"""The register that rules floating-point arithmetic on a thread: how it rounds, and whether it flushes to zero."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nmflow.kernels.compile import compiled, once

__all__ = ["default_control", "exchange_kernel"]

DEFAULTS = {"x86_64": 0x1F80, "AMD64": 0x1F80, "aarch64": 0, "arm64": 0}
"""What MXCSR or FPCR hold where nothing was changed, by machine."""


def default_control() -> int:
    """What the register holds for arithmetic as IEEE 754 has it.

    Raises
    ------
    RuntimeError
        If that is not known for this machine.
    """
    machine = platform.machine()
    if machine not in DEFAULTS:
        raise RuntimeError(
            f"subnormal numbers must count on this thread, not be flushed to zero, which can't be changed here on "
            f"{machine}; undo what made it so, such as torch.set_flush_denormal(True)"
        )
    return DEFAULTS[machine]


@intrinsic
def _exchange(typing, value):  # type: ignore[no-untyped-def]
    """Write the register; what it held."""
    intel = platform.machine() in ("x86_64", "AMD64")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, i64, none = ir.IntType(32), ir.IntType(64), ir.VoidType()
        if not intel:
            before = builder.asm(ir.FunctionType(i64, []), "mrs $0, fpcr", "=r", [], side_effect=True)
            builder.asm(ir.FunctionType(none, [i64]), "msr fpcr, $0", "r", [args[0]], side_effect=True)
            return before
        place = builder.alloca(i32)
        address = builder.bitcast(place, ir.IntType(8).as_pointer())
        store, load = (
            builder.module.declare_intrinsic(name, (), ir.FunctionType(none, [address.type]))
            for name in ("llvm.x86.sse.stmxcsr", "llvm.x86.sse.ldmxcsr")
        )
        builder.call(store, [address])
        before = builder.load(place)
        builder.store(builder.trunc(args[0], i32), place)
        builder.call(load, [address])
        return builder.zext(before, i64)

    return types.int64(types.int64), codegen


@once
def exchange_kernel() -> Any:
    """Compile the exchange.

    Returns
    -------
    function (value) -> int
        Writes the register of this thread, and returns what it held.
    """

    def exchange(value):  # type: ignore[no-untyped-def]
        return _exchange(value)

    return compiled(exchange, types.int64(types.int64))
