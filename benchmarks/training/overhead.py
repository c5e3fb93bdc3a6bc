"""What mask search costs in training: ``python -m benchmarks.training.overhead``.

Steps of a model of more than 5 million sparse weights, on the CPU, with masks refreshed every 40 steps. Search time is
what SparseTraining records for each refresh: moving weights, solving, moving masks. The same steps are also run dense,
in turn, for what else sparse training costs (masking weights, decay).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.progress import counted, showing, tell
from benchmarks.store import save, setting
from nmflow.torch import SparseTraining

__all__ = ["RESULTS", "main", "measure"]

RESULTS = Path(__file__).resolve().parents[1] / "results" / "training-overhead.json"
EVERY, CYCLES, TARGET = 40, 3, 2.0


def multilayer() -> tuple[nn.Module, torch.Tensor]:
    """Four matrices of 1024 x 1280 or so: 5.2 million weights, and 128 rows of input."""
    model = nn.Sequential(
        *(nn.Linear(1024, 1280), nn.ReLU(), nn.Linear(1280, 1024), nn.ReLU()),
        *(nn.Linear(1024, 1280), nn.ReLU(), nn.Linear(1280, 1024)),
    )
    return model, torch.randn(128, 1024)


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    """The last two stages of a small residual network, without its shortcuts: 5.0 million weights, 8 images."""
    widths = (256, 384, 512, 512)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(8, 256, 8, 8)


MODELS = {"MLP": multilayer, "CNN": convolutional}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> float:
    """Wall time of one cycle of steps."""
    started = time.perf_counter()
    for _ in range(EVERY):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    return time.perf_counter() - started


def measure(name: str, pattern: str, threads: int) -> dict[str, Any]:
    """Dense and sparse cycles in turn, after one of each that does not count (kernels are compiled in it)."""
    pairs = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model, inputs = MODELS[name]()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        training = SparseTraining(model, optimizer, pattern=pattern, every=EVERY, threads=threads) if sparse else None
        pairs.append((model, optimizer, inputs, training))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(CYCLES + 1):
        for place, (model, optimizer, inputs, _) in enumerate(pairs):
            times[place].append(steps(model, optimizer, inputs))
    training = pairs[1][3]
    assert training is not None
    searches = [record.seconds for record in training.history]
    share = [100 * search / whole for search, whole in zip(searches[1:], times[1][1:], strict=True)]
    return {
        "model": name,
        "pattern": pattern,
        "weights": sum(mask.numel() for mask in training.masks.values()),
        "batch": len(pairs[0][2]),
        "step_ms": 1000 * statistics.median(times[1][1:]) / EVERY,
        "dense_step_ms": 1000 * statistics.median(times[0][1:]) / EVERY,
        "search_ms": 1000 * statistics.median(searches[1:]),
        "share_percent": statistics.median(share),
        "worst_percent": max(share),
        "flip_rate": statistics.median(record.flip_rate for record in training.history[1:]),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit code says whether the target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=counted, default=1, help="of torch, and of the solver")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--patterns", nargs="+", default=["2:4", "4:8", "8:16"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    todo = [(name, pattern) for name in options.models for pattern in options.patterns]
    rows: list[dict[str, Any]] = []
    head = {"every": EVERY, "cycles": CYCLES, "threads": options.threads, "target_percent": TARGET}
    where = setting()
    with showing("measuring", len(todo)) as report:
        for number, (name, pattern) in enumerate(todo):
            report(f"{name} {pattern}", number)
            rows.append(measure(name, pattern, options.threads))
            save(options.out, {"options": head, **where, "complete": number + 1 == len(todo), "rows": rows})
    met = all(row["share_percent"] <= TARGET for row in rows)
    for row in rows:
        tell(
            f"{row['model']} {row['pattern']}: {row['search_ms']:.1f} ms a refresh, {row['step_ms']:.0f} ms a step "
            f"(dense {row['dense_step_ms']:.0f}): {row['share_percent']:.2f}% of training"
        )
    tell(f"target of at most {TARGET}%: {'met' if met else 'NOT met'}; written to {options.out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
