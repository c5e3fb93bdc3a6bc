"""Files that are broken, strange or hostile: nothing but a clean error or a correct result comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_files import entry, leftovers, raw_file, sharded

from nmflow.checkpoint import (
    diff_checkpoints,
    export_checkpoint,
    inspect_path,
    prune_checkpoint,
    read_header,
    verify_checkpoint,
    verify_packed,
)
from nmflow.errors import CheckpointError, NmflowError

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 8)).astype("f4")
DTYPES = {"F8_E4M3": 1, "F8_E5M2": 1, "F4": 0.5, "F6_E2M3": 0.75, "I64": 8, "BOOL": 1, "C64": 8, "Q3": 2, "": 3}


def test_dtypes_that_are_not_pruned_are_copied_and_listed(tmp_path: Path) -> None:
    header: dict[str, Any] = {"w.weight": entry("F32", [8, 8], 0, 256)}
    data = WEIGHT.tobytes()
    for name, size in DTYPES.items():
        part = RNG.bytes(int(64 * size))
        header[f"{name}.weight"] = entry(name, [8, 8], len(data), len(data) + len(part))
        data += part
    for name, shape in (
        ("scalar.weight", []),
        ("line.weight", [5]),
        ("none.weight", [0, 8]),
        ("huge.weight", [0, 2**62]),
    ):
        size = 4 * math.prod(shape)
        header[name] = entry("F32", shape, len(data), len(data) + size)
        data += bytes(size)
    src, out = raw_file(tmp_path / "x.safetensors", header, data), tmp_path / "y.safetensors"
    report = prune_checkpoint(src, out, "2:4")
    assert [tensor.name for tensor in report.tensors] == ["w.weight"]
    assert {name: reason for name, reason in report.skipped if name.startswith(("F", "I", "B", "C", "Q", "."))} == {
        f"{name}.weight": f"dtype {name}" for name in DTYPES
    }
    assert dict(report.skipped)["huge.weight"] == "empty"
    before, after = src.read_bytes(), out.read_bytes()
    place = next(item for item in read_header(src).entries if item.name == "w.weight")
    assert before[: place.start] == after[: place.start]
    assert before[place.stop :] == after[place.stop :]
    assert verify_checkpoint(out, "2:4").ok
    assert [tensor.name for tensor in diff_checkpoints(src, out).tensors if not tensor.same] == ["w.weight"]
    export_checkpoint(out, tmp_path / "packed", "dense")
    assert verify_packed(tmp_path / "packed").ok
    assert {tensor.name for tensor in inspect_path(tmp_path / "packed").tensors} == set(header)


@pytest.mark.parametrize(
    "name", ["\x1b]0;x\x07", "../../etc/passwd", "\ud800", "a" * 5000, "", "\n", "<script>", "%s%n"]
)
def test_names_mean_nothing(tmp_path: Path, name: str) -> None:
    header = {f"{name}.weight": entry("F32", [8, 8], 0, 256), name: entry("U8", [1], 256, 257)}
    src = raw_file(tmp_path / "x.safetensors", header, WEIGHT.tobytes() + b"x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "model.safetensors").write_bytes(src.read_bytes())
    for args in (
        ("prune", src, tmp_path / "y.safetensors", "--pattern", "1:2"),
        ("prune", tmp_path / "d", tmp_path / "e", "--pattern", "2:4"),
        ("prune", tmp_path / "d", tmp_path / "none", "--pattern", "2:4", "--dry-run"),
        ("export", tmp_path / "y.safetensors", tmp_path / "p", "--format", "nibble"),
        ("inspect", tmp_path / "p"),
        ("verify", tmp_path / "p"),
        ("diff", src, tmp_path / "y.safetensors"),
    ):
        result = run(*args)
        assert result.exit_code in (0, 1), (args, result.stderr, result.exception)
        assert not {char for char in result.stdout + result.stderr if ord(char) < 32} - {"\n"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "e", "p", "x.safetensors", "y.safetensors"]
    assert json.loads((tmp_path / "e" / "nmflow-report.json").read_text())["tensors"][0]["name"] == f"{name}.weight"


def test_a_name_too_long_for_the_disk(tmp_path: Path) -> None:
    src = raw_file(tmp_path / "x.safetensors", {"w.weight": entry("F32", [8, 8], 0, 256)}, WEIGHT.tobytes())
    result = run("prune", src, tmp_path / ("y" * 250), "--pattern", "2:4")
    assert result.exit_code == 2
    assert "File name too long" in result.stderr


# Fuzzing. A header is taken apart and put together again with other values in some places.

NUMBERS = st.one_of(
    st.integers(-2, 300),
    st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 256, 255, 257, 8, 1.0, True, None, "8", [], -0.0]),
)
VALUES = st.one_of(
    NUMBERS, st.lists(NUMBERS, max_size=3), st.sampled_from(["F32", "F16", "BF16", "F64", "X", {}, "F4"])
)
NAMES = st.sampled_from(["a.weight", "b.weight", "__metadata__", "", "lm_head.weight", "x\x00", "norm.weight"])


def base() -> dict[str, Any]:
    return {
        "__metadata__": {"format": "pt"},
        "a.weight": entry("F32", [8, 8], 0, 256),
        "norm.weight": entry("F16", [4], 256, 264),
        "b.weight": entry("BF16", [8, 4], 264, 328),
    }


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header with some of its values, keys or bytes changed."""
    header = base()
    for _ in range(draw(st.integers(1, 2))):
        change = draw(
            st.sampled_from(["field", "field", "shape", "shape", "shape", "rename", "rename", "entry", "drop"])
        )
        name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"}) or [""]))
        if change == "field" and isinstance(header.get(name), dict):
            header[name] = {
                **header[name],
                draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"])): draw(VALUES),
            }
        elif change == "entry":
            header[draw(NAMES)] = draw(VALUES)
        elif change == "rename" and name in header:
            header[draw(NAMES)] = header.pop(name)
        elif change == "drop":
            header.pop(name, None)
        elif change == "shape" and isinstance(header.get(name), dict) and "shape" in header[name]:
            # the same number of entries in another shape: still a sound file
            header[name] = {
                **header[name],
                "shape": draw(st.sampled_from([[64], [4, 16], [2, 2, 4, 4], [16, 4], [1, 64]])),
            }
    raw = bytearray(json.dumps(header).encode())
    for _ in range(1 if draw(st.integers(0, 9)) == 7 else 0):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=headers(),
    length=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 2**64 - 1), st.integers(0, 600)),
    data=st.one_of(st.just(328), st.just(328), st.integers(0, 400)),
)
def test_mutated_headers(tmp_path: Path, header: bytes, length: int | None, data: int) -> None:
    body = np.resize(WEIGHT, 100).tobytes()[:data].ljust(data, b"\0")
    src, out = raw_file(tmp_path / "x.safetensors", header, body, length), tmp_path / "out"
    out.unlink(missing_ok=True)
    try:
        report = prune_checkpoint(src, out, "2:4", on_nonfinite="skip")
    except NmflowError:
        assert not out.exists()
        assert not leftovers(tmp_path)
        return
    before, after = src.read_bytes(), out.read_bytes()
    found = read_header(out)
    assert before[: found.size] == after[: found.size]
    pruned = {tensor.name for tensor in report.tensors}
    for item in found.entries:
        old, new = (raw[item.start : item.stop] for raw in (before, after))
        if item.name not in pruned:
            assert old == new
            continue
        width = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[item.dtype]
        x, y = (np.frombuffer(raw, f"u{width}") for raw in (old, new))
        assert ((x == y) | (y == 0)).all()
    include = [name for name in pruned if name not in ("a.weight", "b.weight")]
    assert verify_checkpoint(out, "2:4", include=include).ok or {
        n for n, why in report.skipped if why.startswith("NaN")
    }


def test_an_index_beyond_memory_is_not_read(tmp_path: Path) -> None:
    """A few bytes to fetch can be gigabytes to read."""
    folder = sharded(tmp_path / "model")
    with (folder / "model.safetensors.index.json").open("wb") as index:
        index.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"must be an index of at most 100,000,000 bytes, not 1,099,511,627,776"):
        inspect_path(folder)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(["encoder.f32.weight", "ghost", ""]),
            st.one_of(
                VALUES,
                st.sampled_from(
                    [
                        "model-00001-of-00002.safetensors",
                        "../x",
                        "/etc/passwd",
                        ".",
                        "..",
                        "",
                        "a\x00b",
                        "config.json",
                        "sub",
                    ]
                ),
            ),
        ),
        max_size=3,
    ),
    noise=st.binary(max_size=2),
    at=st.integers(0, 10_000),
)
def test_mutated_indexes(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, Any]], noise: bytes, at: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "index"
    if not folder.exists():
        sharded(folder)
        (folder / "config.json").write_text("{}")
        (folder / "sub").mkdir()
    whole = {
        "weight_map": {entry.name: f.name for f in folder.glob("*.safetensors") for entry in read_header(f).entries}
    }
    whole["weight_map"] |= dict(changes)
    raw = bytearray(json.dumps(whole).encode())
    raw[at % len(raw) : at % len(raw) + len(noise)] = noise
    (folder / "model.safetensors.index.json").write_bytes(raw)
    try:
        found = inspect_path(folder)
    except CheckpointError:
        return
    assert {tensor.shard for tensor in found.tensors} <= {path.name for path in folder.glob("*.safetensors")}
