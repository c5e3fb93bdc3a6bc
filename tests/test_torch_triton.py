"""The Triton kernels: interpreted on the CPU, and compiled for a card that need not be there; test_gpu.py runs them."""

from __future__ import annotations

import os
import re
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
