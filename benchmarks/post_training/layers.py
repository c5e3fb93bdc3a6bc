"""What each method takes on one layer of a language model: ``python -m benchmarks.post_training.layers``.

Each figure comes from a process of its own. Writes a JSON file after each, so that an interrupted run goes on where it
was, and layers of other shapes join those that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nmflow.torch as nt
from benchmarks.progress import counted, tell
from benchmarks.rows import measure_rows
from benchmarks.table import head, line
from nmflow.bench.machine import digest_of

__all__ = ["METHODS", "RESULTS", "Inputs", "main", "measure", "shape", "table"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "post-training-layers.json"
SHAPES = ((1024, 1024), (1024, 2752))
"""Outputs and inputs of a decoder's attention and of the last of its three MLP layers, a quarter of Llama 7B's."""
PATTERNS, DTYPES = ("2:4", "8:16"), ("float32", "bfloat16")
TOKENS, TEXT, HELD_OUT = 8192, 2048, 2048
WARM = 64
"""Side of the layer on which kernels are compiled before anything is measured."""
MB = 1e6
Key = tuple[int, int, str, str, str]
"""Outputs, inputs, dtype, pattern, method."""


def _wanda(model: nn.Module, batches: list[torch.Tensor], **options: Any) -> Any:
    return nt.prune_(model, scores=nt.calibrate(model, batches, gram=False, progress=False).scores("wanda"), **options)


METHODS: dict[str, Callable[..., Any]] = {
    "magnitude": lambda model, batches, **options: nt.prune_(model, **options),
    "wanda": _wanda,
    "sparsegpt": lambda model, batches, **options: nt.sparsegpt_(model, batches, progress=False, **options),
    "adaprune": lambda model, batches, **options: nt.adaprune_(model, batches, scores="obs", progress=False, **options),
    "alps": lambda model, batches, **options: nt.alps_(model, batches, progress=False, **options),
}
"""As a caller gets them, from batches to the pruned layer; masks are transposable, and the rest is as by default."""


class Inputs:
    """Correlated activations, as layers of language models see them: a few outlying channels, others alike in scale.

    Each token is a mix of directions whose weights fall off as 1/√k, and noise.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        mixed = max(1, min(256, width // 4))
        self._mix = self._normal(mixed, width) / torch.arange(1.0, mixed + 1).sqrt()[:, None]
        self._scale = (0.5 * self._normal(width)).exp()
        self._scale[torch.randperm(width, generator=self._draw)[: max(1, width // 256)]] *= 20

    def _normal(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._draw)

    def tokens(self, count: int) -> torch.Tensor:
        """The next ones, shape (count, width)."""
        mixed = self._normal(count, len(self._mix)) @ self._mix
        return (mixed + self._normal(count, len(self._scale))) * self._scale


def measure(key: Key, tokens: int) -> dict[str, Any]:
    """Prune a layer in this process, which should be a new one; memory is what it takes beside the libraries."""
    _pruned((WARM, WARM, *key[2:]), 2 * WARM)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dense, pruned, inputs, report, seconds = _pruned(key, tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seen = inputs.tokens(HELD_OUT).to(dense.dtype).double()
    whole = (seen @ dense.double().T).square().sum()
    error = float((seen @ (pruned.double() - dense.double()).T).square().sum() / whole)
    if not (report.proven and math.isfinite(error)):
        raise RuntimeError(f"masks must be proven and errors finite: {report}, {error}")
    solve = report.layers[0].seconds if isinstance(report, nt.PostReport) else None
    return {
        "seconds": seconds, "solve_seconds": solve, "peak_mb": peak * 1024 / MB, "error": error,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _pruned(key: Key, tokens: int) -> tuple[torch.Tensor, torch.Tensor, Inputs, Any, float]:
    """The weight before and after, the source of its inputs, the report, and seconds."""
    outputs, width, dtype, pattern, method = key
    model = nn.Sequential(nn.Linear(width, outputs, bias=False)).to(getattr(torch, dtype))
    inputs, draw = Inputs(width), torch.Generator().manual_seed(1)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(outputs, width, generator=draw) / width**0.5)
    dense = model[0].weight.detach().clone()
    batches = [inputs.tokens(size).to(dense.dtype) for size in _sizes(tokens)]
    begun = time.perf_counter()
    report = METHODS[method](model, batches, pattern=pattern)
    return dense, model[0].weight.detach(), inputs, report, time.perf_counter() - begun


def _sizes(tokens: int) -> Iterator[int]:
    """Tokens of each batch."""
    for first in range(0, tokens, TEXT):
        yield min(TEXT, tokens - first)


def apart(key: Key, tokens: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.post_training.layers", "--one", json.dumps(key)]
    command += ["--tokens", str(tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parents[1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _row(key: Key, tokens: int) -> dict[str, Any]:
    return {"of": key, **apart(key, tokens)}


def table(found: dict[str, Any]) -> str:
    """The section of the page."""
    rows = {tuple(row["of"]): row for row in found["rows"]}
    tokens, machine, versions = found["options"]["tokens"], found["machine"], found["versions"]
    lines = head("outputs x inputs, dtype, pattern", *METHODS)
    for outputs, width, dtype, pattern in dict.fromkeys(key[:4] for key in rows):
        here = [rows.get((outputs, width, dtype, pattern, method)) for method in METHODS]
        least = here[0]["error"] if here[0] else None
        lines.append(line(f"{outputs} x {width}, {dtype}, {pattern}", *(_cell(row, least) for row in here)))
    few = ", ".join(str(width) for width in sorted({key[1] for key in rows if key[1] > tokens}))
    threads = "/".join(str(count) for count in sorted({row["threads"] for row in rows.values()}))
    notes = [f"- For {few} inputs these are too few tokens: XᵀX is singular, and damped."] if few else []
    notes += [] if found["complete"] else ["- Not complete: the run was interrupted."]
    return "\n".join(
        [
            "Seconds from batches to the pruned layer / peak memory in MB beside the libraries, with the layer and its "
            "batches / squared error of the outputs of held-out tokens, over that of magnitude.",
            "", *lines, "",
            f"- {tokens:,} tokens, made from a seed: mixed directions, noise, and a few outlying channels.",
            *notes,
            f"- One run each, in a process of its own. {machine['cpu']}, {machine['usable_cores']} cores, {threads} "
            f"threads; torch {versions['torch']}, Python {versions['python']}, nmflow {versions['nmflow']}.",
        ]
    )  # fmt: skip


def _cell(row: dict[str, Any] | None, least: float | None) -> str:
    if row is None:
        return ""
    share = f" / {row['error'] / least:.3f}" if least else ""
    return f"{row['seconds']:.1f} s / {row['peak_mb']:,.0f}{share}"


def shape(text: str) -> tuple[int, int]:
    """Outputs and inputs, for argparse."""
    outputs, _, width = text.partition("x")
    found = counted(outputs), counted(width)
    if any(side % 16 for side in found):
        raise argparse.ArgumentTypeError(f"must be multiples of 16, not {text!r}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing in the file of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.post_training.layers", description=__doc__)
    parser.add_argument("--shapes", type=shape, nargs="+", default=SHAPES, metavar="OUTPUTSxINPUTS")
    parser.add_argument("--tokens", type=counted, default=TOKENS)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(tuple(options.one), options.tokens)))
        return 0
    keys = [(*sides, *rest) for sides in options.shapes for rest in itertools.product(DTYPES, PATTERNS, METHODS)]
    status = measure_rows(
        options.out, {"tokens": options.tokens},
        {" ".join(map(str, key)): partial(_row, key, options.tokens) for key in keys},
        also={"code": digest_of(HERE, [Path(__file__)])}, fresh=options.fresh, verb="pruning",
    )  # fmt: skip
    if not status:
        tell(f"rows are in {options.out}; python -m benchmarks.post_training.report shows them")
    return status


if __name__ == "__main__":
    sys.exit(main())
