"""torch reads what we write: its decoder on every array, its tensor class from exported files, and its kernels."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_files import BF16, bits, edit_record, write

import nmflow
from nmflow import formats
from nmflow.checkpoint import export_checkpoint
from nmflow.errors import FormatError, InputTypeError, InputValueError, SourceNotFoundError

torch = pytest.importorskip("torch")
import safetensors.torch  # noqa: E402
from torch.sparse import SparseSemiStructuredTensorCUTLASS  # noqa: E402
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass  # noqa: E402

from nmflow.torch import prune_, semi, to_semi_structured_  # noqa: E402
from nmflow.torch.products import is_8_x  # noqa: E402
from nmflow.torch.semi_structured import load_semi_structured, semi_structured  # noqa: E402

DTYPES = {"int8": np.dtype("i1"), "float16": np.dtype("f2"), "bfloat16": BF16, "float32": np.dtype("f4")}


def pruned(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A weight of any bits, and a two-way mask."""
    dtype = DTYPES[name]
    weight = rng.integers(0, 256, (shape[0], shape[1] * dtype.itemsize), dtype=np.uint8).view(dtype)
    pattern = formats.get("cutlass-24").requirements[name].pattern
    return weight, nmflow.solve(rng.standard_normal(shape), pattern=pattern).mask


def of_bits(tensor: torch.Tensor) -> np.ndarray:
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().view(width).numpy()


@pytest.mark.parametrize("name", list(DTYPES))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), tall=st.integers(1, 3), wide=st.integers(1, 3))
def test_torchs_decoder_reads_both_sides(name: str, seed: int, tall: int, wide: int) -> None:
    """As integers of 16 bits, which it moves without change: one of two float32 is two of four halves."""
    step = formats.get("cutlass-24").requirements[name].rows
    weight, mask = pruned(np.random.default_rng(seed), name, (step * tall, step * wide))
    mask = mask & (np.random.default_rng(seed).random(mask.shape) < 0.9)
    arrays = formats.get("cutlass-24").encode(weight, mask)
    expected = np.where(mask, bits(weight), 0).astype(bits(weight).dtype)
    for suffix, side in (("", expected), ("_t", expected.T)):
        packed = torch.from_numpy(arrays[f"packed{suffix}"].view("i1" if name == "int8" else "i2"))
        dense = sparse_semi_structured_to_dense_cutlass(packed, torch.from_numpy(arrays[f"meta{suffix}"]))
        np.testing.assert_array_equal(dense.numpy().view(expected.dtype), side)


def test_multiples_are_those_of_torchs_class() -> None:
    """Both ways, as W and its transpose are tensors of it."""
    for dtype, least in SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS.items():
        need = formats.get("cutlass-24").requirements[str(dtype).removeprefix("torch.")]
        assert (need.rows, need.cols) == 2 * (max(least.sparse_min_rows, least.sparse_min_cols),)


@pytest.mark.parametrize("name", list(DTYPES))
def test_tensor_is_the_masked_weight(name: str) -> None:
    rng = np.random.default_rng(4)
    weight, mask = pruned(rng, name, (128, 256))
    finite = rng.integers(-100, 100, weight.shape).astype(weight.dtype)  # torch's own decoder quiets NaN at 16 bits
    for values in (finite, weight) if name in ("int8", "float32") else (finite,):
        tensor = semi_structured(values, mask)
        assert isinstance(tensor, SparseSemiStructuredTensorCUTLASS)
        assert tensor.shape == values.shape
        expected = np.where(mask, bits(values), 0)
        np.testing.assert_array_equal(of_bits(tensor.to_dense()).view(bits(values).dtype), expected)
        np.testing.assert_array_equal(of_bits(tensor.t().to_dense()).view(bits(values).dtype), expected.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_are_taken_as_they_are(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.randn(128, 64, generator=torch.Generator().manual_seed(1)).to(dtype).t())
    mask = nmflow.torch.mask_for(weight, 2, 4)
    tensor = semi_structured(weight, mask)
    assert torch.equal(tensor.to_dense(), weight.detach() * mask)
    assert tensor.dtype == dtype
    assert not tensor.requires_grad
    meta = torch.empty(64, 64, dtype=dtype, device="meta")
    with pytest.raises(InputValueError, match="weight must have data, not be on the meta device"):
        semi_structured(meta, mask)
    with pytest.raises(InputTypeError, match=r"must be a dense tensor, not a SparseSemi\w+CUTLASS; use .to_dense\(\)"):
        nmflow.torch.mask_for(tensor, 2, 4)
    for device in ("foo", [1]):
        with pytest.raises(InputValueError, match="device must be one that torch can use here, not"):
            semi_structured(weight, mask, device=device)


def checkpoint(tmp_path: Path, shape: tuple[int, int] = (64, 128)) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    held: dict[str, np.ndarray] = {"bias": rng.standard_normal(5).astype("f4"), "none": np.zeros((0, 3), "f2")}
    for name, pattern in (("float16", "2:4"), ("bfloat16", "2:4"), ("float32", "1:2")):
        weight = rng.standard_normal(shape).astype(DTYPES[name])
        held[f"{name}.weight"] = nmflow.solve(weight, pattern=pattern).prune(weight)
    return write(tmp_path / "model.safetensors", held), held


def test_load_an_export(tmp_path: Path) -> None:
    src, held = checkpoint(tmp_path)
    out = tmp_path / "out"
    export_checkpoint(src, out, "cutlass-24")
    for path in (out, out / "model.safetensors"):
        state = load_semi_structured(path)
        assert set(state) == set(held)
        np.testing.assert_array_equal(state["bias"].numpy(), held["bias"])
        for name in set(held) - {"bias", "none"}:
            tensor = state[name]
            assert isinstance(tensor, SparseSemiStructuredTensorCUTLASS)
            np.testing.assert_array_equal(of_bits(tensor.to_dense()), held[name].view(of_bits(tensor.to_dense()).dtype))
            np.testing.assert_array_equal(of_bits(tensor.t().to_dense()), of_bits(tensor.to_dense()).T)


def test_only_what_was_exported_is_loaded(tmp_path: Path) -> None:
    """Another variant of the model, which export copied, has the same names."""
    src, held = checkpoint(tmp_path)
    (tmp_path / "src").mkdir()
    src.rename(tmp_path / "src" / src.name)
    write(tmp_path / "src" / "original.safetensors", {"float16.weight": np.ones((64, 128), "f2"), "more": np.ones(1)})
    out = tmp_path / "out"
    export_checkpoint(tmp_path / "src", out, "cutlass-24")
    assert (out / "original.safetensors").exists()
    state = load_semi_structured(out)
    assert set(state) == set(held)
    assert isinstance(state["float16.weight"], SparseSemiStructuredTensorCUTLASS)
    with pytest.raises(InputValueError, match=r"original.safetensors must be a file that nmflow.json names, one"):
        load_semi_structured(out / "original.safetensors")


def test_padded_weights(tmp_path: Path) -> None:
    src, held = checkpoint(tmp_path, (60, 100))
    export_checkpoint(src, tmp_path / "out", "cutlass-24", pad=True)
    with pytest.raises(InputValueError, match=r"must not be padded, and \(60, 100\) is stored as \(64, 128\)"):
        load_semi_structured(tmp_path / "out")
    tensor = load_semi_structured(tmp_path / "out", padded=True)["float16.weight"]
    assert tensor.shape == (64, 128)
    np.testing.assert_array_equal(tensor.to_dense()[:60, :100].numpy(), held["float16.weight"])


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    src, _ = checkpoint(tmp_path)
    with pytest.raises(SourceNotFoundError, match="export the checkpoint first"):
        load_semi_structured(src)
    export_checkpoint(src, tmp_path / "nibble", "nibble")
    with pytest.raises(FormatError, match="format must be cutlass-24 version 1, not nibble version 1"):
        load_semi_structured(tmp_path / "nibble")
    out = tmp_path / "out"
    export_checkpoint(src, out, "cutlass-24")
    raw = (out / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    names = json.loads(raw[8:header])
    at = {name: header + info["data_offsets"][0] for name, info in names.items() if name != "__metadata__"}
    for place, bit, match in (
        (at["bias"], 1, "tensor 'bias' must have the digest of nmflow.json; it was changed, export again"),
        (at["float16.weight.meta"], 1, "tensor 'float16.weight.meta' must have the digest"),
        (raw.index(b"nmflow_format"), 32, "header must have the digest of nmflow.json"),
    ):
        changed = bytearray(raw)
        changed[place] ^= bit
        (out / "model.safetensors").write_bytes(changed)
        with pytest.raises(FormatError, match=match):
            load_semi_structured(out)
        assert load_semi_structured(out, verify=False)
    (out / "model.safetensors").write_bytes(raw[:-1])
    with pytest.raises(FormatError, match="must be a sound safetensors file"):
        load_semi_structured(out)
    (out / "model.safetensors").write_bytes(raw)
    edit_record(out, lambda side: side["tensors"]["float16.weight"]["arrays"]["meta"].update(name="gone"))
    with pytest.raises(FormatError, match="must have its array 'gone' in the file"):
        load_semi_structured(out)
    with pytest.raises(SourceNotFoundError, match="nowhere must exist; check the path"):
        load_semi_structured(tmp_path / "nowhere")
    for device in ("foo", None if torch.cuda.is_available() else "cuda"):
        if device:
            with pytest.raises(InputValueError, match=r"device must be one that torch can use here, not '(foo|cuda)' "):
                load_semi_structured(out, device=device)


def test_a_weight_and_its_transpose_are_compared(tmp_path: Path) -> None:
    """Also where the digest is that of what was changed; an earlier nmflow wrote no others."""
    src, _ = checkpoint(tmp_path)
    out = tmp_path / "out"
    export_checkpoint(src, out, "cutlass-24")
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[-1] ^= 1  # a bit of the last array, a mask
    (out / "model.safetensors").write_bytes(raw)
    held = safetensors.torch.load_file(out / "model.safetensors")

    def renew(side: dict[str, Any]) -> None:
        for key in ("files", "others", "index"):
            del side[key]
        for tensor in side["tensors"].values():
            for array in tensor["arrays"].values():
                array["sha256"] = hashlib.sha256(held[array["name"]].view(torch.uint8).numpy().tobytes()).hexdigest()

    edit_record(out, renew)
    with pytest.raises(FormatError, match="the data was changed"):
        load_semi_structured(out)
    assert "bias" in load_semi_structured(out, verify=False)


@pytest.mark.parametrize("name", ["nmflow.json", "model.safetensors"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, name: str) -> None:
    export_checkpoint(checkpoint(tmp_path)[0], tmp_path / "out", "cutlass-24")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises(FormatError, match=f"{name} must be a (sound safetensors file|file of at most)"):
        load_semi_structured(tmp_path / "out")


@pytest.mark.parametrize("name", ["bias", "float16.weight.packed"])
def test_arrays_have_the_shapes_that_kernels_trust(tmp_path: Path, name: str) -> None:
    """Whatever a record says of itself, and whether it is verified or not."""
    export_checkpoint(checkpoint(tmp_path)[0], tmp_path / "out", "cutlass-24")
    edit_record(tmp_path / "out", lambda side: side["tensors"]["float16.weight"]["arrays"]["meta"].update(name=name))
    with pytest.raises(FormatError, match=r"float16.weight': cutlass-24: array 'meta' must be int16 of shape"):
        load_semi_structured(tmp_path / "out", verify=False)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A card of compute capability 9.0 played by the CPU: what cuSPARSELt packs is the weight as it is."""

    def product(self: Any, dense: torch.Tensor, should_transpose_dense: bool = False) -> Any:
        product = self.packed @ (dense.t() if should_transpose_dense else dense)
        return product.t() if should_transpose_dense else product

    monkeypatch.setattr(semi, "_on_card", lambda weight: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: dense.clone())
    monkeypatch.setattr(torch.sparse.SparseSemiStructuredTensorCUSPARSELT, "_mm", product)
    return monkeypatch


def pruned_linear() -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A layer, an input and its output; of whole numbers, so that a sum is rounded once."""
    generator = torch.Generator().manual_seed(5)
    model = torch.nn.Linear(1088, 64, bias=False).bfloat16()
    model.weight.data = torch.randint(-8, 9, model.weight.shape, generator=generator).bfloat16()
    prune_(model, 2, 4)
    x = torch.randint(-8, 9, (2, 1088), generator=generator).bfloat16()
    return model, x, model(x)


def test_a_weight_is_replaced_on_a_newer_card(card: pytest.MonkeyPatch) -> None:
    """By cuSPARSELt: torch's own kernels refuse such a card, and every forward pass of the model raised."""
    model, x, expected = pruned_linear()
    dense = model.weight.detach().clone()
    report = to_semi_structured_(model)
    assert report.converted == ("weight",)
    assert isinstance(model.weight.data, torch.sparse.SparseSemiStructuredTensorCUSPARSELT)
    assert torch.equal(model(x), expected)
    assert torch.equal(model.weight.data.t() @ torch.eye(64).bfloat16(), dense.t())


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        # the weight's own are right, and then not these; or all but the last of its own
        (lambda dense: dense.roll(1, 1) if len(dense) == 1088 else dense.clone(), "its products are wrong"),
        (lambda dense: torch.where(torch.arange(dense.shape[1]) < 1087, dense, 0), "its products are wrong"),
        (RuntimeError("not supported on your machine\nmore"), "not supported on your machine"),
        (AttributeError("_cslt_compress"), "_cslt_compress"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_a_weight_that_torch_does_not_multiply_stays_dense(card: pytest.MonkeyPatch, what: Any, reason: str) -> None:
    def compress(dense: torch.Tensor) -> torch.Tensor:
        if isinstance(what, Exception):
            raise what
        return what(dense)

    card.setattr(torch, "_cslt_compress", compress)
    model, x, expected = pruned_linear()
    weight = model.weight
    report = to_semi_structured_(model)
    said = f"fits both ways; stays dense, as torch does not multiply it here: {reason}"
    assert (report.converted, report.verified, report.skipped) == ((), (), (("weight", said),))
    assert model.weight is weight
    assert torch.equal(model(x), expected)


def test_a_frozen_weight_that_modules_share_is_replaced_in_all(card: pytest.MonkeyPatch) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(64, 64), "b": torch.nn.Linear(64, 64)}).bfloat16()
    model["b"].weight = model["a"].weight
    model["a"].weight.requires_grad_(False)
    prune_(model, 2, 4)
    assert to_semi_structured_(model).converted == ("a.weight",)
    assert model["a"].weight is model["b"].weight
    assert isinstance(model["a"].weight.data, torch.sparse.SparseSemiStructuredTensorCUSPARSELT)
    assert not model["a"].weight.requires_grad


def test_layers_are_chosen_as_for_pruning() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(64, 64).half() for name in "abcd"})
    prune_(model, 2, 4)
    report = to_semi_structured_(
        torch.nn.DataParallel(model), include=["a", "b", "c"], exclude=["b"], filter_fn=lambda name, _: name != "c"
    )
    assert report.verified == ("a.weight",)
    assert [name for name, _ in report.skipped] == ["b.weight", "c.weight", "d.weight"]


def test_tensors_are_made_on_a_device(tmp_path: Path) -> None:
    weight, mask = pruned(np.random.default_rng(3), "int8", (128, 128))
    assert semi_structured(torch.from_numpy(weight), mask, device="meta").device.type == "meta"
    export_checkpoint(checkpoint(tmp_path)[0], tmp_path / "out", "cutlass-24")
    state = load_semi_structured(tmp_path / "out", device="meta")
    assert {tensor.device.type for tensor in state.values()} == {"meta"}


def test_one_file_of_several_is_loaded_by_itself(tmp_path: Path) -> None:
    _, held = checkpoint(tmp_path)
    parts = {"a": ["bias", "none", "float16.weight"], "b": ["bfloat16.weight", "float32.weight"]}
    (tmp_path / "src").mkdir()
    for part, names in parts.items():
        write(tmp_path / "src" / f"{part}.safetensors", {name: held[name] for name in names})
    weight_map = {name: f"{part}.safetensors" for part, names in parts.items() for name in names}
    (tmp_path / "src" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    export_checkpoint(tmp_path / "src", tmp_path / "out", "cutlass-24")
    for part, names in parts.items():
        assert set(load_semi_structured(tmp_path / "out" / f"{part}.safetensors")) == set(names)
    assert set(load_semi_structured(tmp_path / "out")) == set(held)


def test_what_is_kept_beyond_a_shape_is_refused(tmp_path: Path) -> None:
    export_checkpoint(checkpoint(tmp_path, (60, 100))[0], tmp_path / "out", "cutlass-24", pad=True)
    edit_record(tmp_path / "out", lambda side: side["tensors"]["float16.weight"].update(shape=[59, 100]))
    with pytest.raises(FormatError, match=r"padding beyond \(59, 100\) must be dropped, and some of it is kept"):
        load_semi_structured(tmp_path / "out", padded=True)


def can_multiply() -> bool:
    return torch.cuda.is_available() and is_8_x(torch.device("cuda"))


@pytest.mark.skipif(not can_multiply(), reason="no CUDA device of compute capability 8.x")
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "int8"])
def test_products_both_ways(name: str) -> None:
    """W X and Wᵀ Y on the device, against dense products in float64 of the same numbers."""
    rng = np.random.default_rng(11)
    shape = (256, 384)
    _, mask = pruned(rng, name, shape)
    weight = rng.integers(-8, 9, shape).astype(DTYPES[name])  # small integers: every product and sum is exact
    tensor = semi_structured(weight, mask, device="cuda")
    dense = np.where(mask, weight.astype("f8"), 0.0)
    for sparse, matrix in ((tensor, dense), (tensor.t(), dense.T)):
        x = rng.integers(-4, 5, (matrix.shape[1], 128))
        other = torch.from_numpy(x.astype("f4")).to("cuda", sparse.dtype)
        if name == "int8":  # torch's int8 kernel takes the dense side in columns
            other = other.t().contiguous().t()
        product = torch.mm(sparse, other).to(torch.float64).cpu().numpy()
        expected = matrix @ x
        if name in ("float16", "bfloat16"):  # sums are exact, and rounded once
            expected = expected.astype(DTYPES[name]).astype("f8")
        np.testing.assert_array_equal(product, expected)
