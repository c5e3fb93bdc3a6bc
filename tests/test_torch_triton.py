"""The Triton kernels: interpreted on the CPU, compiled for a card that need not be there, and run where one is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import families
import pytest

torch = pytest.importorskip("torch")

import nmflow  # noqa: E402
from nmflow.torch import mask_for, solve_on_device  # noqa: E402

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; make test-gpu runs it")


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
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nmflow.torch.device import kernels, launch

place = {"scores": "*bf16", "row_stride": "i64", "col_stride": "i64", "mask": "*u8", "u": "*fp64", "v": "*fp64"}
lists = {"given": "*i32", "given_count": "*i32", "open_list": "*i32", "open_count": "*i32"}
end = {"tall": "i32", "wide": "i32"}
settle = {"ROUNDS": 4, "LANES": 128, "ABSOLUTE": True, "LISTED": False, "WARM": False, "KEEP": False}
for kernel, types, constants in [
    (kernels.settle_blocks, {**place, **lists, "bad": "*i32", **end}, {"M": 4, "N": 2, **settle}),
    (kernels.settle_lines, {**place, **lists, "bad": "*i32", **end}, {"M": 16, "N": 8, **settle}),
    (kernels.augment_blocks, {**place, **lists, **end},
     {"M": 4, "N": 2, "BLOCKS": 32, "PATHS": 8, "ABSOLUTE": True, "KEEP": False}),
]:
    if "LANES" in constants:
        constants["NETWORK"] = launch._network(constants["M"], constants["N"])
    source = ASTSource(fn=kernel, signature={**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print(kernel.__name__, *sorted(set(re.findall(r"\\S*(?:ftz|fma|add[.\\w]*f32|add[.\\w]*f64)\\S*", ptx))))
"""


@needs_triton
@pytest.mark.slow
def test_compiled_for_hopper(tmp_path: Path) -> None:
    """No floating-point sum decides anything, so none is there to be fused or flushed; the floor of a score may be."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert lines.keys() == {"settle_blocks", "settle_lines", "augment_blocks"}
    for found in lines.values():
        assert set(found.split()) <= {"cvt.rmi.ftz.f32.f32"}
    assert re.search("cvt.rmi", done.stdout)  # the search would have found others


def test_importing_the_adapter_loads_no_triton_kernels() -> None:
    code = "import sys, nmflow.torch; sys.exit('nmflow.torch.device.kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("engine", ["triton", "torch"])
@pytest.mark.parametrize("pattern", [(1, 4), (2, 4), (4, 8), (8, 16), (16, 32)], ids=str)
@pytest.mark.parametrize("family", ["gaussian", "few_values", "near_ties", "heavy_tailed", "huge_among_tiny"])
def test_on_the_card(family: str, pattern: tuple[int, int], engine: Any) -> None:
    array = families.FAMILIES[family]((515, 770), 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = torch.from_numpy(array).clamp(-6e4, 6e4).to(dtype)
        best = nmflow.solve(weight.float().numpy(), *pattern)
        found = solve_on_device(weight.cuda(), *pattern, engine=engine, duals=True)
        assert found.mask.is_cuda
        assert found.objective == pytest.approx(best.objective, rel=1e-12)
        assert nmflow.certify(weight.float().numpy(), found.mask.cpu().numpy(), *pattern, absolute=True).proven
        again = solve_on_device(weight.cuda(), *pattern, engine=engine, warm_start=found)
        assert again.objective == pytest.approx(best.objective, rel=1e-12)


@pytest.mark.gpu
@needs_cuda
def test_one_wait_for_the_card() -> None:
    weight = torch.randn(1024, 1024, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    found = solve_on_device(weight, 2, 4)
    assert found.stats["on_cpu"] == 0
    with torch.profiler.profile() as profile:
        solve_on_device(weight, 2, 4)
    waits = [event.count for event in profile.key_averages() if event.key == "cudaStreamSynchronize"]
    assert sum(waits) == 1


@pytest.mark.gpu
@needs_cuda
def test_mask_for_stays_on_the_card() -> None:
    weight = torch.randn(64, 48, device="cuda", dtype=torch.bfloat16)
    mask = mask_for(weight, 4, 8)
    assert mask.device == weight.device
    assert (mask.sum() * 2) == mask.numel()
