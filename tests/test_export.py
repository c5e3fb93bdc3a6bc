"""Exporting checkpoints to storage formats, and inspecting and verifying what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from safetensors_files import BF16, bits, edit_record, entry, leftovers, raw_file, read, write

import nmflow
from nmflow import formats
from nmflow.checkpoint import (
    export_checkpoint,
    exported_format,
    inspect_path,
    pack,
    read_header,
    verify_packed,
)
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.replace import replace_tensors
from nmflow.checkpoint.source import open_source
from nmflow.checkpoint.support import find_support
from nmflow.errors import (
    CheckpointError,
    DestinationExistsError,
    FormatError,
    InputValueError,
    SourceNotFoundError,
    UnknownFormatError,
)
from nmflow.formats.side_file import SideFile, StoredArray, StoredTensor, read_side_file


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """A pruned model, and what is not pruned in it."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for name, dtype, shape in (("a", "f2", (64, 128)), ("b", BF16, (128, 64)), ("c", "f4", (64, 96))):
        weight = rng.standard_normal(shape).astype(dtype)
        pattern = "1:2" if dtype == "f4" else "2:4"
        out[f"{name}.weight"] = nmflow.solve(weight, pattern=pattern).prune(weight)
    return out | {
        "a.bias": rng.standard_normal(3).astype("f4"),
        "conv.weight": np.zeros((8, 8, 1, 3), "f2"),
        "embed.weight": rng.standard_normal((64, 64)).astype("f2"),
        "steps": np.array(7),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.safetensors", weights())


def decoded(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    side = json.loads((folder / "nmflow.json").read_text())
    tensor = side["tensors"][name]
    held = read(folder / tensor["file"])
    arrays = {key: held[array["name"]] for key, array in tensor["arrays"].items()}
    return formats.get(side["format"]).decode(arrays, shape=tuple(tensor["shape"]))


@pytest.mark.parametrize("format_", formats.names())
def test_export_holds_the_checkpoint(tmp_path: Path, model: Path, format_: str) -> None:
    before = model.read_bytes()
    result = run("export", model, tmp_path / "out", "--format", format_)
    assert result.exit_code == 0, result.stderr
    assert model.read_bytes() == before
    held = read(tmp_path / "out" / "model.safetensors")
    packed = {"a.weight", "b.weight", "c.weight"} | ({"conv.weight"} if format_ == "dense" else set())
    for name, weight in weights().items():
        if name in packed:
            back, mask = decoded(tmp_path / "out", name)
            assert back.dtype == weight.dtype
            np.testing.assert_array_equal(bits(back), bits(weight))
            assert mask[weight != 0].all()
            assert (name in held) == (format_ == "dense")
        else:
            np.testing.assert_array_equal(held[name], weight)
    side = json.loads((tmp_path / "out" / "nmflow.json").read_text())
    assert (side["format"], side["version"]) == (format_, 1)
    assert set(side["tensors"]) == packed
    assert side["left_dense"]["embed.weight"] == "embedding (*embed*)"
    verified = run("verify", tmp_path / "out")
    assert verified.exit_code == 0
    assert ("both sides agree" in verified.stdout) == formats.get(format_).two_way
    shown = run("inspect", tmp_path / "out")
    assert shown.exit_code == 0
    assert f"{format_} version 1" in shown.stdout
    assert leftovers(tmp_path) == []


def test_dense_keeps_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    held: dict[str, np.ndarray] = {}
    for name, dtype, pattern in (("a", BF16, "2:4"), ("b", "f4", "3:5"), ("c", "f2", "2:4"), ("d", "f8", "2:4")):
        weight = rng.choice([-0.0, 0.0, 1.0, -2.0, np.nan], (40, 40)).astype(dtype)
        mask = nmflow.solve(rng.standard_normal(weight.shape), pattern=pattern).mask
        held[f"{name}.weight"] = np.where(mask, weight, np.zeros(1, dtype))
    report = export_checkpoint(write(tmp_path / "x.safetensors", held), tmp_path / "out", "dense")
    for name, weight in read(tmp_path / "out" / "x.safetensors").items():
        np.testing.assert_array_equal(bits(weight), bits(held[name]))
        assert {tensor.name: tensor.kept for tensor in report.tensors}[name] == np.count_nonzero(bits(weight))
    assert verify_packed(tmp_path / "out").ok


def test_names_and_bytes_in_the_file(tmp_path: Path, model: Path) -> None:
    report = export_checkpoint(model, tmp_path / "out", "cutlass-24")
    held = read(tmp_path / "out" / "model.safetensors")
    for tensor in report.tensors:
        assert tensor.dense_bytes == weights()[tensor.name].nbytes
        assert tensor.seconds > 0
        assert tensor.stored_bytes == sum(array.nbytes for name, array in held.items() if name.startswith(tensor.name))
    assert {name for name in held if name.startswith("b.weight")} == {
        f"b.weight.{part}" for part in ("packed", "meta", "packed_t", "meta_t", "threads_masks")
    }
    assert held["b.weight.packed"].dtype == BF16
    assert held["b.weight.meta"].dtype == np.int16


@pytest.mark.parametrize("format_", formats.names())
def test_no_byte_depends_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    rng = np.random.default_rng(5)
    model: dict[str, np.ndarray] = {"bias": rng.standard_normal(9).astype("f4")}
    for name, dtype, shape in (("a", "f2", (300, 200)), ("b", BF16, (128, 448)), ("c", "f4", (258, 162))):
        weight = rng.choice([-2, -1, 1, 2], shape).astype(dtype)
        model[f"{name}.weight"] = nmflow.solve(weight, pattern="1:2" if dtype == "f4" else "2:4").prune(weight)
    src = write(tmp_path / "src.safetensors", model)
    whole = export_checkpoint(src, tmp_path / "whole", format_, pad=True)
    monkeypatch.setattr(pack, "SIDE", 2 * formats.PART)
    monkeypatch.setattr(pack, "TILE_BYTES", 800)
    parts = export_checkpoint(src, tmp_path / "parts", format_, pad=True)
    for name in ("src.safetensors", "nmflow.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert [replace(tensor, seconds=0) for tensor in whole.tensors] == [replace(t, seconds=0) for t in parts.tensors]
    found = verify_packed(tmp_path / "whole")
    assert found.ok
    assert [tensor.kept for tensor in found.tensors] == [tensor.kept for tensor in whole.tensors]
    if format_ != "dense":
        broken = model["c.weight"].copy()
        broken[250, 150:152] = 1
        src = write(tmp_path / "broken.safetensors", {"c.weight": broken})
        with pytest.raises(
            CheckpointError,
            match=r"columns 22 to 23 \(counted within rows 128 to 255 and .*float32 is stored at 1:2: prune",
        ):
            export_checkpoint(src, tmp_path / "none", format_, pad=True)


@pytest.mark.parametrize("format_", formats.names())
def test_resume(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, format_: str) -> None:
    real, calls = pack.write_tile, []

    def write_tile(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(*args)

    whole = export_checkpoint(model, tmp_path / "whole", format_)
    monkeypatch.setattr(pack, "write_tile", write_tile)
    if format_ == "dense":
        monkeypatch.setattr(pack, "TILE_BYTES", 16384)
    with pytest.raises(OSError, match="No space left on device, at tensor"):
        export_checkpoint(model, tmp_path / "out", format_, threads=1)
    assert leftovers(tmp_path) == [".out.nmflow"]
    monkeypatch.setattr(pack, "write_tile", real)
    with pytest.raises(
        CheckpointError, match="resume must be asked for what the unfinished run was asked for, and form"
    ):
        export_checkpoint(model, tmp_path / "out", format_, pad=True, resume=True)
    result = run("export", model, tmp_path / "out", "--format", format_, "--resume")
    assert result.exit_code == 0, result.stderr
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert whole.tensors
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("model", ["model", "diffusion_pytorch_model"])
def test_a_folder_with_an_index(tmp_path: Path, model: str) -> None:
    src = tmp_path / "src"
    src.mkdir()
    names = ("model-1.safetensors", "model-2.safetensors")
    whole = weights()
    parts = [{k: v for k, v in whole.items() if (k < "b") == first} for first in (True, False)]
    for name, part in zip(names, parts, strict=True):
        write(src / name, part)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    metadata = {"total_size": 1, "total_parameters": 1234}
    (src / f"{model}.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    (src / f"{model}.safetensors.index.json").chmod(0o600)
    (src / "config.json").write_text("{}")
    export_checkpoint(src, tmp_path / "out", "nibble")
    assert (tmp_path / "out" / f"{model}.safetensors.index.json").stat().st_mode & 0o777 == 0o600
    index = json.loads((tmp_path / "out" / f"{model}.safetensors.index.json").read_text())
    assert index["weight_map"]["a.weight.values"] == names[0]
    assert index["weight_map"]["c.weight.mask"] == names[1]
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    stored = sum(entry.n_bytes for name in names for entry in read_header(tmp_path / "out" / name).entries)
    assert index["metadata"] == {**metadata, "total_size": stored}
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    assert verify_packed(tmp_path / "out").ok
    assert len(inspect_path(tmp_path / "out").tensors) == len(whole)


def test_masks_are_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    dense = {"x": rng.integers(-128, 128, (128, 128), "i1"), "y": rng.standard_normal((64, 64)).astype("f2")}
    masks: dict[str, np.ndarray] = {name: nmflow.solve(weight, 2, 4).mask for name, weight in dense.items()}
    masks["y"] = masks["y"].astype("u1")
    src, given = write(tmp_path / "w.safetensors", dense), write(tmp_path / "m.safetensors", masks)
    report = export_checkpoint(src, tmp_path / "out", "cutlass-24", masks=given)
    assert {tensor.name: tensor.kept for tensor in report.tensors} == {"x": 128 * 64, "y": 64 * 32}
    for name, weight in dense.items():
        back, mask = decoded(tmp_path / "out", name)
        np.testing.assert_array_equal(mask, masks[name] != 0)
        np.testing.assert_array_equal(back, np.where(masks[name], weight, 0))
    assert run("export", src, tmp_path / "two", "--format", "dense", "--masks", given).exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "two" / "w.safetensors")["x"], np.where(masks["x"], dense["x"], 0))


def test_zeros_that_leave_a_choice_are_solved_for_and_said(tmp_path: Path) -> None:
    weight = nmflow.solve(np.random.default_rng(1).standard_normal((64, 64)), 2, 4).mask.astype("f2")
    weight[:4, :4] = 0  # any exact mask will do
    weight[4:8, :4] = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]  # and here there is none
    weight[8, 0:4] = 0
    src = write(tmp_path / "w.safetensors", {"w.weight": weight})
    result = run("export", src, tmp_path / "out", "--format", "cutlass-24")
    assert "2 blocks had zeros to choose from" in result.stdout
    assert "1 blocks cannot be filled exactly" in result.stdout
    assert "-0.0" not in result.stdout
    _, mask = decoded(tmp_path / "out", "w.weight")
    assert mask[weight != 0].all()
    blocks = mask.reshape(16, 4, 16, 4)
    full = (blocks.sum(3) == 2).all(1) & (blocks.sum(1) == 2).all(-1)
    assert full.sum() == 255
    assert not full[1, 0]
    np.testing.assert_array_equal(mask[4:8, :4], weight[4:8, :4] != 0)


def test_support_keeps_negative_zeros_where_there_is_room() -> None:
    rng = np.random.default_rng(6)
    mask = nmflow.solve(rng.standard_normal((16, 24)), 2, 4).mask
    weight = np.where(mask, rng.choice([-0.0, 1.0, -2.0], mask.shape), 0.0).astype("f4")
    np.testing.assert_array_equal(find_support(weight, "2:4").mask, mask)
    weight[~mask] = -0.0  # as left behind by weight * mask: now they tell nothing
    found = find_support(weight, "2:4")
    assert found.mask[weight != 0].all()
    assert (found.mask.reshape(4, 4, 6, 4).sum((1, 3)) <= 8).all()
    weight[3, 5] = weight[3, 4] = weight[3, 6] = np.nan
    with pytest.raises(CheckpointError, match=r"weights must have at most 2 of 4 .*in row 3, columns 4 to 7"):
        find_support(weight, "2:4")


def test_padding(tmp_path: Path) -> None:
    weight = nmflow.solve(np.random.default_rng(1).standard_normal((70, 50)), 2, 4).prune(
        np.random.default_rng(1).standard_normal((70, 50)).astype("f2")
    )
    src = write(tmp_path / "w.safetensors", {"w.weight": weight})
    result = run("export", src, tmp_path / "out", "--format", "cutlass-24")
    assert result.exit_code == 2
    assert "tensor 'w.weight': weight must have a multiple of 64 rows" in result.stderr
    assert "(--pad) stores it as 128 x 64, filled with zeros; or leave it alone with exclude (--exc" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    result = run("export", src, tmp_path / "out", "--format", "cutlass-24", "--pad", "--json")
    assert json.loads(result.stdout)["tensors"][0]["stored_shape"] == [128, 64]
    back, _ = decoded(tmp_path / "out", "w.weight")
    np.testing.assert_array_equal(bits(back), bits(weight))
    assert verify_packed(tmp_path / "out").ok


def assert_refused(tmp_path: Path, error: type[Exception], match: str, *args: Any, **options: Any) -> None:
    """It raises, and nothing is written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=match):
        export_checkpoint(*args, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bad_input_writes_nothing(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    assert_refused(tmp_path, UnknownFormatError, "not 'csr'", model, out, "csr")
    assert_refused(tmp_path, SourceNotFoundError, "must exist", tmp_path / "no", out, "nibble")
    whole = weights()
    broken = {**whole, "c.weight": whole["c.weight"].copy()}
    broken["c.weight"][60, 90:92] = 1
    src = write(tmp_path / "broken.safetensors", broken)
    assert_refused(
        tmp_path, CheckpointError, r"'c.weight'.*at most 1 of 2 .*in row 60, columns 90 to 91", src, out, "nibble"
    )
    src = write(tmp_path / "f64.safetensors", {"d.weight": np.zeros((64, 64))})
    assert_refused(tmp_path, CheckpointError, "'d.weight': weight must be .* not float64", src, out, "cutlass-24")
    seen = r"as nibble, and all 2 tensors are left alone \(1 x 1-D, 1 x dtype I8\); masks"
    src = write(tmp_path / "none.safetensors", {"bias": np.zeros(3, "f4"), "a.weight": np.zeros((8, 8), "i1")})
    assert_refused(tmp_path, CheckpointError, seen, src, out, "nibble")
    clash = {"a.weight": whole["a.weight"], "a.weight.meta": np.zeros(3, "f4")}
    src = write(tmp_path / "clash.safetensors", clash)
    assert_refused(tmp_path, CheckpointError, "two tensors would be named 'a.weight.meta'", src, out, "nibble")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model.read_bytes()[:-10])
    assert_refused(tmp_path, CheckpointError, "truncated", cut, out, "nibble")


def test_bad_masks_write_nothing(tmp_path: Path) -> None:
    src = write(tmp_path / "w.safetensors", {"w": np.ones((64, 64), "f2"), "v": np.ones(3, "f2")})
    good = nmflow.solve(np.ones((64, 64)), 2, 4).mask

    def refused(match: str, masks: dict[str, np.ndarray], **options: Any) -> None:
        path = write(tmp_path / "m.safetensors", masks)
        error = InputValueError if options else CheckpointError
        assert_refused(tmp_path, error, match, src, tmp_path / "out", "cutlass-24", masks=path, **options)

    write(tmp_path / "m.safetensors", {"w": good})
    refused("mask 'x' must have the name of a tensor", {"x": good})
    refused("mask 'w' must be BOOL or U8, not F32", {"w": good.astype("f4")})
    refused(r"mask 'w' must have the shape of the tensor, \(64, 64\), not \(64, 32\)", {"w": good[:, :32].copy()})
    refused("must hold 0 and 1 only, not 2", {"w": good.astype("u1") * 2})
    refused(
        "'w': mask must keep at most 2 of 4 .* not 4 in row 0, .* a transposable mask of that first$",
        {"w": np.ones((64, 64), bool)},
    )
    refused(r"'v': weight must have 2 axes, not 1.*; or take it out of the masks \(--masks\)$", {"v": np.ones(3, bool)})
    refused("include and exclude must not be given with masks", {"w": good}, include=["w"])


def test_destination(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    export_checkpoint(model, out, "nibble")
    assert_refused(tmp_path, DestinationExistsError, "dst must not exist", model, out, "dense")
    export_checkpoint(model, out, "dense", overwrite=True)
    assert inspect_path(out).format == "dense"
    assert run("verify", out, "--pattern", "2:4", "--exclude", "c.*", "--exclude", "conv*").exit_code == 0
    assert leftovers(tmp_path) == []


def test_what_is_made_of_an_export_has_no_record_of_it(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "model.safetensors", weights())
    out, pruned, replaced = tmp_path / "out", tmp_path / "pruned", tmp_path / "replaced"
    export_checkpoint(tmp_path / "src", out, "dense")
    assert run("prune", out, pruned, "--pattern", "1:4").exit_code == 0
    replace_tensors(open_source(out), replaced, {"steps": bytes(8)}, {"command": "test"})
    for folder in (pruned, replaced):
        assert inspect_path(folder).format is None
        assert not (folder / "nmflow.json").exists()
    assert run("verify", pruned, "--pattern", "1:4").exit_code == 0
    for exclude in (["b.*"], []):
        export_checkpoint(tmp_path / "src", out, "nibble", exclude=exclude, overwrite=True)
        for option in ((), ("--dry-run",)):
            result = run("prune", out, tmp_path / "none", "--pattern", "1:4", *option)
            assert result.exit_code == 2
            assert "out must not be an export as nibble, whose weights are packed; take the checkpoint" in result.stderr
    with pytest.raises(InputValueError, match="must not be an export as nibble"):
        replace_tensors(open_source(out), tmp_path / "none", {"steps": bytes(8)}, {"command": "test"})
    with pytest.raises(InputValueError, match="must not be an export as nibble"):
        export_checkpoint(out, tmp_path / "none", "nibble")
    assert not (tmp_path / "none").exists()


def test_an_export_as_dense_is_exported_with_a_record_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write(tmp_path / "src" / "model.safetensors", weights())
    (tmp_path / "src" / "config.json").write_text("{}")
    export_checkpoint(tmp_path / "src", tmp_path / "dense", "dense")
    export_checkpoint(tmp_path / "dense", tmp_path / "out", "nibble")
    side = read_side_file(tmp_path / "out")
    assert (side.format, side.others) == ("nibble", ("config.json",))
    assert verify_packed(tmp_path / "out").ok


def test_a_file_of_an_export_by_itself_is_told_by_its_mark(tmp_path: Path, model: Path) -> None:
    """A weight that was left dense would be pruned, and what is packed beside it would have no record."""
    for format_ in ("nibble", "dense"):
        export_checkpoint(model, tmp_path / format_, format_, exclude=["a.*"])
        (tmp_path / format_ / model.name).rename(tmp_path / f"{format_}.safetensors")
    result = run("prune", tmp_path / "nibble.safetensors", tmp_path / "none", "--pattern", "2:4")
    assert result.exit_code == 2
    assert "nibble.safetensors must not be of an export as nibble, whose weights are packed" in result.stderr
    assert run("verify", tmp_path / "dense.safetensors", "--pattern", "2:4", "--include", "a.*").exit_code == 0


def test_exclude(tmp_path: Path, model: Path) -> None:
    report = export_checkpoint(model, tmp_path / "out", "nibble", exclude=["b.*"], include=["embed*"] * 0)
    assert {tensor.name for tensor in report.tensors} == {"a.weight", "c.weight"}
    assert dict(report.left_dense)["conv.weight"] == "not a matrix"


def tamper(path: Path, name: str, position: int = 0) -> None:

    place = next(entry for entry in read_header(path).entries if entry.name == name)
    raw = bytearray(path.read_bytes())
    raw[place.start + position] ^= 1
    path.write_bytes(raw)


def test_verify_finds_what_was_changed(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    export_checkpoint(model, out, "cutlass-24")
    tamper(out / "model.safetensors", "b.weight.packed_t", 100)
    result = run("verify", out)
    assert result.exit_code == 1
    assert "tensor 'b.weight': array 'b.weight.packed_t' must have the digest of the side file" in result.stdout
    assert "1 of 3 weights at fault; 7,168 of 14,336 entries of the others are kept; 4 tensors left d" in result.stdout
    # With the digest renewed, the two sides still contradict each other.
    raw = read(out / "model.safetensors")["b.weight.packed_t"].tobytes()
    renewed = hashlib.sha256(raw).hexdigest()
    edit_record(out, lambda side: side["tensors"]["b.weight"]["arrays"]["packed_t"].update(sha256=renewed))
    found = verify_packed(out)
    assert [check.name for check in found.tensors if check.fault] == ["b.weight"]
    assert "packed and meta" in next(check.fault for check in found.tensors if check.fault)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda side: side.update(version=2), "version of cutlass-24 must be 1, not 2"),
        (lambda side: side.update(format="x"), "format must be one of"),
        (lambda side: side.pop("tensors"), "must describe exported tensors"),
        (lambda side: side["tensors"]["a.weight"].update(file="../a"), "file must be a name"),
        (lambda side: side["tensors"]["a.weight"].update(shape=[1.5]), "is not a whole number"),
        (lambda side: side["tensors"]["a.weight"].update(shape=[1] * 65), "is not a list of at most 64 lengths"),
        (
            lambda side: side["tensors"]["a.weight"].update(file="gone.safetensors"),
            r"must exist, as nmflow.json names it",
        ),
        (lambda side: side["files"].update({"../a": {}}), "file must be a name"),
        (lambda side: side["files"]["model.safetensors"].pop("header"), "must describe exported tensors"),
        (lambda side: side.pop("sha256"), "must describe exported tensors"),
        (lambda side: side.update(tensors={}), "must name a tensor that is stored by format, and it names none"),
    ],
)
def test_a_bad_side_file(tmp_path: Path, model: Path, change: Any, match: str) -> None:
    export_checkpoint(model, tmp_path / "out", "cutlass-24")
    edit_record(tmp_path / "out", change)
    with pytest.raises(nmflow.NmflowError, match=match):
        verify_packed(tmp_path / "out")
    assert run("verify", tmp_path / "out").exit_code == 2


def test_a_side_file_beyond_memory_is_not_read(tmp_path: Path, model: Path) -> None:
    export_checkpoint(model, tmp_path / "out", "cutlass-24")
    with (tmp_path / "out" / "nmflow.json").open("wb") as side:
        side.truncate(1 << 40)
    with pytest.raises(nmflow.NmflowError, match=r"nmflow.json must be a file of at most 268,435,456 bytes"):
        verify_packed(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tensor: tensor.update(dtype="bfloat16"), "arrays must be of bfloat16"),
        (lambda tensor: tensor.update(pattern="1:2"), "pattern of float16 must be 2:4, not 1:2"),
        (lambda tensor: tensor["arrays"]["meta"].update(name="gone"), "must hold 'gone'"),
        (lambda tensor: tensor["arrays"].pop("meta"), "arrays must be packed, meta"),
        (lambda tensor: tensor.update(shape=[1, 1]), "shape must be one that is padded"),
        (lambda tensor: tensor.update(shape=[63, 128]), "padding beyond (63, 128) must be dropped"),
    ],
)
def test_a_side_file_that_does_not_fit_its_tensors(tmp_path: Path, model: Path, change: Any, match: str) -> None:
    export_checkpoint(model, tmp_path / "out", "cutlass-24")
    edit_record(tmp_path / "out", lambda side: change(side["tensors"]["a.weight"]))
    found = verify_packed(tmp_path / "out")
    assert match in next(check.fault for check in found.tensors if check.name == "a.weight")
    assert not found.ok


def small_export(tmp_path: Path) -> Path:
    """Two shards, one of which is left dense as a whole."""
    src = tmp_path / "src"
    src.mkdir()
    names = ("model-1.safetensors", "model-2.safetensors")
    parts = ({"a.weight": weights()["c.weight"][:60], "a.bias": np.ones(3, "f4")}, {"norm.weight": np.ones(5, "f4")})
    for name, part in zip(names, parts, strict=True):
        write(src / name, part)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (src / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    export_checkpoint(src, tmp_path / "out", "nibble", pad=True)
    return tmp_path / "out"


def header_edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    change(header)
    raw_file(path, header, raw[end:])


ONE, TWO = "model-1.safetensors", "model-2.safetensors"


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        (ONE, lambda header: header["a.bias"].update(dtype="f32"), "model-1.safetensors: header must have the digest"),
        (TWO, lambda header: header["norm.weight"].update(shape=[5, 1]), "model-2.safetensors: header must have the"),
        (TWO, lambda header: header["__metadata__"].update(more="x"), "model-2.safetensors: header must have the dig"),
        (ONE, lambda header: header.update(x=header.pop("a.bias")), "tensor 'a.bias' must be in a file beside nmflow."),
        (ONE, lambda header: header.update(x=header.pop("a.bias")), "tensor 'x' must be in nmflow.json, and it is not"),
    ],
)
def test_verify_finds_a_changed_header(tmp_path: Path, file: str, change: Any, match: str) -> None:
    out = small_export(tmp_path)
    header_edit(out / file, change)
    result = run("verify", out)
    assert result.exit_code == 1
    assert match in result.stdout
    assert "1 weight sound, both sides agree; " in result.stdout
    assert json.loads(run("verify", out, "--json").stdout)["ok"] is False


def test_verify_finds_what_was_changed_or_lost_besides_packed_weights(tmp_path: Path) -> None:
    out = small_export(tmp_path)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    result = run("verify", out)
    assert result.exit_code == 0
    assert "1 weight sound, both sides agree; 2,880 of 5,760 entries are kept; 2 tensors left dense" in result.stdout
    write(out / "adapter.safetensors", {"other": np.ones(3, "f4")})  # a file that the export only copied
    assert verify_packed(out).ok
    tamper(out / TWO, "norm.weight", 3)
    found = verify_packed(out)
    assert [fault.split(": ", 1)[1] for fault in found.faults] == [
        "tensor 'norm.weight' must have the digest of nmflow.json; it was changed, export again"
    ]
    (out / TWO).write_bytes(whole[out / TWO])
    index = out / "model.safetensors.index.json"
    before = index.read_bytes()
    for damage in (before.replace(b"1", b"3", 1), None):
        index.unlink() if damage is None else index.write_bytes(damage)
        (fault,) = verify_packed(out).faults
        assert fault == f"{index} must have the digest of nmflow.json; it was changed or lost, export again"
    index.write_bytes(before)
    (out / TWO).unlink()
    result = run("verify", out)
    assert result.exit_code == 2
    assert "model-2.safetensors must exist, as nmflow.json names it; copy it there again, or export" in result.stderr
    (out / TWO).write_bytes(whole[out / TWO])
    for change in (
        lambda side: side["tensors"].pop("a.weight"),
        lambda side: side["tensors"].update({"b.weight": side["tensors"].pop("a.weight")}),
        lambda side: side["tensors"]["a.weight"].update(shape=[61, 96]),
        lambda side: side["left_dense"].pop("norm.weight"),
    ):
        edit_record(out, change, renew=False)
        with pytest.raises(FormatError, match=r"nmflow.json must have the digest that it holds, and it was changed"):
            verify_packed(out)
        (out / "nmflow.json").write_bytes(whole[out / "nmflow.json"])
    assert verify_packed(out).ok


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    out, rng = small_export(tmp_path), np.random.default_rng(0)
    for path in (out / ONE, out / TWO, out / "nmflow.json"):
        whole = path.read_bytes()
        end = len(whole) if path.suffix == ".json" else 8 + int.from_bytes(whole[:8], "little")
        for at in (*rng.choice(end, min(end, 150), replace=False), *rng.integers(end, len(whole) + 1, 10) - 1):
            raw = bytearray(whole)
            raw[at] ^= 1 << rng.integers(8)
            path.write_bytes(raw)
            try:
                assert not verify_packed(out, threads=1).ok, (path.name, at, raw[at])
            except nmflow.NmflowError:
                continue
        path.write_bytes(whole)
    assert verify_packed(out).ok


def test_exports_of_an_earlier_nmflow_are_checked_as_far_as_their_record_goes(tmp_path: Path) -> None:
    out = small_export(tmp_path)

    def age(side: dict[str, Any]) -> None:
        del side["files"], side["sha256"]

    edit_record(out, age)
    result = run("verify", out)
    assert result.exit_code == 0
    assert "Headers, and tensors left dense, were compared by name only" in result.stdout
    assert not verify_packed(out).complete
    whole = {path: path.read_bytes() for path in out.iterdir()}
    (out / TWO).unlink()
    assert "tensor 'norm.weight' must be in a file beside nmflow.json" in verify_packed(out).faults[0]
    (out / TWO).write_bytes(whole[out / TWO])
    header_edit(out / ONE, lambda header: header.update(x=header.pop("a.bias")))
    assert len(verify_packed(out).faults) == 2
    (out / ONE).write_bytes(whole[out / ONE])
    tamper(out / ONE, "a.weight.values")
    assert not verify_packed(out).ok
    edit_record(out, lambda side: side.update(tensors={}))
    with pytest.raises(FormatError, match="and it names none; export again"):
        verify_packed(out)


def test_the_progress_of_an_export_ends_with_all_bytes(tmp_path: Path, model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    export_checkpoint(model, tmp_path / "out", "dense", progress=lambda *args: seen.append(args))
    total = sum(tensor.nbytes for tensor in weights().values())
    assert seen[-1] == ("", total, total)
    assert {whole for _, _, whole in seen} == {total}


def test_each_tensor_and_file_is_named_while_it_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    named: list[tuple[str, int, int]] = []

    def pool(count: int) -> Pool:
        threads.append(count)
        return Pool(count)

    out = small_export(tmp_path)
    monkeypatch.setattr("nmflow.checkpoint.packed.Pool", pool)
    assert verify_packed(out, threads=3, progress=lambda *args: named.append(args)).ok
    assert named == [("a.weight", 0, 3), (ONE, 1, 3), (TWO, 2, 3), ("", 3, 3)]
    assert threads == [3]


def test_truncated_and_missing(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    export_checkpoint(model, out, "nibble")
    raw = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(raw[:-1])
    result = run("verify", out)
    assert result.exit_code == 2
    assert "truncated" in result.stderr
    (out / "nmflow.json").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="must be JSON in UTF-8"):
        verify_packed(out)
    with pytest.raises(SourceNotFoundError, match="must exist beside exported tensors"):
        verify_packed(tmp_path)


def test_options_of_verify(tmp_path: Path, model: Path) -> None:
    export_checkpoint(model, tmp_path / "out", "nibble")
    result = run("verify", tmp_path / "out", "--pattern", "2:4")
    assert result.exit_code == 2
    assert "which knows its own pattern" in result.stderr
    export_checkpoint(model, tmp_path / "dense", "dense")  # a checkpoint too, of which any pattern can be asked
    assert run("verify", tmp_path / "dense").exit_code == 0
    assert run("verify", tmp_path / "dense", "--pattern", "2:4", "--rows-only").exit_code == 0
    result = run("verify", tmp_path / "dense", "--rows-only")
    assert (result.exit_code, "--pattern must be given" in result.stderr) == (2, True)
    result = run("verify", model)
    assert result.exit_code == 2
    assert "--pattern must be given for a checkpoint" in result.stderr
    result = run("verify", tmp_path / "nothere")
    assert result.exit_code == 2
    assert "nothere must exist; check the path" in result.stderr
    assert json.loads(run("verify", tmp_path / "out", "--json").stdout)["ok"] is True


def test_a_file_of_an_export_means_all_of_it(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    export_checkpoint(model, out, "nibble")
    (file,) = out.glob("*.safetensors")
    for name in ("verify", "inspect"):
        for part in (file, out / "nmflow.json"):
            assert run(name, part, "--json").stdout == run(name, out, "--json").stdout
    edit_record(out, lambda side: side["left_dense"].pop("a.bias"))
    assert run("verify", file).exit_code == 1
    result = run("prune", file, tmp_path / "pruned", "--pattern", "2:4")
    assert result.exit_code == 2
    assert f"{file} must not be of an export as nibble, whose weights are packed" in result.stderr
    other = write(out / "other.safetensors", {"a.weight": np.zeros((8, 8), "f4")})
    assert json.loads(run("inspect", other, "--json").stdout)["format"] is None


def test_dense_is_the_default_and_says_where_zeros_are_negative(tmp_path: Path) -> None:
    weight = weights()["a.weight"].copy()
    src = write(tmp_path / "x.safetensors", {"a.weight": weight})
    result = run("export", src, tmp_path / "clean")
    assert result.exit_code == 0, result.stderr
    assert "-0.0" not in result.stdout
    assert exported_format(tmp_path / "clean") == "dense"
    dropped = weight == 0
    weight[dropped] = -0.0  # as left behind by weight * mask
    src = write(tmp_path / "x.safetensors", {"a.weight": weight})
    result = run("export", src, tmp_path / "out")
    assert (
        f"{dropped.sum():,} of the kept entries are -0.0, as weight * mask leaves them where it drops" in result.stdout
    )
    masks = write(tmp_path / "masks.safetensors", {"a.weight": ~dropped})
    report = export_checkpoint(src, tmp_path / "again", masks=masks)
    assert [(tensor.kept, tensor.negative_zeros) for tensor in report.tensors] == [((~dropped).sum(), 0)]
    np.testing.assert_array_equal(bits(decoded(tmp_path / "again", "a.weight")[0])[dropped], 0)


def test_inspect_a_checkpoint(model: Path) -> None:
    found = json.loads(run("inspect", model, "--json").stdout)
    assert found["format"] is None
    assert {tensor["name"] for tensor in found["tensors"]} == set(weights())
    assert "a.weight" in run("inspect", model).stdout


def test_what_given_masks_drop_is_counted(tmp_path: Path) -> None:
    weight = np.arange(1, 33, dtype=np.int8).reshape(4, 8)
    weight[0, 0] = 0
    mask = np.zeros(weight.shape, np.bool_)
    mask[:2] = True
    write(tmp_path / "x.safetensors", {"a.weight": weight})
    write(tmp_path / "masks.safetensors", {"a.weight": mask})
    asked = ("export", tmp_path / "x.safetensors", tmp_path / "out", "--format", "dense")
    result = run(*asked, "--masks", tmp_path / "masks.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "16 entries that are not zero were dropped, as the masks say." in result.stdout
    report = export_checkpoint(
        tmp_path / "x.safetensors", tmp_path / "again", "dense", masks=tmp_path / "masks.safetensors"
    )
    assert [(tensor.kept, tensor.dropped) for tensor in report.tensors] == [(16, 16)]


def test_float32_at_2_4_is_told_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", {"a.weight": np.tile(np.array([1, 1, 0, 0], "f4"), (64, 16))})
    result = run("export", tmp_path / "x.safetensors", tmp_path / "out", "--format", "cutlass-24")
    assert result.exit_code == 2
    advice = "; for 2:4, convert the checkpoint to float16 or bfloat16 and prune that"
    assert advice in result.stderr
    assert "counted within" not in result.stderr
    write(tmp_path / "x.safetensors", {"a.weight": np.ones((64, 64), "f2")})
    result = run("export", tmp_path / "x.safetensors", tmp_path / "out", "--format", "cutlass-24")
    assert "float16 is stored at 2:4: prune at that" in result.stderr
    assert advice not in result.stderr


def test_verify_finds_lost_files_and_missing_digests(tmp_path: Path) -> None:
    src = tmp_path / "src"
    (src / "sub").mkdir(parents=True)
    write(src / "model.safetensors", {"a.weight": weights()["c.weight"][:60], "a.bias": np.ones(3, "f4")})
    (src / "sub" / "config.json").write_text("{}")
    out = tmp_path / "out"
    export_checkpoint(src, out, "nibble", pad=True)
    assert verify_packed(out).ok
    (out / "sub" / "config.json").unlink()
    (fault,) = verify_packed(out).faults
    assert "sub/config.json must be there, as nmflow.json names it" in fault
    (out / "sub" / "config.json").write_text("{}")
    edit_record(out, lambda side: side["files"]["model.safetensors"]["dense"].pop("a.bias"))
    (fault,) = verify_packed(out).faults
    assert "tensor 'a.bias' must have a digest in nmflow.json" in fault


def test_files_that_were_only_copied_are_no_part_of_the_model(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    write(src / "model.safetensors", {"a.weight": weights()["a.weight"], "a.bias": np.ones(3, "f4")})
    (src / "model.fp16.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    write(src / "original.safetensors", {"a.weight": np.ones((8, 8), "f4")})
    export_checkpoint(src, out, "nibble")
    assert verify_packed(out).ok
    assert [tensor.name for tensor in inspect_path(out).tensors] == ["a.weight", "a.bias"]


def test_names_of_two_files_that_become_one_are_refused(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    parts = ({"a.weight": weights()["c.weight"][:60]}, {"a.weight.meta": np.ones(3, "f4")})
    for number, part in enumerate(parts):
        write(src / f"model-{number}.safetensors", part)
    weight_map = {key: f"model-{number}.safetensors" for number, part in enumerate(parts) for key in part}
    (src / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"two tensors would be named 'a.weight.meta'; rename one of them"):
        export_checkpoint(src, tmp_path / "out", "nibble", pad=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "value"), [("shape", [-4, 4]), ("file", ".."), ("stored_shape", [4, True])], ids=str)
def test_what_a_side_file_cannot_say(tmp_path: Path, field: str, value: object) -> None:
    tensor = StoredTensor("a.safetensors", "float16", (4, 4), (4, 4), "2:4", {"weight": StoredArray("a", "0")})
    record = json.loads(SideFile("dense", 1, "nmflow", {"a": tensor}, others=()).to_json())
    (tmp_path / "nmflow.json").write_text(json.dumps(record))
    assert read_side_file(tmp_path).tensors["a"] == tensor
    record["tensors"]["a"][field] = value
    (tmp_path / "nmflow.json").write_text(json.dumps(record))
    with pytest.raises(FormatError, match="must describe exported tensors"):
        read_side_file(tmp_path)


@pytest.mark.parametrize("metadata", [None, [1], "x"])
def test_an_index_whose_metadata_says_nothing(tmp_path: Path, metadata: object) -> None:
    src = tmp_path / "src"
    src.mkdir()
    write(src / "model-1.safetensors", weights())
    weight_map = dict.fromkeys(weights(), "model-1.safetensors")
    (src / "model.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    export_checkpoint(src, tmp_path / "out", "nibble")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["metadata"]) == {"total_size"}


def test_an_export_of_an_export_says_its_own_format(tmp_path: Path, model: Path) -> None:
    export_checkpoint(model, tmp_path / "dense", "dense")
    export_checkpoint(tmp_path / "dense", tmp_path / "nibble", "nibble")
    header = read_header(tmp_path / "nibble" / model.name)
    assert header.metadata["nmflow_format"].partition(" ")[0] == "nibble"


def test_a_mask_of_a_dtype_that_numpy_has_not(tmp_path: Path) -> None:
    src = raw_file(tmp_path / "w.safetensors", {"w": entry("F8_E8M0", [4, 4], 0, 16)}, bytes(16))
    masks, out = write(tmp_path / "m.safetensors", {"w": np.ones((4, 4), bool)}), tmp_path / "out"
    assert_refused(tmp_path, CheckpointError, "'w': dtype F8_E8M0 cannot be stored", src, out, "dense", masks=masks)


def test_include_and_exclude_reach_the_library(tmp_path: Path, model: Path) -> None:
    default = {tensor.name for tensor in export_checkpoint(model, tmp_path / "default").tensors}
    options = "--include", "embed.*", "--exclude", min(default)
    result = run("export", model, tmp_path / "out", *options, "--json")
    names = {tensor["name"] for tensor in json.loads(result.stdout)["tensors"]}
    assert names == default - {min(default)} | {"embed.weight"}
