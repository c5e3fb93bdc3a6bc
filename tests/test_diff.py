"""Comparing two checkpoints: bits, masks, names and kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from safetensors_files import BF16, entry, raw_file, read, sharded, tensors, write

import nmflow
from nmflow.checkpoint import diff_checkpoints, prune_checkpoint, tiles
from nmflow.errors import CheckpointError, SourceNotFoundError


@pytest.mark.parametrize("tile_bytes", [8, 8 << 20])
def test_after_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_bytes: int) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    src, out = write(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    report = prune_checkpoint(src, out, "2:4")
    found = diff_checkpoints(src, out)
    old, new = read(src), read(out)
    pruned = {tensor.name for tensor in report.tensors}
    assert len(found.tensors) == len(old)
    for tensor in found.tensors:
        if tensor.name not in pruned:
            assert (tensor.same, tensor.changed, tensor.sad) == (True, 0, 0)
            continue
        a, b = old[tensor.name], new[tensor.name]
        assert not tensor.same
        assert tensor.changed == np.count_nonzero(a != b)
        assert tensor.sad == nmflow.diversity.divergence(a != 0, b != 0).sad
        assert tensor.flip_rate == pytest.approx(tensor.sad / a.size)
    assert not found.same
    assert diff_checkpoints(src, src).same


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BF16])
def test_zeros_of_either_sign_are_one_mask_but_not_the_same_bits(tmp_path: Path, dtype: Any) -> None:
    values = np.array([0.0, -0.0, 1.0, 0.0, np.nan, 2.0]).astype(dtype)
    others = np.array([-0.0, -0.0, 0.0, 3.0, 0.0, 4.0]).astype(dtype)
    a, b = (write(tmp_path / name, {"x": x}) for name, x in (("a.safetensors", values), ("b.safetensors", others)))
    tensor = diff_checkpoints(a, b).tensors[0]
    assert (tensor.changed, tensor.sad, tensor.flip_rate) == (5, 3, 0.5)


def test_names_kinds_and_dtypes_that_cannot_be_compared(tmp_path: Path) -> None:
    header = {
        "packed": entry("F4", [4], 0, 2),
        "new": entry("Q3", [5], 2, 5),
        "scale": entry("F8_E8M0", [1], 5, 6),
        "longer": entry("F32", [1], 6, 10),
        "mine": entry("U8", [1], 10, 11),
    }
    a = raw_file(tmp_path / "a.safetensors", header, b"0123456789\0")
    header["longer"] = entry("U8", [4], 6, 10)
    header["yours"] = header.pop("mine")
    b = raw_file(tmp_path / "b.safetensors", header, b"0x2x4y6789\0")
    found = diff_checkpoints(a, b)
    assert [(t.name, t.changed, t.sad, t.same) for t in found.tensors] == [
        *(("packed", None, None, False), ("new", None, None, False), ("scale", 1, None, False)),
    ]
    assert (found.only_a, found.only_b) == (("mine",), ("yours",))
    assert found.unlike == (("longer", "F32 [1]", "U8 [4]"),)
    result = run("diff", a, b)
    assert result.exit_code == 1
    for text in ("only in", "mine", "yours", "longer: F32 [1] in", "3 of 3 tensors in both differ"):
        assert text in result.stdout
    assert json.loads(run("diff", a, b, "--json").stdout)["unlike"] == [
        {"name": "longer", "a": "F32 [1]", "b": "U8 [4]"}
    ]
    header["new"] = entry("Q3", [5], 2, 4)
    header["scale"], header["longer"], header["yours"] = (
        entry("F8_E8M0", [1], 4, 5), entry("F32", [1], 5, 9), entry("U8", [1], 9, 10)
    )  # fmt: skip
    raw_file(b, header, b"0123456789")
    other = next(tensor for tensor in diff_checkpoints(a, b).tensors if tensor.name == "new")
    assert (other.changed, other.same) == (None, False)  # an unknown dtype of another size


def test_whole_numbers_are_zero_where_no_bit_is_set(tmp_path: Path) -> None:
    kinds = [f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64)]
    header = {kind: entry(kind, [64 // int(kind[1:])], 8 * at, 8 * at + 8) for at, kind in enumerate(kinds)}
    ends = raw_file(tmp_path / "a.safetensors", header, (b"\0" * 7 + b"\x80") * 8)
    zeros = raw_file(tmp_path / "b.safetensors", header, bytes(64))
    assert [tensor.sad for tensor in diff_checkpoints(ends, zeros).tensors] == [1] * 8


def test_shards_do_not_matter(tmp_path: Path) -> None:
    one, many = write(tmp_path / "one.safetensors"), sharded(tmp_path / "many")
    assert diff_checkpoints(one, many).same
    result = run("diff", one, many)
    assert result.exit_code == 0
    assert f"0 of {len(tensors())} tensors in both differ" in result.stdout


def test_errors(tmp_path: Path) -> None:
    src = write(tmp_path / "a.safetensors")
    with pytest.raises(SourceNotFoundError, match="must exist"):
        diff_checkpoints(src, tmp_path / "none")
    (tmp_path / "b.safetensors").write_bytes(src.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        diff_checkpoints(src, tmp_path / "b.safetensors")
    assert run("diff", src, tmp_path / "b.safetensors").exit_code == 2


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{n}.safetensors", {"\x1b[31m": np.full(3, n)}) for n in (1, 2))
    assert "\x1b" not in run("diff", a, b).stdout


@pytest.mark.parametrize("kind", ["more in a", "more in b", "another shape"])
def test_what_only_one_has_is_a_difference_too(tmp_path: Path, kind: str) -> None:
    a = {"x": np.ones(4, "f4")} | ({"y": np.ones(4, "f4")} if kind != "more in b" else {})
    b = {"x": np.ones(4, "f4")} | ({"y": np.ones((2, 2), "f4")} if kind != "more in a" else {})
    one, other = write(tmp_path / "a.safetensors", a), write(tmp_path / "b.safetensors", b)
    assert not diff_checkpoints(one, other).same
    assert run("diff", one, other).exit_code == 1


def test_a_file_that_is_another_by_then_is_an_error(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors must not change while it is read"):
        diff_checkpoints(a, b, progress=lambda *_: write(b, tensors(1)) and None)


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a.safetensors")

    def cut(*args: object) -> None:
        raise EOFError

    monkeypatch.setattr("nmflow.checkpoint.diff.read_tile", cut)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: tensor .* its file became shorter"):
        diff_checkpoints(a, a)


def test_progress_and_files_that_are_closed(tmp_path: Path) -> None:
    src, told = write(tmp_path / "a.safetensors"), []
    total = sum(np.asarray(value).nbytes for value in read(src).values())
    before = len(list(Path("/proc/self/fd").iterdir()))
    diff_checkpoints(src, src, progress=lambda *step: told.append(step))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [name for name, _, _ in told] == [*(t.name for t in diff_checkpoints(src, src).tensors), ""]
    assert (told[0][1], told[-1][1:]) == (0, (total, total))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_nothing_flips_in_nothing(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", {"x": np.zeros((0, 4), "f4")})
    assert diff_checkpoints(a, a).to_dict()["tensors"][0]["flip_rate"] == 0.0


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_a_negative_zero_of_one_byte_is_a_zero(tmp_path: Path, dtype: str) -> None:
    files = [raw_file(tmp_path / f"{k}.safetensors", {"x": entry(dtype, [2], 0, 2)}, raw)
             for k, raw in enumerate((b"\x00\x38", b"\x80\x39"))]  # fmt: skip
    tensor = diff_checkpoints(*files).tensors[0]
    assert (tensor.changed, tensor.sad) == (2, 0)


def test_a_file_that_is_gone_by_then_leaves_none_open(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        diff_checkpoints(a, b, progress=lambda *_: b.unlink(missing_ok=True))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_rates_are_shown_in_percent(tmp_path: Path) -> None:
    weight = np.ones((4, 4), "f4")
    a = write(tmp_path / "a.safetensors", {"w": weight})
    weight[0, 0] = 0
    b = write(tmp_path / "b.safetensors", {"w": weight})
    result = run("diff", a, b)
    assert result.exit_code == 1
    (row,) = (line for line in result.stdout.splitlines() if "4x4" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["w", "F32", "4x4", "1", "1", "6.250"]
    assert "of their 16 entries 1 are zero in one only (6.250 %)" in result.stdout
