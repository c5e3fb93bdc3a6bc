"""Verifying a checkpoint: both directions, every layout, and the exact place of the first violation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from safetensors_files import BF16, PRUNED, read, sharded, write

from nmflow.checkpoint import Violation, prune_checkpoint, verify_checkpoint
from nmflow.errors import CheckpointError, InputValueError, PatternError, SourceNotFoundError
from nmflow.pattern import Pattern

MASK = np.kron(np.ones((3, 4), int), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).astype(bool)
"""A transposable 2:4 mask of 12 x 16."""


def one(tmp_path: Path, weights: np.ndarray, name: str = "w.weight") -> Path:
    return write(tmp_path / "x.safetensors", {name: weights})


def first(path: Path, pattern: str | Pattern = "2:4", **options: Any) -> Violation | None:
    return verify_checkpoint(path, pattern, **options).first


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize(
    ("pattern", "solver"), [("2:4", "dual"), ("2:4", "greedy"), *((n, "greedy") for n in ("1:4", "1:2", "2:3", "4:4"))]
)
def test_what_is_pruned_verifies(tmp_path: Path, pattern: str, solver: str, fill: str) -> None:
    source, out = write(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    assert verify_checkpoint(source, pattern).ok == (pattern == "4:4")
    prune_checkpoint(source, out, pattern, fill=fill, solver=solver)
    found = verify_checkpoint(out, pattern)
    assert found.ok
    assert found.first is None
    values = read(out)
    for tensor in found.tensors:
        assert tensor.entries == values[tensor.name].size
        assert tensor.nonzero == np.count_nonzero(values[tensor.name])
        assert (tensor.bad_groups, tensor.first) == (0, None)


def test_what_is_pruned_by_rows_only_verifies_by_rows_only(tmp_path: Path) -> None:
    source, out = write(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    prune_checkpoint(source, out, "2:4", transposable=False)
    assert verify_checkpoint(out, "2:4", transposable=False).ok
    violation = first(out)
    assert violation is not None
    assert violation.direction == "column"


@pytest.mark.parametrize("pattern", ["2:4 rows only", "2:4 at-most", "row 2:4 col 4:8"])
def test_a_pattern_in_words_verifies_as_reports_say_it(tmp_path: Path, pattern: str) -> None:
    source, out = write(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    report = prune_checkpoint(source, out, pattern)
    assert report.pattern == pattern
    assert verify_checkpoint(out, report.pattern).ok
    assert not verify_checkpoint(source, report.pattern).ok


def test_sharded_folder(tmp_path: Path) -> None:
    source = sharded(tmp_path / "hf")
    prune_checkpoint(source, tmp_path / "out", "2:4")
    found = verify_checkpoint(tmp_path / "out", "2:4")
    assert found.ok
    assert {tensor.name for tensor in found.tensors} == set(PRUNED)
    assert first(source) is not None


@pytest.mark.parametrize("stripe", [1, 200, 8 << 20])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BF16])
@pytest.mark.parametrize("value", [1.0, -1e-7, np.nan, np.inf])
def test_first_violation_along_a_row(
    tmp_path: Path, dtype: Any, value: float, stripe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmflow.checkpoint.tiles.TILE_BYTES", stripe)
    weights = MASK.astype(dtype)
    weights[6, 8] = value  # row 6 keeps columns 10 and 11 of group 2
    path = one(tmp_path, weights)
    assert first(path) == Violation("x.safetensors", "w.weight", "row", 6, 2, 3, 2, 4, 8)
    assert str(first(path)) == (
        "x.safetensors: tensor 'w.weight': row 6, group 2 (entries 8 to 11) has 3 nonzero, at most 2 may be"
    )
    assert verify_checkpoint(path, "2:4").tensors[0].bad_groups == 2


@pytest.mark.parametrize("stripe", [1, 200, 8 << 20])
def test_first_violation_along_a_column(tmp_path: Path, stripe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.checkpoint.tiles.TILE_BYTES", stripe)
    weights = MASK.astype("f4")
    weights[8, [4, 6]] = 0, 1  # row 8 still has two, but column 6 has three in rows 8 to 11
    assert first(one(tmp_path, weights)) == Violation("x.safetensors", "w.weight", "column", 6, 2, 3, 2, 4, 8)
    assert first(one(tmp_path, weights), transposable=False) is None


def test_zero_of_either_sign_is_zero(tmp_path: Path) -> None:
    for dtype in ("f2", "f4", "f8", BF16):
        assert first(one(tmp_path, np.where(MASK, 1.0, -0.0).astype(dtype))) is None


def test_subnormals_are_not_zero(tmp_path: Path) -> None:
    for dtype, smallest in (("f2", 6e-8), ("f4", 1e-45), ("f8", 5e-324), (BF16, 1e-40)):
        weights = np.where(MASK, 1.0, smallest).astype(dtype)
        assert first(one(tmp_path, weights)) == Violation("x.safetensors", "w.weight", "row", 0, 0, 4, 2, 4, 0)


def test_short_groups_at_the_edges(tmp_path: Path) -> None:
    weights = MASK[:10, :15].astype("f4")
    assert first(one(tmp_path, weights)) is None
    weights[0, 12:15] = 1  # the last group of row 0 has three entries
    assert first(one(tmp_path, weights)) == Violation("x.safetensors", "w.weight", "row", 0, 3, 3, 2, 3, 12)


def test_convolution_counts_channels_first_then_the_next_position(tmp_path: Path) -> None:
    """The row of output channel o is kernel position by kernel position, input channels fastest."""
    matrix = MASK[:8, :12].astype("f4")
    weights = np.moveaxis(matrix.reshape(8, 2, 6), -1, 1)
    assert weights.shape == (8, 6, 2)
    path = one(tmp_path, np.ascontiguousarray(weights))
    assert first(path) is None
    matrix[1, 6] = 1  # entry 6 of row 1: position 1, channel 0
    weights = np.ascontiguousarray(np.moveaxis(matrix.reshape(8, 2, 6), -1, 1))
    assert weights[1, 0, 1] == 1
    assert first(one(tmp_path, weights)) == Violation("x.safetensors", "w.weight", "row", 1, 1, 3, 2, 4, 4)
    weights[1, 0, 1] = 0
    weights[1, 4, 1] = 1  # entry 10 of row 1: its group begins at position 1, channel 2
    assert first(one(tmp_path, weights)) == Violation("x.safetensors", "w.weight", "row", 1, 2, 3, 2, 4, 8)


def test_a_convolution_of_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.checkpoint.tiles.TILE_BYTES", 1)
    weights = np.zeros((4, 8, 3), "f4")
    weights[1, 4:7, 2] = 1  # entries 20 to 22 of row 1: position 2, channels of the second piece
    assert first(one(tmp_path, weights)) == Violation("x.safetensors", "w.weight", "row", 1, 5, 3, 2, 4, 20)


def test_stack_of_matrices_names_the_matrix(tmp_path: Path) -> None:
    weights = np.stack([MASK, MASK, MASK]).astype("f4")
    assert first(one(tmp_path, weights, "mlp.experts.up_proj")) is None
    weights[2, 11, 0] = 1
    violation = first(one(tmp_path, weights, "mlp.experts.up_proj"))
    assert violation == Violation("x.safetensors", "mlp.experts.up_proj", "row", 11, 0, 3, 2, 4, 0, matrix=2)
    assert "matrix 2, row 11, group 0" in str(violation)


@pytest.mark.parametrize("tile_bytes", [1, 4 << 20])
def test_stack_of_ragged_matrices(tmp_path: Path, tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.checkpoint.tiles.TILE_BYTES", tile_bytes)
    weights = np.stack([MASK[:10]] * 4).astype("f4")
    weights[[1, 2], 9, 2] = 1
    (found,) = verify_checkpoint(one(tmp_path, weights, "mlp.experts.up_proj"), "2:4").tensors
    assert found.bad_groups == 2
    assert found.first == Violation("x.safetensors", "mlp.experts.up_proj", "row", 9, 0, 3, 2, 4, 0, matrix=1)


def test_rows_and_columns_of_different_length(tmp_path: Path) -> None:
    pattern = Pattern(row="2:4", col="4:8", fill="at-most")
    weights = np.kron(np.ones((1, 4), int), MASK[:8, :4]).astype("f4")
    assert first(one(tmp_path, weights), pattern) is None
    weights = np.concatenate([weights, weights])
    weights[8:, 0] = 1
    weights[8:, 3] = 0
    assert first(one(tmp_path, weights), pattern) == Violation("x.safetensors", "w.weight", "column", 0, 1, 8, 4, 8, 8)


def test_other_tensors_are_not_checked_but_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"w.weight": MASK.astype("f4"), "lm_head.weight": np.ones((8, 8), "f4")})
    assert verify_checkpoint(path, "2:4").skipped == (("lm_head.weight", "output head (lm_head.*)"),)
    violation = first(path, include=["lm_head*"])
    assert violation is not None
    assert violation.tensor == "lm_head.weight"
    assert first(path, include=["lm_head*"], exclude=["lm*"]) is None


def test_json(tmp_path: Path) -> None:
    weights = MASK.astype("f4")
    weights[0] = 1
    found = json.loads(json.dumps(verify_checkpoint(one(tmp_path, weights), "2:4").to_dict()))
    assert found["ok"] is False
    assert found["pattern"] == "2:4"
    assert found["first_violation"]["line"] == 0
    assert found["tensors"][0]["bad_groups"] == 4 + 8
    assert verify_checkpoint(one(tmp_path, MASK.astype("f4")), "2:4").to_dict()["first_violation"] is None


def test_progress(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = one(tmp_path, MASK.astype("f4"))
    verify_checkpoint(path, "2:4", progress=lambda *call: calls.append(call))
    assert calls == [("w.weight", 0, 768), ("", 768, 768)]


def test_errors(tmp_path: Path) -> None:
    path = one(tmp_path, MASK.astype("f4"))
    with pytest.raises(PatternError, match="pattern must fit at least one weight"):
        verify_checkpoint(path, "16:32")
    with pytest.raises(PatternError, match='pattern must be "n:m"'):
        verify_checkpoint(path, "2-4")
    with pytest.raises(InputValueError, match="include must match"):
        verify_checkpoint(path, "2:4", include=["x"])
    with pytest.raises(SourceNotFoundError, match="must exist"):
        verify_checkpoint(tmp_path / "none", "2:4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="must hold safetensors"):
        verify_checkpoint(tmp_path / "empty", "2:4")


def test_weights_of_another_variant_are_named(tmp_path: Path) -> None:
    for name in ("model", "model.fp16"):
        write(tmp_path / f"{name}.safetensors", {"w.weight": MASK.astype("f4")})
    found = verify_checkpoint(tmp_path, "2:4")
    assert found.ok
    assert found.unchecked_files == ("model.fp16.safetensors",)
    assert found.to_dict()["unchecked_files"] == ["model.fp16.safetensors"]
    assert "not checked: model.fp16.safetensors may hold" in run("verify", tmp_path, "--pattern", "2:4").stdout


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(*args: object) -> None:
        raise EOFError

    monkeypatch.setattr("nmflow.checkpoint.verify.read_tile", cut_short)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor 'w.weight' .* its file became shorter"):
        verify_checkpoint(one(tmp_path, MASK.astype("f4")), "2:4")
