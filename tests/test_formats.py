"""Storage formats: golden bytes of torch, round trips, and every way in which what is given can be wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from foreign import OverDLPack
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_files import bits

from nmflow import formats
from nmflow.errors import FormatError, InputTypeError, InputValueError, UnknownFormatError
from nmflow.formats.cutlass_24 import _plain_sides

GOLDEN = np.load(Path(__file__).parent / "fixtures" / "golden_cutlass_24.npz")
PACKED = ("nibble", "cutlass-24")
CASES = [(name, dtype) for name in PACKED for dtype in formats.get(name).requirements]
CIRCULANT = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], bool)
SQUARES = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def two_way(rng: np.random.Generator, shape: tuple[int, int], pattern: str, density: float = 1.0) -> np.ndarray:
    """A random two-way mask; below density 1 some of its entries are dropped again."""
    size = 2 if pattern == "1:2" else 4
    mask = np.zeros(shape, bool)
    for i in range(0, shape[0], size):
        for j in range(0, shape[1], size):
            block = np.eye(2, dtype=bool) if size == 2 else (CIRCULANT, SQUARES)[rng.integers(2)]
            mask[i : i + size, j : j + size] = block[rng.permutation(size)][:, rng.permutation(size)]
    return mask & (rng.random(shape) < density)


def any_bits(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Numbers of any bits at all: NaN with payloads, infinities, both zeros."""
    values = rng.integers(0, 256, (shape[0], shape[1] * dtype.itemsize), dtype=np.uint8).view(dtype)
    values[rng.random(shape) < 0.2] = -0.0
    return values


def plain_side(weight: np.ndarray, mask: np.ndarray, pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and nibbles of one side, group by group, as formats.md words it; full groups only."""
    m = 2 if pattern == "1:2" else 4
    values, nibbles = [], []
    for row, kept in zip(bits(weight), mask, strict=True):
        for j in range(0, len(row), m):
            places = np.flatnonzero(kept[j : j + m])
            values += [row[j + p] for p in places]
            halves = (2 * places[0], 2 * places[0] + 1) if m == 2 else places
            nibbles.append(int(halves[0]) | int(halves[1]) << 2)
    packed = np.array(nibbles, np.uint8).reshape(len(weight), -1)
    return np.array(values).reshape(len(weight), -1), packed[:, ::2] | packed[:, 1::2] << 4


def test_table() -> None:
    assert formats.names() == ("dense", "nibble", "cutlass-24")
    for name in formats.names():
        assert formats.get(name).name == name
    with pytest.raises(UnknownFormatError, match="format must be one of dense, nibble, cutlass-24, not 'csr'"):
        formats.get("csr")
    with pytest.raises(UnknownFormatError, match="load it with random weights"):
        formats.get("sparse-24-bitmask")


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float32"])
def test_cutlass_bytes_are_those_of_torch(dtype: str) -> None:
    weight, mask = GOLDEN[f"{dtype}/weight"], GOLDEN[f"{dtype}/mask"]
    weight = weight.view(dtype_of(dtype))
    arrays = formats.get("cutlass-24").encode(weight, mask)
    for name in ("packed", "meta", "packed_t", "meta_t"):
        expected = GOLDEN[f"{dtype}/{name}"]
        assert arrays[name].shape == expected.shape
        assert arrays[name].tobytes() == expected.tobytes(), name
    masks, expected = arrays["threads_masks"], GOLDEN[f"{dtype}/bitmask"]
    rows, cols = weight.shape
    assert masks.shape == (-(-rows // 32) * 4, -(-cols // 64) * 8, 8)
    np.testing.assert_array_equal(masks[: rows // 8, : cols // 8], expected.reshape(rows // 8, cols // 8, 8))
    assert not masks[:, cols // 8 :].any()


@pytest.mark.parametrize("dtype", list(formats.get("nibble").requirements))
def test_nibble_is_the_textbook(dtype: str) -> None:
    rng = np.random.default_rng(1)
    format_ = formats.get("nibble")
    pattern = format_.requirements[dtype].pattern
    mask = two_way(rng, (40, 136), pattern)
    weight = any_bits(rng, mask.shape, dtype_of(dtype))
    arrays = format_.encode(weight, mask)
    for suffix, side, kept in (("", weight, mask), ("_t", weight.T.copy(), mask.T)):
        values, meta = plain_side(side, kept, pattern)
        np.testing.assert_array_equal(bits(arrays[f"values{suffix}"]), values)
        np.testing.assert_array_equal(arrays[f"meta{suffix}"], meta)
    for i, j in np.ndindex(10, 34):
        tile = mask[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert arrays["mask"][i, j] == sum(1 << (c + 4 * r) for r, c in np.argwhere(tile))


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, dtype: str, data: st.DataObject) -> None:
    format_ = formats.get(name)
    need = format_.requirements[dtype]
    shape = tuple(step * data.draw(st.integers(1, 260 // step)) for step in (need.rows, need.cols))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = two_way(rng, shape, need.pattern, data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])))
    weight = any_bits(rng, shape, dtype_of(dtype))
    arrays = format_.encode(weight, mask, threads=data.draw(st.integers(1, 3)))
    specs = {key: formats.Spec(array.dtype, array.shape) for key, array in arrays.items()}
    assert specs == format_.specs(shape, weight.dtype)
    back, kept = format_.decode(arrays, threads=data.draw(st.integers(1, 3)))
    np.testing.assert_array_equal(kept, mask)
    assert back.dtype == weight.dtype
    np.testing.assert_array_equal(bits(back), np.where(mask, bits(weight), 0))
    turned = format_.encode(weight.T.copy(), mask.T) if shape[0] % need.cols == shape[1] % need.rows == 0 else None
    if turned is not None:  # the sides of the transpose are those of the matrix, exchanged
        for key in [key for key in arrays if f"{key}_t" in arrays]:
            np.testing.assert_array_equal(bits(turned[key]), bits(arrays[f"{key}_t"]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(list(formats.get("dense").requirements)))
def test_dense_round_trip(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    weight = any_bits(rng, (5, 7), dtype_of(dtype)) if "int" not in dtype else rng.integers(0, 9, (5, 7)).astype(dtype)
    mask = rng.random((5, 7)) < 0.5
    back, kept = formats.get("dense").decode(formats.get("dense").encode(weight, mask))
    np.testing.assert_array_equal(bits(back), np.where(mask, bits(weight), 0))
    np.testing.assert_array_equal(kept, mask & (bits(weight) != 0))


@pytest.mark.parametrize("name", PACKED)
def test_strides_and_read_only_and_byte_order(name: str) -> None:
    rng = np.random.default_rng(3)
    mask = two_way(rng, (64, 64), "2:4")
    weight = any_bits(rng, mask.shape, np.dtype("f2"))
    expected = formats.get(name).encode(weight, mask)
    frozen = weight.copy()
    frozen.flags.writeable = False
    wide = np.zeros((64, 128), "f2")
    wide[:, ::2] = weight
    unaligned = np.zeros(weight.nbytes + 1, np.uint8)[1:].view("f2").reshape(64, 64)
    bits(unaligned)[...] = bits(weight)
    swapped = weight.astype(">f2")
    for given_ in (frozen, np.asfortranarray(weight), wide[:, ::2], unaligned, swapped):
        for key, array in formats.get(name).encode(given_, np.asfortranarray(mask)).items():
            np.testing.assert_array_equal(bits(array), bits(expected[key]))


def test_the_mask_decides_not_the_values() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0, 1] = mask[0, 2] = mask[1, 3] = True
    weight = np.full((8, 8), 7, "f2")
    weight[0, 1], weight[0, 2] = 0.0, -0.0
    arrays = formats.get("nibble").encode(weight, mask)
    assert bits(arrays["values"])[0].tolist() == [0, 0x8000, 0, 0]
    assert arrays["values"][1].tolist() == [0, 7, 0, 0]  # dropped sevens are not stored
    assert arrays["meta"][:2, 0].tolist() == [0b1110_1001, 0b1110_1110]
    back, kept = formats.get("nibble").decode(arrays)
    np.testing.assert_array_equal(kept, mask)
    assert bits(back)[0, :4].tolist() == [0, 0, 0x8000, 0]


def test_a_violation_is_named() -> None:
    format_ = formats.get("nibble")
    mask = two_way(np.random.default_rng(5), (16, 16), "2:4")
    weight = np.ones((16, 16), "f2")
    bad = mask.copy()
    bad[9, 4:8] = [True, True, False, True]
    with pytest.raises(InputValueError, match=r"mask must keep at most 2 of 4 .* not 3 in row 9, columns 4 to 7"):
        format_.encode(weight, bad)
    columns = np.zeros((16, 16), bool)
    columns[4:7, 11] = True
    with pytest.raises(InputValueError, match="not 3 in column 11, rows 4 to 7"):
        format_.encode(weight, columns)
    pair = np.zeros((4, 4), bool)
    pair[0, 2:] = True
    with pytest.raises(InputValueError, match=r"at most 1 of 2 .* not 2 in row 0, columns 2 to 3"):
        format_.encode(np.ones((4, 4), "f4"), pair)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_every_place_of_a_violation_is_seen(dtype: str) -> None:
    """Also in the units that stick out of the matrix, and in each direction alone."""
    format_ = formats.get("nibble")
    m = 2 if dtype == "float32" else 4
    weight = np.ones((40, 136), dtype)
    for row, col in [(0, 0), (31, 127), (32, 0), (36, 132), (39, 135), (5, 130)]:
        for direction in range(2):
            mask = np.zeros(weight.shape, bool)
            first = (row // m * m, col // m * m)
            if direction:
                mask[first[0] : first[0] + m // 2 + 1, col] = True
            else:
                mask[row, first[1] : first[1] + m // 2 + 1] = True
            with pytest.raises(InputValueError, match=f"in {'column ' + str(col) if direction else 'row ' + str(row)}"):
                format_.encode(weight, mask)


def test_bad_arguments() -> None:
    cutlass, nibble = formats.get("cutlass-24"), formats.get("nibble")
    weight, mask = np.ones((64, 64), "f2"), np.zeros((64, 64), bool)
    with pytest.raises(InputTypeError, match=r"weight must be int8, .* or float32 for format cutlass-24, not float64"):
        cutlass.encode(weight.astype("f8"), mask)
    with pytest.raises(InputTypeError, match="not float8_e4m3fn"):
        cutlass.encode(weight.astype(ml_dtypes.float8_e4m3fn), mask)
    with pytest.raises(InputTypeError, match="mask must be boolean, not uint8"):
        cutlass.encode(weight, mask.view("u1"))
    with pytest.raises(InputValueError, match=r"mask must have shape \(64, 64\), not \(64, 32\)"):
        cutlass.encode(weight, mask[:, :32])
    with pytest.raises(InputValueError, match="weight must have 2 axes, not 3"):
        cutlass.encode(weight[None], mask[None])
    with pytest.raises(InputValueError, match="weight must not be empty"):
        nibble.encode(weight[:0], mask[:0])
    with pytest.raises(InputValueError, match="a multiple of 64 rows for cutlass-24 in float16, not 60; pad=True"):
        cutlass.encode(weight[:60], mask[:60])
    with pytest.raises(InputValueError, match=r"a multiple of 8 columns for nibble in float16, not 60; .* 64 x 64"):
        nibble.encode(weight[:, :60], mask[:, :60])
    with pytest.raises(InputValueError, match="threads must be a whole number of at least 1, not 0"):
        nibble.encode(weight, mask, threads=0)
    with pytest.raises(InputTypeError, match="weight must be an array that NumPy can view, not list"):
        nibble.encode([[1.0], [1.0, 2.0]], mask)
    arrays = nibble.encode(weight, mask)
    for wrong in (None, list(arrays.values())):
        with pytest.raises(InputTypeError, match="arrays must be a mapping of names to arrays, not"):
            nibble.decode(wrong)
    for shape in (4, "ab", (64.0, 64.0)):
        with pytest.raises(InputTypeError, match=r"shape must be a tuple of whole numbers, not .*; pass the shape of"):
            nibble.decode(arrays, shape=shape)
    for shape in ((), (8,), (64, 64, 1)):
        with pytest.raises(InputValueError, match=rf"shape must have 2 axes, not {len(shape)}; pass the shape of"):
            nibble.decode(arrays, shape=shape)
    with pytest.raises(InputValueError, match="shape must have 1 axes, not 2"):
        formats.get("dense").decode({"weight": weight[0]}, shape=(1, 64))


@pytest.mark.parametrize("name", formats.names())
def test_a_dtype_may_be_given_by_its_name(name: str) -> None:
    format_, float16 = formats.get(name), np.dtype("f2")
    assert format_.specs([64, 64], "float16") == format_.specs((64, 64), float16)
    assert format_.requirement("float16") == format_.requirement(float16)
    assert format_.check_shape((64, 64), "float16") == (64, 64)
    for dtype in (None, "flat16", 1.5):
        for ask in (lambda kind: format_.specs((64, 64), kind), format_.requirement):
            with pytest.raises(InputTypeError, match="dtype must be one of NumPy's, or its name, not"):
                ask(dtype)
    with pytest.raises(InputTypeError, match="shape must be a tuple of whole numbers, not 64"):
        format_.specs(64, "float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PACKED)
def test_specs_are_of_what_is_stored(name: str) -> None:
    for shape, wrong in (((-64, 64), "must not be empty"), ((64,), "must have 2 axes"), ((64, 62), "a multiple of")):
        with pytest.raises(InputValueError, match=wrong):
            formats.get(name).specs(shape, "float16")
    with pytest.raises(InputTypeError, match=f"for format {name}, not complex64"):
        formats.get(name).specs((64, 64), "complex64")


@pytest.mark.parametrize("name", formats.names())
def test_arguments_are_taken_as_solve_takes_them(name: str) -> None:
    """DLPack without `__array__`, and whole numbers of NumPy."""
    rng, format_ = np.random.default_rng(4), formats.get(name)
    mask = two_way(rng, (64, 64), "2:4")
    weight, one = rng.standard_normal(mask.shape).astype("f2"), np.int64(1)
    arrays = format_.encode(OverDLPack(weight), OverDLPack(mask), threads=one)
    expected = format_.encode(weight, mask)
    assert arrays.keys() == expected.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key])
    over = {key: OverDLPack(array) for key, array in arrays.items()}
    back, kept = format_.decode(over, shape=(np.int64(64), 64), threads=one)
    np.testing.assert_array_equal(back, np.where(mask, weight, 0))
    np.testing.assert_array_equal(kept, mask)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value))
def test_padding(name: str, dtype: str) -> None:
    format_, rng = formats.get(name), np.random.default_rng(8)
    need = format_.requirements[dtype]
    full = two_way(rng, (need.rows, 2 * need.cols), need.pattern)
    shape = need.rows - 1, 2 * need.cols - 3
    mask, weight = full[: shape[0], : shape[1]], any_bits(rng, shape, dtype_of(dtype))
    arrays = format_.encode(weight, mask, pad=True)
    back, kept = format_.decode(arrays, shape=shape)
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(bits(back), np.where(mask, bits(weight), 0))
    whole, kept = format_.decode(arrays)
    assert whole.shape == full.shape
    assert kept.sum() == mask.sum()
    with pytest.raises(FormatError, match="shape must be one that is padded to"):
        format_.decode(arrays, shape=(1, 1 + 2 * need.cols))
    with pytest.raises(FormatError, match=r"padding beyond .* must be dropped"):
        format_.decode(format_.encode(any_bits(rng, full.shape, weight.dtype), full), shape=shape)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value))
def test_parts_of_a_matrix_are_stored_as_parts_of_its_arrays(name: str, dtype: str) -> None:
    format_, rng = formats.get(name), np.random.default_rng(9)
    need = format_.requirements[dtype]
    shape = formats.PART + need.rows, 2 * formats.PART + need.cols
    mask, weight = two_way(rng, shape, need.pattern, 0.9), any_bits(rng, shape, dtype_of(dtype))
    whole = format_.encode(weight, mask)
    built = {key: np.zeros_like(array) for key, array in whole.items()}
    for i in range(0, shape[0], formats.PART):
        for j in range(0, shape[1], formats.PART):
            area = tuple(slice(at, min(at + formats.PART, end)) for at, end in zip((i, j), shape, strict=True))
            places = format_.places(shape, weight.dtype, area)
            for key, array in format_.encode(weight[area], mask[area]).items():
                target = built[key].reshape(places[key].shape)[places[key].area]
                target[...] = array.reshape(target.shape)
    for key, array in whole.items():
        np.testing.assert_array_equal(bits(built[key]), bits(array), err_msg=key)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value))
def test_any_changed_byte_is_noticed_or_harmless(name: str, dtype: str) -> None:
    """Flip a bit anywhere: either an error, or the same matrix (never a different one)."""
    format_, rng = formats.get(name), np.random.default_rng(9)
    need = format_.requirements[dtype]
    mask = two_way(rng, (need.rows, need.cols), need.pattern, 0.95)
    weight = any_bits(rng, mask.shape, dtype_of(dtype))
    arrays = format_.encode(weight, mask)
    noticed = 0
    for key in arrays:
        for _ in range(12):
            changed = {k: a.copy() for k, a in arrays.items()}
            flat = changed[key].reshape(-1).view(np.uint8)
            flat[rng.integers(flat.size)] ^= np.uint8(1 << rng.integers(8))
            try:
                back, kept = format_.decode(changed)
            except FormatError:
                noticed += 1
                continue
            # What no check can see: a bit of the mask dropped where the entry is +0, or an index of a filled place.
            np.testing.assert_array_equal(bits(back), np.where(mask, bits(weight), 0))
            assert not (kept & ~mask).any() or not bits(weight)[kept & ~mask].any()
    assert noticed >= 40


def test_faults_are_named() -> None:
    format_ = formats.get("nibble")
    mask = two_way(np.random.default_rng(2), (8, 8), "2:4")
    weight = np.arange(1, 65, dtype="f2").reshape(8, 8)
    arrays = format_.encode(weight, mask)

    def fault(key: str, index: tuple[int, int], value: int) -> str:
        changed = {k: a.copy() for k, a in arrays.items()}
        changed[key][index] = value
        with pytest.raises(FormatError) as caught:
            format_.decode(changed)
        return str(caught.value)

    assert "rows 0 to 3, columns 0 to 3 hold an index in values and meta that hardware does not" in fault(
        "meta", (0, 0), 0
    )
    assert "an index in values_t and meta_t that hardware does not define" in fault("meta_t", (7, 0), 0x44 ^ 0x11)
    other = 0xEE if arrays["meta"][0, 0] != 0xEE else 0x44
    assert "a kept entry that values and meta does not index" in fault("meta", (0, 0), other)
    other = 0xEE if arrays["meta_t"][0, 0] != 0xEE else 0x44
    assert "a kept entry that values_t and meta_t does not index" in fault("meta_t", (0, 0), other)
    assert "a number in values and meta where the mask drops" in fault("mask", (1, 1), 0)
    assert "differs between values and meta and values_t and meta_t" in fault("values_t", (5, 3), 99)


@pytest.mark.parametrize("dtype", list(formats.get("cutlass-24").requirements))
def test_a_fault_is_looked_for_in_the_order_of_nibble(dtype: str) -> None:
    """The slow search for it, which names a tile, brings the permuted arrays back into plain order."""
    rng = np.random.default_rng(12)
    mask = two_way(rng, (128, 256), formats.get("cutlass-24").requirements[dtype].pattern)
    weight = any_bits(rng, mask.shape, dtype_of(dtype))
    found = _plain_sides(formats.get("cutlass-24").encode(weight, mask))
    plain = formats.get("nibble").encode(weight, mask)
    for part, name in zip(
        (found.values, found.codes, found.values_t, found.codes_t, found.tiles),
        ("values", "meta", "values_t", "meta_t", "mask"),
        strict=True,
    ):
        np.testing.assert_array_equal(bits(part), bits(plain[name]), err_msg=name)


def test_arrays_that_are_not_those_of_a_matrix() -> None:
    format_ = formats.get("cutlass-24")
    arrays = format_.encode(np.ones((64, 64), "f2"), np.zeros((64, 64), bool))
    with pytest.raises(FormatError, match="array 'packed' must be there"):
        format_.decode({key: array for key, array in arrays.items() if key != "packed"})
    with pytest.raises(FormatError, match="arrays must be packed, meta, packed_t, meta_t, threads_masks, not meta"):
        format_.decode({key: array for key, array in arrays.items() if key != "packed_t"})
    with pytest.raises(FormatError, match=r"array 'meta' must be int16 of shape \(64, 4\), not int32"):
        format_.decode({**arrays, "meta": arrays["meta"].astype("i4")})
    with pytest.raises(FormatError, match="a multiple of 64 rows"):
        format_.decode({**arrays, "packed": arrays["packed"][:32]})
    with pytest.raises(FormatError, match="array 'values' must be there"):
        formats.get("nibble").decode(arrays)
    with pytest.raises(FormatError, match="array 'weight' must be there"):
        formats.get("dense").decode({})
    beyond = formats.get("cutlass-24").encode(np.ones((32, 32), "f4"), np.zeros((32, 32), bool))
    beyond["threads_masks"][0, 7, 0] = 1
    with pytest.raises(FormatError, match="threads_masks must keep nothing beyond column 32"):
        format_.decode(beyond)


@pytest.mark.parametrize("shape", [(63, 128), (64, 125)], ids=["rows", "columns"])
def test_padding_on_either_side_alone_must_be_dropped(shape: tuple[int, int]) -> None:
    format_, rng = formats.get("cutlass-24"), np.random.default_rng(8)
    mask = np.zeros((64, 128), bool)
    mask[0, 127] = shape[1] < 128
    mask[63, 0] = shape[0] < 64
    arrays = format_.encode(any_bits(rng, mask.shape, dtype_of("float16")), mask)
    with pytest.raises(FormatError, match=r"padding beyond .* must be dropped"):
        format_.decode(arrays, shape=shape)


def test_an_array_too_many_is_refused() -> None:
    format_ = formats.get("nibble")
    arrays = format_.encode(np.ones((8, 8), "f2"), np.zeros((8, 8), bool))
    with pytest.raises(FormatError, match=r"arrays must be .*, not mask, meta, meta_t, more, values, values_t"):
        format_.decode({**arrays, "more": arrays["mask"]})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_fault_is_named_where_it_is(dtype: str) -> None:
    format_ = formats.get("nibble")
    pattern = format_.requirements[dtype].pattern
    mask = two_way(np.random.default_rng(2), (16, 16), pattern)
    arrays = format_.encode(np.ones(mask.shape, dtype), mask)
    arrays["meta"][9, -1] = 0  # both nibbles of the last byte of the row
    where = "rows 8 to 11, columns 12 to 15" if dtype == "float32" else "rows 8 to 11, columns 8 to 11"
    with pytest.raises(FormatError, match=f"{where} hold an index in values and meta that hardware"):
        format_.decode(arrays)


def test_what_is_written_may_not_be_the_mask() -> None:
    weight, mask = np.zeros((128, 128), np.float16), np.zeros((128, 128), bool)
    out = dict(formats.get("dense").encode(weight, mask))
    name = next(iter(out))
    both = np.zeros(128 * 128 * 2, np.uint8)
    out[name] = both.view(np.float16).reshape(128, 128)
    shared = both[: 128 * 128].view(bool).reshape(128, 128)
    with pytest.raises(InputValueError, match="must have memory of its own, not that of what is read"):
        formats.get("dense").encode(weight, shared, out=out)


def test_what_is_decoded_may_not_lie_where_it_is_read() -> None:
    weight = np.ones((128, 128), np.float16)
    arrays = formats.get("dense").encode(weight, weight != 0)
    stored = next(iter(arrays.values()))
    out = {"weight": stored, "mask": np.empty((128, 128), bool)}
    with pytest.raises(InputValueError, match="must have memory of its own, not that of what is read"):
        formats.get("dense").decode(arrays, out=out)


@pytest.mark.parametrize("kind", ["C-contiguous", "aligned"])
def test_memory_that_kernels_cannot_write_is_refused(kind: str) -> None:
    weight = np.ones((128, 128), np.float16)
    out = dict(formats.get("dense").encode(weight, weight != 0))
    raw = np.zeros(2 * 128 * 128 + 1, np.uint8)
    bad = np.zeros((128, 128), np.float16, order="F") if kind == "C-contiguous" else raw[1:].view(np.float16)
    out[next(iter(out))] = bad.reshape(128, 128, order="A")
    with pytest.raises(InputValueError, match=f"an array that is not {kind}"):
        formats.get("dense").encode(weight, weight != 0, out=out)


def test_what_a_signal_raises_is_raised_wherever_it_comes() -> None:
    """A program's own time limit must not be taken for an array that cannot be encoded."""
    weight = np.zeros((64, 64), np.float16)
    formats.get("nibble").encode(weight, weight != 0)  # its kernels are compiled
    place = lines = 0

    def limit(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_globals.get("__name__", "").startswith("nmflow.formats"):
            return None
        lines += event == "line"
        if lines == place:
            raise TimeoutError("a limit of the caller's")
        return limit

    while lines == place:  # until there is no such place any more
        place, lines = place + 1, 0
        before = sys.gettrace()
        sys.settrace(limit)
        try:
            formats.get("nibble").encode(weight, weight != 0)
        except TimeoutError:
            pass
        finally:
            sys.settrace(before)
    assert place > 50
