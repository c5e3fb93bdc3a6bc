"""solve_on_device in plain torch operations on the CPU: the same contract and the same objective as `dual`."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nmflow  # noqa: E402
import nmflow.torch as nt  # noqa: E402
from nmflow.errors import InputTypeError, InputValueError, NonFiniteError  # noqa: E402
from nmflow.torch import SparseTraining, solve_on_device  # noqa: E402
from nmflow.torch import prune as prune_module  # noqa: E402
from nmflow.torch.aside import aside  # noqa: E402
from nmflow.torch.device import cpu, driver, engine, plain  # noqa: E402
from nmflow.torch.device.numbers import NARROW, WIDE, power_of_two, to_numbers  # noqa: E402
from nmflow.torch.device.paths import augment, proven  # noqa: E402


def as_tensor(array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def same(found: Any, array: np.ndarray, *pattern: Any, **options: Any) -> None:
    """Proven by an independent grade, and as good as the best."""
    best = nmflow.solve(array, *pattern, **options)
    assert found.certificate.proven
    assert found.objective == pytest.approx(best.objective, rel=1e-12) or not math.isfinite(best.objective)
    assert found.certificate.grids == best.certificate.grids
    given = options.pop("scores", None)
    grade = nmflow.certify(
        array if given is None else given, found.mask.numpy(), *pattern, absolute=given is None, **options
    )
    assert grade.proven


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (3, 5)], ids=str)
@pytest.mark.parametrize("family", [name for name in families.FAMILIES if not name.startswith(("int", "uint"))])
def test_all_families(family: str, pattern: tuple[int, int]) -> None:
    array = families.FAMILIES[family]((35, 53), 1)
    found = solve_on_device(as_tensor(array), *pattern, duals=True)
    same(found, array, *pattern)
    same(solve_on_device(as_tensor(array), *pattern, warm_start=found), array, *pattern)


LARGER = [
    (pattern, family)
    for pattern in ((8, 16), (4, 4))
    for family in ("gaussian", "gaussian_bfloat16", "few_values")
    if (pattern, family) != ((8, 16), "few_values")
]
LARGER += [((4, 8), "few_values"), ((16, 32), "gaussian")]  # what these are compared with takes long to compile


@pytest.mark.parametrize(("pattern", "family"), LARGER, ids=str)
def test_larger_blocks(pattern: tuple[int, int], family: str) -> None:
    array = families.FAMILIES[family]((64, 130), 2)
    same(solve_on_device(as_tensor(array), *pattern), array, *pattern)


@pytest.mark.parametrize("family", families.SIGNED)
def test_scores_with_their_sign(family: str) -> None:
    scores = families.SIGNED[family]((40, 32), 1)
    weights = families.gaussian((40, 32), 1)
    same(solve_on_device(as_tensor(weights), 2, 4, scores=as_tensor(scores)), weights, 2, 4, scores=scores)


def test_tiny_negative_scores_keep_their_sign() -> None:
    scores = np.full((4, 4), -1e-40, np.float32)
    scores[0, 0], scores[1, 1] = 1.0, -1e-38
    same(solve_on_device(torch.zeros(4, 4), 2, 4, scores=torch.from_numpy(scores)), scores * 0, 2, 4, scores=scores)


@pytest.mark.parametrize("shape", families.RAGGED, ids=str)
def test_ragged_shapes(shape: tuple[int, int]) -> None:
    array = families.gaussian(shape, 3)
    same(solve_on_device(torch.from_numpy(array), 2, 4), array, 2, 4)


def test_layouts_strides_and_budgets() -> None:
    images = families.gaussian((12, 6, 3, 3), 0)
    same(
        solve_on_device(torch.from_numpy(images), 2, 4, layout="conv", groups=2), images, 2, 4, layout="conv", groups=2
    )
    stack = families.gaussian((3, 2, 9, 14), 0)
    first = solve_on_device(torch.from_numpy(stack), 2, 4, layout="batch", duals=True)
    same(first, stack, 2, 4, layout="batch")
    assert [side.shape for side in first.row_duals] == [(12, 4)] * 6
    same(solve_on_device(torch.from_numpy(stack), 2, 4, layout="batch", warm_start=first), stack, 2, 4, layout="batch")
    array = families.gaussian((48, 40), 0)
    for view in (torch.from_numpy(array).T, torch.from_numpy(array)[::2, ::2], torch.from_numpy(array)[5:, 3:]):
        same(solve_on_device(view, 4, 8), view.numpy(), 4, 8)
    pattern = nmflow.Pattern(row="2:4", col="4:8")
    same(solve_on_device(torch.from_numpy(array), pattern=pattern), array, pattern=pattern)


@pytest.mark.parametrize("options", [{"fill": "at-most"}, {"transposable": False}])
def test_what_no_engine_does_is_done_on_the_cpu(options: dict[str, Any]) -> None:
    array = families.gaussian((19, 34), 0)
    same(solve_on_device(torch.from_numpy(array), 2, 4, **options), array, 2, 4, **options)
    found = solve_on_device(torch.from_numpy(array).double(), 2, 4, duals=True)
    assert isinstance(found.mask, torch.Tensor)
    assert isinstance(found.row_duals, torch.Tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(dtype: Any, value: float) -> None:
    weights = torch.from_numpy(families.gaussian((33, 30), 0)).to(dtype)
    weights[7, 5] = weights[32, 29] = value
    with pytest.raises(
        NonFiniteError, match=r"weights must be finite.* at 2 of 990 entries, the first at \(7, 5\)"
    ) as e:
        solve_on_device(weights, 2, 4)
    assert (e.value.count, e.value.first) == (2, (7, 5))


def test_bad_input() -> None:
    weights = torch.ones(8, 8)
    first = solve_on_device(weights, 2, 4, duals=True)
    for tensor, options, error, words in [
        (np.ones((4, 4)), {}, InputTypeError, "tensor must be a tensor, not ndarray"),
        (weights.to_sparse(), {}, InputTypeError, "tensor must be a dense tensor"),
        (torch.ones(4, 4, device="meta"), {}, InputValueError, "tensor must have data, not be on the meta device"),
        (weights.to(torch.complex64), {}, InputTypeError, "complex64"),
        (torch.ones(4), {}, InputValueError, "weights must have 2 axes, not 1"),
        (torch.ones(0, 4), {}, InputValueError, "weights must not be empty"),
        (weights, {"scores": torch.ones(4, 4)}, InputValueError, "scores must have the shape of tensor, (8, 8)"),
        (weights, {"scores": torch.ones(8, 8, device="meta")}, InputValueError, "scores must have data"),
        (weights, {"engine": "cuda"}, InputValueError, 'engine must be "auto", "triton" or "torch", not \'cuda\''),
        (
            weights,
            {"engine": np.array(["torch"] * 2)},
            InputValueError,
            'engine must be "auto", "triton" or "torch", not',
        ),
        (weights, {"layout": "conv"}, InputValueError, "at least 3 axes"),
        (weights, {"warm_start": 1}, InputTypeError, "warm_start must be a Solution, not int"),
        (weights, {"warm_start": replace(first, row_duals=None)}, InputValueError, "warm_start must hold duals"),
        (torch.ones(8, 12), {"warm_start": first}, InputValueError, "warm_start must be of a problem of shape (8, 12)"),
    ]:
        with pytest.raises(error, match=re.escape(words)):
            solve_on_device(tensor, 2, 4, **options)
    with pytest.raises(InputValueError, match="warm_start must have pattern 1:4, not 2:4"):
        solve_on_device(weights, 1, 4, warm_start=first)
    with pytest.raises(InputValueError, match="warm_start must have pattern 2:4 at-most, not 2:4"):
        solve_on_device(weights, 2, 4, fill="at-most", warm_start=first)
    with pytest.raises(InputValueError, match='not "triton"'):
        solve_on_device(weights, 3, 5, engine="triton")
    with pytest.raises(InputValueError, match=r'engine must be "auto" for torch.float64 under 2:4, .*, not "torch"'):
        solve_on_device(weights.double(), 2, 4, engine="torch")
    stats = solve_on_device(weights.double(), 2, 4).stats
    assert (stats["engine"], stats["on_cpu"], stats["blocks"]) == ("cpu", 4, 4)
    for threads in (0, "a"):
        with pytest.raises(InputValueError, match="threads must be a whole number of at least 1"):
            solve_on_device(weights, 2, 4, threads=threads)


def test_solutions_of_the_cpu_and_of_a_device_start_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    array = families.gaussian((32, 40), 0)
    for weights in (torch.from_numpy(array), torch.from_numpy(array.astype(float))):  # the second goes to the CPU
        first = solve_on_device(weights, 4, 8, duals=True)
        same(solve_on_device(weights, 4, 8, warm_start=first), array, 4, 8)
        assert nmflow.solve(weights, 4, 8, warm_start=first).objective == first.objective
    seen, real = list[Any](), cpu.solve

    def noted(*args: Any, **options: Any) -> Any:
        seen.append(options["warm_start"])
        return real(*args, **options)

    monkeypatch.setattr(cpu, "solve", noted)
    solve_on_device(weights, 4, 8, warm_start=first)
    assert np.array_equal(seen[0].col_duals, first.col_duals)


def test_a_mask_on_its_device_starts_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.from_numpy(families.gaussian((64, 64), 0))
    monkeypatch.setattr(prune_module, "on_device", lambda *args, **options: True)
    other = nmflow.solve(np.ones((32, 32)), 2, 4, duals=True)
    with pytest.raises(InputValueError, match="warm_start must have pattern 4:8, not 2:4"):
        nt.mask_for(weights, 4, 8, warm_start=other)
    right = solve_on_device(weights, 4, 8, duals=True)
    assert torch.equal(nt.mask_for(weights, 4, 8, warm_start=right), right.mask)


def test_warm_starts_of_any_duals_are_exact() -> None:
    array = families.gaussian((32, 40), 0)
    first = solve_on_device(torch.from_numpy(array), 4, 8, duals=True)
    for value in (math.nan, math.inf, -1e300, 1e30, 0.37):
        row = torch.full_like(first.row_duals, value)
        same(solve_on_device(torch.from_numpy(array), 4, 8, warm_start=replace(first, row_duals=row)), array, 4, 8)


def test_bands_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    array = families.few_values((64, 48), 0)
    whole = plain.settle

    def settle(grid: Any, *args: Any, **options: Any) -> Any:
        if grid.scores.shape[0] > 8:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return whole(grid, *args, **options)

    first = solve_on_device(torch.from_numpy(array), 2, 4, duals=True)
    again = solve_on_device(torch.from_numpy(array), 2, 4, duals=True, warm_start=first)
    monkeypatch.setattr(plain, "settle", settle)
    found = solve_on_device(torch.from_numpy(array), 2, 4, duals=True, warm_start=first)
    same(found, array, 2, 4)
    assert found.stats["bands"] == 16
    assert (found.row_duals == again.row_duals).all()
    assert (found.col_duals == again.col_duals).all()


def test_memory_that_never_suffices_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(*args: Any, **options: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(plain, "settle", settle)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        solve_on_device(torch.ones(64, 8), 2, 4)


@pytest.mark.parametrize(("most", "bands"), [(1 << 30, 1), (40, 4), (25, 6), (12, 11), (5, 11)])
def test_no_band_has_more_blocks_than_an_index_holds(monkeypatch: pytest.MonkeyPatch, most: int, bands: int) -> None:
    """11 rows of 12 blocks; a row is never cut, and is left to the engine that numbers in 64 bits if it is too long."""
    monkeypatch.setattr(driver, "MOST_BLOCKS", most)
    whole, sizes = plain.settle, []

    def settle(grid: Any, *args: Any, **options: Any) -> Any:
        sizes.append(grid.size[0] * grid.size[1])
        return whole(grid, *args, **options)

    monkeypatch.setattr(plain, "settle", settle)
    array = families.gaussian((44, 48), 0)
    found = solve_on_device(torch.from_numpy(array), 2, 4)
    same(found, array, 2, 4)
    assert (found.stats["bands"], len(sizes)) == (bands, bands)
    assert max(sizes) <= max(most, 12)


def forget() -> None:
    """Forget what is known of Triton."""
    for known in (engine.missing_triton, engine.untrusted_triton, engine._say):
        known.cache_clear()


def pass_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU say that they are on a card."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="its interpreter takes the CPU")
def test_triton_takes_no_cpu() -> None:
    with pytest.raises(InputValueError, match='"torch" for a tensor on cpu, not "triton", which cannot be used: '):
        solve_on_device(torch.ones(4, 4), 2, 4, engine="triton")


def test_triton_that_cannot_run_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it finds no card; so do others that lack a C compiler, or have a card it does not know."""
    pytest.importorskip("triton")
    forget()
    pass_for_cuda(monkeypatch)
    weight = torch.from_numpy(families.gaussian((16, 24), 0))
    with pytest.warns(UserWarning, match="nmflow solves with plain torch operations, which are slower: "):
        assert solve_on_device(weight, 2, 4).stats["engine"] == "torch"
    assert solve_on_device(weight, 2, 4).stats["engine"] == "torch"  # warnings are errors
    forget()


def pretend(monkeypatch: pytest.MonkeyPatch, **made: Any) -> None:
    """A tensor passes for one on a card, and what Triton's kernels would do there is done by these functions."""
    pytest.importorskip("triton")
    from nmflow.torch.device import launch

    pass_for_cuda(monkeypatch)
    for name in ("settle", "kept_score"):
        monkeypatch.setattr(launch, name, made.get(name, getattr(plain, name)))
    forget()


def test_kernels_that_do_something_else_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """They prove what they find, so a mistake of a compiler would be proven, too."""

    def settle(grid: Any, mask: torch.Tensor, *args: Any, **options: Any) -> Any:
        outcome = plain.settle(grid, mask, *args, **options)
        if grid.pattern.n == 2:
            mask[0] = mask[0].roll(1)
        return outcome

    weight = families.gaussian((16, 24), 0)
    pretend(monkeypatch, settle=settle)
    with pytest.warns(UserWarning, match=r"kernels for 2:4 of torch.float32 do not do what they should on cpu; please"):
        found = solve_on_device(torch.from_numpy(weight), 2, 4)
    assert found.stats["engine"] == "torch"
    same(found, weight, 2, 4)
    assert solve_on_device(torch.from_numpy(weight), 1, 4).stats["engine"] == "triton"  # whose kernels are others
    pretend(monkeypatch, kept_score=lambda *args, **options: plain.kept_score(*args, **options) * 1.001)
    with pytest.warns(UserWarning, match="do not do what they should"):
        assert solve_on_device(torch.from_numpy(weight), 1, 4).stats["engine"] == "torch"
    forget()


def test_memory_that_triton_lacks_is_memory_that_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its own from the device, which torch may hold: that says nothing of Triton."""
    tried = []

    def settle(grid: Any, *args: Any, **options: Any) -> Any:
        tried.append(grid.scores.shape[0])
        if len(tried) in (1, 3):  # the first trial, and the first solve
            raise RuntimeError("Triton Error [CUDA]: out of memory")
        return plain.settle(grid, *args, **options)

    weight = families.few_values((64, 48), 0)
    pretend(monkeypatch, settle=settle)
    found = solve_on_device(torch.from_numpy(weight), 2, 4)
    same(found, weight, 2, 4)
    assert (found.stats["engine"], found.stats["bands"], tried) == ("triton", 4, [16, 16, 64, 16, 16, 16, 16])
    full: Any = RuntimeError("Triton Error [CUDA]: out of memory"), RuntimeError("CUDA error: an illegal memory access")
    for error in full:

        def fail(*args: Any, error: Any = error, **options: Any) -> Any:
            raise error

        pretend(monkeypatch, settle=fail)
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            solve_on_device(torch.from_numpy(weight), 2, 4)
        pretend(monkeypatch)
        assert solve_on_device(torch.from_numpy(weight), 2, 4).stats["engine"] == "triton"
    forget()


def test_a_graph_that_is_captured_cannot_hold_a_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InputValueError, match="tensor must be solved outside of a CUDA graph"):
        solve_on_device(torch.ones(8, 8), 2, 4)
    forget()


def test_training_under_inference_mode_where_masks_are_found_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmflow.torch.training.on_device", lambda *args, **options: True)
    model = torch.nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.inference_mode():
        training = SparseTraining(model, optimizer, 2, 4, every=1)
    for _ in range(2):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    training.freeze()
    model(torch.randn(4, 16)).square().sum().backward()
    assert len(training.history) == 2
    assert training.finish().layers[0].density == 0.5


LACKING = ("xxhash", "safetensors", "typer", "rich", "ortools", "scipy", "matplotlib", "distributed", "transformers")


def test_what_a_card_is_asked_needs_few_packages() -> None:
    """docs/gpu.md says which: a Python made for a card, with no network, has to do."""
    root = Path(__file__).parent.parent
    text = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]\n"
        "import benchmarks.gpu, test_gpu\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_triton_that_is_too_old_is_told_from_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from nmflow.torch import device

    monkeypatch.setattr(triton, "__version__", "3.5.1")
    monkeypatch.delitem(sys.modules, "nmflow.torch.device.kernels", raising=False)
    monkeypatch.delattr(device, "kernels", raising=False)
    forget()
    with pytest.raises(
        InputValueError, match=r"cannot be used: ImportError: nmflow's kernels need Triton 3\.6 or newer"
    ):
        solve_on_device(torch.ones(4, 4), 2, 4, engine="triton")
    forget()


def test_triton_is_not_asked_for_what_the_cpu_does() -> None:
    for weight, options in ((torch.ones(4, 4), {"fill": "at-most"}), (torch.ones(4, 4).double(), {})):
        with pytest.raises(InputValueError, match=r'engine must be "auto" for torch.* is solved on the CPU, not "tr'):
            solve_on_device(weight, 2, 4, engine="triton", **options)


def test_where_the_first_of_many_is() -> None:
    weights = torch.ones(6, 3, 2, 2)
    weights[4:] = math.nan
    with pytest.raises(NonFiniteError, match=r"at 24 of 72 entries, the first at \(4, 0, 0, 0\)") as e:
        solve_on_device(weights, 2, 4, layout="conv")
    assert (e.value.count, e.value.first) == (24, (4, 0, 0, 0))


def test_numbers_keep_the_order_of_scores() -> None:
    """Against fractions: for any h in half units, t > h or t < h is the order of the scores; t == h only if even."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    values = (rng.standard_normal((6, 4, 4)) * 2.0 ** rng.integers(-160, 120, (6, 1, 1))).astype(np.float32)
    values[0, 0, 0], values[1, 0] = 0.0, -0.0
    values[2] *= np.float32(2.0) ** rng.integers(-60, 1, (4, 4)).astype(np.float32)
    for bits in (NARROW, WIDE):
        numbers, shift = to_numbers(torch.from_numpy(values), absolute=False, bits=bits)
        assert int(numbers.abs().max()) < 1 << (bits + 1)
        for t, s, score in zip(numbers.flatten(1).tolist(), shift.tolist(), values.reshape(6, -1), strict=True):
            unit = Fraction(2) ** -(s + 1)
            for number, value in zip(t, score.tolist(), strict=True):
                for h in (number - 1, number, number + 1):
                    exact = Fraction(value) / unit
                    if number != h:
                        assert (number > h) == (exact > h) or exact == h
                        assert exact != h or h & 1
                    elif number & 1 == 0:
                        assert exact == h
    assert power_of_two(torch.tensor([-126, 0, 203])).tolist() == [2.0**-126, 1.0, 2.0**203]


def test_an_odd_number_on_its_threshold_proves_nothing() -> None:
    numbers = torch.tensor([[[3, 0], [0, 3]]])
    mask = torch.eye(2, dtype=torch.bool)[None]
    for u, fine in ((0, True), (3, False), (2, True)):
        duals = torch.tensor([[u, u]]), torch.tensor([[0, 0]])
        assert bool(proven(numbers, mask, *duals)) is fine


def test_paths_find_the_best_mask_from_any_duals() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (200, 4, 4)) * 2
    for scale in (0, 3, 1000):
        u, v = (torch.from_numpy(rng.integers(-scale, scale + 1, (200, 4))) for _ in range(2))
        mask, _, _, settled = augment(torch.from_numpy(values), u, v, (2, 2))
        assert settled.all()
        stripe = values.transpose(1, 0, 2).reshape(4, -1).astype(np.float32)
        kept = float((torch.from_numpy(values) * mask).sum())
        assert kept == nmflow.solve(stripe, 2, 4, scores=stripe).objective


def test_the_adapter_solves_on_the_device_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for CUDA tensors, on tensors that only say that they are."""
    from torch import nn

    import nmflow.torch as nt
    from nmflow.torch import prune, search, training
    from nmflow.torch.sharing import Found

    calls = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return solve_on_device(*args, engine="torch", **options)

    asked = driver.on_device
    pass_for_cuda(monkeypatch)
    for module in (prune, search):
        monkeypatch.setattr(module, "solve_on_device", counted)
    weight = torch.from_numpy(families.gaussian((16, 24), 0))
    mask = nt.mask_for(weight, 2, 4)
    assert len(calls) == 1
    assert (mask.numpy() == nmflow.solve(weight.numpy(), 2, 4).mask).all()
    nt.mask_for(weight, 2, 4, fill="at-most")
    nt.mask_for(weight.double(), 2, 4)
    nt.mask_for(weight, 2, 4, solver="greedy")
    nt.mask_for(weight, 2, 4, transposable=False)
    assert len(calls) == 1

    model = nn.Sequential(nn.Linear(24, 16), nn.Conv2d(4, 8, 3), nn.Linear(8, 8, dtype=torch.float64))
    twin = nn.Sequential(nn.Linear(24, 16), nn.Conv2d(4, 8, 3), nn.Linear(8, 8, dtype=torch.float64))
    twin.load_state_dict(model.state_dict())
    report = nt.prune_(model, 2, 4)
    assert len(calls) == 3
    monkeypatch.setattr(prune_module, "on_device", lambda *args, **options: False)
    other = nt.prune_(twin, 2, 4)
    for mine, theirs in zip(report.layers, other.layers, strict=True):
        assert (mine.name, mine.density, mine.n_proven) == (theirs.name, theirs.density, theirs.n_proven)
        assert (mine.kept, mine.dense) == pytest.approx((theirs.kept, theirs.dense), rel=1e-12)

    layer = nn.Linear(24, 16)
    options = {"every": 1, "warm_start": True, "threads": 3}
    sparse = nt.SparseTraining(layer, torch.optim.SGD(layer.parameters(), lr=0.1), 2, 4, **options)
    for _ in range(2):
        layer(torch.ones(2, 24)).square().mean().backward()
        sparse_step(layer, sparse)
    assert len(calls) == 6
    assert calls[-1]["warm_start"] is not None
    assert calls[-1]["threads"] == 3
    state = sparse.state_dict()
    sparse.load_state_dict(state)
    sparse.refresh()
    assert training.on_device is asked
    solved = len(calls)
    sparse.find_mask = lambda layer, weight, last: Found(np.ones(weight.shape, np.bool_))  # type: ignore[method-assign]
    sparse.refresh()
    assert len(calls) == solved
    assert sparse.masks["weight"].all()
    del sparse.find_mask
    sparse.refresh()
    monkeypatch.setattr(training, "on_device", lambda *args, **options: False)
    assert sparse.finish().proven


def sparse_step(layer: Any, sparse: Any) -> None:
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(0.1 * torch.randn(16, 24))
    sparse.refresh()


def test_a_compiler_does_not_trace_into_the_solver() -> None:
    """It compiled 53 frames for six shapes, down to the caches of Numba."""
    import torch._dynamo

    def masked(weight: torch.Tensor) -> torch.Tensor:
        mask = nt.mask_for(weight, 2, 4) & solve_on_device(weight, 2, 4).mask
        layer = torch.nn.Linear(8, 8, bias=False)
        layer.weight = torch.nn.Parameter(torch.where(mask, weight, 0.0)[:8])
        nt.prune_(layer, 2, 4)  # what is masked already loses nothing
        return layer.weight

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside its compiler
        compiled = torch.compile(masked, backend="eager")
        for tall in (8, 12, 16):
            weight = torch.randn(tall, 8, generator=torch.Generator().manual_seed(tall))
            assert torch.equal(compiled(weight), masked(weight))
    assert torch._dynamo.utils.counters["frames"]["ok"] <= 20


def test_no_compiler_is_loaded_for_what_it_is_kept_out_of() -> None:
    code = "import sys, torch, nmflow.torch as nt; nt.mask_for(torch.ones(4, 4), 2, 4); "
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_function_is_kept_out_of_the_compiler_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    monkeypatch.setattr(torch.compiler, "disable", lambda function: made.append(function) or function)
    apart = aside(math.gcd)
    assert [apart(4, 6), apart(6, 9)] == [2, 3]
    assert made == [math.gcd]
    assert apart.__name__ == "gcd"


def test_more_blocks_in_a_row_than_triton_counts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MOST_BLOCKS", 3)
    with pytest.raises(InputValueError, match='engine must be "auto" or "torch" for 4 blocks in a row, not "triton"'):
        solve_on_device(torch.ones(4, 16), 2, 4, engine="triton")
