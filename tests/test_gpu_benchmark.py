"""The benchmark of the GPU, rehearsed without one: it keeps what it has, goes on, and reports what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks import gpu, gpu_report  # they import torch


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two rows of next to no work; the names of those that were worked on."""
    done: list[str] = []

    def row(name: str) -> dict[str, Any]:
        done.append(name)
        if name == "bad" and done.count("bad") == 1:
            raise RuntimeError("no such kernel\nand more")
        return {"value": 1.0}

    monkeypatch.setattr(
        gpu, "plan", lambda bench, quick: ((name, lambda name=name: row(name)) for name in ("bad", "good"))
    )
    return done


def test_a_row_that_fails_takes_no_other_with_it_and_is_tried_again(tmp_path: Path, small: list[str]) -> None:
    out = tmp_path / "gpu.json"
    command = ["--device", "cpu", "--quick", "--out", str(out)]
    assert gpu.main(command) == 1
    found = json.loads(out.read_text())
    assert [(row["key"], row.get("error")) for row in found["rows"]] == [
        ("bad", "RuntimeError: no such kernel"),
        ("good", None),
    ]
    assert not found["complete"]
    assert gpu.main(command) == 0
    assert small == ["bad", "good", "bad"]
    assert json.loads(out.read_text())["complete"]


def test_it_stops_in_time_and_goes_on(tmp_path: Path, small: list[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out), "--minutes", "0"]) == 1
    assert not small


def test_each_kind_of_row_runs_on_a_cpu() -> None:
    bench = gpu.Bench(gpu.torch.device("cpu"), 64, 2)
    rows = dict(gpu.plan(bench, quick=True))
    for key in ("mask 4:8 bfloat16", "parts 2:4", "beside 2:4 90 masks by a matrix product", "agreement 2:4"):
        assert json.dumps(rows[key](), allow_nan=False)
    mask = rows["mask 4:8 bfloat16"]()
    assert mask["proven"]
    assert mask["stats"]["blocks"] == 64
    assert rows["agreement 2:4"]()["difference"] == 0.0
    assert not any(key.startswith("rounds") for key in rows)  # of the kernels, which need a card


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_both_ways_are_packed_by_the_library_that_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch packs both ways in one pass is for compute capability 8.x, and is no product of CPUs either."""
    torch = gpu.torch

    def product(self: Any, dense: Any, should_transpose_dense: bool = False, **options: Any) -> Any:
        return (self.packed @ dense.T).T if should_transpose_dense else self.packed @ dense

    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: dense)
    monkeypatch.setattr(torch.sparse.SparseSemiStructuredTensorCUSPARSELT, "_mm", product)
    row = gpu.perceptron(torch.device("cpu"), 16, 32, 64, 1)
    assert row["kept_as_masked"] is True
    assert {"dense_ms", "refresh_ms", "sparse_ms"} <= set(row)


def test_rounds_are_tried_in_triton_whatever_was_solved_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against plain operations, whose rounds stay, the kernels would be found wrong: those were timed instead."""
    pytest.importorskip("triton")
    asked = []
    monkeypatch.setattr(gpu, "solve_on_device", lambda *args, **options: asked.append(options))
    row = gpu.Bench(gpu.torch.device("cpu"), 16, 1).rounds("2:4")
    assert [len(row[part]) for part in ("first_ms", "more_ms")] == [6, 6]
    assert all(options == {"engine": "triton"} for options in asked)
    assert gpu.launch.rounds_for is gpu.ascent.rounds_for


def test_the_report_says_what_is_there() -> None:
    row = {
        "weights": "bfloat16",
        "size": 8192,
        "pattern": "2:4",
        "cold_ms": 0.4321,
        "refresh_ms": 0.2,
        "target_ms": 0.5,
    }
    found = {
        "card": {"name": "Card", "driver": "1.2", "cuda": "13.0", "triton": "3.6.0"},
        "versions": {"torch": "2.11.0"}, "started": "2000-01-01T00:00:00Z", "complete": False,
        "rows": [
            {"kind": "tests", "key": "tests", "passed": 90, "skipped": 1},
            {"kind": "mask", "key": "mask 2:4 bfloat16", **row, "first_seconds": 3.0, "stats": {"engine": "triton"}},
            {"kind": "mask", "key": "mask 4:8 bfloat16", "error": "RuntimeError: out"},
            {"kind": "parts", "key": "parts 2:4", "error": "RuntimeError: out"},
            {"kind": "beside", "key": "beside 2:4 x", "name": "x", "pattern": "2:4", "ms": 1.5},
            {"kind": "agreement", "key": "agreement 2:4", "pattern": "2:4", "size": 2048, "difference": 0.0},
            {"kind": "perceptron", "key": "perceptron", "dense_ms": 5.0},
            {
                "kind": "rounds", "key": "rounds 2:4", "pattern": "2:4", "now": [4, 4, 1],
                "first_ms": {"3": 0.4}, "more_ms": {},
            },
        ],
    }  # fmt: skip
    text = gpu_report.card_section(found)
    for words in (
        "Card, driver 1.2, CUDA 13.0, torch 2.11.0, Triton 3.6.0", "Not all of it has been measured yet",
        "90 passed, 1 skipped", "| 2:4 | bfloat16 | 0.432 | 0.5 | 0.2 | 3 |", "4:8 bfloat16 | failed: RuntimeError",
        "2:4, x: 1.5 ms", "objective less that of the CPU: 0", "dense_ms: 5", "(now 4 and 4): 3: 0.4",
    ):  # fmt: skip
        assert words in text
    assert "plain torch operations" not in text
    found["rows"][1]["stats"]["engine"] = "torch"
    assert "plain torch operations" in gpu_report.card_section(found)


def test_the_tests_for_a_card_need_little() -> None:
    """A Python that was made for a card, on a machine that installs nothing, may lack what other tests are for."""
    code = """
import sys, pytest
LACKS = {"accelerate", "distributed", "matplotlib", "networkx", "ortools", "playwright", "scipy", "sklearn",
         "transformers"}
class Lacks:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LACKS:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacks())
sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", "--collect-only", "-m", "gpu", "tests/test_gpu.py"]))
"""  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=gpu.PAGE.parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-1000:]
