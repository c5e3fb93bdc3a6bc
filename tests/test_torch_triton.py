"""The Triton kernels: interpreted on the CPU, and compiled for a card that need not be there; test_gpu.py runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


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
    floats = sorted(set(re.findall(r"[a-z]\\S*(?:ftz|fma|add[.\\w]*f32|add[.\\w]*f64)\\S*", program.asm["ptx"])))
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
        # no floating-point sum is there to be fused, and nothing is flushed to zero
        assert floats == []
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


def test_importing_the_adapter_loads_no_triton_kernels() -> None:
    code = "import sys, nmflow.torch; sys.exit('nmflow.torch.device.kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
