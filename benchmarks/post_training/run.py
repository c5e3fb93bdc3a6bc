"""Prune two pretrained models by every method at every pattern: ``python -m benchmarks.post_training.run``.

Writes a JSON file after each run, so that an interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nmflow
import nmflow.torch as nt
from benchmarks.post_training.minilm import EXCLUDE, FOLDER, Reference
from benchmarks.post_training.sentences import generate
from benchmarks.progress import counted, showing, tell
from benchmarks.store import aside, earlier, moved_to, origin, save
from nmflow.pattern import Pattern

__all__ = ["KINDS", "METHODS", "PATTERNS", "RESULTS", "main"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "post-training.json"
PATTERNS = ("8:16", "2:4", "4:8", "16:32")
KINDS = ("transposable", "rows only", "transposable, greedy masks")
CALIBRATION, HELD_OUT, SEEDS = 512, 256, 3
Method = Callable[..., Any]

METHODS: dict[str, Method] = {
    "magnitude": lambda model, batches, more, calibration, **options: nt.prune_(model, **options),
    "wanda": lambda model, batches, more, calibration, **options: nt.prune_(
        model, scores=calibration().scores("wanda"), **options
    ),
    "sparsegpt": lambda model, batches, more, calibration, **options: nt.sparsegpt_(model, batches, **options),
    "adaprune": lambda model, batches, more, calibration, **options: nt.adaprune_(
        model, batches, scores="obs", **options
    ),
    "alps": lambda model, batches, more, calibration, **options: nt.alps_(model, batches, **options),
}
"""The last two are sequential, and fit all kept weights, layer after layer, to what the dense model gives; "adaprune"
has masks by "obs"."""
LAYERWISE: dict[str, Method] = {
    "adaprune, |w|, each layer alone": lambda model, batches, more, calibration, **options: nt.adaprune_(
        model, calibration(), sequential=False, **options
    ),
    "adaprune, obs, follow=own": lambda model, batches, more, calibration, **options: nt.adaprune_(
        model, batches, scores="obs", follow="own", **options
    ),
    "adaprune, twice the samples": lambda model, batches, more, calibration, **options: nt.adaprune_(
        model, batches + more, scores="obs", **options
    ),
    "alps, twice the samples": lambda model, batches, more, calibration, **options: nt.alps_(
        model, batches + more, **options
    ),
    "alps, damping=0.05": lambda model, batches, more, calibration, **options: nt.alps_(
        model, batches, damping=0.05, **options
    ),
    "alps, damping=0.2": lambda model, batches, more, calibration, **options: nt.alps_(
        model, batches, damping=0.2, **options
    ),
    "sparsegpt, refit, follow=dense": lambda model, batches, more, calibration, **options: nt.sparsegpt_(
        model, batches, refit=True, follow="dense", absorb_mean=True, **options
    ),
}
"""What each part of the reconstruction brings: at 8:16 transposable only."""


def options_of(pattern: str, kind: str) -> dict[str, Any]:
    """Pattern and solver."""
    chosen = Pattern.parse(pattern, transposable=kind != "rows only")
    return {"pattern": chosen, "solver": "greedy" if "greedy" in kind else "dual", "threads": 1}


def todo(seeds: int) -> Iterator[tuple[str, str, str, str]]:
    """(model, pattern, kind, method) of every run, what matters most first."""
    for model in ("MiniLM", *(f"CNN {seed}" for seed in range(seeds))):
        extra = [name for name in LAYERWISE if model == "MiniLM" or "twice" not in name]
        yield from ((model, "8:16", "transposable", method) for method in (*METHODS, *extra))
        for pattern in PATTERNS:
            for kind in KINDS:
                if (pattern, kind) != ("8:16", "transposable"):
                    yield from ((model, pattern, kind, method) for method in METHODS)


class Sentence:
    """MiniLM: close to the dense embeddings of held-out sentences."""

    def __init__(self, calibration: int, held_out: int) -> None:
        self.reference = Reference.load(generate(calibration, held_out))
        self.dense, self.batches = self.reference.model, self.reference.batches
        self.more = self.reference.more
        self.options: dict[str, Any] = {"exclude": EXCLUDE}
        self.calibration = cache(lambda: nt.calibrate(self.dense, self.batches, exclude=EXCLUDE))

    def grade(self, model: nn.Module) -> dict[str, Any]:
        """Held-out sentences."""
        return self.reference.grade(model)


class Digit:
    """The CNN of benchmarks.training, trained dense: test accuracy."""

    def __init__(self, seed: int, epochs: int) -> None:
        from benchmarks.training.models import SPARSE, Digits

        self.digits = Digits.split(seed)
        self.dense = trained(self.digits, seed, epochs)
        self.batches, self.more = list(self.digits.train_images.split(128)), []
        self.options: dict[str, Any] = {"include": SPARSE["CNN"]}
        self.calibration = cache(lambda: nt.calibrate(self.dense, self.batches, include=SPARSE["CNN"]))

    def grade(self, model: nn.Module) -> dict[str, Any]:
        """Test images, and again with batch normalisation estimated anew."""
        from benchmarks.training.run import accuracy

        found = {"accuracy": accuracy(model, self.digits), "dense_accuracy": accuracy(self.dense, self.digits)}
        nt.reestimate_batch_norm_(model, self.batches)
        return {**found, "accuracy_reestimated": accuracy(model, self.digits)}


def trained(digits: Any, seed: int, epochs: int) -> nn.Module:
    """The CNN of benchmarks.training after as many epochs without masks."""
    from benchmarks.training.models import make_model
    from benchmarks.training.run import BATCH, RATE

    torch.manual_seed(seed)
    model = make_model("CNN")
    steps = epochs * (len(digits.train_labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for images, labels in digits.batches(BATCH, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing in the file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=counted, default=CALIBRATION, help="sentences to calibrate on")
    parser.add_argument("--held-out", type=counted, default=HELD_OUT, help="sentences of each of the two held-out sets")
    parser.add_argument("--seeds", type=counted, default=SEEDS, help="of the CNN")
    parser.add_argument("--epochs", type=counted, default=50, help="of the CNN")
    parser.add_argument("--only", default="", help="models whose name begins so")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    head = {
        "calibration": options.calibration, "held_out": options.held_out, "epochs": options.epochs,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "nmflow": nmflow.__version__},
        **origin(HERE, HERE.parent / "training"),
    }  # fmt: skip
    found = earlier(options.out, head, options.fresh)
    rows: dict[str, Any] = {" | ".join(row["key"]): row for row in found or ()}
    left = [key for key in todo(options.seeds) if key[0].startswith(options.only) and " | ".join(key) not in rows]
    if any(key[0] == "MiniLM" for key in left) and not FOLDER.exists():
        tell(f"{FOLDER} must exist; make run unpacks it")
        return 2
    if found is None:
        tell(moved_to(aside(options.out), options.fresh))
    subject: Any = None
    name = ""
    with showing("pruning", len(left)) as report:
        for number, key in enumerate(left):
            model, pattern, kind, method = key
            report(" | ".join(key), number)
            if model != name:
                seeded = model.startswith("CNN")
                subject = (
                    Digit(int(model.split()[1]), options.epochs)
                    if seeded
                    else Sentence(options.calibration, options.held_out)
                )
                name = model
            pruned = copy.deepcopy(subject.dense)
            begun, cpu = time.perf_counter(), time.process_time()
            done = (METHODS | LAYERWISE)[method](
                pruned,
                subject.batches,
                subject.more,
                subject.calibration,
                **options_of(pattern, kind),
                **subject.options,
            )
            row = {"key": key, "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
            row |= {"layers": len(done.layers), "proven": done.proven, **subject.grade(pruned)}
            row |= {"density": sum(layer.density for layer in done.layers) / len(done.layers)}
            if isinstance(done, nt.PostReport):
                row |= {
                    "error": sum(layer.error for layer in done.layers) / len(done.layers),
                    "masked_error": sum(layer.masked_error for layer in done.layers) / len(done.layers),
                    "rows": min(layer.rows for layer in done.layers),
                }
            rows[" | ".join(key)] = row
            save(options.out, {"options": head, "rows": list(rows.values())})
    tell(f"{len(rows)} runs in {options.out}; python -m benchmarks.post_training.report shows them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
