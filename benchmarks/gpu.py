"""Masks on a GPU, timed by CUDA events: every figure of docs/gpu.md that needs a card.

    python -m benchmarks.gpu             all of it, some minutes
    python -m benchmarks.gpu --quick     small sizes; --device cpu rehearses the program without a card
    python -m benchmarks.gpu --shares    blocks open after each step, which needs no card

Writes benchmarks/results/gpu.json, or gpu-shares.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import nmflow
from benchmarks.page import fill_page
from nmflow.bench.machine import machine, source_digest, versions
from nmflow.torch import solve_on_device

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
TARGETS = {"2:4": 0.5, "4:8": 1.0, "8:16": 2.0, "16:32": 6.0}
"""Milliseconds for 8192 x 8192 in bfloat16, cold; a refresh is to be three times as fast."""


def timed(device: torch.device, repeats: int, work: Callable[..., Any], *args: Any, **options: Any) -> float:
    """Median milliseconds of `repeats` runs, after three that warm up."""
    for _ in range(3):
        work(*args, **options)
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work(*args, **options)
            end.record()
            torch.cuda.synchronize()
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


def masks(device: torch.device, size: int, repeats: int) -> list[dict[str, Any]]:
    """Time to a proven mask, cold and from the last duals; and what others take for theirs, in the same run."""
    rows = []
    generator = torch.Generator(device).manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weight = torch.randn(size, size, device=device, generator=generator).to(dtype)
        step = 1e-3 * torch.randn(size, size, device=device, generator=generator).to(dtype)
        for pattern, target in TARGETS.items():
            n, m = map(int, pattern.split(":"))
            cold = solve_on_device(weight, n, m, duals=True)
            moved = (weight + step).to(dtype)
            row = {
                "weights": str(dtype).removeprefix("torch."), "size": size, "pattern": pattern,
                "proven": cold.certificate.proven, "stats": {k: v for k, v in cold.stats.items() if k != "seconds"},
                "cold_ms": timed(device, repeats, solve_on_device, weight, n, m),
                "refresh_ms": timed(device, repeats, solve_on_device, moved, n, m, warm_start=cold),
                "target_ms": target if size == 8192 and dtype == torch.bfloat16 else None,
            }  # fmt: skip
            rows.append(row)
            peers: dict[str, tuple[Any, ...]] = {}
            if dtype == torch.bfloat16:
                # 300 rounds over the whole would take most of the time there is
                peers["entropic, a quarter of the matrix, not rounded"] = (entropic, weight[: size // 4], n, m)
            if dtype == torch.bfloat16 and pattern == "2:4":
                peers["90 masks by a matrix product"] = (by_product, weight, ninety(device, dtype))
                peers["torch._sparse_semi_structured_tile"] = (torch._sparse_semi_structured_tile, weight, "", True)
            for name, work in peers.items():
                try:
                    row[name] = timed(device, max(3, repeats // 4), *work)
                except (RuntimeError, NotImplementedError) as error:
                    row[name] = f"not possible: {str(error).splitlines()[0]}"
            print(row, flush=True)
    return rows


def shares(size: int) -> list[dict[str, Any]]:
    """How many blocks are open after each step: the same on every machine and with both engines."""
    rows = []
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(2))
    for pattern in ("1:4", *TARGETS):
        n, m = map(int, pattern.split(":"))
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            stats = solve_on_device(normal.to(dtype), n, m, engine="torch").stats
            name = str(dtype).removeprefix("torch.")
            row = {"pattern": pattern, "weights": name, "size": size}
            rows.append(row | {key: stats[key] for key in ("blocks", "ascended", "augmented", "on_cpu")})
    return rows


def agreement(device: torch.device, size: int) -> list[dict[str, Any]]:
    """The objective against `dual` on the CPU, at a size that it does in seconds."""
    rows = []
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(1)).bfloat16()
    for pattern in TARGETS:
        n, m = map(int, pattern.split(":"))
        found = solve_on_device(weight.to(device), n, m)
        best = nmflow.solve(weight.float().numpy(), n, m)
        rows.append({"pattern": pattern, "size": size, "difference": found.objective - best.objective})
    return rows


def perceptron(device: torch.device, tokens: int, width: int, hidden: int, repeats: int) -> dict[str, Any]:
    """Forward and backward of a transformer's MLP: dense, and 2:4 both ways through torch's kernels, masks included."""
    from torch.sparse import SparseSemiStructuredTensorCUTLASS as Sparse

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

    out: dict[str, Any] = {
        "tokens": tokens, "width": width, "hidden": hidden,
        "dense_ms": timed(device, repeats, step, up, down, up.T, down.T),
    }  # fmt: skip

    def packed(weight: torch.Tensor) -> Any:
        mask = solve_on_device(weight, 2, 4).mask
        return Sparse.prune_dense_static_sort(weight * mask)

    try:
        sparse_up, sparse_down = packed(up), packed(down)
        out["refresh_ms"] = timed(device, repeats, lambda: (packed(up), packed(down)))
        out["sparse_ms"] = timed(device, repeats, step, sparse_up, sparse_down, sparse_up.t(), sparse_down.t())
        out["kept_as_masked"] = bool((sparse_up.to_dense() == up * solve_on_device(up, 2, 4).mask).all())
    except (RuntimeError, NotImplementedError, ValueError) as error:
        out["sparse"] = f"not possible: {str(error).splitlines()[0]}"
    print(out, flush=True)
    return out


def shares_table(found: dict[str, Any]) -> str:
    """Percent of blocks open after each step."""
    lines = ["| pattern | weights | after ascent % | after more of it % | after paths % |", "| --- " * 5 + "|"]
    for row in found["rows"]:
        parts = (f"{100 * row[key] / row['blocks']:.2f}" for key in ("ascended", "augmented", "on_cpu"))
        lines.append(f"| {row['pattern']} | {row['weights']} | {' | '.join(parts)} |")
    return "\n".join(lines)


def card_table(found: dict[str, Any]) -> str:
    """Times of each pattern, and all else as it was measured."""
    where, kit = found["card"], found["versions"]
    on = f"{where['name']}, CUDA {where['cuda']}, driver {where['driver']}"
    lines = [f"{on}, torch {kit['torch']}, Triton {kit['triton']}; measured {found['measured']}.", ""]
    lines += ["| pattern | weights | cold ms | refresh ms | goal ms | beside it, ms |", "| --- " * 6 + "|"]
    known = {"weights", "size", "pattern", "proven", "stats", "cold_ms", "refresh_ms", "target_ms"}
    for row in found["masks"]:
        beside = "; ".join(f"{name}: {_ms(row[name])}" for name in row if name not in known)
        goal = "" if row["target_ms"] is None else f"{row['target_ms']:g}"
        times = f"{_ms(row['cold_ms'])} | {_ms(row['refresh_ms'])} | {goal} | {beside}"
        lines.append(f"| {row['pattern']} | {row['weights']} | {times} |")
    layer = "; ".join(f"{name}: {_ms(value)}" for name, value in found["perceptron"].items())
    return "\n".join([*lines, "", f"MLP, milliseconds: {layer}."])


def _ms(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": None}
    properties = torch.cuda.get_device_properties(device)
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: None)()
    return {
        "name": properties.name, "memory": properties.total_memory, "multiprocessors": properties.multi_processor_count,
        "capability": torch.cuda.get_device_capability(device), "cuda": torch.version.cuda, "driver": driver,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.shares:
        found = {"versions": versions(), "source": source_digest(), "rows": shares(1024)}
        RESULTS.with_name("gpu-shares.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        fill_page(PAGE, {"shares": shares_table(found)})
        return
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --quick rehearses the program")
    size, repeats = (256, 4) if args.quick else (8192, 20)
    shape = (64, 128, 256) if args.quick else (8192, 4096, 14336)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"), "card": card(device), "machine": machine(),
        "versions": {**versions(), "triton": _version("triton")}, "source": source_digest(),
        "agreement": agreement(device, 256 if args.quick else 2048), "masks": masks(device, size, repeats),
        "perceptron": perceptron(device, *shape, repeats),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.out == RESULTS and not args.quick and device.type == "cuda":
        fill_page(PAGE, {"card": card_table(result)})


if __name__ == "__main__":
    main()
