"""What stands beside nmflow on a GPU: other ways to a mask, and the layer that uses one."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS as CUTLASS

from nmflow.torch import solve_on_device
from nmflow.torch.products import by_cusparselt, is_8_x

__all__ = ["by_product", "entropic", "ninety", "perceptron", "timed"]


def timed(device: torch.device, repeats: int, work: Callable[..., Any], *args: Any, **options: Any) -> float:
    """Median milliseconds of `repeats` runs, after three that warm up; on a GPU by events on its stream."""
    for _ in range(3):
        work(*args, **options)
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work(*args, **options)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            started = time.perf_counter()
            work(*args, **options)
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def ninety(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """All 2:4 masks of a block, shape (90, 16)."""
    rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
    blocks = itertools.product(rows, repeat=4)
    found = [block for block in blocks if all(sum(col) == 2 for col in zip(*block, strict=True))]
    return torch.tensor(found, device=device, dtype=dtype).flatten(1)


def by_product(weight: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The best of the 90 masks of each block, by a matrix product (2by4-pretrain's way); its sums round."""
    tall, wide = weight.shape[0] // 4, weight.shape[1] // 4
    blocks = weight.abs().view(tall, 4, wide, 4).transpose(1, 2).reshape(-1, 16)
    chosen = masks[(blocks @ masks.T).argmax(dim=1)]
    return chosen.view(tall, wide, 4, 4).transpose(1, 2).reshape(weight.shape) != 0


def entropic(weight: torch.Tensor, n: int, m: int, iterations: int = 300) -> torch.Tensor:
    """The fractional mask of solver="entropic" on the device, in float32; its rounding is left out, to its favour."""
    tall, wide = weight.shape[0] // m, weight.shape[1] // m
    scores = weight.abs().float().view(tall, m, wide, m).transpose(1, 2).reshape(-1, m, m)
    x = torch.exp(20.0 * (scores / scores.amax(dim=(1, 2), keepdim=True) - 1.0))
    memory = torch.ones_like(x)
    for _ in range(iterations):
        x = x * (n / x.sum(dim=2, keepdim=True))
        x = x * (n / x.sum(dim=1, keepdim=True))
        given = x * memory
        x = given.clamp(max=1.0)
        memory = given / x.clamp(min=1e-30)
    return x


def perceptron(device: torch.device, tokens: int, width: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Forward and backward of a transformer's MLP: dense, and 2:4 both ways through torch's kernels, masks included."""
    # torch's product by CUTLASS is for compute capability 8.x alone, and so is the order in which it packs both ways
    old = device.type == "cuda" and is_8_x(device)

    def layer(rows: int, cols: int) -> torch.Tensor:
        return (torch.randn(rows, cols, device=device) / cols**0.5).bfloat16()

    up, down = layer(hidden, width), layer(width, hidden)
    x = layer(tokens, width)
    grad = layer(tokens, width)

    def step(up: Any, down: Any, up_t: Any, down_t: Any) -> None:
        """The products that multiply by W or its transpose; gradients of weights stay dense in both."""
        h = torch.nn.functional.relu(x @ up_t)
        y = h @ down_t
        back = (grad @ down) * (h > 0)
        _ = back @ up, back.T @ x, grad.T @ h, y

    def packed(weight: torch.Tensor) -> Any:
        masked = weight * solve_on_device(weight, 2, 4).mask
        return CUTLASS.prune_dense_static_sort(masked) if old else by_cusparselt(masked)

    kernels = "CUTLASS" if old else "cuSPARSELt"
    out: dict[str, Any] = {"tokens": tokens, "width": width, "hidden": hidden, "kernels": kernels}
    out["dense_ms"] = timed(device, repeats, step, up, down, up.T, down.T)
    try:
        sparse_up, sparse_down = packed(up), packed(down)
        out["refresh_ms"] = timed(device, repeats, lambda: (packed(up), packed(down)))
        out["sparse_ms"] = timed(device, repeats, step, sparse_up, sparse_down, sparse_up.t(), sparse_down.t())
    except Exception as error:  # what torch's kernels cannot do, they say in many ways
        out["sparse"] = f"not possible: {first_line(error)}"
        return out
    try:
        out["kept_as_masked"] = bool((sparse_up.to_dense() == up * solve_on_device(up, 2, 4).mask).all())
    except Exception as error:
        out["kept_as_masked"] = f"not known: {first_line(error)}"
    return out


def first_line(error: Exception) -> str:
    """What an error says, short."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
