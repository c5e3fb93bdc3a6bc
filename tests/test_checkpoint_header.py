"""The header reader: what it takes, and a clear error for each way a file can be broken."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors_files import entry, raw_file, tensors, write

from nmflow.checkpoint import read_header
from nmflow.checkpoint.strict_json import short
from nmflow.errors import CheckpointError, NmflowError, SourceNotFoundError


def test_agrees_with_the_reference_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    header = read_header(path)
    raw = path.read_bytes()
    assert header.metadata == {"format": "pt"}
    assert header.file_size == len(raw)
    assert {item.name for item in header.entries} == set(tensors())
    assert [item.start for item in header.entries] == sorted(item.start for item in header.entries)
    for item in header.entries:
        expected = tensors()[item.name]
        assert item.shape == expected.shape
        assert item.n_bytes == expected.nbytes
        assert raw[item.start : item.stop] == expected.tobytes()
    with safe_open(path, "np") as reference:
        assert set(reference.keys()) == {item.name for item in header.entries}


def test_takes_a_file_without_tensors(tmp_path: Path) -> None:
    assert read_header(raw_file(tmp_path / "x", {})).entries == ()


def test_takes_a_padded_header_and_order_of_names_that_is_not_the_order_of_data(tmp_path: Path) -> None:
    header = {"z": entry("U8", [2], 1, 3), "a": entry("U8", [1], 0, 1)}
    found = read_header(raw_file(tmp_path / "x", json.dumps(header) + "   ", b"abc"))
    assert [item.name for item in found.entries] == ["a", "z"]


def test_takes_empty_tensors_between_others(tmp_path: Path) -> None:
    header = {"b": entry("U8", [3], 0, 3), "e": entry("F32", [0, 4], 0, 0), "f": entry("F32", [2, 0], 3, 3)}
    assert len(read_header(raw_file(tmp_path / "x", header, b"abc")).entries) == 3


def test_takes_packed_and_unknown_dtypes(tmp_path: Path) -> None:
    header = {"four": entry("F4", [3, 2], 0, 3), "six": entry("F6_E2M3", [4], 3, 6), "new": entry("Q3", [5], 6, 8)}
    assert [item.dtype for item in read_header(raw_file(tmp_path / "x", header, b"12345678")).entries] == [
        "F4",
        "F6_E2M3",
        "Q3",
    ]


HUGE = 10**25
BROKEN = {
    "not JSON": ("{oops", b"", "header must be JSON, not text that cannot be read"),
    "not UTF-8": (b'{"\xff": 1}', b"", "header must be JSON, not text that cannot be read"),
    "NaN": ('{"a": NaN}', b"", "header must be JSON, not text that cannot be read"),
    "deep": ("[" * 200_000, b"", "header must be JSON, not text that cannot be read"),
    "long number": (
        '{"a": {"dtype": "U8", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 1]}}',
        b"",
        "header must be JSON",
    ),
    "a list": ("[1]", b"", "header must be a JSON object, not list"),
    "duplicate tensor": (
        '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
        ' "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
        b"x",
        "header must name each key once, not 'a' twice",
    ),
    "duplicate field": (
        '{"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}',
        b"x",
        "header must name each key once, not 'dtype' twice",
    ),
    "metadata": ({"__metadata__": {"step": 3}}, b"", "__metadata__ must map text to text, not {'step': 3}"),
    "metadata list": ({"__metadata__": [1]}, b"", "__metadata__ must map text to text, not [1]"),
    "no info": ({"a": 3}, b"", "tensor 'a' must have dtype, shape and data_offsets, not 3"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x", "tensor 'a': dtype must be text, not None"),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x", "tensor 'a': shape must be a list of at most"),
    "negative": ({"a": entry("U8", [-1], 0, 1)}, b"x", "tensor 'a': shape must be a list of at most"),
    "fraction": ({"a": entry("U8", [1.0], 0, 1)}, b"x", "tensor 'a': shape must be a list of at most"),
    "boolean": ({"a": entry("U8", [True], 0, 1)}, b"x", "tensor 'a': shape must be a list of at most"),
    "axes": ({"a": entry("U8", [1] * 65, 0, 1)}, b"x", "whole numbers from 0 to 2**63 - 1, not [1, 1"),
    "huge axis": ({"a": entry("U8", [HUGE], 0, 1)}, b"x", "tensor 'a': shape must be a list of at most"),
    "overflow": ({"a": entry("U8", [2**40, 2**40], 0, 1)}, b"x", "tensor 'a': data_offsets must span the"),
    "descending": ({"a": entry("U8", [1], 2, 1)}, b"x", "data_offsets must be two ascending whole numbers, not [2, 1]"),
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}},
        b"x",
        "data_offsets must be two ascending",
    ),
    "wrong size": (
        {"a": entry("F32", [2, 2], 0, 15)},
        b"x" * 15,
        "tensor 'a': data_offsets must span the 128 bits of F32 of shape [2, 2], not 120",
    ),
    "half a byte": ({"a": entry("F4", [3], 0, 1)}, b"x", "must span the 12 bits of F4 of shape [3], not 8"),
    "overlap": (
        {"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)},
        b"xyz",
        "tensor 'b' must start at data offset 2, not 1: it would overlap the tensor before it",
    ),
    "same place": (
        {"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)},
        b"xy",
        "tensor 'b' must start at data offset 2, not 0: it would overlap",
    ),
    "hole": (
        {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)},
        b"xyz",
        "tensor 'b' must start at data offset 1, not 2: it would leave a hole before it",
    ),
    "hole at the start": ({"a": entry("U8", [1], 1, 2)}, b"xy", "tensor 'a' must start at data offset 0, not 1"),
    "truncated data": (
        {"a": entry("U8", [4], 0, 4)},
        b"xy",
        "tensor 'a' must end within the file",
    ),
    "bytes behind": ({"a": entry("U8", [1], 0, 1)}, b"xyz", "must end with its last tensor at byte"),
    "long value": ({"a": "y" * 1000}, b"", "data_offsets, not 'yyyyy"),
}


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="x must be a safetensors file, not a pointer of Git LFS; run git lfs"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(
    ("begun", "message"),
    [
        (b"GGUF\3\0\0\0", "not GGUF, which is made of one: prune that, and convert again"),
        (b"PK\3\4\0\0\x08\x08", "not a ZIP archive, as torch.save and numpy.savez write; save what it holds"),
        (b"\x93NUMPY\1\0", "not one array of NumPy; give it to nmflow.solve"),
        (b"\x89HDF\r\n\x1a\n", "not HDF5; save what it holds as safetensors"),
        (b"whatever", "the file is probably not in the safetensors format"),
    ],
)
def test_files_of_other_formats(tmp_path: Path, begun: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(begun + bytes(100))
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("case", BROKEN)
def test_broken_header(tmp_path: Path, case: str) -> None:
    header, data, message = BROKEN[case]
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_length_beyond_the_file(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x", "{}", length=1000)
    with pytest.raises(CheckpointError, match=r"header must end within the file, not at byte 1008 of 10; .*truncated"):
        read_header(path)


@pytest.mark.parametrize("length", [100_000_001, 2**63, 2**64 - 1])
def test_huge_length_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = raw_file(tmp_path / "x", "{}", length=length)
    with pytest.raises(CheckpointError, match=f"header length must be at most 100000000 bytes, not {length}"):
        read_header(path)


@pytest.mark.parametrize("size", range(8))
def test_file_too_short_for_a_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\0" * size)
    with pytest.raises(CheckpointError, match=f"must be a safetensors file of 8 bytes or more, not {size}"):
        read_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="must exist; check the path") as caught:
        read_header(tmp_path / "none.safetensors")
    assert isinstance(caught.value, FileNotFoundError)
    (tmp_path / "file").touch()
    with pytest.raises(SourceNotFoundError, match="must exist; check the path"):
        read_header(tmp_path / "file" / "model.safetensors")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a safetensors file, not a folder"):
        read_header(tmp_path)


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="must be a safetensors file, not a device or pipe"):
        read_header(tmp_path / "pipe")


def test_every_truncation_of_a_real_file_is_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", {"w": np.ones((2, 2), "f4"), "b": np.ones(2, "f2")}).read_bytes()
    path = tmp_path / "cut"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=str(path)):
            read_header(path)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_file_is_refused_or_read_as_the_reference_reads_it(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    path = write(tmp_path / "x", {"w": np.ones((2, 2), "f4"), "b": np.ones(2, "f2")})
    raw = bytearray(path.read_bytes())
    for place, value in changes:
        raw[place % len(raw)] = value
    path.write_bytes(raw)
    try:
        found = read_header(path)
    except NmflowError:
        return
    try:
        with safe_open(path, "np") as reference:
            assert set(reference.keys()) == {item.name for item in found.entries}
    except (SafetensorError, TypeError):
        # The reference knows fewer dtypes than it may meet; an unknown one is copied here.
        known = {"F32", "F16"}
        assert any(item.dtype not in known for item in found.entries)


def test_a_number_that_python_does_not_print_is_described() -> None:
    assert short(10**5000) == "a number of thousands of digits"
