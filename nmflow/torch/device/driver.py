"""solve_on_device: the contract of `nmflow.solve`, for a tensor that stays on its device."""

from __future__ import annotations

import math
import time
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
import torch

from nmflow.arrays import Layout
from nmflow.asked import check_choice, check_flags, thread_count
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError
from nmflow.pattern import Fill, Pattern
from nmflow.pipeline import as_pattern
from nmflow.problem import Problem
from nmflow.solution import Certificate, Solution
from nmflow.torch.aside import aside
from nmflow.torch.convert import checked
from nmflow.torch.device import plain
from nmflow.torch.device.cpu import finish, solve_on_cpu
from nmflow.torch.device.duals import cut_duals, earlier_duals, space_for_duals
from nmflow.torch.device.engine import MOST_BLOCKS, engine_for
from nmflow.torch.device.grid import BlockGrid
from nmflow.torch.device.outcome import Pair
from nmflow.torch.finite import non_finite_error
from nmflow.torch.memory import ran_out_of_memory

__all__ = ["on_device", "solve_on_device"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Engine = Literal["auto", "triton", "torch"]


def on_device(tensor: torch.Tensor, pattern: Pattern, **options: Any) -> bool:
    """Whether a solve would run on the tensor's own device: a CUDA tensor, exact fill both ways, no other option.

    `options` are those of `nmflow.solve`; None, False, and solver="dual" say nothing.
    """
    told = {name for name, value in options.items() if value is not None and not _nought(value)} - {
        "scores", "layout", "groups", "threads", "duals", "certify", "warm_start",
    }  # fmt: skip
    solver = options.get("solver")
    asked = told - {"solver"} or not (solver is None or (isinstance(solver, str) and solver == "dual"))
    return isinstance(tensor, torch.Tensor) and tensor.is_cuda and _fits(tensor, pattern) and not asked


@aside
def solve_on_device(
    tensor: torch.Tensor,
    n: int | None = None,
    m: int | None = None,
    *,
    pattern: str | Pattern | None = None,
    scores: torch.Tensor | None = None,
    fill: Fill = "exact",
    transposable: bool = True,
    layout: Layout | None = None,
    groups: int = 1,
    threads: int | None = None,
    duals: bool = False,
    warm_start: Solution | None = None,
    engine: Engine = "auto",
) -> Solution:
    """Find the best N:M mask of a tensor on the device that holds it, and prove it there.

    Parameters
    ----------
    tensor : Tensor, shape (R, C) or as ``layout=`` says
        Any strides; not modified. float16, bfloat16 and float32 under exact fill both ways are solved where they are;
        all else is solved on the CPU.
    n, m, pattern, fill, transposable, layout, groups
        As for `nmflow.solve`.
    scores : Tensor of the same shape and device, optional
        What an entry is worth; may be negative. Default: absolute values.
    threads : int, optional
        For blocks that go to the CPU.
    duals : bool
        Keep the duals, to start from (16/m bytes an entry). Blocks are proven by whole numbers of up to 56 bits, before
        these become float64: of some blocks that paths were sent through, and of those that went to the CPU, what is
        returned is rounded and proves nothing by itself.
    warm_start : Solution, optional
        Of this function on the same device, for the same shape and pattern, with duals: where the search starts. They
        are candidates and no more, so values that are not finite do no harm.
    engine : {"auto", "triton", "torch"}
        "auto": Triton for square blocks of side 4, 8, 16 and 32 on a CUDA device, where it can be used, else plain
        torch operations. "triton" takes a CPU only under its interpreter (TRITON_INTERPRET=1).

    Returns
    -------
    Solution
        As `nmflow.solve` returns it; `mask` is a boolean tensor and the duals are tensors of float64, all on the device
        of `tensor`. `stats` counts the blocks that were open after the first ascent, after the second, and those that
        went to the CPU; its engine is "triton", "torch" or, where all went there, "cpu".

    Raises
    ------
    InputTypeError
        If `tensor` or `scores` is no dense tensor of a dtype with scores.
    InputValueError
        If a shape, layout, device, engine or warm start does not fit, or a tensor has no data.
    NonFiniteError
        If a score is NaN or infinite: found in the same pass.

    Notes
    -----
    Ascent in 32-bit integers on all blocks, more of it on those still open, then shortest augmenting paths in 64-bit
    integers; see `docs/gpu.md`. What that leaves (scores of one block more than 2**30 apart, mostly) is solved and
    proven by ``solver="dual"`` on the CPU, in one transfer each way. The host waits for the device once, if no block
    is left. If memory runs out, the matrix is solved in bands.

    Examples
    --------
    >>> s = solve_on_device(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), 1, 2)
    >>> s.mask.tolist(), s.objective, s.proven
    ([[True, False], [False, True]], 6.0, True)
    """
    started = time.perf_counter()
    check_flags(duals=duals)
    thread_count(threads)
    chosen = as_pattern(n, m, pattern, fill=fill, transposable=transposable)
    values = checked(tensor, "tensor")
    absolute = scores is None
    if scores is not None:
        values = checked(scores, "scores")
        if values.device != tensor.device:
            raise InputValueError(
                f"scores must be on the device of tensor, {tensor.device}, not on {values.device}; move one of them"
            )
        if values.shape != tensor.shape:
            raise InputValueError(
                f"scores must have the shape of tensor, {tuple(tensor.shape)}, not {tuple(values.shape)}"
            )
    check_choice(engine, ("auto", "triton", "torch"), "engine")
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputValueError(
            "tensor must be solved outside of a CUDA graph, not while one is captured: the host waits for counts"
        )
    # the checks of rank, layout and groups read shapes alone
    Problem.build(np.broadcast_to(np.zeros((), np.float32), values.shape), chosen, layout=layout, groups=groups)
    if warm_start is not None and not isinstance(warm_start, Solution):
        raise InputTypeError(f"warm_start must be a Solution, not {type(warm_start).__name__}")
    if not _fits(values, chosen):
        if engine != "auto":
            raise InputValueError(
                f'engine must be "auto" for {values.dtype} under {chosen}, which is solved on the CPU, not "{engine}"'
            )
        return solve_on_cpu(values, chosen, absolute, layout, groups, threads, duals, warm_start)
    grid = BlockGrid.of(values, chosen, layout, groups)
    start = None if warm_start is None else earlier_duals(warm_start, grid)
    chosen_engine = engine_for(engine, grid, absolute=absolute, duals=duals)
    tall, wide = grid.size
    bands = -(-tall // max(1, MOST_BLOCKS // wide))
    # what is handed back, whole: each band writes its part, so that nothing is there twice
    flat = torch.empty(grid.scores.shape, dtype=torch.bool, device=values.device)
    kept = space_for_duals(grid) if duals else None
    while True:
        try:
            parts = [
                _solve_band(
                    grid.band(i, bands), grid.cut_rows(flat, i, bands), chosen_engine, absolute,
                    cut_duals(kept, grid, i, bands), cut_duals(start, grid, i, bands), threads,
                )
                for i in range(bands)
            ]  # fmt: skip
            break
        except NonFiniteError:
            raise non_finite_error(values, "weights" if absolute else "scores") from None
        except RuntimeError as error:
            if bands >= tall or not ran_out_of_memory(error):
                raise
            bands = min(tall, 4 * bands)
        torch.cuda.empty_cache()  # Triton takes memory from the device, not from torch
    sums, counts = zip(*parts, strict=True)
    objective = math.fsum(sums)
    # all proven, said by one byte: an array of them took longer to fill than some solves on a device
    status = np.broadcast_to(np.zeros((), np.uint8), tall * wide)
    none = np.empty(0, np.int64)
    certificate = Certificate(chosen, objective, 0.0, objective, status, none, np.empty(0), grid.grids)
    row = col = None
    if kept is not None:
        row, col = (grid.per_matrix(side) for side in kept)
    first, more, rest = (sum(part[k] for part in counts) for k in range(3))
    stats = {
        "blocks": tall * wide, "ascended": first, "augmented": more, "on_cpu": rest, "bands": bands,
        "engine": "torch" if chosen_engine is plain else "triton", "seconds": time.perf_counter() - started,
    }  # fmt: skip
    mask = grid.mask(flat)
    return Solution(
        cast("Any", mask), objective, certificate, "dual", chosen, row_duals=row, col_duals=col, stats=stats
    )


def _nought(value: Any) -> bool:
    """Whether it is False or 0; masks are neither, and have no truth."""
    return isinstance(value, int | float) and not value


def _fits(values: torch.Tensor, pattern: Pattern) -> bool:
    """Whether the engines can do it."""
    return pattern.fill == "exact" and pattern.col is not None and values.dtype in DTYPES


def _solve_band(
    grid: BlockGrid,
    mask: torch.Tensor,
    engine: ModuleType,
    absolute: bool,
    duals: Pair | None,
    start: Pair | None,
    threads: int | None,
) -> tuple[float, list[int]]:
    """Write mask and, if asked, duals; the kept score, and how many blocks were open when."""
    outcome = engine.settle(grid, mask, duals, absolute=absolute, start=start)
    total = engine.kept_score(grid.scores, mask, absolute=absolute)
    # the one time that the host waits: counts are small, so float64 holds them
    *counts, bad, objective = torch.cat([outcome.counts.double(), total[None]]).tolist()
    if bad:
        raise NonFiniteError("scores are not finite", 0, ())
    counts = [int(count) for count in counts]
    if counts[2]:
        blocks = outcome.open_list[: counts[2]].long()
        finish(grid, mask, duals, blocks, absolute, threads)
        objective = float(engine.kept_score(grid.scores, mask, absolute=absolute))
    return objective, counts
