"""Masks on a GPU, timed by CUDA events: every figure of docs/gpu.md that needs a card.

    python -m benchmarks.gpu --test      the first figures, the tests that need a card, then all else that is measured
    python -m benchmarks.gpu             what is measured alone
    python -m benchmarks.gpu --quick     small sizes; --device cpu rehearses the program without a card
    python -m benchmarks.gpu --report    write the page from the results that are there; needs no card
    python -m benchmarks.gpu --shares    blocks open after each step; needs no card
    python -m benchmarks.gpu --code      what the kernels compile to; needs Triton, and no card

Writes benchmarks/results/gpu.json after each row (or what --out= names) and docs/gpu.md at the end. Stopped, by
--minutes or otherwise, it goes on where it was; rows that failed are tried again after those that were never run.
Where a row leaves the device unusable the run ends, and the next goes on with the others. --fresh begins anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import nmflow
from benchmarks.gpu_code import all_counts, code_section
from benchmarks.gpu_peers import by_product, entropic, first_line, ninety, perceptron, timed
from benchmarks.gpu_report import card_section, shares_section
from benchmarks.page import fill_page
from benchmarks.store import INTERRUPTED, Store, load, save
from nmflow.bench.machine import source_digest, versions
from nmflow.torch import solve_on_device
from nmflow.torch.device import ascent, launch, plain
from nmflow.torch.device.grid import BlockGrid

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
TARGETS = {"2:4": 0.5, "4:8": 1.0, "8:16": 2.0, "16:32": 6.0}
"""Milliseconds for 8192 x 8192 in bfloat16, cold; a refresh is to be three times as fast."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Row = dict[str, Any]
Work = Callable[[], Row]


class Bench:
    """What is measured, one method a kind of row.

    Parameters
    ----------
    device : torch.device
    size : int
        Side of the matrix.
    repeats : int
        Runs of which the median is taken.
    """

    def __init__(self, device: torch.device, size: int, repeats: int) -> None:
        self.device, self.size, self.repeats = device, size, repeats

    def weight(self, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
        """Gaussian weights, made on the CPU so that every device gets the same."""
        normal = torch.randn(self.size, self.size, generator=torch.Generator().manual_seed(seed))
        return normal.to(dtype).to(self.device)

    def mask(self, pattern: str, dtype: torch.dtype) -> Row:
        """Time to a proven mask, cold and from the last duals."""
        n, m = map(int, pattern.split(":"))
        whole = self.weight(torch.float32)  # as an optimizer holds it: in bfloat16 most of a small step would be lost
        weight, moved = whole.to(dtype), (whole + 1e-3 * self.weight(torch.float32, 1)).to(dtype)
        del whole
        started = time.perf_counter()
        cold = solve_on_device(weight, n, m, duals=True)
        first = time.perf_counter() - started
        again = solve_on_device(moved, n, m, warm_start=cold, duals=True)  # the next refresh begins with them
        return {
            "weights": _name(dtype), "size": self.size, "pattern": pattern,
            "proven": bool(cold.certificate.proven and again.certificate.proven), "first_seconds": first,
            "stats": _counts(cold.stats), "refresh_stats": _counts(again.stats),
            "cold_ms": timed(self.device, self.repeats, solve_on_device, weight, n, m),
            "refresh_ms": timed(
                self.device, self.repeats, solve_on_device, moved, n, m, warm_start=cold, duals=True
            ),
            "target_ms": TARGETS[pattern] if self.size == 8192 and dtype == torch.bfloat16 else None,
        }  # fmt: skip

    def parts(self, pattern: str) -> Row:
        """Where the time goes: the steps of a cold solve, beside a copy of the weights and a solve of hardly any."""
        n, m = map(int, pattern.split(":"))
        weight = self.weight(torch.bfloat16)
        grid = BlockGrid.of(weight, nmflow.Pattern(n, m), None, 1)
        mask = torch.empty(weight.shape, dtype=torch.bool, device=self.device)
        engine = launch if self.device.type == "cuda" else plain
        row: Row = {
            "pattern": pattern,
            "settle_ms": timed(
                self.device, self.repeats, engine.settle, grid, mask, None, absolute=True, start=None
            ),
            "kept_score_ms": timed(self.device, self.repeats, engine.kept_score, weight, mask, absolute=True),
            "copy_ms": timed(self.device, self.repeats, weight.clone),
            "tiny_ms": timed(self.device, self.repeats, solve_on_device, weight[:64, :64].contiguous(), n, m),
        }  # fmt: skip
        if self.device.type == "cuda":
            row["kernels_us"] = _kernels(partial(solve_on_device, weight, n, m))
        return row

    def beside(self, name: str, pattern: str, work: Callable[..., Any], *args: Any) -> Row:
        """What another way to a mask takes, in the same run."""
        weight = self.weight(torch.bfloat16)
        if work is entropic:
            weight = weight[: self.size // 4]  # 300 rounds over the whole would take most of the time there is
        if work is by_product:
            args = (ninety(self.device, torch.bfloat16),)
        return {
            "name": name,
            "pattern": pattern,
            "ms": timed(self.device, max(3, self.repeats // 4), work, weight, *args),
        }

    def agreement(self, pattern: str) -> Row:
        """The objective against `dual` on the CPU, at a size that it does in seconds."""
        n, m = map(int, pattern.split(":"))
        size = min(self.size, 2048)
        weight = torch.randn(size, size, generator=torch.Generator().manual_seed(1)).bfloat16()
        found = solve_on_device(weight.to(self.device), n, m)
        best = nmflow.solve(weight.float().numpy(), n, m)
        return {"pattern": pattern, "size": size, "difference": found.objective - best.objective}

    def rounds(self, pattern: str) -> Row:
        """Cold times with other numbers of rounds than `nmflow.torch.device.ascent.ROUNDS`; the masks stay as good."""
        n, m = map(int, pattern.split(":"))
        weight = self.weight(torch.bfloat16)
        first, more, again = ascent.rounds_for(m)
        row: Row = {"pattern": pattern, "now": [first, more, again], "first_ms": {}, "more_ms": {}}
        try:
            for part, usual in (("first_ms", first), ("more_ms", more)):
                for count in range(max(1, usual - 3), usual + 3):
                    tried = (count, more, again) if part == "first_ms" else (first, count, again)
                    launch.rounds_for = lambda side, tried=tried: tried  # type: ignore[assignment]
                    # asked for by name, kernels are not held against plain operations, whose rounds stay as they are
                    row[part][count] = timed(self.device, self.repeats, solve_on_device, weight, n, m, engine="triton")
        finally:
            launch.rounds_for = ascent.rounds_for
        return row


def plan(bench: Bench, quick: bool) -> Iterator[tuple[str, Work]]:
    """All rows in the order of what they are worth, by their key."""
    for pattern in TARGETS:
        yield f"mask {pattern} bfloat16", partial(bench.mask, pattern, torch.bfloat16)
    for pattern in TARGETS:
        yield f"parts {pattern}", partial(bench.parts, pattern)
    peers: list[tuple[str, str, Callable[..., Any], tuple[Any, ...]]] = [
        ("90 masks by a matrix product", "2:4", by_product, ()),
        ("torch._sparse_semi_structured_tile", "2:4", torch._sparse_semi_structured_tile, ("", True)),
    ]
    for pattern in TARGETS:
        n_m = tuple(map(int, pattern.split(":")))
        peers.append(("entropic, a quarter of the matrix, not rounded", pattern, entropic, n_m))
    for name, pattern, work, args in peers:
        yield f"beside {pattern} {name}", partial(bench.beside, name, pattern, work, *args)
    shape = (64, 128, 256) if quick else (8192, 4096, 14336)
    yield "perceptron", partial(perceptron, bench.device, *shape, bench.repeats)
    for pattern in TARGETS:
        yield f"agreement {pattern}", partial(bench.agreement, pattern)
    for dtype, pattern in itertools.product(DTYPES[1:], TARGETS):
        yield f"mask {pattern} {_name(dtype)}", partial(bench.mask, pattern, dtype)
    if bench.device.type == "cuda":
        for pattern in TARGETS:
            yield f"rounds {pattern}", partial(bench.rounds, pattern)


def measure(store: Store, rows: Iterator[tuple[str, Work]], until: float) -> bool:
    """Add what is missing, and then what failed before; whether all is there and nothing failed."""
    whole, planned = True, list(rows)
    failed = [(key, work) for key, work in planned if "error" in store.rows.get(key, {})]
    for key, work in [(key, work) for key, work in planned if key not in store] + failed:
        if time.monotonic() >= until:
            print("the time is over; the same command goes on from here", flush=True)
            return False
        started = time.monotonic()
        try:
            row = work()
        except Exception as error:  # one that fails takes none of the others with it
            row = {"error": first_line(error)}
        whole = whole and "error" not in row
        store.add(key, {"kind": key.split(" ", 1)[0], **row})
        print(f"{key} ({time.monotonic() - started:.0f} s): {json.dumps(row)}", flush=True)
        if "error" in row and not _works():
            print("the device does nothing more in this process; the same command goes on with the others", flush=True)
            return False
    return whole


def _works() -> bool:
    """Whether a device, if there is one, still answers: after an illegal access none does in the same process."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def run_tests(until: float) -> Row:
    """Run the tests that need a card in a process of their own, for a minute at least: most of it, kernels compile."""
    # other libraries' warnings are not what is tested
    options = ["-m", "gpu", "-q", "-rs", "-o", "filterwarnings=default", "tests/test_gpu.py"]
    command = [sys.executable, "-m", "pytest", *options]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=PAGE.parent.parent, capture_output=True, text=True, check=False,
            timeout=max(60.0, until - started),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        print(said[-8000:], flush=True)
        text = f"not finished in time; kernels are kept, run it again: {said.strip()[-200:]}"
        return {"seconds": round(time.monotonic() - started), "error": text}
    print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    last = done.stdout.strip().rpartition("\n")[2]
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    row: Row = {"seconds": round(time.monotonic() - started), "code": done.returncode, **counts}
    return row if not done.returncode else {**row, "error": "\n".join(done.stdout.strip().splitlines()[-40:])}


def shares(size: int) -> list[Row]:
    """How many blocks are open after each step: the same on every machine and with both engines."""
    rows = []
    normal = torch.randn(size, size, generator=torch.Generator().manual_seed(2))
    for pattern in ("1:4", *TARGETS):
        n, m = map(int, pattern.split(":"))
        for dtype in DTYPES:
            stats = solve_on_device(normal.to(dtype), n, m, engine="torch").stats
            row = {"pattern": pattern, "weights": _name(dtype), "size": size}
            rows.append(row | {key: stats[key] for key in ("blocks", "ascended", "augmented", "on_cpu")})
    return rows


def card(device: torch.device) -> Row:
    """The card, and what drives it."""
    if device.type != "cuda":
        return {"name": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name, "memory": properties.total_memory, "multiprocessors": properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(device)), "cuda": torch.version.cuda, "driver": _driver(),
        "triton": _version("triton"),
    }  # fmt: skip


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def _kernels(work: Callable[[], Any]) -> dict[str, float] | str:
    """Microseconds of each kernel of one solve, where the profiler may look."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            torch.cuda.synchronize()
        return {
            event.key[:60]: event.self_device_time_total
            for event in profile.key_averages()
            if event.self_device_time_total > 0
        }
    except Exception as error:  # as where counters are not for everyone
        return first_line(error)


def _counts(stats: Any) -> Row:
    return {key: value for key, value in stats.items() if key != "seconds"}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 0 if all is there and nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true", help="run the tests that need a card, after the first figures")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.5, help="begin no row after so many; default 8.5")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    until = time.monotonic() + 60 * args.minutes
    if args.shares:
        found = {"versions": versions(), "source": source_digest(), "rows": shares(1024)}
        save(RESULTS.with_name("gpu-shares.json"), found)
        fill_page(PAGE, {"shares": shares_section(found)})
        return 0
    if args.code:
        found = {"triton": _version("triton"), "source": source_digest(), "rows": all_counts()}
        save(RESULTS.with_name("gpu-code.json"), found)
        fill_page(PAGE, {"code": f"Triton {found['triton']}.\n\n{code_section(found['rows'])}"})
        return 0
    if args.report:
        try:
            fill_page(PAGE, {"card": card_section(load(args.out))})
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return 0
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --quick rehearses the program")
    size, repeats = (256, 4) if args.quick else (8192, 20)
    options = {"quick": args.quick, "device": device.type}
    store = Store(args.out, options, resume=not args.fresh, also={"card": card(device)})
    rows = plan(Bench(device, size, repeats), args.quick)
    if args.test:
        first = itertools.islice(rows, len(TARGETS))  # what is asked for comes before what may take all the time
        rows = itertools.chain(first, [("tests", partial(run_tests, until))], rows)
    try:
        with _on(device):
            whole = measure(store, rows, until)
    except KeyboardInterrupt:
        print(f"interrupted; finished rows are in {args.out}: the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    if whole:
        store.finish()
    if args.out == RESULTS and not args.quick and device.type == "cuda":
        fill_page(PAGE, {"card": card_section(load(args.out))})
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
