"""What `solve` promises beside the answer: the same mask each time, small memory, any array, threads, forks."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import families
import ml_dtypes
import numpy as np
import oracles
import pytest
from foreign import OverDLPack, Viewed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nmflow
from nmflow import cutting
from nmflow.cutting import SIZES, Sizes
from nmflow.errors import InputTypeError
from nmflow.kernels import compile
from nmflow.pattern import Pattern
from nmflow.problem import Problem
from nmflow.solvers import offsets, settled

Array = Any
PACKAGE = Path(nmflow.__file__).parent
P24 = Pattern(2, 4)
SMALL = Sizes(chunk=1 << 14, large=1 << 14, least=1 << 10), Sizes(share=1 << 11, share_blocks=1)
"""So that small matrices have several chunks, or a chunk of several shares."""
WIDE = (10, SIZES.stripe // 4 + 40_001)
DTYPES = ("e", "f", "d", "bfloat16", "b", "B", "h", "H", "i", "I", "q", "Q")


def run(code: str, *arguments: str, timeout: float = 240, **environment: str | None) -> str:
    """Run a script in a new process and return what it prints; None takes a variable away."""
    known = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={name: value for name, value in known.items() if value is not None},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept_score(weights: Array, mask: Array) -> Fraction:
    return Fraction(oracles.exact(weights)[mask].sum())


# The same mask


@pytest.mark.parametrize(
    ("shape", "pattern", "options"),
    [
        ((512, 1024), P24, {}),
        ((1030, 1021), P24, {}),
        ((1030, 1021), Pattern(2, 4, fill="at-most"), {}),
        ((1030, 1021), Pattern(2, 4, transposable=False), {}),
        ((1, 3), P24, {}),
        (WIDE, P24, {}),  # wider than a stripe: cut into several chunks along the columns
        ((700, 13), P24, {}),
        ((40, 30, 3, 3), P24, {"layout": "conv", "groups": 2}),
        ((5, 130, 70), P24, {"layout": "batch"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("sizes", SMALL, ids=["chunks", "shares"])
@pytest.mark.parametrize("family", ["gaussian", "few_values", "all_equal"])
def test_the_mask_does_not_depend_on_threads(
    shape: tuple[int, ...],
    pattern: Pattern,
    options: dict[str, Any],
    family: str,
    sizes: Sizes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cutting, "SIZES", sizes)
    weights = families.FAMILIES[family](shape, 4)
    first, *others = [
        nmflow.solve(weights, pattern=pattern, threads=threads, duals=True, **options) for threads in (1, 2, 5, 1)
    ]
    assert first.certificate.proven
    for other in others:
        assert np.array_equal(first.mask, other.mask)
        # sums are taken in a fixed order too, so that a report can be compared with another
        assert (first.objective, first.bound, first.gap) == (other.objective, other.bound, other.gap)
        assert np.array_equal(first.certificate.status, other.certificate.status)


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_threads_share_a_chunk_of_any_scores(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to solve a chunk puts what shares leave open together in a list of its own."""
    monkeypatch.setattr(cutting, "SIZES", SMALL[1])
    weights = families.FAMILIES[family]((180, 360), 3)
    first, *others = [
        nmflow.solve(weights, pattern=P24, threads=threads, duals=duals)
        for threads, duals in [(1, True), (1, False), (3, True), (3, False)]
    ]
    assert first.certificate.proven
    assert nmflow.certify(weights, first.mask, pattern=P24, absolute=True, threads=3).proven
    for other in others:
        assert other.certificate.proven
        assert np.array_equal(first.mask, other.mask)
    assert [first.objective, others[0].objective] == [other.objective for other in others[1:]]
    assert np.array_equal(first.row_duals, others[1].row_duals)
    assert np.array_equal(first.col_duals, others[1].col_duals)


def test_a_wide_matrix_is_cut_into_several_chunks() -> None:
    """So that the test above tests what it says."""
    cut = [p for p in cutting.places(Problem.build(np.ones(WIDE, np.int8), P24)).all if not p.padded]
    assert len({(p.block_cols.start, p.block_cols.stop) for p in cut}) > 1
    odd = cutting.places(Problem.build(np.ones((3, 1 << 21), np.int8), Pattern(1, 3))).all
    starts = [p.block_cols.start for p in odd if not p.padded]
    assert len(starts) > 1
    assert not any(start % SIZES.stripe_blocks for start in starts)  # vector lanes are full up to the end


@pytest.mark.parametrize(
    ("kind", "most", "together"),
    [
        ("plain", 1 << 23, 1),  # all of it
        *((kind, SIZES.fixed, 0) for kind in ("keep", "drop")),
        *((kind, SIZES.copied, 0) for kind in ("conv", "turned", "previous", "integers", "swapped")),
        *((kind, SIZES.held, 1) for kind in ("at-most", "graded")),
    ],
)
def test_chunks_are_smaller_where_more_is_held_of_each(kind: str, most: int, together: int) -> None:
    """Each thread copies a chunk of its own, or a chunk has duals and a mask beside those of the problem."""
    mask, scores = np.zeros((2048, 4096), np.bool_), np.zeros((2048, 4096), np.float32)
    others = {
        "conv": scores.reshape(2048, -1, 2), "turned": scores.reshape(4096, 2048).T, "integers": mask.view(np.int8),
        "swapped": scores.view(">f4"),
    }  # fmt: skip
    options: dict[str, Any] = {kind: mask} if kind in ("keep", "drop", "previous") else {}
    pattern = Pattern(2, 4, fill="at-most") if kind == "at-most" else P24
    problem = Problem(others.get(kind, scores), True, pattern, "conv" if kind == "conv" else None, **options)
    cut = cutting.places(problem, shared=True, graded=kind == "graded")
    assert (max(place.n_blocks for place in cut.all) * 16, cut.together) == (most, together)


def test_chunks_of_a_large_matrix_and_their_shares() -> None:
    large = cutting.places(Problem(np.zeros((4096, 8192), np.float32), True, P24), shared=True).all
    assert large[0].n_blocks * 16 == SIZES.first  # so that two threads do not end at a time
    assert max(place.n_blocks for place in large) * 16 == SIZES.chunk
    (whole,) = cutting.places(Problem(np.zeros((4096, 4096), np.float32), True, Pattern(8, 16)), shared=True).all
    assert whole.shares == SIZES.shares
    (few,) = cutting.places(Problem(np.zeros((2048, 2048), np.float32), True, Pattern(32, 64)), shared=True).all
    assert few.share_rows * 32 == SIZES.share_blocks
    assert replace(few, block_rows=slice(0, 5)).shares == 2  # the last is smaller


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((512, 512), (1, 8)),
        ((1030, 1021), (1, 8)),  # one place, and its edges
        ((2048, 4096), (1, 8)),
        ((4096, 8192), (2, 4)),  # more than is known of at a time
        ((5000, 5001), (2, 4)),  # large places, and their edges
        ((2, 130, 70), (8, 1)),  # small ones, of one share each
        ((8, 1 << 20), (8, 4)),  # two wide ones, of few
        ((3, 2), (1, 8)),
    ],
    ids=str,
)
def test_threads_share_places_of_many_shares_or_one_that_is_most_of_a_problem(
    shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    layout = "batch" if len(shape) > 2 else None
    problem = Problem.build(np.zeros(shape, np.float32), P24, layout=layout)
    assert cutting.places(problem, shared=True).threads(8) == expected


@pytest.mark.parametrize("shape", [(512, 512), (4096, 8192), (2, 130, 70), (8, 1 << 20)], ids=str)
def test_no_more_threads_than_asked_for(shape: tuple[int, ...]) -> None:
    problem = Problem.build(np.zeros(shape, np.float32), P24, layout="batch" if len(shape) > 2 else None)
    cut = cutting.places(problem, shared=True)
    for count in (1, 2, 3, 5, 8, 9):
        at_once, each = cut.threads(count)
        assert min(at_once, len(cut.all)) * each <= count
        assert each > 0
        assert not cut.together or at_once * each == count  # and no fewer where they share


def test_a_block_is_solved_alike_wherever_it_lies() -> None:
    """Lanes, chunks and edges leave no mark on the mask."""
    tile = families.FAMILIES["few_values"]((4, 4), 7)
    alone = nmflow.solve(tile, 2, 4).mask
    everywhere = nmflow.solve(np.tile(tile, (67, 71)), 2, 4).mask
    assert np.array_equal(everywhere, np.tile(alone, (67, 71)))


MASKS = """
import numpy as np, nmflow
weights = np.random.default_rng(7).standard_normal((70, 160)).astype(np.float32)
for n, m, count in ((2, 4, 4), (8, 16, 2)):  # larger blocks take long to compile twice
    for given in (weights, np.round(2 * weights), weights**5, weights.astype(np.float16))[:count]:
        solution = nmflow.solve(given, n, m, duals=True)
        print(solution.mask.tobytes().hex(), solution.objective.hex(), solution.row_duals.tobytes().hex())
"""


@pytest.mark.slow
def test_the_mask_does_not_depend_on_the_processor(tmp_path: Path) -> None:
    """Vectors are as wide as a processor's registers are, and some have no instruction for what others do at once."""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert run(MASKS, **plain) == run(MASKS)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.floats(-4, 4, width=16)),
    st.sampled_from([P24, Pattern(2, 4, fill="at-most"), Pattern(1, 3)]),
)
def test_a_transpose_keeps_as_much(weights: Array, pattern: Pattern) -> None:
    straight = nmflow.solve(weights, pattern=pattern)
    turned = nmflow.solve(weights.T, pattern=pattern)
    assert kept_score(weights, straight.mask) == kept_score(weights, turned.mask.T)


# Threads, forks


@pytest.mark.parametrize("sizes", SMALL, ids=["chunks", "shares"])
def test_calls_from_several_threads_at_once(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "SIZES", sizes)
    problems = [families.gaussian((300 + k, 257), k) for k in range(8)]
    alone = [nmflow.solve(weights, 2, 4, threads=1).mask for weights in problems]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda weights: nmflow.solve(weights, 2, 4, threads=2).mask, problems))
    assert all(map(np.array_equal, alone, together))


FIRST_CALLS = """
import threading
import numpy as np, nmflow

weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
start, masks, errors = threading.Barrier(4), [], []
def call():
    start.wait()
    try:
        masks.append(nmflow.solve(weights, 2, 4, threads=2).mask)
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
assert len(masks) == 4 and all(np.array_equal(mask, masks[0]) for mask in masks)
print("same")
"""


def test_the_first_calls_may_come_from_several_threads_at_once() -> None:
    """Importing and compiling at the same time in all of them."""
    assert run(FIRST_CALLS) == "same\n"


def test_an_address_that_is_kept_is_of_an_array_that_is_kept() -> None:
    """Two threads can make the offsets of a shape at a time; what a cache then drops is still in use."""
    offsets.fine_offsets.cache_clear()
    settled._way.cache_clear()
    way = settled._way("bfloat16", Pattern(2, 4), True, True, True)
    array = weakref.ref(offsets.fine_offsets(4, 4))
    offsets.fine_offsets.cache_clear()
    gc.collect()
    found = array()
    assert found is not None
    assert way.offsets == found.ctypes.data


def test_kernels_return_numbers_only() -> None:
    """To return an array a kernel needs a constant of its environment, which Numba 0.68 finds by the kernel's name.

    Kernels that one function makes, and that were cached by different processes, can share that name; they then fail
    with "'descr' is NULL". So outputs are arguments.
    """
    from numba.core.caching import NullCache
    from numba.core.dispatcher import Dispatcher
    from numba.core.types import Boolean, NoneType, Number

    assert nmflow.solve(families.few_values((32, 32), 0), 2, 4).certificate.proven
    gc.unfreeze()  # or it lists nothing that was there when tests were collected
    kernels = [
        made
        for made in gc.get_objects()
        if type(made).__name__.endswith("Dispatcher")
        and isinstance(made, Dispatcher)
        and made.__module__.startswith("nmflow.kernels")
        and not isinstance(made._cache, NullCache)
    ]
    gc.freeze()
    assert kernels
    for kernel in kernels:
        for signature in kernel.nopython_signatures:
            assert isinstance(signature.return_type, NoneType | Number | Boolean), kernel


def test_every_kernel_has_a_cache_of_its_own() -> None:
    """Processes that write to one index of Numba's cache at a time can give one kernel the code of another."""
    from nmflow.kernels import compile
    from nmflow.kernels.gather import gather_duals_kernel
    from nmflow.kernels.proof import proof_kernel
    from nmflow.kernels.settle_passes import first_pass

    made = [gather_duals_kernel(size) for size in (4, 8)]
    assert len({proof_kernel("float32", 4, 4, n, n, fill, fill, True) for n in (1, 2) for fill in (1, 2)}) == 4
    assert len({first_pass("float32", 4, 4, 2, 2, 2, 2, absolute) for absolute in (False, True)}) == 2
    made += compile._operations
    assert len({kernel._cache._cache_file._index_path for kernel in made}) == len(made)


FORKS = """
import json, os, signal, sys
import numpy as np, nmflow, nmflow.cutting

nmflow.cutting.SIZES = nmflow.cutting.Sizes(*json.loads(sys.argv[1]))
weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
parent = nmflow.solve(weights, 2, 4, threads=2).mask
child = os.fork()
if child == 0:
    signal.alarm(60)  # a deadlock ends the child
    os._exit(0 if np.array_equal(nmflow.solve(weights, 2, 4, threads=2).mask, parent) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

import multiprocessing
def work(seed):
    part = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    return nmflow.solve(part, 2, 4, threads=2).mask
with multiprocessing.get_context("fork").Pool(2) as pool:
    children = pool.map_async(work, range(6)).get(60)
assert all(np.array_equal(work(seed), mask) for seed, mask in enumerate(children))
assert np.array_equal(nmflow.solve(weights, 2, 4, threads=2).mask, parent)
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("sizes", SMALL, ids=["chunks", "shares"])
def test_a_forked_child_solves_after_its_parent_did(sizes: Sizes) -> None:
    assert run(FORKS, json.dumps(sizes)) == "same\n"


FORK_WHILE_COMPILING = """
import os, threading, time
from numba.core.compiler_lock import global_compiler_lock
from nmflow.kernels import compile

begun = threading.Event()
def busy():
    with compile._lock, global_compiler_lock:
        begun.set()
        time.sleep(0.5)
thread = threading.Thread(target=busy)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    free = compile._lock.acquire(timeout=5) and global_compiler_lock._lock.acquire(timeout=5)
    os._exit(0 if free else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
with compile._lock, global_compiler_lock:
    print("free")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_is_forked_while_another_thread_compiles_can_compile() -> None:
    assert run(FORK_WHILE_COMPILING) == "free\n"


FORK_WHILE_LOOKING = """
import os, signal, threading, time
import numpy as np
from nmflow import Pattern
from nmflow.blocks import Chunk

begun = threading.Event()
class Slow(np.ndarray):
    def reshape(self, *shape):
        begun.set()
        time.sleep(0.5)
        return super().reshape(*shape)
def fixed(state):
    chunk = object.__new__(Chunk)
    chunk.pattern, chunk.state = Pattern(2, 4), state
    return chunk.fixed_blocks.tolist()
state = np.eye(4, 8, dtype=np.int8)
thread = threading.Thread(target=fixed, args=[state.view(Slow)])
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)  # a deadlock ends the child
    os._exit(0 if fixed(state) == [0] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
print("found")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_is_forked_while_another_thread_looks_for_fixed_blocks_can_look() -> None:
    """Until Python 3.12 a `cached_property` has a lock, which is nobody's in the child."""
    assert run(FORK_WHILE_LOOKING) == "found\n"


COMPILED = """
import numpy as np
from nmflow.kernels.level import level_kernel

u, v, good = np.ones((1, 2)), np.ones((1, 2)), np.zeros(1, np.uint8)
level_kernel()(u, v, good)
print(good)
"""


def test_damaged_files_in_the_cache_are_made_anew(tmp_path: Path) -> None:
    def called() -> str:
        return run(COMPILED, NUMBA_CACHE_DIR=str(tmp_path))

    first = called()
    for ending, damage in ((".nbi", b""), (".nbc", b"half"), (".nbi", b"\xff" * 4096)):
        files = [path for path in tmp_path.rglob("*") if path.suffix == ending]
        assert files
        for path in files:
            path.write_bytes(damage)
        assert called() == first
        assert all(path.read_bytes() != damage for path in files)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_is_looked_for_as_before_once_a_kernel_is_made(
    fails: bool, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def decorate(*_: Any, **__: Any) -> Any:
        seen.append(gc.isenabled())
        if fails:
            raise ValueError("no such kernel")
        return lambda function: function

    def kernel() -> None:
        pass

    monkeypatch.setattr(compile.numba, "njit", decorate)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ValueError, match="no such kernel") if fails else contextlib.nullcontext():
            compile.compiled(kernel, None)
        assert (seen, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("place", ["compiling", "the cache"])
@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, ValueError])
def test_what_a_signal_raises_while_kernels_are_made_is_raised(
    place: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program's own time limit must not be taken for a cache that cannot be used."""
    from numba import types
    from numba.core import compiler
    from numba.core.caching import IndexDataCacheFile

    raised = []

    def handler(*_: Any, **__: Any) -> None:
        raised.append(place)
        raise kind("too late")

    def function(x):  # type: ignore[no-untyped-def]
        return x + 1

    owner, name = (compiler, "compile_extra") if place == "compiling" else (IndexDataCacheFile, "load")
    monkeypatch.setattr(owner, name, handler)
    with pytest.raises(kind, match="too late"):
        compile.compiled(function, types.int64(types.int64))
    assert len(raised) == 1


def test_kernels_in_a_zip_are_told_apart_by_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, kernels = tmp_path / "lib.zip", Path(compile.__file__).parent
    with zipfile.ZipFile(archive, "w") as file:
        for path in kernels.glob("*.py"):
            file.write(path, f"nmflow/kernels/{path.name}")
    monkeypatch.setattr(compile, "files", lambda package: zipfile.Path(archive, package.replace(".", "/") + "/"))
    assert compile._fingerprint.__wrapped__() == compile._fingerprint()


def test_kernels_that_must_not_be_compiled_are_an_error_in_words() -> None:
    with pytest.raises(AssertionError, match="kernels must be compiled, and NUMBA_DISABLE_JIT forbids it; unset it"):
        run(COMPILED, NUMBA_DISABLE_JIT="1")


# Memory

MEMORY = """
import sys
import numpy as np, nmflow

kind, pattern, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])

def number(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024

def weights_of(rows, cols):
    rng = np.random.default_rng(0)
    if kind in ("float32", "keep", "previous"):
        return rng.standard_normal((rows, cols), np.float32)
    if kind == "int8":
        return rng.integers(-128, 128, (rows, cols), np.int8)
    if kind == "ties":
        return rng.integers(0, 2, (rows, cols), np.int8)
    if kind == "lattice":
        return np.round(2 * rng.standard_normal((rows, cols), np.float32))
    if kind == "ragged":
        return rng.standard_normal((rows - 1, cols - 1), np.float32)
    if kind == "float16 F":
        out = np.empty((rows, cols), np.float16, order="F")
        for j in range(0, cols, 64):
            out[:, j : j + 64] = rng.standard_normal((rows, min(64, cols - j)), np.float32)
        return out
    if kind == "conv":
        return rng.standard_normal((rows, cols // 16, 4, 4), np.float32)

def options(rows, cols):
    if kind in ("keep", "previous"):  # an entry of every block
        chosen = np.zeros((rows, cols), bool)
        chosen[::4, ::4] = True
        return {kind: chosen} | ({"switch_cost": 0.1} if kind == "previous" else {})
    return {"layout": "conv"} if kind == "conv" else {}

# what is loaded once is not counted
nmflow.solve(weights_of(64, 64), pattern=pattern, threads=threads, **options(64, 64))
weights, given = weights_of(SIDE, SIDE), options(SIDE, SIDE)
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the peak starts anew
before = number("VmRSS")
solution = nmflow.solve(weights, pattern=pattern, threads=threads, **given)
assert solution.certificate.proven
beyond = number("VmHWM") - before - solution.mask.nbytes
print(beyond, solution.certificate.n_blocks)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "pattern", "threads"),
    [
        ("float32", "2:4", "2"),
        ("float32", "1:2", "2"),
        ("float32", "2:4", "8"),
        ("ragged", "2:4", "2"),
        ("float16 F", "2:4", "8"),
        ("int8", "2:4", "8"),
        ("ties", "2:4", "8"),
        ("lattice", "2:4", "2"),
        ("lattice", "2:4 at-most", "8"),
        ("conv", "2:4", "2"),
        ("keep", "2:4", "8"),
        ("previous", "2:4", "2"),
    ],
)
def test_memory_beyond_weights_and_mask_is_small(kind: str, pattern: str, threads: str) -> None:
    beyond, n_blocks = map(int, run(MEMORY.replace("SIDE", "8192"), kind, pattern, threads).split())
    assert beyond < 64e6 + 2 * n_blocks


# Installs

READ_ONLY = """
import sys
import numba, numpy as np
import nmflow, nmflow.kernels.compile as kernels

assert nmflow.__file__.startswith(sys.argv[1])
def identity(x):
    return x
identity.__code__ = identity.__code__.replace(co_filename=kernels.__file__)
try:
    numba.njit(cache=True)(identity)
except RuntimeError as error:
    assert "cannot cache" in str(error)
else:
    raise SystemExit("there is a place for a cache here, so this test tests nothing")
weights = np.random.default_rng(0).standard_normal((9, 14)).astype(np.float32)
solution = nmflow.solve(weights, 2, 4)
assert solution.certificate.proven
print(np.packbits(solution.mask).tobytes().hex())
"""


@pytest.mark.slow
def test_a_read_only_install_and_an_unwritable_home(tmp_path: Path) -> None:
    """Even for root, who may write anywhere: files stand where folders would have to be."""
    shutil.copytree(PACKAGE, tmp_path / "nmflow", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
        (folder / "__pycache__").touch()
        folder.chmod(0o555)
    try:
        printed = run(
            READ_ONLY,
            str(tmp_path),
            PYTHONPATH=str(tmp_path),
            HOME="/dev/null",
            XDG_CACHE_HOME=None,
            NUMBA_CACHE_DIR=None,
        )
    finally:
        for folder in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
    weights = np.random.default_rng(0).standard_normal((9, 14)).astype(np.float32)
    assert printed.strip() == np.packbits(nmflow.solve(weights, 2, 4).mask).tobytes().hex()
    assert not list(tmp_path.rglob("*.nb?"))


# Any array


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@st.composite
def views(draw: st.DrawFn) -> Array:
    """An array of any dtype and byte order, seen with any strides, aligned or not, writable or not."""
    dtype = dtype_of(draw(st.sampled_from(DTYPES)))
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    row_step, col_step = (draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(2))
    shape = (rows * abs(row_step), cols * abs(col_step))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        values[rng.random(shape) < 0.1] = info.min
    else:
        values = (rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)).astype(dtype)
    if dtype.name != "bfloat16" and draw(st.booleans()):
        values = values.astype(dtype.newbyteorder())
    if draw(st.booleans()):
        values = np.asfortranarray(values)
    if draw(st.booleans()):  # one byte off
        raw = np.zeros(values.nbytes + 1, np.uint8)
        moved = raw[1:].view(np.uint8).data.cast("B")
        off = np.frombuffer(moved, values.dtype).reshape(values.shape)
        off[...] = values
        values = off
    view = values[::row_step, ::col_step]
    view.setflags(write=draw(st.booleans()))
    return view


@settings(max_examples=150, deadline=None)
@given(views(), st.sampled_from(["exact", "at-most"]))
def test_any_array_is_solved_as_what_it_holds(view: Array, fill: str) -> None:
    pattern = Pattern(2, 4, fill=fill)
    before = view.tobytes()
    solution = nmflow.solve(view, pattern=pattern)
    assert solution.certificate.proven
    assert solution.mask.shape == view.shape
    exact = oracles.exact(view)
    assert exact[solution.mask].sum() == oracles.best_total(exact, pattern)
    assert view.tobytes() == before
    pruned = solution.prune(view)
    assert pruned.dtype == view.dtype
    assert (pruned == np.where(solution.mask, view, 0)).all()


@pytest.mark.parametrize("dtype", [object, "U1", "M8[s]", [("x", "f4")]], ids=str)
def test_only_numbers_are_pruned(dtype: Any) -> None:
    solution = nmflow.solve(np.ones((4, 4)), 2, 4)
    with pytest.raises(InputTypeError, match="weights must be numbers"):
        solution.prune(np.zeros((4, 4), dtype))


@pytest.mark.parametrize("wrap", [Viewed, OverDLPack, lambda array: array.tolist()], ids=["array", "dlpack", "list"])
def test_arrays_of_other_libraries(wrap: Any) -> None:
    weights = families.gaussian_float64((9, 14), 1)
    plain, other = nmflow.solve(weights, 2, 4), nmflow.solve(wrap(weights), 2, 4)
    assert np.array_equal(plain.mask, other.mask)
    assert np.array_equal(plain.prune(weights), other.prune(wrap(weights)))
    graded = nmflow.certify(wrap(weights), wrap(plain.mask), 2, 4, absolute=True)
    assert graded.proven
    assert graded.objective == pytest.approx(plain.objective, rel=1e-14)  # summed in another order


def test_pruning_refuses_what_numpy_cannot_view() -> None:
    class Unviewable:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise RuntimeError("requires grad")

    solution = nmflow.solve(np.eye(4), 2, 4)
    with pytest.raises(InputTypeError, match=r"weights must be an array that NumPy can view, .*requires grad"):
        solution.prune(Unviewable())
    with pytest.raises(InputTypeError, match="weights must be a plain array, not a masked one"):
        solution.prune(np.ma.masked_array(np.eye(4)))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-9, 9)),
    st.sampled_from(["exact", "at-most"]),
    st.booleans(),
)
def test_scores_may_be_negative(scores: Array, fill: str, transposable: bool) -> None:
    pattern = Pattern(2, 4, fill=fill, transposable=transposable)
    solution = nmflow.solve(np.zeros(scores.shape, np.float16), pattern=pattern, scores=scores)
    best = oracles.best_total(oracles.exact(scores, absolute=False), pattern)
    assert solution.objective == solution.bound == best
    assert solution.certificate.proven
    assert oracles.violations(solution.mask, pattern) == []


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(12, 3, 3), (6, 5, 2, 2), (9, 4, 1, 1), (6, 3, 2, 1, 2)], ids=str)
def test_a_convolution_is_a_matrix_for_each_group(shape: tuple[int, ...], groups: int) -> None:
    if shape[0] % groups:
        pytest.skip("groups do not divide the channels")
    weights = families.int8(shape, 2)
    solution = nmflow.solve(weights, 2, 4, layout="conv", groups=groups)
    assert solution.certificate.proven
    total = Fraction(0)
    for part, mask in zip(np.split(weights, groups), np.split(solution.mask, groups), strict=True):
        matrix, kept = (np.stack([row.reshape(row.shape[0], -1).T.ravel() for row in a]) for a in (part, mask))
        assert oracles.violations(kept, P24) == []
        total += oracles.best_total(oracles.exact(matrix), P24)
    assert solution.objective == total


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 5, 7)], ids=str)
def test_a_batch_is_a_matrix_for_each_leading_index(shape: tuple[int, ...]) -> None:
    weights = families.int8(shape, 3)
    solution = nmflow.solve(weights, 2, 4, layout="batch")
    assert solution.certificate.proven
    total = Fraction(0)
    for index in np.ndindex(shape[:-2]):
        assert oracles.violations(solution.mask[index], P24) == []
        total += oracles.best_total(oracles.exact(weights[index]), P24)
    assert solution.objective == total


# Pruning

NAN_BITS = {"e": 0x7D01, "bfloat16": 0x7F81, "f": 0x7F800001, "d": 0x7FF0000000000001}
"""Signalling NaNs with a payload: arithmetic would quiet them, a copy does not."""


@pytest.mark.parametrize("name", NAN_BITS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_pruning_touches_no_bit_that_is_kept(name: str, order: Any) -> None:
    dtype = dtype_of(name)
    word = np.dtype(f"u{dtype.itemsize}")
    weights = families.gaussian((13, 18), 3).astype(dtype).copy(order)
    weights[::2, ::3] = -0.0
    bits = weights.view(word)
    bits[::3, ::2] = NAN_BITS[name]
    bits[1::3, 1::2] = NAN_BITS[name] | 1 << (8 * word.itemsize - 1)
    before = bits.copy()
    solution = nmflow.solve(weights, 2, 4, scores=families.gaussian(weights.shape, 4))
    pruned = solution.prune(weights)
    assert not np.shares_memory(pruned, weights)
    assert np.array_equal(bits, before)
    after = pruned.view(word)
    assert (after[~solution.mask] == 0).all()  # +0, every bit
    assert np.array_equal(after[solution.mask], before[solution.mask])
    for special in (before[0, 0], before[3, 2], before[1, 1], before[2, 3]):
        assert (after[solution.mask] == special).any()  # each kind is among the kept


@pytest.mark.parametrize("name", ["keep", "drop", "previous", "weights"])
@pytest.mark.parametrize("turned", [
    np.asfortranarray, lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
])  # fmt: skip
def test_every_array_may_have_any_strides(name: str, turned: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = {"weights": rng.standard_normal((131, 134)), "keep": rng.random((131, 134)) < 0.01}
    arrays |= {"drop": ~arrays["keep"] & (rng.random((131, 134)) < 0.05), "previous": rng.random((131, 134)) < 0.5}
    options = {"switch_cost": 0.25, "fill": "at-most"}
    best = nmflow.solve(n=2, m=4, **arrays, **options)
    found = nmflow.solve(n=2, m=4, **{**arrays, name: turned(arrays[name])}, **options)
    assert np.array_equal(found.mask, best.mask)
    assert found.switch == best.switch


def test_unaligned_and_swapped_arrays() -> None:
    weights = families.gaussian((16, 24), 0)
    raw = np.zeros(weights.nbytes + 1, np.uint8)
    odd = raw[1:].view(np.float32).reshape(weights.shape)
    odd[...] = weights
    assert not odd.flags.aligned
    best = nmflow.solve(weights, 2, 4)
    for array in (odd, weights.astype(">f4")):
        found = nmflow.solve(array, 2, 4)
        assert np.array_equal(found.mask, best.mask)
        assert found.objective == best.objective
