"""The Triton kernels: interpreted on the CPU, and compiled for a card that need not be there; test_gpu.py runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")

from nmflow.torch.versions import TRITON, is_older

HELD_BY = (
    packages_distributions().get("triton", []) if find_spec("triton") else []
)  # its name differs from build to build
needs_triton = pytest.mark.skipif(
    not HELD_BY or is_older(version(HELD_BY[0]), TRITON), reason=f"needs Triton {TRITON} or newer"
)


@needs_triton
@pytest.mark.slow
def test_interpreted() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    cases = Path(__file__).with_name("triton_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=cases.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


COMPILED = """
import json, re
from benchmarks.gpu_code import compiled, counts

for what, side, options in {cases}:
    program = compiled(what, side, **options)
    sums = r"\\b(?:fma|mad|add|sub|div|rcp|sqrt)\\.[\\w.]*f(?:16|32|64)\\w*|\\b\\S*ftz\\S*"
    floats = sorted(set(re.findall(sums, program.asm["ptx"])))
    print(json.dumps([what, side, floats, counts(program)]))
"""
CASES = [
    ("first", 4, {}), ("listed", 4, {"keep": True}), ("first", 4, {"warm": True, "weights": "fp32"}),
    ("first", 8, {"weights": "fp16"}), ("first", 16, {}), ("first", 32, {}), ("listed", 32, {"keep": True}),
    ("score", 4, {}), ("paths", 4, {}), ("paths", 8, {"keep": True}), ("paths", 16, {}), ("paths", 32, {}),
]  # fmt: skip


@needs_triton
@pytest.mark.slow
def test_compiled_for_hopper(tmp_path: Path) -> None:
    """What a card would run: integers decide, nothing spills, loads are wide, duals travel by shuffles."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED.format(cases=CASES)], cwd=Path(__file__).parent.parent,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(CASES)
    for what, side, floats, found in rows:
        # no floating-point sum is there to be fused, but that of kept scores, and nothing is flushed to zero
        assert floats == (["add.rn.f64"] if what == "score" else [])
        assert found["stack"] <= 16
        if what == "paths":
            continue
        if what == "score":
            assert (found["loads"], found["narrowest_load"]) == (2, 64)
            continue
        assert found["registers"] <= 192  # 254 left a multiprocessor eight warps
        # 16 bytes at once, or a row of a block; single entries were loaded before
        assert found["widest_load"] >= (64 if side == 4 else 128)
        assert found["loads"] <= 16
        assert found["barriers"] < 64  # a row at a time through shared memory took more
        assert found["shuffles"] >= (0 if side == 4 else 4 * side)


LAUNCHED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Card:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Card())
run = JITFunction.run
JITFunction.run = lambda self, *args, grid, warmup, **options: run(self, *args, grid=grid, warmup=True, **options)

from nmflow.pattern import Pattern
from nmflow.torch.device import kernels, launch
from nmflow.torch.device.grid import BlockGrid

def programs_for(weight, m, keep=False):
    grid = BlockGrid.of(weight, Pattern(m // 2, m), None, 1)
    mask = torch.zeros(grid.scores.shape, dtype=torch.bool)
    tall, wide = grid.size
    duals = torch.zeros(tall * m, wide).double(), torch.zeros(tall, wide * m).double()
    launch.settle(grid, mask, duals if keep else None, absolute=True, start=duals if keep else None)
    launch.kept_score(grid.scores, mask, absolute=True)
    four = kernels.settle_blocks, kernels.settle_lines, kernels.augment_blocks, kernels.kept_score
    print(*(sum(len(cache[0]) for cache in kernel.device_caches.values()) for kernel in four))

def zeros(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)

for shape in ((64, 64), (16, 1024), (4, 160)):
    programs_for(zeros(*shape), 4)
for shape in ((4, 4), (8, 4), (12, 36), (100, 100)):
    programs_for(zeros(*shape), 4)
programs_for(zeros(64, 32).T, 4)
programs_for(zeros(64, 64), 8, keep=True)
programs_for(zeros(8, 16), 8, keep=True)
"""


@needs_triton
@pytest.mark.slow
def test_launches_compile_what_they_pass(tmp_path: Path) -> None:
    """All of a launch but the launch, under a driver that only says what card there is: and one program for all sizes.

    Two for rows that are contiguous: their stride is a multiple of 16 entries, so that loads are wide, or not.
    """
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED], cwd=Path(__file__).parent.parent,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    aligned, others, transposed = ["2 0 1 1"] * 3, ["4 0 2 2"] * 4, ["6 0 3 3"]
    assert done.stdout.splitlines() == [*aligned, *others, *transposed, "6 2 4 3", "6 2 4 3"]


def test_importing_the_adapter_loads_no_triton_kernels() -> None:
    code = "import sys, nmflow.torch; sys.exit('nmflow.torch.device.kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
