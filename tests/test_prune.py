"""Pruning a checkpoint: the bytes it writes, the numbers it reports, and what is left when it fails."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_files import (
    BF16,
    PRUNED,
    as_matrices,
    bits,
    entry,
    leftovers,
    most_nonzero,
    raw_file,
    read,
    sharded,
    snapshot,
    tensors,
    write,
)

from nmflow.checkpoint import (
    TensorReport,
    make_plan,
    masked,
    prune,
    prune_checkpoint,
    publish,
    read_header,
    stage,
    unit,
)
from nmflow.checkpoint.tensor import row_sums
from nmflow.errors import (
    CheckpointError,
    DestinationExistsError,
    InputValueError,
    NonFiniteError,
    PatternError,
    SourceNotFoundError,
    UnknownSolverError,
)
from nmflow.pattern import Budget, Pattern


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A checkpoint in a folder, with files beside the weights."""
    root = tmp_path / "hf"
    (root / "sub").mkdir(parents=True)
    shutil.copy(model, root)
    (root / "config.json").write_text("{}")
    (root / "sub" / "run.sh").write_text("true")
    (root / "sub" / "run.sh").chmod(0o755)
    return root


@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_every_byte_of_what_is_written(tmp_path: Path, model: Path, fill: str) -> None:
    before = model.read_bytes()
    out = tmp_path / "out.safetensors"
    prune_checkpoint(model, out, "2:4", fill=fill)
    assert model.read_bytes() == before
    after = out.read_bytes()
    header = read_header(model)
    assert len(after) == len(before)
    assert after[: header.size] == before[: header.size]
    for item in header.entries:
        if item.name not in PRUNED:
            assert after[item.start : item.stop] == before[item.start : item.stop], item.name
    old, new = read(model), read(out)
    for name in PRUNED:
        assert new[name].dtype == old[name].dtype
        kept = bits(new[name]) != 0
        # Kept bits are untouched, and every other bit is zero: +0, never -0.
        assert (bits(new[name])[kept] == bits(old[name])[kept]).all()
        for matrix in as_matrices(name, new[name]):
            assert max(most_nonzero(matrix, 4)) <= 2, name
        assert 0.25 <= kept.mean() <= 0.55, name  # a ragged edge may keep a little more than half


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BF16])
def test_signed_zeros_and_subnormals(tmp_path: Path, dtype: Any) -> None:
    """Where all scores are equal to zero the mask still decides what is stored, bit by bit."""
    weights = np.full((8, 8), -0.0).astype(dtype)
    weights[0, 0] = np.finfo(np.float16).tiny / 4 if dtype != BF16 else 1e-40
    path = write(tmp_path / "x.safetensors", {"weight": weights})
    prune_checkpoint(path, tmp_path / "y.safetensors", "2:4")
    new = bits(read(tmp_path / "y.safetensors")["weight"])
    sign = 1 << (8 * new.itemsize - 1)
    assert new[0, 0] == bits(weights)[0, 0]
    # Two of each four in each row keep their -0, the others are +0 now.
    kept = new != 0
    assert (kept.reshape(8, 2, 4).sum(axis=2) == 2).all()
    assert set(np.unique(new)) == {0, sign, int(bits(weights)[0, 0])}


def test_numbers_of_the_report(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = prune_checkpoint(model, out, "2:4")
    old, new = read(model), read(out)
    assert [tensor.name for tensor in report.tensors] == [
        tensor.entry.name for tensor in make_plan(model, "2:4").tensors if tensor.pruned
    ]
    for tensor in report.tensors:
        dense = np.abs(old[tensor.name].astype("f8")).sum()
        assert tensor.dense == pytest.approx(dense, rel=1e-12)
        assert tensor.kept == pytest.approx(np.abs(new[tensor.name].astype("f8")).sum(), rel=1e-12)
        rows_only = 0.0
        for matrix in as_matrices(tensor.name, np.abs(old[tensor.name].astype("f8"))):
            for row in matrix:
                rows_only += sum(float(np.sort(row[j : j + 4])[-2:].sum()) for j in range(0, len(row), 4))
        assert tensor.rows_only == pytest.approx(rows_only, rel=1e-12)
        assert tensor.kept_percent == pytest.approx(100 * tensor.kept / dense)
        assert tensor.loss_percent == pytest.approx(100 * (1 - tensor.kept / rows_only), abs=1e-9)
        assert tensor.loss_percent >= -1e-9
        assert tensor.n_proven == tensor.n_blocks > 0
        assert tensor.gap == 0
        assert tensor.seconds > 0
    assert report.proven
    assert report.total.kept == pytest.approx(sum(tensor.kept for tensor in report.tensors))
    assert report.total.n_blocks == sum(tensor.n_blocks for tensor in report.tensors)
    assert dict(report.skipped)["lm_head.weight"] == "output head (lm_head.*)"
    assert len(report.skipped) + len(report.tensors) == len(tensors())
    text = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert text["total"]["entries"] == sum(old[name].size for name in PRUNED)
    assert text["destination"] == str(out)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BF16])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 4), (3, 7), (16, 32), (64, 64)])
def test_sums_over_rows(n: int, m: int, dtype: Any) -> None:
    rng = np.random.default_rng(m)
    for rows, cols in ((5, 3 * m + m // 2), (2, 300 * m), (1, 1)):
        weights = rng.standard_normal((rows, cols)).astype(dtype)
        weights[0, ::3] = [-0.0, 6e-8, -6e4][cols % 3]  # subnormals of float16, and near its largest
        magnitudes = np.abs(weights.astype("f8"))
        groups = np.zeros((rows, -(-cols // m) * m))
        groups[:, :cols] = magnitudes
        best = np.sort(groups.reshape(rows, -1, m), axis=2)[:, :, m - n :]
        found = row_sums(weights, None, Budget(n, m))
        assert found == pytest.approx((magnitudes.sum(), best.sum()), rel=1e-12)
    assert row_sums(np.full((2, 4), 1e308), None, Budget(2, 4)) == (np.inf, np.inf)


def test_all_zero_weights_keep_all_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"weight": np.zeros((8, 8), "f4")})
    report = prune_checkpoint(path, tmp_path / "y.safetensors", "2:4")
    assert report.tensors[0].kept_percent == 100
    assert report.tensors[0].loss_percent == 0


def test_sums_beyond_float64_are_null_in_json() -> None:
    tensor = TensorReport("w", "s", "F64", (4, 4), None, np.inf, np.inf, np.inf, 0.0, 1, 1, 0.1)
    assert tensor.to_dict()["dense"] is None
    assert json.dumps(tensor.to_dict(), allow_nan=False)


def test_rows_only(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = prune_checkpoint(model, out, "2:4", transposable=False)
    new = read(out)["encoder.f32.weight"]
    assert most_nonzero(new, 4)[0] == 2
    assert (np.count_nonzero(new.reshape(-1, 4), axis=1) == 2).all()
    assert all(tensor.loss_percent == 0 for tensor in report.tensors)
    assert report.pattern == "2:4 rows only"


def test_pattern_object_and_globs(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = prune_checkpoint(model, out, Pattern(1, 8, fill="at-most"), include=["lm_head*"], exclude=["*encoder*"])
    assert [tensor.name for tensor in report.tensors] == ["lm_head.weight"]
    assert max(most_nonzero(read(out)["lm_head.weight"], 8)) == 1


def test_same_bytes_for_any_number_of_threads(tmp_path: Path, model: Path) -> None:
    for threads in (1, 2):
        prune_checkpoint(model, tmp_path / str(threads), "2:4", threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_small_stripes(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large tensor is written in many stripes; a small stripe makes every tensor large."""
    whole = prune_checkpoint(model, tmp_path / "whole", "2:4")
    monkeypatch.setattr("nmflow.checkpoint.tiles.TILE_BYTES", 50)
    parts = prune_checkpoint(model, tmp_path / "parts", "2:4")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    assert parts.total.rows_only == pytest.approx(whole.total.rows_only)
    assert parts.total.dense == pytest.approx(whole.total.dense)


def test_a_system_without_fdatasync(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fdatasync", raising=False)
    monkeypatch.setattr(unit, "FLUSH_BYTES", 1)
    assert prune_checkpoint(model, tmp_path / "out", "2:4").proven


def test_data_that_is_not_aligned_in_the_file(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype("f4")
    header = {"a": entry("U8", [1], 0, 1), "weight": entry("F32", [8, 8], 1, 257)}
    path = raw_file(tmp_path / "x.safetensors", header, b"a" + weights.tobytes())
    out = tmp_path / "y.safetensors"
    prune_checkpoint(path, out, "2:4")
    new = np.frombuffer(out.read_bytes()[-256:], "f4").reshape(8, 8)
    assert max(most_nonzero(new, 4)) == 2
    assert (new[new != 0] == weights[new != 0]).all()


def test_progress(tmp_path: Path, model: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prune_checkpoint(model, tmp_path / "out", "2:4", progress=lambda *call: calls.append(call))
    header = read_header(model)
    size = header.file_size - header.size
    assert calls[-1][0] == ""
    assert {name for name, _, _ in calls} == {*(item.name for item in header.entries), ""}
    assert len(calls) == len(header.entries) + 1
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1] == ("", size, size)


# Folders.


def test_folder_is_copied_whole(tmp_path: Path, folder: Path) -> None:
    before = snapshot(folder)
    report = prune_checkpoint(folder, tmp_path / "out", "2:4")
    assert snapshot(folder) == before
    after = snapshot(tmp_path / "out")
    report_file = json.loads(after.pop("nmflow-report.json"))
    assert report_file["tensors"] == json.loads(json.dumps(report.to_dict()["tensors"]))
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"model.safetensors"}
    assert report.copied_files == ("config.json", "sub/run.sh")
    assert os.access(tmp_path / "out" / "sub" / "run.sh", os.X_OK)
    assert (tmp_path / "out").stat().st_mode & 0o777 == folder.stat().st_mode & 0o777


def test_other_weights_of_a_folder_are_named(tmp_path: Path, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    report = prune_checkpoint(folder, tmp_path / "out", "2:4")
    assert report.unpruned_files == ("pytorch_model.bin",)
    assert (tmp_path / "out" / "pytorch_model.bin").read_bytes() == b"\x80"


def test_shards_are_pruned_as_one_file_would_be(tmp_path: Path, model: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    prune_checkpoint(model, one, "2:4")
    report = prune_checkpoint(sharded(tmp_path / "hf"), many, "2:4")
    found = {**read(many / "model-00001-of-00002.safetensors"), **read(many / "model-00002-of-00002.safetensors")}
    expected = read(one)
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    assert {tensor.shard for tensor in report.tensors} == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert (many / "model.safetensors.index.json").read_bytes() == (
        tmp_path / "hf" / "model.safetensors.index.json"
    ).read_bytes()


def test_links_become_files(tmp_path: Path, model: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(model)
    before = model.read_bytes()
    prune_checkpoint(tmp_path / "snapshot", tmp_path / "out", "2:4")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    assert model.read_bytes() == before


# Destinations.


def test_destination_exists(tmp_path: Path, model: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for src, name in ((model, "file"), (model, "dir"), (folder, "dir"), (folder, "file"), (model, "link")):
        with pytest.raises(DestinationExistsError, match=f"dst must not exist, and .*{name} does") as caught:
            prune_checkpoint(src, tmp_path / name, "2:4")
        assert isinstance(caught.value, FileExistsError)
    assert (tmp_path / "file").read_text() == "mine"


def test_overwrite_file(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out.safetensors"
    prune_checkpoint(model, out, "1:4")
    prune_checkpoint(model, out, "2:4", overwrite=True)
    first = out.read_bytes()
    prune_checkpoint(model, out, "2:4", overwrite=True)
    assert out.read_bytes() == first
    assert not leftovers(tmp_path)


def test_overwrite_folder(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(sharded(tmp_path / "shards"), out, "2:4")
    prune_checkpoint(folder, out, "1:4", overwrite=True)
    assert snapshot(out).keys() == snapshot(folder).keys() | {"nmflow-report.json"}
    assert max(most_nonzero(read(out / "model.safetensors")["encoder.f32.weight"], 4)) == 1
    assert not leftovers(tmp_path)


def test_overwrite_replaces_a_link_and_not_its_target(tmp_path: Path, model: Path, folder: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "home").mkdir()
    for src, target in ((model, "precious"), (folder, "home"), (model, "home")):
        out = tmp_path / f"link-{src.name}-{target}"
        out.symlink_to(target)
        prune_checkpoint(src, out, "2:4", overwrite=True)
        assert not out.is_symlink()
        assert out.is_dir() == src.is_dir()
    assert (tmp_path / "precious").read_text() == "mine"
    assert not any((tmp_path / "home").iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_overwrite_spares_a_folder_that_is_no_checkpoint(tmp_path: Path, model: Path, folder: Path, kind: str) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(DestinationExistsError, match=r"dst must be a checkpoint to be overwritten, and .*thesis is"):
        prune_checkpoint(model if kind == "file" else folder, tmp_path / "thesis", "2:4", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_overwrite_spares_a_file_where_a_folder_would_go(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DestinationExistsError, match=r"dst must be a folder, and .*notes is a file"):
        prune_checkpoint(folder, tmp_path / "notes", "2:4", overwrite=True)
    assert (tmp_path / "notes").read_text() == "mine"


def test_destination_is_the_source(tmp_path: Path, model: Path, folder: Path) -> None:
    (tmp_path / "alias").symlink_to(model)
    before = model.read_bytes()
    for src, dst in (
        (model, model),
        (model, tmp_path / "alias"),
        (tmp_path / "alias", model),
        (tmp_path / "alias", tmp_path / "alias"),
        (folder, folder),
        (folder / "model.safetensors", folder / "sub" / ".." / "model.safetensors"),
    ):
        with pytest.raises(InputValueError, match="dst must not be src"):
            prune_checkpoint(src, dst, "2:4", overwrite=True)
    assert model.read_bytes() == before


def test_destination_inside_or_around_the_source(tmp_path: Path, folder: Path) -> None:
    before = snapshot(folder)
    (tmp_path / "door").symlink_to(folder)
    for dst in (folder / "out", folder / "sub" / "out", tmp_path / "door" / "out"):
        with pytest.raises(InputValueError, match="dst must not lie inside src"):
            prune_checkpoint(folder, dst, "2:4")
    with pytest.raises(InputValueError, match="dst must not hold src"):
        prune_checkpoint(folder, tmp_path, "2:4", overwrite=True)
    with pytest.raises(InputValueError, match="dst must not hold src"):
        prune_checkpoint(folder / "model.safetensors", folder, "2:4", overwrite=True)
    assert snapshot(folder) == before


@pytest.mark.parametrize("dst", ["none/out", "model.safetensors/out"])
def test_destination_without_a_folder_to_lie_in(tmp_path: Path, model: Path, dst: str) -> None:
    with pytest.raises(InputValueError, match="dst must lie in a folder that exists"):
        prune_checkpoint(model, tmp_path / dst, "2:4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_destination_in_a_folder_that_may_not_be_written(tmp_path: Path, model: Path) -> None:
    (tmp_path / "sealed").mkdir(mode=0o555)
    with pytest.raises(InputValueError, match=r"dst must lie in a folder that can be written to, and .*sealed cannot"):
        prune_checkpoint(model, tmp_path / "sealed" / "out", "2:4")


def test_options_that_contradict_a_pattern(tmp_path: Path, model: Path) -> None:
    for given in ({"fill": "at-most"}, {"transposable": False}):
        with pytest.raises(InputValueError, match="fill and transposable must be part of the Pattern, not given"):
            prune_checkpoint(model, tmp_path / "out", Pattern(2, 4), **given)  # type: ignore[arg-type]


def test_destination_that_no_folder_can_hold(tmp_path: Path, model: Path) -> None:
    for dst, words in (
        (Path("."), r"dst must be a name in a folder, as it appears whole, not \.; such as"),
        (Path("/"), "dst must be a name in a folder"),
        (tmp_path / "..", "dst must be a name in a folder"),
        (model / "out", "model.safetensors is a file"),
        (tmp_path / "none" / "out", "make .*none first"),
        (Path("/proc/out"), "dst must lie in a folder that can be written to, and /proc cannot"),
    ):
        with pytest.raises(InputValueError, match=words):
            prune_checkpoint(model, dst, "2:4")


# Failures: what was there stays; what was done is kept for a run that resumes, if anything was.


class Broken(RuntimeError):
    pass


def failing_solve(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int = 4) -> None:
    calls, real = [], masked.solve

    def solve(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) > after:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(masked, "solve", solve)


@pytest.mark.parametrize("error", [Broken("x"), KeyboardInterrupt(), MemoryError(), SystemExit(3)])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_failure_in_the_middle_can_be_resumed(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str
) -> None:
    src, out = (model if kind == "file" else folder), tmp_path / "out"
    failing_solve(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        prune_checkpoint(src, out, "2:4", threads=1)
    assert not out.exists()
    assert leftovers(tmp_path) == [".out.nmflow"]
    assert "tensors are done and kept" in caught.value.__notes__[0]
    monkeypatch.undo()
    resumed = prune_checkpoint(src, out, "2:4", resume=True)
    whole = prune_checkpoint(src, tmp_path / "whole", "2:4")
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert [row.kept for row in resumed.tensors] == [row.kept for row in whole.tensors]
    assert not leftovers(tmp_path)


def weights_of(path: Path) -> dict[str, bytes]:
    """Every byte but those of the report, which holds timings."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {name: data for name, data in snapshot(path).items() if name != "nmflow-report.json"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_failure_at_the_start_leaves_nothing(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())

    def start_shard(*args: Any) -> None:
        raise Broken("x")

    monkeypatch.setattr(prune, "start_shard", start_shard)
    with pytest.raises(Broken):
        prune_checkpoint(model if kind == "file" else folder, tmp_path / "out", "2:4")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_failure_in_the_middle_keeps_the_old(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    src, out = (model if kind == "file" else folder), tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    before = weights_of(out)
    failing_solve(monkeypatch, Broken("x"))
    with pytest.raises(Broken):
        prune_checkpoint(src, out, "1:4", overwrite=True)
    assert weights_of(out) == before
    monkeypatch.undo()
    prune_checkpoint(src, out, "2:4", overwrite=True)  # without resume it begins anew, and clears up
    assert weights_of(out) == before
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("exchange", [True, False])
def test_failure_of_the_last_rename_keeps_the_old(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchange: bool
) -> None:
    src, out = (model if kind == "file" else folder), tmp_path / "out"
    prune_checkpoint(src, out, "2:4")
    before = weights_of(out)
    real, calls = os.rename, []

    def rename(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == (2 if kind == "folder" else 1):
            raise OSError(errno.EIO, "broken disk")
        real(old, new)

    def renameat2(source: Path, target: Path, flag: int) -> bool:
        if exchange:
            raise OSError(errno.EIO, "broken disk")
        return False

    monkeypatch.setattr(publish, "_rename", renameat2)
    monkeypatch.setattr(publish.os, "rename", rename)
    monkeypatch.setattr(publish.os, "replace", rename)
    with pytest.raises(OSError, match="broken disk"):
        prune_checkpoint(src, out, "1:4", overwrite=True)
    assert weights_of(out) == before
    monkeypatch.undo()
    prune_checkpoint(src, out, "1:4", overwrite=True, resume=True)
    assert weights_of(out) != before
    assert not leftovers(tmp_path)


def test_full_disk(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_tile(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(masked, "write_tile", write_tile)
    with pytest.raises(
        OSError, match=r"No space left on device, at tensor '.*': '.*\.out\.nmflow/new-[0-9a-f]+'"
    ) as caught:
        prune_checkpoint(model, tmp_path / "out", "2:4")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    prune_checkpoint(model, tmp_path / "out", "2:4", resume=True)
    assert not leftovers(tmp_path)


def test_destination_that_appears_meanwhile_is_spared(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def progress(name: str, done: int, total: int) -> None:
        if not name:
            out.write_text("another's")

    with pytest.raises(DestinationExistsError, match=r"dst must not exist, and .*out appeared meanwhile"):
        prune_checkpoint(model, out, "2:4", progress=progress)
    assert out.read_text() == "another's"
    out.unlink()
    prune_checkpoint(model, out, "2:4", resume=True)
    assert not leftovers(tmp_path)


def test_source_that_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(tmp_path / "x.safetensors", {"w.weight": np.ones((8, 8), "f4")})
    real = unit.read_tile

    def read_tile(*args: Any) -> Any:
        os.truncate(model, model.stat().st_size - 1)
        return real(*args)

    monkeypatch.setattr(unit, "read_tile", read_tile)
    with pytest.raises(CheckpointError, match=r"'w.weight' must not change while it is read, and its file became"):
        prune_checkpoint(model, tmp_path / "out", "2:4")
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_file_beside_the_weights_that_goes_away(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(folder, "2:4")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"must not change while it is read: .*config.json"):
        stage.copy_others(plan.source, plan.source.others, tmp_path / "out")


# Bad input: an error before anything is written.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BF16])
def test_weight_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: Any) -> None:
    weights = np.ones((8, 8), dtype)
    weights[3, 5] = weights[7, 0] = value
    path = write(tmp_path / "x.safetensors", {"first.weight": np.ones((8, 8), dtype), "second.weight": weights})
    message = (
        f"{path}: tensor 'second.weight' must be finite, not NaN or infinite at 2 of 64 entries, the first at (3, 5)"
    )
    with pytest.raises(NonFiniteError, match=re.escape(message)) as caught:
        prune_checkpoint(path, tmp_path / "out", "2:4")
    assert (caught.value.count, caught.value.first) == (2, (3, 5))
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) in ([], [".out.nmflow"])  # the first is kept, if it was done by then
    prune_checkpoint(path, tmp_path / "out", "2:4", exclude=["second*"])
    assert not leftovers(tmp_path)


def test_error_of_a_solver_names_the_tensor(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_solve(monkeypatch, PatternError("too hard"))
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor 'encoder.*': too hard"):
        prune_checkpoint(model, tmp_path / "out", "2:4")


def test_bad_options(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "staged", None)  # an error must come before anything is staged
    with pytest.raises(UnknownSolverError):
        prune_checkpoint(model, tmp_path / "out", "2:4", solver="nope")
    with pytest.raises(PatternError, match='fill must be "exact" or "at-most"'):
        prune_checkpoint(model, tmp_path / "out", "2:4", fill="half")
    with pytest.raises(PatternError, match="pattern must fit at least one weight"):
        prune_checkpoint(model, tmp_path / "out", "16:32")
    with pytest.raises(SourceNotFoundError):
        prune_checkpoint(tmp_path / "none", tmp_path / "out", "2:4")
