"""`nmflow prune` with unequal budgets, entries to keep, and solvers that are not exact; `nmflow diversity`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from command import run
from safetensors.numpy import load_file, save_file

import nmflow
from nmflow.checkpoint import prune_checkpoint
from nmflow.cli.counts import _power
from nmflow.errors import CheckpointError, InputValueError, SourceNotFoundError
from nmflow.pattern import Pattern

Array = Any


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path / "model.safetensors"
    save_file(
        {
            "a.weight": rng.standard_normal((16, 24)).astype(np.float32),
            "b.weight": rng.standard_normal((8, 4, 3, 3)).astype(np.float16),
            "norm.weight": np.ones(16, np.float32),
        },
        path,
    )
    return path


def test_row_and_col(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = run("prune", model, out, "--row", "2:4", "--col", "4:8", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["pattern"] == "row 2:4 col 4:8"
    assert oracles.violations(load_file(out)["a.weight"] != 0, Pattern(row="2:4", col="4:8")) == []
    assert run("verify", out, "--row", "2:4", "--col", "4:8").exit_code == 0
    assert run("verify", out, "--row", "2:4", "--col", "1:8").exit_code == 1
    dry = ("prune", model, tmp_path / "new.safetensors", "--row", "1:4", "--col", "4:8", "--dry-run")
    assert run(*dry, "--fill", "at-most").exit_code == 0


def test_keep_from(tmp_path: Path, model: Path) -> None:
    weights = load_file(model)
    keep = {name: np.zeros(weights[name].shape, bool) for name in ("a.weight", "b.weight")}
    keep["a.weight"][:, ::4] = np.arange(16)[:, None] % 2 == 0
    keep["b.weight"][0, 0, 0, 0] = True
    save_file(keep, tmp_path / "keep.safetensors")
    out = tmp_path / "out.safetensors"
    result = run("prune", model, out, "--pattern", "2:4", "--keep-from", tmp_path / "keep.safetensors")
    assert result.exit_code == 0, result.stderr
    pruned = load_file(out)
    for name, layout in (("a.weight", None), ("b.weight", "conv")):
        expected = nmflow.solve(weights[name], 2, 4, keep=keep[name], layout=layout)
        assert np.array_equal(pruned[name], expected.prune(weights[name]))
        assert np.array_equal(pruned[name][keep[name]], weights[name][keep[name]])
    bytes_ = {name: mask.astype(np.uint8) for name, mask in keep.items()}
    save_file(bytes_, tmp_path / "bytes.safetensors")
    prune_checkpoint(model, tmp_path / "again.safetensors", "2:4", keep_from=tmp_path / "bytes.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
    bytes_["a.weight"][3, 5] = 2
    save_file(bytes_, tmp_path / "bytes.safetensors")
    with pytest.raises(CheckpointError, match=r"bytes.safetensors: mask 'a.weight' must hold 0 and 1 only, not 2"):
        prune_checkpoint(model, tmp_path / "none.safetensors", "2:4", keep_from=tmp_path / "bytes.safetensors")
    keep["a.weight"][:] = True
    save_file(keep, tmp_path / "all.safetensors")
    with pytest.raises(
        CheckpointError, match=r"tensor 'a.weight': masks of .*all.safetensors must leave .* in 24 of 24 blocks"
    ):
        prune_checkpoint(model, tmp_path / "none.safetensors", "2:4", keep_from=tmp_path / "all.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"a.weight": np.zeros((16, 24), np.int8)},
            "mask 'a.weight' must be of dtype BOOL or U8, not I8; save mask != ",
        ),
        (
            {"a.weight": np.zeros((16, 23), bool)},
            r"mask 'a.weight' must have the shape of its tensor, \(16, 24\), not \(16, 23\)",
        ),
        ({"norm.weight": np.zeros(16, bool)}, "mask 'norm.weight' must have the name of a tensor that is pruned"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, model: Path, masks: dict[str, Array], message: str) -> None:
    save_file(masks, tmp_path / "masks.safetensors")
    with pytest.raises(InputValueError, match=message):
        prune_checkpoint(model, tmp_path / "out.safetensors", "2:4", keep_from=tmp_path / "masks.safetensors")
    with pytest.raises(SourceNotFoundError):
        prune_checkpoint(model, tmp_path / "out.safetensors", "2:4", keep_from=tmp_path / "no.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_solver_that_is_not_exact(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    quick = prune_checkpoint(model, out, "2:4", solver="greedy")
    assert quick.total.gap is None
    assert not quick.proven
    assert json.dumps(quick.to_dict())
    result = run("prune", model, out, "--pattern", "2:4", "--solver", "greedy", "--overwrite")
    assert "not certified: greedy is not exact" in result.stdout
    sure = prune_checkpoint(model, out, "2:4", solver="greedy", certify=True, overwrite=True)
    assert sure.total.gap is not None
    assert sure.total.gap > 0
    assert sure.total.kept == pytest.approx(quick.total.kept)
    assert sure.total.n_proven < sure.total.n_blocks == quick.total.n_blocks


def test_diversity_table() -> None:
    result = run("diversity", "4:8")
    assert result.exit_code == 0, result.stderr
    assert "1.170e11" in result.stdout
    assert "1.756e13" in result.stdout
    rows = json.loads(run("diversity", "4:8", "--shape", "16x8", "--json").stdout)["rows"]
    assert [row["count"] for row in rows] == ["exact", "exact", "exact", "2021 formula"]
    assert rows[2]["masks_of_a_block"] == "116963796250"
    assert rows[2]["blocks"] == 2
    rows = json.loads(run("diversity", "2:5", "--shape", "5X10", "--json").stdout)["rows"]
    assert [row["masks_of_a_block"] for row in rows[:3]] == [str(math.comb(50, 20)), "10", "2040"]
    assert [row["log2"] for row in rows[:3]] == pytest.approx(
        [math.log2(math.comb(50, 20)), 10 * math.log2(10), 2 * math.log2(2040)]
    )
    assert "~1e" in run("diversity", "16:32").stdout
    assert "2,040" in run("diversity", "2:5").stdout
    for args, message in (
        (("2:4", "--shape", "6x4"), "shape must be a multiple of 4 x 4 for 2:4, not 6 x 4; give that of whole"),
        (("2:4", "--shape", "6x6"), "shape must be a multiple of 4 x 4 for 2:4, not 6 x 6"),
        (("2:4", "--shape", "six"), 'shape must be "ROWSxCOLS", for example 64x64'),
        (("9:4",), "n must be between 1 and m=4"),
        (("2:4 at-most",), """pattern must be "n:m", for example "2:4", not '2:4 at-most'"""),
        (("row 2:4 col 4:8",), """pattern must be "n:m", for example "2:4", not 'row 2:4 col 4:8'"""),
    ):
        result = run("diversity", *args)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_power_that_rounds_up_carries() -> None:
    assert _power(math.log10(9.99999e7)) == "1.000e8"
    assert _power(math.log10(9.994e7)) == "9.994e7"
