"""Tensors in pieces: every entry in exactly one piece, pieces of whole blocks, and their bytes in a file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_files import BF16, most_nonzero, read, write

import nmflow
from nmflow.checkpoint import prune_checkpoint, tiles, verify_checkpoint
from nmflow.checkpoint.tiles import as_blocks, cut, cut_bytes, read_tile, runs, write_tile

SIZES = st.integers(1, 9)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from([None, "conv", "batch"]),
    lengths=st.tuples(SIZES, SIZES, SIZES, SIZES),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    tile_bytes=st.integers(1, 400),
)
def test_pieces_cover_a_tensor_once_and_hold_whole_blocks(
    monkeypatch: pytest.MonkeyPatch, layout: Any, lengths: tuple[int, ...], block: tuple[int, int], tile_bytes: int
) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    shape, layout = as_blocks(lengths[: {None: 2, "batch": 3, "conv": 4}[layout]], layout, block[0])
    seen = np.zeros(shape, int)
    for tile in cut(shape, 2, layout, block):
        seen[tile] += 1
        rows, cols = tile[-2:] if layout == "batch" else tile[:2]
        length = shape[-2:] if layout == "batch" else shape[:2]
        assert rows.start % block[0] == 0
        assert rows.stop % block[0] == 0 or rows.stop == length[0]
        if layout == "conv" and length[1] % block[1]:
            assert (cols.start, cols.stop) == (0, length[1])  # blocks straddle kernel positions
            continue
        assert cols.start % block[1] == 0
        assert cols.stop % block[1] == 0 or cols.stop == length[1]
        size = 2 * math.prod(part.stop - part.start for part in tile)
        least = 2 * block[0] * block[1] * (math.prod(shape[2:]) if layout == "conv" else 1)
        assert size <= max(tile_bytes, least)
    assert (seen == 1).all()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=st.lists(SIZES, min_size=1, max_size=4).map(tuple), dtype=st.sampled_from(["u1", "f4"]))
def test_a_piece_is_read_and_written_at_its_place(
    tmp_path: Path, data: st.DataObject, shape: tuple[int, ...], dtype: str
) -> None:
    starts = [data.draw(st.integers(0, length - 1)) for length in shape]
    tile = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True))
    whole = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    path = tmp_path / "x"
    path.write_bytes(b"abc" + whole.tobytes() + b"z")
    expected = whole.copy()
    expected[tile] = 99
    assert sum(length for _, length in runs(shape, tile)) == whole[tile].size
    file = os.open(path, os.O_RDWR)
    part = read_tile(file, 3, shape, tile, np.dtype(dtype))
    np.testing.assert_array_equal(part, whole[tile])
    write_tile(file, 3, shape, tile, np.full_like(part, 99))
    os.close(file)
    assert path.read_bytes() == b"abc" + expected.tobytes() + b"z"


def test_reading_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    file = os.open(tmp_path / "x", os.O_RDONLY)
    with pytest.raises(EOFError):
        read_tile(file, 0, (4,), (slice(0, 4),), np.dtype("u1"))
    os.close(file)


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 33])
def test_bytes_are_cut_between_entries(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", 9)
    parts = [tile[0] for tile in cut_bytes(n_bytes)]
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(n_bytes))
    assert all(part.start % 8 == 0 for part in parts)


SHAPES = {
    "wide.weight": (6, 64),
    "tall.weight": (61, 6),
    "conv.weight": (9, 8, 3, 2),
    "straddling.weight": (9, 3, 5),
    "even.experts.up_proj": (5, 8, 12),
    "ragged.experts.up_proj": (3, 6, 10),
}


@pytest.mark.parametrize("dtype", ["f4", BF16])
@pytest.mark.parametrize("tile_bytes", [1, 64, 300, 8 << 20])
def test_no_score_depends_on_the_pieces_and_no_byte_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_bytes: int, dtype: Any
) -> None:
    rng = np.random.default_rng(1)
    weights = {name: rng.integers(-3, 4, shape).astype(dtype) for name, shape in SHAPES.items()}  # many ties
    src = write(tmp_path / "src.safetensors", weights)
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    report = prune_checkpoint(src, tmp_path / "out.safetensors", "2:4")
    prune_checkpoint(src, tmp_path / "again.safetensors", "2:4", threads=4)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    found = read(tmp_path / "out.safetensors")
    for tensor in report.tensors:
        weight = weights[tensor.name]
        solution = nmflow.solve(weight, 2, 4, layout=tensor.layout)
        assert ((found[tensor.name] == weight) | (found[tensor.name] == 0)).all()
        assert np.abs(found[tensor.name].astype("f8")).sum() == tensor.kept
        assert tensor.n_blocks == solution.stats["blocks"]
        assert tensor.kept == solution.objective  # sums of small whole numbers are exact
        assert tensor.rows_only == nmflow.solve(weight, 2, 4, layout=tensor.layout, transposable=False).objective
        assert tensor.dense == np.abs(weight.astype("f8")).sum()
    assert verify_checkpoint(tmp_path / "out.safetensors", "2:4").ok


def matrices(name: str, array: np.ndarray) -> list[np.ndarray]:
    if "experts" in name:
        return list(array)
    return [np.moveaxis(array, 1, -1).reshape(len(array), -1)]


@pytest.mark.parametrize("tile_bytes", [1, 64, 300, 8 << 20])
def test_verifying_counts_the_same_and_names_a_place_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_bytes: int
) -> None:
    rng = np.random.default_rng(2)
    weights = {name: (rng.random(shape) < 0.45).astype("f4") for name, shape in SHAPES.items()}
    src = write(tmp_path / "src.safetensors", weights)
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    for tensor in verify_checkpoint(src, "2:4").tensors:
        bad = 0
        found = matrices(tensor.name, weights[tensor.name])
        for matrix in found:
            for lines in (matrix, matrix.T):
                bad += sum(int(line[j : j + 4].sum()) > 2 for line in lines for j in range(0, len(line), 4))
        assert tensor.bad_groups == bad > 0
        assert tensor.nonzero == np.count_nonzero(weights[tensor.name])
        first = tensor.first
        assert first is not None
        matrix = found[first.matrix or 0]
        assert (first.matrix is None) == ("experts" not in tensor.name)
        line = matrix[first.line] if first.direction == "row" else matrix[:, first.line]
        assert int(line[4 * first.group : 4 * first.group + 4].sum()) == first.nonzero > 2
        assert max(most_nonzero(matrix, 4)) >= first.nonzero


@pytest.mark.parametrize("tile_bytes", [1, 64, 8 << 20])
def test_the_first_entry_that_is_not_finite_is_found_in_any_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_bytes: int
) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    for name, shape in SHAPES.items():
        weights = np.ones(shape, "f4")
        places = [np.unravel_index(flat, shape) for flat in (weights.size // 2, weights.size - 1)]
        for place in places:
            weights[place] = np.nan
        src = write(tmp_path / "src.safetensors", {name: weights})
        with pytest.raises(nmflow.NmflowError, match="at 2 of") as caught:
            prune_checkpoint(src, tmp_path / "out.safetensors", "2:4")
        assert caught.value.first == tuple(int(index) for index in places[0])  # type: ignore[attr-defined]
