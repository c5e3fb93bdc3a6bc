"""Proofs do not depend on how the caller's thread rounds: subnormal numbers count though it flushes them to zero."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import pytest

import nmflow
from nmflow.kernels.compile import _plain

torch = pytest.importorskip("torch", reason="torch makes a thread flush subnormal numbers to zero")

from nmflow.torch import solve_on_device  # noqa: E402

TINY = 5e-324


def is_flushed() -> bool:
    return float(np.float64(TINY) * np.float64(1.0)) == 0.0


@pytest.fixture
def flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("needs a processor that torch can make flush subnormal numbers to zero")
    try:
        assert is_flushed()
        yield
        assert is_flushed()  # the caller's arithmetic is its own again
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_subnormal_scores_count(flushed: None, kind: str, mixed: bool, threads: int) -> None:
    step = np.uint32(1) if kind == "float32" else np.uint64(1)
    bits = np.random.default_rng(0).integers(1, 2000, (64, 512)).astype(step.dtype)
    weights: Any = bits.view(kind)
    if mixed:
        weights = np.where(bits % 5 == 0, np.dtype(kind).type(1e-36), weights)
    solution = nmflow.solve(weights, 2, 4, threads=threads, duals=True)
    exact = oracles.exact(weights)
    assert solution.proven
    assert exact[solution.mask].sum() == oracles.best_total(exact, solution.pattern)
    worse = np.roll(solution.mask, 4, axis=1)
    assert nmflow.certify(weights, solution.mask, 2, 4, absolute=True, threads=threads).proven
    assert not nmflow.certify(weights, worse, 2, 4, absolute=True, threads=threads).proven
    assert not nmflow.solve(weights, 2, 4, solver="greedy", certify=True).proven


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_costs_of_a_network_count_them(flushed: None, kind: str) -> None:
    bits = np.array([[1, 5], [7, 2]], np.uint32 if kind == "float32" else np.uint64)
    built = nmflow.network.build(bits.view(kind), "1:2")
    assert built.unit_cost.tolist() == [-1, -5, -7, -2]


def test_torch_operations_count_them_too(flushed: None) -> None:
    bits = np.random.default_rng(0).integers(1, 2000, (32, 64)).astype(np.uint32)
    found = solve_on_device(torch.from_numpy(bits.view(np.float32)), 2, 4)
    whole = nmflow.solve(bits, 2, 4)
    assert found.certificate.proven
    assert bits[found.mask.numpy()].sum() == whole.objective


def test_a_machine_whose_register_is_not_known(flushed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    with pytest.raises(RuntimeError, match="can't be changed here on abacus; undo what made it so"):
        nmflow.solve(np.ones((4, 4), np.float32), 2, 4)


def test_kernels_are_named_after_all_that_they_close_over() -> None:
    named = [_plain(value) for value in (1, True, 1.0, np.uint16(1), np.uint32(1), (1, 2), (1, 3), None, len)]
    assert len(set(map(repr, named))) == len(named)
    with pytest.raises(TypeError, match="kernels must close over numbers, words and functions, not "):
        _plain(np.ones(2))


TRAPS = """
import ctypes
import numpy as np, nmflow

generator = np.random.default_rng(0)
weights = generator.standard_normal((300, 257)).astype(np.float32)
huge = np.full((64, 64), 3e38, np.float32) * generator.random((64, 64)).astype(np.float32)
subnormal = generator.integers(0, 9, (64, 64)).astype(np.uint32).view(np.float32)
c = ctypes.CDLL(None)
for threads in (1, 2):
    for given in (weights, huge, subnormal):
        expected = nmflow.solve(given, 2, 4, threads=threads)
        c.feenableexcept(1 | 8 | 16)  # invalid, overflow, underflow
        found = nmflow.solve(given, 2, 4, threads=threads)
        certificate = nmflow.certify(given, found.mask, 2, 4, absolute=True, threads=threads)
        assert c.fegetexcept() == 1 | 8 | 16  # the caller's own again
        c.fedisableexcept(1 | 8 | 16)
        assert found.proven and certificate.proven
        assert np.array_equal(found.mask, expected.mask) and found.objective == expected.objective
print("same")
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="errors of floating point are glibc's"
)
def test_a_processor_may_trap_errors_of_floating_point() -> None:
    """The first of them ended the process: no proof is worth a program's work."""
    done = subprocess.run([sys.executable, "-c", TRAPS], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_may_raise_errors_of_floating_point(threads: int) -> None:
    """Sums beyond float64, products and casts below the least number: what lies between is nobody's affair."""
    generator = np.random.default_rng(0)
    wide = generator.standard_normal((64, 64)) * np.exp2(generator.integers(-1000, 1000, (64, 64)))
    huge = np.full((16, 16), np.finfo(float).max) * generator.random((16, 16))
    tiny = generator.integers(0, 9, (32, 32)).astype(np.uint32).view(np.float32)
    calls: list[Any] = [
        lambda: nmflow.solve(huge, 2, 4, threads=threads).objective,
        lambda: nmflow.certify(huge, np.tile(np.kron(np.eye(2), np.ones((2, 2))) > 0, (4, 4)), 2, 4).objective,
        lambda: nmflow.solve(tiny, 2, 4, duals=True, threads=threads).objective,
        lambda: (
            nmflow.solve(huge, 2, 4, scores=huge, fill="at-most", previous=huge > 1e307, switch_cost=1e-300).objective
        ),
        *(lambda name=name: nmflow.solve(wide, 2, 4, solver=name).objective for name in ("greedy", "local-search")),
    ]
    expected = [call() for call in calls]
    with np.errstate(all="raise"):
        assert [call() for call in calls] == expected
