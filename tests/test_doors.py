"""What is nonsense at a door is an error of nmflow's that names the argument, never one of Python's from further in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nmflow
from nmflow import checkpoint, diversity, formats
from nmflow.asked import amount, as_globs, as_path, whole
from nmflow.errors import InputTypeError, InputValueError, NmflowError

torch = pytest.importorskip("torch")

import nmflow.torch as nt  # noqa: E402 (without torch there is nothing to test here)

Door = Callable[..., Any]
Call = tuple[Door, dict[str, Any]]

NONSENSE = (
    None, True, 3, -1, 2.5, float("nan"), 10**30, 1j, "x", "", b"b", [], [1], ["x"], (1, 2), {}, {1: 2}, {"a": 1},
    object(), np.zeros((2, 2)), torch.zeros(3),
)  # fmt: skip
OF_OTHERS = {"data", "batches", "model", "optimizer", "device"}
"""Batches of nonsense reach the user's own model, and devices torch: they say what they think of them."""

GAUSSIAN = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))


def training() -> dict[str, Any]:
    trained = model()
    return {"model": trained, "optimizer": torch.optim.SGD(trained.parameters(), 0.1), "n": 2, "m": 4}


def batches() -> dict[str, Any]:
    return {"model": model(), "data": [torch.randn(4, 16)], "n": 2, "m": 4}


MASK = np.tile(np.eye(4, dtype=bool) | np.eye(4, dtype=bool)[::-1], (16, 16))

ARRAYS: dict[str, Callable[[], Call]] = {
    "solve": lambda: (nmflow.solve, {"weights": GAUSSIAN, "n": 2, "m": 4}),
    "certify": lambda: (nmflow.certify, {"scores": GAUSSIAN, "mask": MASK, "n": 2, "m": 4}),
    "Pattern": lambda: (nmflow.Pattern, {"n": 2, "m": 4}),
    "count_masks": lambda: (nmflow.count_masks, {"pattern": "2:4"}),
    "asymptotic_log_count": lambda: (diversity.asymptotic_log_count, {"pattern": "2:4"}),
    "divergence": lambda: (nmflow.divergence, {"mask_a": MASK, "mask_b": MASK}),
    "mask_diversity": lambda: (nmflow.mask_diversity, {"shape": (8, 8), "constraint": "2:4"}),
    "solvers.get": lambda: (nmflow.solvers.get, {"solver": "dual"}),
    "formats.get": lambda: (formats.get, {"name": "dense"}),
    "semi_structured": lambda: (nt.semi_structured, {"weight": GAUSSIAN, "mask": MASK}),
}


MODELS: dict[str, Callable[[], Call]] = {
    "SparseTraining": lambda: (nt.SparseTraining, training()),
    "prune_": lambda: (nt.prune_, {"model": model(), "n": 2, "m": 4}),
    "mask_for": lambda: (nt.mask_for, {"tensor": torch.randn(8, 8), "n": 2, "m": 4}),
    "solve_on_device": lambda: (nt.solve_on_device, {"tensor": torch.randn(8, 8), "n": 2, "m": 4}),
    "adaprune_": lambda: (nt.adaprune_, batches()),
    "sparsegpt_": lambda: (nt.sparsegpt_, batches()),
    "alps_": lambda: (nt.alps_, batches()),
    "allocate": lambda: (nt.allocate, {"model": model(), "m": 4, "density": 0.5}),
    "calibrate": lambda: (nt.calibrate, {"model": model(), "batches": [torch.randn(4, 16)]}),
    "choose_n": lambda: (nt.choose_n, {"model": model(), "m": 4}),
    "from_unstructured_": lambda: (nt.from_unstructured_, {"model": model(), "n": 2, "m": 4}),
    "reestimate_batch_norm_": lambda: (nt.reestimate_batch_norm_, {"model": model(), "batches": [torch.ones(4, 16)]}),
    "to_semi_structured_": lambda: (nt.to_semi_structured_, {"model": nt_model()}),
}


def nt_model() -> Any:
    wide = torch.nn.Linear(64, 64)
    nt.prune_(wide, 2, 4)
    return wide


CHECKPOINTS = (
    "open_source", "read_header", "make_plan", "prune_checkpoint", "verify_checkpoint", "diff_checkpoints",
    "read_report", "write_reports", "export_checkpoint", "inspect_path", "exported_format", "verify_packed",
    "load_semi_structured",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("doors")
    (at / "src").mkdir()
    save_file({"a.weight": GAUSSIAN, "b.weight": GAUSSIAN.T.copy()}, at / "src" / "model.safetensors")
    checkpoint.prune_checkpoint(at / "src", at / "pruned", "2:4")
    checkpoint.export_checkpoint(at / "pruned", at / "packed", "cutlass-24")
    return at


def of_checkpoints(name: str, at: Path, number: int) -> Call:
    """A call that works; `number` of the places where it may write."""
    door = getattr(checkpoint, name, None) or getattr(nt, name)
    src, pruned, packed, out = at / "src", at / "pruned", at / "packed", at / f"{name}-{number}"
    asked: dict[str, dict[str, Any]] = {
        "open_source": {"path": src},
        "read_header": {"path": src / "model.safetensors"},
        "make_plan": {"src": src, "pattern": "2:4"},
        "prune_checkpoint": {"src": src, "dst": out, "pattern": "2:4"},
        "verify_checkpoint": {"path": pruned, "pattern": "2:4"},
        "diff_checkpoints": {"a": src, "b": pruned},
        "read_report": {"dst": pruned},
        "write_reports": {"dst": pruned},
        "export_checkpoint": {"src": pruned, "dst": out, "format": "cutlass-24"},
        "inspect_path": {"path": pruned},
        "exported_format": {"path": packed},
        "verify_packed": {"path": packed},
        "load_semi_structured": {"path": packed},
    }
    return door, asked[name]


def knock(call: Callable[[], Call]) -> None:
    """Put all nonsense into all arguments, one at a time."""
    door, given = call()
    door(**given)
    for argument in inspect.signature(door).parameters.values():
        if argument.kind is argument.VAR_KEYWORD or argument.name in OF_OTHERS:
            continue
        for value in NONSENSE:
            door, given = call()
            try:
                door(**{**given, argument.name: value})
            except NmflowError:  # some of it is sense to some
                pass
            except Exception as error:
                pytest.fail(f"{argument.name}={value!r} is {error!r}")


@pytest.mark.parametrize("name", ARRAYS)
def test_doors_of_arrays(name: str) -> None:
    knock(ARRAYS[name])


@pytest.mark.parametrize("name", MODELS)
def test_doors_of_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # "x" is a good place for what is to be resumed
    knock(MODELS[name])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_doors_of_checkpoints(name: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = iter(range(10**6))
    knock(lambda: of_checkpoints(name, folders, next(numbers)))


def test_arrays_are_called_as_the_caller_knows_them() -> None:
    for array in (np.zeros((4, 4), object), np.zeros((0, 4)), np.zeros(4)):
        with pytest.raises(NmflowError, match=r"^weights must"):
            nmflow.solve(array, 2, 4)
        for absolute in (False, True):
            with pytest.raises(NmflowError, match=r"^scores must"):
                nmflow.certify(array, np.ones(array.shape, bool), 2, 4, absolute=absolute)
    with pytest.raises(NmflowError, match=r"^scores must be finite"):
        nmflow.certify(np.full((4, 4), np.nan), MASK[:4, :4], 2, 4, absolute=True)
    for mask in (np.zeros((0, 4), bool), np.zeros(4, bool)):
        with pytest.raises(NmflowError, match=r"^mask_a must"):
            nmflow.divergence(mask, mask, "2:4")
    for groups in (2, "x"):
        with pytest.raises(NmflowError, match=r"^groups must"):
            nmflow.divergence(MASK, MASK, groups=groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 3, b"b", ["a"], np.zeros(2)])
def test_a_path_is_text_or_stands_for_it(value: object) -> None:
    with pytest.raises(InputTypeError, match=r"^src must be a path, as text or an object"):
        as_path(value, "src")


def test_globs_are_a_list_of_text() -> None:
    assert as_globs(iter(["a", "b"]), "include") == ("a", "b")
    with pytest.raises(InputTypeError, match=r"^include must be a list of globs, not the text 'a'; write \['a'\]$"):
        as_globs("a", "include")
    for value in (3, [3], [b"a"], None):
        with pytest.raises(InputTypeError, match=r"^exclude must be a list of globs, which are text, and has"):
            as_globs(value, "exclude")  # type: ignore[arg-type]


def test_numbers_are_numbers() -> None:
    assert (whole(np.int8(3), "every", 1), amount(2, "decay"), amount(np.inf, "memory", finite=False)) == (3, 2, np.inf)
    for value in (True, 2.5, "3", None):
        with pytest.raises(InputTypeError, match=r"^every must be a whole number, not"):
            whole(value, "every", 1)
    for value in (True, "3", None, 1j, torch.zeros(3)):
        with pytest.raises(InputTypeError, match=r"^decay must be a number, not"):
            amount(value, "decay")
    for value in (-1, np.nan, np.inf, 10**400):
        with pytest.raises(InputValueError, match=r"^decay must be finite and not negative, not"):
            amount(value, "decay")


def test_what_is_asked_for_is_named(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, pruned, out = folders / "src", folders / "pruned", tmp_path / "out"
    batch = [torch.randn(4, 16)]
    for call, message in (
        (lambda: checkpoint.prune_checkpoint(src, out, "2:4", executor=3), "executor must hand out work by submit, as"),  # type: ignore[arg-type]
        (lambda: checkpoint.diff_checkpoints(src, pruned, progress=3), "progress must be a function, not 3"),  # type: ignore[arg-type]
        (lambda: checkpoint.write_reports(pruned, report=3), "report must be a Report, not 3; leave it out to read"),  # type: ignore[arg-type]
        (lambda: nt.choose_n(model(), 4, zeros=3), "zeros must be a mapping from parameter names to tensors, or a"),  # type: ignore[arg-type]
        (lambda: nt.calibrate(model(), 3), "batches must be a list or loader of batches, not one int"),  # type: ignore[arg-type]
        (lambda: nt.calibrate(model(), [1]), "batches must bring a tensor to 0.weight, not int: batch 0"),
        (
            lambda: nt.adaprune_(model(), batch, 2, 4, scores=lambda name, module: 1),  # type: ignore[arg-type,return-value]
            "0.weight: scores of 0.weight must be a tensor, not int",
        ),
    ):
        with pytest.raises(InputTypeError, match=f"^{message}"):
            call()
    checkpoint.prune_checkpoint(src, out, "2:4")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(NmflowError, match=f"^dst must be writable to be replaced, and {out} is not; chmod u"):
        checkpoint.prune_checkpoint(src, out, "2:4", overwrite=True)


def test_globs_may_be_an_iterator(folders: Path, tmp_path: Path) -> None:
    """A format of several patterns, as cutlass-24 is by dtype, looks at them once for each."""
    report = checkpoint.export_checkpoint(folders / "pruned", tmp_path / "out", "cutlass-24", exclude=iter(["a.*"]))
    assert [tensor.name for tensor in report.tensors] == ["b.weight"]
