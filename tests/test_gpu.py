"""What needs a card. It imports nothing that a Python made for one may lack: ortools, scikit-learn, Dask."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import families
import pytest

torch = pytest.importorskip("torch")

import nmflow  # noqa: E402
from nmflow.errors import InputValueError, NonFiniteError  # noqa: E402
from nmflow.torch import SparseTraining, alps_, mask_for, prune_, solve_on_device  # noqa: E402
from nmflow.torch.device import engine  # noqa: E402
from nmflow.torch.products import multiplying  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; make test-gpu runs it"),
]
PATTERNS = [(1, 4), (2, 4), (4, 8), (8, 16), (16, 32)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def weight_of(family: str, dtype: Any, shape: tuple[int, int] = (259, 390)) -> Any:
    return torch.from_numpy(families.FAMILIES[family](shape, 1)).clamp(-6e4, 6e4).to(dtype)


def check(weight: Any, found: Any, *pattern: int) -> None:
    """On the card, and proven by an independent grade."""
    grade = nmflow.certify(weight.float().cpu().numpy(), found.mask.cpu().numpy(), *pattern, absolute=True)
    assert found.mask.is_cuda
    assert found.certificate.proven
    assert grade.proven
    assert found.objective == pytest.approx(grade.objective, rel=1e-12, abs=0)


def test_triton_can_be_used() -> None:
    assert engine.missing_triton(torch.device("cuda", torch.cuda.current_device())) == ""
    assert solve_on_device(torch.ones(8, 8, device="cuda"), 2, 4).stats["engine"] == "triton"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["gaussian", "few_values", "near_ties", "heavy_tailed", "huge_among_tiny"])
def test_both_engines_find_the_best(family: str, dtype: Any, pattern: tuple[int, int]) -> None:
    """Cold and from duals; and Triton does bit for bit what plain operations do on the CPU."""
    weight = weight_of(family, dtype)
    found = solve_on_device(weight.cuda(), *pattern, engine="triton", duals=True)
    check(weight, found, *pattern)
    other = solve_on_device(weight, *pattern, engine="torch", duals=True)
    assert (found.mask.cpu() == other.mask).all()
    assert (found.row_duals.cpu() == other.row_duals).all()
    assert (found.col_duals.cpu() == other.col_duals).all()
    assert all(found.stats[name] == other.stats[name] for name in ("ascended", "augmented", "on_cpu"))
    check(weight, solve_on_device(weight.cuda(), *pattern, engine="triton", warm_start=found), *pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_plain_operations_on_the_card(pattern: tuple[int, int]) -> None:
    for family in ("gaussian", "few_values"):
        weight = weight_of(family, torch.bfloat16, (130, 140))
        check(weight, solve_on_device(weight.cuda(), *pattern, engine="torch"), *pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_large_matrix_gives_the_same_each_time(pattern: tuple[int, int]) -> None:
    """More blocks than programs, lists in any order: the mask depends on neither."""
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(2048, 4096, device="cuda", generator=generator).bfloat16()
    first = solve_on_device(weight, *pattern)
    assert first.certificate.proven
    assert (first.mask.sum() * pattern[1] == weight.numel() * pattern[0]).item()
    for _ in range(5):
        again = solve_on_device(weight, *pattern)
        assert (again.mask == first.mask).all()
        assert again.objective == first.objective
    assert nmflow.certify(weight.float().cpu().numpy(), first.mask.cpu().numpy(), *pattern, absolute=True).proven


@pytest.mark.parametrize("m", [4, 8, 16, 32])
def test_strides_and_signs(m: int) -> None:
    scores = torch.from_numpy(families.gaussian((4 * m, 6 * m), 0)).cuda()
    for view in (scores.T, scores[::2, ::2], scores[: 3 * m + 1, 1:], scores[:m, :m], scores[1 : m + 1]):
        found = solve_on_device(view, m // 2, m, scores=view)
        grade = nmflow.certify(view.cpu().numpy(), found.mask.cpu().numpy(), m // 2, m, absolute=False)
        assert grade.proven
        assert found.objective == pytest.approx(grade.objective, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [4, 8, 16, 32])
def test_scores_that_are_not_finite(m: int, dtype: Any) -> None:
    weights = torch.randn(4 * m, 4 * m, device="cuda").to(dtype)
    weights[m, 3] = weights[3 * m, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"at 2 of .* the first at \({m}, 3\)"):
        solve_on_device(weights, m // 2, m)
    weights[:] = float("-inf")
    with pytest.raises(NonFiniteError, match=r"the first at \(0, 0\)"):
        solve_on_device(weights, m // 2, m)


def test_subnormal_scores_and_wide_ranges() -> None:
    """What a flushed subnormal or a rounded sum would get wrong."""
    for scale in (1e-38, 1e-42, 1e30):
        weight = torch.from_numpy(families.gaussian((64, 64), 0)) * scale
        check(weight, solve_on_device(weight.cuda(), 2, 4), 2, 4)
        check(weight, solve_on_device(weight.cuda(), 4, 8), 4, 8)


def test_duals_of_any_kind_start_a_solve() -> None:
    weight = weight_of("gaussian", torch.float32, (64, 64)).cuda()
    first = solve_on_device(weight, 4, 8, duals=True)
    for value in (float("nan"), float("inf"), -1e300, 0.37):
        start = replace(first, row_duals=torch.full_like(first.row_duals, value))
        check(weight, solve_on_device(weight, 4, 8, warm_start=start), 4, 8)
    with pytest.raises(InputValueError, match="warm_start must hold duals on cuda"):
        solve_on_device(weight, 4, 8, warm_start=replace(first, row_duals=first.row_duals.cpu()))


def test_one_wait_for_the_card() -> None:
    weight = torch.randn(1024, 1024, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    assert solve_on_device(weight, 2, 4).stats["on_cpu"] == 0
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            solve_on_device(weight, 2, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(warning.message) for warning in seen) == 1


def test_another_stream() -> None:
    """Work before and after on the caller's stream is in order."""
    stream = torch.cuda.Stream()
    weight = torch.zeros(4096, 4096, device="cuda", dtype=torch.bfloat16)
    other = torch.randn(4096, 4096, device="cuda").bfloat16()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        weight.copy_(other)
        found = solve_on_device(weight, 2, 4)
        kept = (weight * found.mask).abs().sum(dtype=torch.float64).item()  # on this stream, which no other waits for
    assert kept == pytest.approx(found.objective, rel=1e-9)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one() -> None:
    weight = torch.randn(256, 256, device="cuda:1")
    found = solve_on_device(weight, 4, 8)
    assert found.mask.device == weight.device
    assert torch.cuda.current_device() == 0
    check(weight, found, 4, 8)


def test_in_bands_when_memory_runs_out() -> None:
    """A matrix whose mask has room, but not all that is kept between launches."""
    torch.cuda.empty_cache()
    weight = torch.randn(2048, 4096, device="cuda").bfloat16()
    whole = solve_on_device(weight, 2, 4).mask.cpu()  # on the card it would hold a segment that has room for more
    torch.cuda.empty_cache()
    # a mask takes 8 MiB, what is kept between launches 36 MiB: a quarter of that fits
    limit = torch.cuda.memory_reserved() + (36 << 20)
    try:
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
        found = solve_on_device(weight, 2, 4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.stats["bands"] > 1
    assert (found.mask.cpu() == whole).all()


def test_offsets_beyond_32_bits() -> None:
    """A row of a block lies more than 2**31 entries from another, in scores and mask; there are 2**33 entries."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 60 << 30:
        pytest.skip("needs 60 GiB")
    weight = torch.zeros(32, (1 << 28) + 32, device="cuda", dtype=torch.bfloat16)
    weight[:, -256:] = torch.randn(32, 256, device="cuda")
    for pattern in ((2, 4), (16, 32)):
        found = solve_on_device(weight, *pattern)
        last = solve_on_device(weight[:, -256:].contiguous(), *pattern)
        assert found.objective == pytest.approx(last.objective, rel=1e-12)
        assert (found.mask[:, -256:] == last.mask).all()
        del found
    del weight
    torch.cuda.empty_cache()


def test_the_adapter_stays_on_the_card() -> None:
    weight = torch.randn(64, 48, device="cuda", dtype=torch.bfloat16)
    mask = mask_for(weight, 4, 8)
    assert mask.device == weight.device
    assert (mask.sum() * 2) == mask.numel()
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = SparseTraining(model, optimizer, 2, 4, every=1, warm_start=True)
    assert all(mask.is_cuda for mask in training.masks.values())
    model(torch.randn(4, 64, device="cuda")).square().mean().backward()
    optimizer.step()
    assert len(training.history) == 1
    assert training.finish().proven
    assert prune_(torch.nn.Linear(64, 64, device="cuda"), 4, 8).proven


def test_masks_of_alps_stay_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.obs_pass.solve", None)
    layer = torch.nn.Linear(64, 32, device="cuda", dtype=torch.bfloat16)
    report = alps_(layer, [torch.randn(256, 64, device="cuda", dtype=torch.bfloat16)], 4, 8)
    assert report.proven
    assert int((layer.weight != 0).sum()) <= layer.weight.numel() // 2
    assert report.layers[0].error < report.layers[0].masked_error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_products_with_packed_weights_are_right(dtype: Any) -> None:
    """By torch's kernels or by cuSPARSELt, as the card asks for; of whole numbers, so that a sum is rounded once."""
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("needs sparse tensor cores, of compute capability 8.0")
    weight = torch.randint(-8, 9, (256, 1216), device="cuda").to(dtype)
    mask = mask_for(weight, 2, 4)
    weight *= mask
    tensor = multiplying(weight, mask.cpu().numpy())
    layer = torch.nn.Linear(1216, 256, bias=False, device="cuda", dtype=dtype)
    layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
    x, y = torch.randint(-8, 9, (64, 1216), device="cuda"), torch.randint(-8, 9, (64, 256), device="cuda")
    dense = weight.double()
    assert (layer(x.to(dtype)).double() == (x.double() @ dense.T).to(dtype).double()).all()
    assert (torch.mm(tensor.t(), y.T.to(dtype)).double() == (dense.T @ y.T.double()).to(dtype).double()).all()
