"""Train every model under every constraint, seed by seed: ``python -m benchmarks.training.run``.

Writes a JSON file after each run, so that an interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import nmflow
from benchmarks.progress import counted, showing, tell
from benchmarks.store import aside, earlier, moved_to, origin, save
from benchmarks.training.models import MODELS, SPARSE, Digits, make_model
from nmflow.pattern import Pattern
from nmflow.torch import SparseTraining
from nmflow.torch.sharing import Found

__all__ = ["CONSTRAINTS", "RESULTS", "main", "train"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "training.json"
CONSTRAINTS: dict[str, Pattern | None] = {
    "dense": None,
    "unstructured 50%": Pattern(8, 16, transposable=False),
    "2:4 rows only": Pattern(2, 4, transposable=False),
    "2:4 transposable": Pattern(2, 4),
    "4:8 transposable": Pattern(4, 8),
    "8:16 transposable": Pattern(8, 16),
}
SEEDS, EPOCHS, BATCH, RATE, EVERY, DECAY = 5, 50, 64, 0.1, 40, 2e-4
STOP = 0.75
"""Masks are frozen after this share of the steps."""


class Unstructured(SparseTraining):
    """The half of each layer that is largest, wherever it lies."""

    def find_mask(self, layer: Any, weight: Any, last: Found | None) -> Found:
        magnitude = np.abs(weight)
        order = np.argsort(magnitude, axis=None, kind="stable")
        mask = np.ones(weight.size, bool)
        mask[order[: weight.size // 2]] = False
        return Found(mask.reshape(weight.shape))


def train(name: str, constraint: str, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """One training run: test accuracy, and how the masks changed."""
    torch.manual_seed(seed)
    digits, model = Digits.split(seed), make_model(name)
    steps = epochs * (len(digits.train_labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    pattern = CONSTRAINTS[constraint]
    kind = Unstructured if constraint.startswith("unstructured") else SparseTraining
    training = pattern and kind(
        model, optimizer, pattern=pattern, include=SPARSE[name], every=EVERY, decay=DECAY, stop_at=int(STOP * steps)
    )
    generator = torch.Generator().manual_seed(seed)
    started, curve = time.perf_counter(), []
    for _ in range(epochs):
        model.train()
        for images, labels in digits.batches(BATCH, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        curve.append(accuracy(model, digits))
    seconds = time.perf_counter() - started
    row: dict[str, Any] = {"model": name, "constraint": constraint, "seed": seed, "steps": steps, "seconds": seconds}
    if training:
        row["search_seconds"] = sum(record.seconds for record in training.history)
        row["history"] = [{"step": record.step, "flip_rate": record.flip_rate} for record in training.history]
        if kind is Unstructured:
            training.pattern = Pattern(64, 64, transposable=False, fill="at-most")  # which any mask keeps to
        report = training.finish()
        row["density"] = float(np.mean([layer.density for layer in report.layers]))
    return {**row, "curve": curve, "accuracy": accuracy(model, digits)}


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Percent of the test images that are named rightly."""
    model.eval()
    return 100.0 * float((model(digits.test_images).argmax(1) == digits.test_labels).float().mean())


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing in the file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=counted, default=SEEDS)
    parser.add_argument("--epochs", type=counted, default=EPOCHS)
    parser.add_argument(
        "--threads", type=counted, default=1, help="of torch; these models are too small to gain from more"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    head = {
        "epochs": options.epochs, "batch": BATCH, "rate": RATE, "every": EVERY, "decay": DECAY, "stop": STOP,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "nmflow": nmflow.__version__},
        **origin(HERE),
    }  # fmt: skip
    found = earlier(options.out, head, options.fresh)
    if found is None:
        tell(moved_to(aside(options.out), options.fresh))
    rows: dict[str, Any] = {f"{row['model']} {row['constraint']} {row['seed']}": row for row in found or ()}
    todo = [(seed, name, constraint) for seed in range(options.seeds) for name in MODELS for constraint in CONSTRAINTS]
    with showing("training", len(todo)) as report:
        for number, (seed, name, constraint) in enumerate(todo):
            key = f"{name} {constraint} {seed}"
            report(key, number)
            if key in rows:
                continue
            rows[key] = train(name, constraint, seed, options.epochs)
            save(options.out, {"options": head, "rows": list(rows.values())})
    tell(f"{len(todo)} runs in {options.out}; python -m benchmarks.training.report shows them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
