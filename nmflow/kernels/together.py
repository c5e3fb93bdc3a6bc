"""Operations that several threads do at a time, without the interpreter between them.

A call that has threads to help it writes the address of its *task* to the *box* of each: there is the address of an
operation and of its job, which it takes beside a number. That is 0 for the call itself, from 1 on for those that help,
and `LAST` when these have ended. A thread that helps watches its box for a moment before it sleeps: to be woken takes
as long as a small matrix, and longer where others hold the interpreter.
"""

from __future__ import annotations

import os
from typing import Any

from numba import types
from numba.extending import intrinsic

from nmflow.kernels.boxes import ABSENT, BUSY, COUNT, IDLE, LAST, MORE, NOT_ENDED, NUMBER, STATE
from nmflow.kernels.compile import call, compiled, once, part
from nmflow.kernels.memory import read_word, write_word
from nmflow.kernels.simd import I64

__all__ = ["call_kernel", "help_kernel", "watch_kernel"]

HAS_YIELD = os.name == "posix"
LOOKS = 1500 if HAS_YIELD else 150_000
"""Looks before a thread sleeps, some .75 ms in all: longer than a call takes beside its kernels."""

_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@part
def _let_others_run():  # type: ignore[no-untyped-def]
    """Let a thread run that waits for this processor: the one that is watched can be it."""
    if HAS_YIELD:
        _sched_yield()


@intrinsic
def look(typing, address):  # type: ignore[no-untyped-def]
    """Load an int64 that another thread may write."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def change(typing, address, before, after):  # type: ignore[no-untyped-def]
    """Write `after` where an int64 is `before`, at once; whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], I64.as_pointer())
        found = builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(address, types.int64, types.int64), codegen


@part
def _do(task, number):  # type: ignore[no-untyped-def]
    """Do a task; what its operation says."""
    return call(read_word(task), (read_word(task + 8), number))


@once
def call_kernel() -> Any:
    """Compile the call of a task.

    Returns
    -------
    function (task, boxes, count) -> int
        task : see above. boxes : address of the addresses of `count` boxes.
        What the operation says that is called last, after all threads that help have ended; if that is `MORE`, all
        begins again. `NOT_ENDED` where one is still at it after a moment: then this is to be called once more when its
        box says otherwise.
    """
    looks, number, absent, busy, not_ended, more = LOOKS, 8 * (NUMBER - STATE), ABSENT, BUSY, NOT_ENDED, MORE

    def together(task, boxes, count):  # type: ignore[no-untyped-def]
        said = more
        while said == more:
            for k in range(count):
                box = read_word(boxes + 8 * k)
                write_word(box + number, k + 1)
                while not change(box, look(box), task):
                    pass
            if count:
                _do(task, 0)
            left, ended = looks, True
            for k in range(count):
                box = read_word(boxes + 8 * k)
                while not change(box, task, absent) and look(box) == busy:  # who comes late finds nothing
                    left -= 1
                    _let_others_run()
                    if left < 0:
                        ended = False
                        break
            said = _do(task, LAST) if ended else not_ended
        return said

    return compiled(together, types.int64(*[types.int64] * 3))


@once
def help_kernel() -> Any:
    """Compile the helping of a thread.

    Returns
    -------
    function (box, ended, seen) -> int
        Writes 1 to the int64 at address `ended`, if that is not 0, and does what comes to the box, until nothing came
        for a moment or its count is no longer `seen`.
    """
    looks, number, count, absent, idle, busy = LOOKS, 8 * (NUMBER - STATE), 8 * (COUNT - STATE), ABSENT, IDLE, BUSY

    def serve(box, ended, seen):  # type: ignore[no-untyped-def]
        if ended:
            change(ended, 0, 1)
        left = looks
        while True:
            state = look(box)
            if state == absent:
                change(box, absent, idle)
            elif state != idle:
                if change(box, state, busy):
                    _do(state, read_word(box + number))
                    change(box, busy, idle)
                    left = looks
            elif left <= 0 or look(box + count) != seen:
                if change(box, idle, absent):
                    return 0
            else:
                left -= 1
                _let_others_run()

    return compiled(serve, types.int64(*[types.int64] * 3))


@once
def watch_kernel() -> Any:
    """Compile the watching for the end of what a thread does in the interpreter.

    Returns
    -------
    function (address) -> int
        The int64 there as soon as it is not 0, or after a moment.
    """
    looks = LOOKS

    def watch(address):  # type: ignore[no-untyped-def]
        for _ in range(looks):
            if look(address):
                break
            _let_others_run()
        return read_word(address)

    return compiled(watch, types.int64(types.int64))
