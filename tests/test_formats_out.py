"""Encoding and decoding into arrays that a caller passes, and matrices so large that kernels store past the caches."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import pytest
from safetensors_files import bits
from test_formats import CASES, any_bits, dtype_of, two_way

from nmflow import formats
from nmflow.errors import FormatError, InputTypeError, InputValueError

Arrays = dict[str, np.ndarray]
ALL = [*CASES, ("dense", "float16"), ("dense", "float64")]


def matrix(name: str, dtype: str, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    need = formats.get(name).requirements[dtype]
    rng = np.random.default_rng(12)
    rows, cols = shape or (3 * max(need.rows, 4), 2 * max(need.cols, 4))
    mask = two_way(rng, (min(rows, 384), min(cols, 256)), need.pattern or "2:4", 0.9)
    mask = np.tile(mask, (-(-rows // 384), -(-cols // 256)))[:rows, :cols].copy()
    return any_bits(rng, mask.shape, dtype_of(dtype)), mask


def placed(like: np.ndarray, offset: int) -> np.ndarray:
    """An array that begins so many bytes after a cache line does, filled with ones."""
    raw = np.full(like.nbytes + 128, 255, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start : start + like.nbytes].view(like.dtype).reshape(like.shape)


def same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(bits(found[key]), bits(array), err_msg=key)


@pytest.mark.parametrize(("name", "dtype"), ALL, ids=lambda value: str(value))
@pytest.mark.parametrize("offset", [0, 16])
def test_what_is_passed_is_filled_and_returned(name: str, dtype: str, offset: int) -> None:
    format_ = formats.get(name)
    weight, mask = matrix(name, dtype)
    expected = format_.encode(weight, mask)
    out = {key: placed(array, offset) for key, array in reversed(expected.items())}
    found = format_.encode(weight, mask, out=MappingProxyType(out))
    same(found, expected)
    assert all(found[key] is out[key] for key in expected)
    there = {"mask": placed(mask, offset), "weight": placed(weight, offset)}
    back, kept = format_.decode(found, out=there)
    assert back is there["weight"]
    assert kept is there["mask"]
    again = format_.decode(expected)
    np.testing.assert_array_equal(bits(back), bits(again[0]))
    np.testing.assert_array_equal(kept, again[1])
    # What one matrix left behind does not show in the next.
    none = np.zeros_like(mask)
    same(format_.encode(weight, none, out=found), format_.encode(weight, none))
    assert not format_.decode(found, out=there)[1].any()


class Tall(np.ndarray):
    """What says that it is larger than it is."""

    shape = property(lambda self: (64, 32))  # type: ignore[assignment]


def test_what_is_passed_is_as_large_as_its_memory() -> None:
    format_ = formats.get("cutlass-24")
    weight, mask = matrix("cutlass-24", "float16", (64, 64))
    out = format_.encode(weight, mask)
    out["packed"] = np.zeros(8, np.float16).view(Tall)
    with pytest.raises(InputValueError, match=r"out\['packed'\] must have shape \(64, 32\), not \(8,\)"):
        format_.encode(weight, mask, out=out)


def test_new_arrays_begin_at_a_cache_line() -> None:
    weight, mask = matrix("cutlass-24", "float16")
    arrays = formats.get("cutlass-24").encode(weight, mask)
    for array in (*arrays.values(), *formats.get("cutlass-24").decode(arrays)):
        assert array.ctypes.data % 64 == 0


def test_out_with_padding() -> None:
    format_ = formats.get("nibble")
    weight, mask = matrix("nibble", "float16", (24, 16))
    part, kept = weight[:21, :13], mask[:21, :13]
    expected = format_.encode(part, kept, pad=True)
    out = {key: placed(array, 0) for key, array in expected.items()}
    same(format_.encode(part, kept, pad=True, out=out), expected)
    there = {"weight": placed(weight, 0), "mask": placed(mask, 0)}
    back, found = format_.decode(out, shape=part.shape, out=there)
    assert back.base is not None
    assert np.may_share_memory(back, there["weight"])
    np.testing.assert_array_equal(found, kept)
    np.testing.assert_array_equal(bits(back), np.where(kept, bits(part), 0))


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("nibble", "int8", (2024, 2136)),
        ("nibble", "float16", (1032, 2088)),
        ("nibble", "float32", (1036, 1044)),
        ("cutlass-24", "int8", (2176, 2048)),
        ("cutlass-24", "bfloat16", (1088, 2112)),
        ("cutlass-24", "float32", (1056, 1056)),
    ],
)
def test_a_large_matrix_is_stored_as_its_parts_are(name: str, dtype: str, shape: tuple[int, int]) -> None:
    """Outputs of a large matrix go past the caches, those of its parts do not."""
    from nmflow.kernels.carry import LARGE

    format_ = formats.get(name)
    weight, mask = matrix(name, dtype, shape)
    assert weight.nbytes >= LARGE
    whole = format_.encode(weight, mask, threads=2)
    built = {key: np.zeros_like(array) for key, array in whole.items()}
    side = 4 * formats.PART
    for i in range(0, shape[0], side):
        for j in range(0, shape[1], side):
            area = tuple(slice(at, min(at + side, end)) for at, end in zip((i, j), shape, strict=True))
            places = format_.places(shape, weight.dtype, area)
            for key, array in format_.encode(weight[area], mask[area]).items():
                target = built[key].reshape(places[key].shape)[places[key].area]
                target[...] = array.reshape(target.shape)
    same(whole, built)
    for offset in (0, 16, 20 if weight.itemsize > 2 else 18):
        moved = {key: placed(array, offset // array.itemsize * array.itemsize) for key, array in whole.items()}
        same(format_.encode(weight, mask, out=moved, threads=3), whole)
        there = {"weight": placed(weight, offset), "mask": placed(mask, offset)}
        back, kept = format_.decode(moved, out=there, threads=3)
        np.testing.assert_array_equal(kept, mask)
        np.testing.assert_array_equal(bits(back), np.where(mask, bits(weight), 0))


@pytest.mark.parametrize(("name", "dtype"), [case for case in CASES if case[1] in ("int8", "float16", "float32")])
@pytest.mark.parametrize("heights", [(1, 1), (3, 2), (16, 5)])
def test_kernels_keep_to_their_workspace(name: str, dtype: str, heights: tuple[int, int]) -> None:
    """Guards around it, and around each array that is written, are as they were; blocks and units stick out."""
    from nmflow.formats.sides import Sides, tile_bits
    from nmflow.kernels.compress import compress_kernel, room_size
    from nmflow.kernels.expand import expand_kernel

    format_ = formats.get(name)
    need, guard = format_.requirements[dtype], 256
    weight, mask = matrix(name, dtype, (heights[0] * need.rows, heights[1] * need.cols))
    rows, cols = weight.shape

    def guarded(like: np.ndarray, n_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        raw = np.full(n_bytes + 2 * guard, 0xA5, np.uint8)
        return raw, raw[guard : guard + n_bytes].view(like.dtype)

    bits_ = tile_bits(weight.dtype)
    expected = format_.encode(weight, mask)
    raws, parts = zip(*(guarded(array, array.nbytes) for array in (*expected.values(), weight, mask)), strict=True)
    room, inner = guarded(np.empty(0, np.uint8), room_size(weight.itemsize, bits_, rows))
    *stored, back, kept = (
        part.reshape(array.shape) for part, array in zip(parts, (*expected.values(), weight, mask), strict=True)
    )
    if name == "cutlass-24":
        stored[4][...] = 0
    where = Sides(*stored).addresses()
    for kernel, one, two in ((compress_kernel, weight, mask), (expand_kernel, back, kept)):
        ends = (one.ctypes.data, two.ctypes.data, rows, cols, 0, rows)
        assert kernel(weight.itemsize, bits_, name == "cutlass-24")(*ends, *where, inner.ctypes.data) == 0
    for raw in (*raws, room):
        assert (raw[:guard] == 0xA5).all()
        assert (raw[-guard:] == 0xA5).all()
    same(dict(zip(expected, stored, strict=True)), expected)
    np.testing.assert_array_equal(bits(back), np.where(mask, bits(weight), 0))


def unchanged(call: Callable[[object], object], out: Arrays, wrong: object) -> str:
    """The message with which a call refuses `wrong`; nothing that it was given is written."""
    arrays = {**out, **wrong} if isinstance(wrong, dict) else out
    before = {key: array.tobytes() for key, array in arrays.items() if isinstance(array, np.ndarray)}
    with pytest.raises((InputTypeError, InputValueError)) as caught:
        call(wrong)
    assert {key: arrays[key].tobytes() for key in before} == before
    return f"{type(caught.value).__name__}: {caught.value}"


def test_arrays_that_cannot_be_written_are_refused() -> None:
    format_ = formats.get("nibble")
    weight, mask = matrix("nibble", "float16")
    out = format_.encode(weight, mask)
    other, none = matrix("nibble", "float16")[0], np.zeros_like(mask)

    def refused(wrong: object) -> str:
        return unchanged(lambda given: format_.encode(other, none, out=given), out, wrong)

    advice = "; pass what an earlier call returned for a matrix of this dtype and shape, or leave out away"
    assert refused([1]) == f"InputTypeError: out must be a mapping of names to arrays, not list{advice}"
    names = "values, meta, values_t, meta_t, mask"
    assert f"InputValueError: out must hold {names}, not nothing; pass" in refused({})
    assert f"out must hold {names}, not {names}, more" in refused({**out, "more": mask})
    assert f"out must hold {names}, not meta" in refused({key: out[key] for key in ("meta", "mask")})
    assert "InputTypeError: out['meta'] must be a NumPy array, not list" in refused({**out, "meta": []})
    wrong = out["mask"].astype("i4")
    assert "InputTypeError: out['mask'] must be uint16, not int32" in refused({**out, "mask": wrong})
    swapped = out["values"].astype(">f2")
    assert "InputTypeError: out['values'] must be float16, not >f2" in refused({**out, "values": swapped})
    short = out["meta"][:-1]
    assert "InputValueError: out['meta'] must have shape (24, 2), not (23, 2)" in refused({**out, "meta": short})
    frozen = out["mask"].copy()
    frozen.flags.writeable = False
    problem = "must be C-contiguous, aligned and writable, not an array that is not"
    assert f"out['mask'] {problem} writable; pass" in refused({**out, "mask": frozen})
    turned = np.asfortranarray(out["values_t"])
    assert f"out['values_t'] {problem} C-contiguous" in refused({**out, "values_t": turned})
    assert f"out['mask'] {problem} aligned" in refused({**out, "mask": placed(out["mask"], 1)})


def test_memory_in_two_places_is_refused() -> None:
    format_ = formats.get("nibble")
    weight, mask = matrix("nibble", "float16", (16, 16))
    out = format_.encode(weight, mask)
    message = unchanged(
        lambda given: format_.encode(weight, mask, out=given), out, {**out, "values": weight.reshape(32, 8)[:16]}
    )
    assert "out['values'] must have memory of its own, not that of what is read; pass" in message
    message = unchanged(lambda given: format_.encode(weight, mask, out=given), out, {**out, "meta_t": out["meta"]})
    assert "out['meta_t'] must have memory of its own, not that of out['meta']; pass" in message
    weight, mask = format_.decode(out)
    message = unchanged(
        lambda given: format_.decode(out, out=given), out, {"weight": weight, "mask": out["meta"].view(bool)}
    )
    assert "out['mask'] must have shape (16, 16), not (16, 2)" in message
    lent = {"weight": out["values"].reshape(-1)[:0].reshape(0, 16), "mask": mask}
    assert "out['weight'] must have shape (16, 16), not (0, 16)" in unchanged(
        lambda given: format_.decode(out, out=given), out, lent
    )
    dense = formats.get("dense")
    assert "not that of what is read" in unchanged(
        lambda given: dense.decode({"weight": weight}, out=given), {}, {"weight": weight, "mask": mask}
    )


@pytest.mark.parametrize("name", ["dense", "nibble", "cutlass-24"])
def test_nothing_is_written_when_another_argument_is_wrong(name: str) -> None:
    format_ = formats.get(name)
    weight, mask = matrix(name, "float16", (64, 64))
    out = format_.encode(weight, mask)
    there = dict(zip(("weight", "mask"), format_.decode(out), strict=True))
    other = weight[::-1].copy()
    for wrong in ({"mask": mask.view("u1")}, {"mask": mask[:32]}, {"threads": 0}):
        given = {"mask": np.zeros_like(mask), **wrong}
        unchanged(lambda arrays, given=given: format_.encode(other, out=arrays, **given), out, out)
    stored = format_.encode(other, np.zeros_like(mask))
    unchanged(lambda arrays: format_.decode(stored, out=arrays, threads=0), there, there)
    before = there["weight"].tobytes()
    for changes in ({"shape": (1, 65)}, {}):
        arrays = stored if changes else {key: array[:-1] for key, array in stored.items() if key != "weight"}
        if name != "dense":
            with pytest.raises(FormatError):
                format_.decode(arrays, out=there, **changes)
    assert there["weight"].tobytes() == before


def test_the_mask_is_not_written_over() -> None:
    format_ = formats.get("nibble")
    weight, mask = matrix("nibble", "float16", (16, 16))
    out = format_.encode(weight, mask)
    with pytest.raises(InputValueError, match="that of what is read"):
        format_.encode(weight, mask, out={**out, "meta": mask.view(np.uint8).reshape(-1)[:32].reshape(16, 2)})


def test_stored_arrays_are_not_written_over() -> None:
    format_ = formats.get("nibble")
    weight, mask = matrix("nibble", "float16", (16, 16))
    memory = np.zeros((16, 16), np.float16)
    arrays = format_.encode(weight, mask)
    arrays["values"] = memory[:8].reshape(16, 8)
    with pytest.raises(InputValueError, match="that of what is read"):
        format_.decode(arrays, out={"weight": memory, "mask": np.zeros_like(mask)})
