"""What the Triton kernels compile to, counted without a card: registers, spills, wide loads, shuffles, barriers.

    python -m benchmarks.gpu --code

Compiles for compute capability 9.0 as `nmflow.torch.device.launch` would for bfloat16 weights whose rows are contiguous
and whose stride is a multiple of 16; needs Triton, with the assembler and disassembler that it brings.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.table import head, line

__all__ = ["all_counts", "code_section", "compiled", "counts"]

KERNELS = ("first", "listed", "paths", "score")
SIDES = (4, 8, 16, 32)
POINTERS = {
    "mask": "*u8", "old_u": "*fp64", "old_v": "*fp64", "u": "*fp64", "v": "*fp64", "given": "*i32",
    "given_count": "*i32", "open_list": "*i32", "open_count": "*i32", "bad": "*i32", "sums": "*fp64",
}  # fmt: skip
ALIGNED = {"scores", "row_stride", "mask", "width"}
"""What Triton is told to be a multiple of 16."""


def compiled(what: str, side: int, weights: str = "bf16", *, keep: bool = False, warm: bool = False) -> Any:
    """Compile a kernel for half of `side` kept: "first" and "listed" ascent, "paths", "score"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nmflow.torch.device import kernels, launch

    first, more, again = launch.rounds_for(side)
    if what == "score":
        kernel, constants = kernels.kept_score, {"ABSOLUTE": True, "SIZE": 1024}
        warps = 4
    elif what == "paths":
        kernel, constants, warps = kernels.augment_blocks, launch.path_options(side), launch.path_warps(side)
        constants |= {"M": side, "N": side // 2, "ABSOLUTE": True, "KEEP": keep}
    else:
        kernel = kernels.settle_blocks if side < 8 else kernels.settle_lines
        listed = what == "listed"
        constants = {
            "M": side, "N": side // 2, "ROUNDS": more if listed else again if warm else first, "LANES": launch.LANES,
            "NETWORK": launch._network(side, side // 2), "ABSOLUTE": True, "LISTED": listed, "WARM": warm or listed,
            "KEEP": keep,
        }  # fmt: skip
        warps = launch.LANES // 32
    constants["col_stride"] = 1
    names = kernel.arg_names
    types = {name: POINTERS.get(name, f"*{weights}" if name == "scores" else "i32") for name in names}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED if name in names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def counts(program: Any) -> dict[str, int]:
    """Registers and bytes of stack a thread has, and instructions in the program, some of them by their kind."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(program.asm["cubin"])
        used = _output(tools / "cuobjdump", "--dump-resource-usage", str(binary))
        code = _output(tools / "nvdisasm", "-c", str(binary))
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found is not None, used
    names = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)

    def number(pattern: str) -> int:
        return sum(re.match(pattern, name) is not None for name in names)

    loads = [_width(name) for name in names if name.startswith("LDG.")]
    return {
        "registers": int(found[1]), "stack": int(found[2]), "instructions": len(names),
        "loads": len(loads), "widest_load": max(loads), "narrowest_load": min(loads), "shuffles": number("SHFL"),
        "barriers": number("BAR"), "minima": number("VIMNMX"),
    }  # fmt: skip


def code_section(rows: list[dict[str, Any]]) -> str:
    """A table of counts."""
    lines = head("kernel", "m", "registers", "spilled", "instructions", "loads (bits)", "barriers", "compiled in s")
    names = {"first": "ascent, all", "listed": "ascent, listed", "paths": "paths", "score": "kept score"}
    for row in rows:
        widths = sorted({row["narrowest_load"], row["widest_load"]})
        loads = f"{row['loads']} ({' to '.join(map(str, widths))})"
        sizes = (row[name] for name in ("registers", "stack", "instructions"))
        kernel, side = names[row["kernel"]], row["side"] or "any"
        lines.append(line(kernel, side, *sizes, loads, row["barriers"], f"{row['seconds']:.1f}"))
    return "\n".join(lines)


def all_counts() -> list[dict[str, Any]]:
    """Counts of each kernel for each side."""
    rows = []
    for what in KERNELS:
        for side in SIDES if what != "score" else (0,):
            started = time.perf_counter()
            program = compiled(what, side or 4)
            row = {"kernel": what, "side": side, "seconds": time.perf_counter() - started}
            rows.append(row | counts(program))
    return rows


def _width(name: str) -> int:
    """Bits of one load."""
    found = re.search(r"\.(?:U|S)?(8|16|64|128)\b", name)
    return int(found[1]) if found else 32


def _output(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
