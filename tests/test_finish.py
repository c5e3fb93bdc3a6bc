"""Blocks finished one by one, from any duals: proven in fractions, whatever their shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import oracles
import pytest
from test_lanes import unproven

import nmflow
from nmflow import Pattern
from nmflow.crew import call_on_threads
from nmflow.duals import Duals
from nmflow.kernels import kept as adding
from nmflow.kernels.between import between_kernel
from nmflow.kernels.finish import BEST, finish_plan, finish_scratch
from nmflow.solvers import dual, paths, settled

Array = np.ndarray[Any, np.dtype[Any]]


def finish(
    values: Array, u: Array, v: Array, r: int, c: int, *, fill: int = 2, exact: bool = True, begun: Array | None = None,
    single: int = 0, best: bool = False,
) -> tuple[Array, Array, float]:  # fmt: skip
    """Masks, flags and the kept score of blocks; their duals are changed in place. begun : masks to begin with.

    single : as scores are of float64 (0), or of float32 where duals are wanted (1), or are not (2). best : whether
    these masks may be best ones.
    """
    count, rows, cols = values.shape
    mask = np.full((count * rows, cols), 7, np.uint8) if begun is None else begun.reshape(-1, cols).copy()
    flags = np.empty(count, np.uint8)
    blocks, rules, scratch = np.arange(count), (r, c, c, fill, fill, exact, single == 1), finish_scratch(rows, cols)
    values, total = np.ascontiguousarray(values), np.zeros(1)
    operation, plan = finish_plan("float64", False, rows, cols, r, c, c, fill, fill)
    arrays = blocks.ctypes.data, u.ctypes.data, v.ctypes.data, 8, count, flags.ctypes.data, total.ctypes.data
    open_ = call_on_threads(
        operation,
        (
            plan, values.ctypes.data, 8 * cols, 1, 1, mask.ctypes.data, cols, 1, *arrays, exact, single == 1,
            BEST if best else begun is not None, scratch[0].ctypes.data,
        ),
        0,
        1,
    )  # fmt: skip
    assert open_ == np.count_nonzero(flags)
    kept = float(total[0])
    left = np.flatnonzero(flags)
    row, col, still = u[left], v[left], flags[left]
    kept += between_kernel()(values[left], row, col, mask, left, *rules, single > 0, *scratch, still)
    u[left], v[left], flags[left] = row, col, still
    return mask.reshape(values.shape), flags, kept


def scores_of(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if kind == "gaussian":
        return rng.standard_normal(shape).astype(np.float32).astype(np.float64)
    if kind == "few":
        return (rng.integers(0, 3, shape) * np.float32(0.1)).astype(np.float32).astype(np.float64)
    if kind == "zero":
        return (rng.standard_normal(shape) * (rng.random(shape) < 0.1)).astype(np.float32).astype(np.float64)
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)


@pytest.mark.parametrize("kind", ["gaussian", "few", "zero", "wide"])
@pytest.mark.parametrize(("rows", "cols", "r", "c"), [(4, 4, 2, 2), (5, 5, 3, 3), (8, 4, 2, 4), (12, 24, 10, 5)])
@pytest.mark.parametrize("start", ["zero", "noise"])
@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_every_block_is_proven_in_fractions(
    kind: str, rows: int, cols: int, r: int, c: int, start: str, fill: str
) -> None:
    rng = np.random.default_rng(rows)
    values = scores_of(kind, (30, rows, cols), rng)
    # of few bits, as where they come from is
    u, v = (np.round(rng.standard_normal((30, side)) * 1024) / 1024 * (start == "noise") for side in (rows, cols))
    mask, flags, kept = finish(values, u, v, r, c, fill=2 if fill == "exact" else 1)
    row, col = (f"{budget}:{length}" for budget, length in ((r, cols), (c, rows)))
    pattern = Pattern(row=row, col=col, fill=fill)
    for k in np.flatnonzero(flags == 0):
        args = [oracles.exact(x[k], absolute=False) for x in (values, u, v)]
        assert oracles.proves(args[0], mask[k].astype(bool), pattern, *args[1:])
    assert kept == pytest.approx(values[flags == 0][mask[flags == 0] == 1].sum(), rel=1e-12)
    # sums of scores of all sizes round, and what rounding leaves is for other arithmetic
    assert kind == "wide" or not flags.any()


@pytest.mark.parametrize("fill", ["exact", "at-most"])
@pytest.mark.parametrize(("side", "budget"), [(4, 2), (8, 4), (12, 5), (16, 8)])
def test_a_best_mask_whose_scores_have_more_bits_than_lanes_stays(side: int, budget: int, fill: str) -> None:
    """Where many masks are best ones, duals follow from the one that is there; any other goes the long way."""
    rng = np.random.default_rng(side)
    codes = np.array([-1.9, -0.7, -0.0031, 0.0007, 0.0031, 0.4, 1.1], np.float32).astype(np.float64)
    values, fills = codes[rng.integers(0, len(codes), (60, side, side))], 2 if fill == "exact" else 1
    turned = np.ascontiguousarray(values[:, ::-1, ::-1])
    nothing = [np.zeros((60, side)) for _ in range(2)]
    best = finish(turned, *(x.copy() for x in nothing), budget, budget, fill=fills)[0][:, ::-1, ::-1]
    pattern, stay = Pattern(budget, side, fill=fill), {}
    for known in (False, True):
        u, v = (x.copy() for x in nothing)
        mask, flags, kept = finish(values, u, v, budget, budget, fill=fills, begun=best, best=known)
        assert not flags.any()
        assert kept == pytest.approx(values[best == 1].sum(), rel=1e-12)
        for k in range(60):
            args = [oracles.exact(x[k], absolute=False) for x in (values, u, v)]
            assert oracles.proves(args[0], mask[k].astype(bool), pattern, *args[1:])
        stay[known] = sum(np.array_equal(mask[k], best[k]) for k in range(60))
    assert stay[True] == 60
    assert stay[False] < stay[True]
    worse, rows = best.copy(), np.arange(60)
    worse[rows, 0] = best[rows, 1]  # rows that changed places: columns keep as many as before
    worse[rows, 1] = best[rows, 0]
    mask, flags, kept = finish(values, *(x.copy() for x in nothing), budget, budget, fill=fills, begun=worse, best=True)
    assert not flags.any()
    assert kept == pytest.approx(values[best == 1].sum(), rel=1e-12)


def test_a_margin_proves_scores_of_53_bits() -> None:
    """Sums along paths round at nearly every block of this size; duals between the scores prove them all the same."""
    values = np.random.default_rng(3).standard_normal((20, 32, 32))
    _, flags, _ = finish(values, np.zeros((20, 32)), np.zeros((20, 32)), 16, 16)
    assert not flags.any()


@pytest.mark.parametrize("zeros", [0.0, 0.7])
@pytest.mark.parametrize(("side", "budget"), [(32, 8), (32, 4), (53, 13), (64, 20)])
def test_a_margin_proves_them_under_at_most_fill_too(side: int, budget: int, zeros: float) -> None:
    """Where some lines have room, and have duals that are 0; of some scores just those lines decide."""
    rng = np.random.default_rng(side)
    values = rng.standard_normal((8, side, side)) * (rng.random((8, side, side)) >= zeros)
    u, v = np.zeros((2, 8, side))
    mask, flags, _ = finish(values, u, v, budget, budget, fill=1)
    assert not flags.any()
    pattern = Pattern(budget, side, fill="at-most")
    for k in range(8):
        args = [oracles.exact(x[k], absolute=False) for x in (values, u, v)]
        assert oracles.proves(args[0], mask[k].astype(bool), pattern, *args[1:])


def test_a_tied_block_that_takes_paths_counts_once() -> None:
    scores = np.random.default_rng(0).integers(0, 3, (160, 160)).astype(np.float32)
    stats = nmflow.solve(scores, 3, 8, scores=scores, fill="at-most").stats
    assert stats["augmented"] > 0
    assert stats["tied"] + stats["augmented"] == stats["blocks"] == 400


def test_at_most_fill_of_float64_takes_no_integers_where_some_lines_have_room() -> None:
    scores = np.random.default_rng(0).standard_normal((512, 512))
    solution = nmflow.solve(scores, 8, 32, scores=scores, fill="at-most")
    assert solution.proven
    assert solution.stats["augmented"] > 20
    assert "integers" not in solution.stats


@pytest.mark.parametrize("kind", ["gaussian", "few"])
def test_the_largest_blocks_use_every_bit_of_a_word(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = scores_of(kind, (3, 64, 64), rng)
    u, v = np.zeros((3, 64)), np.zeros((3, 64))
    mask, flags, _ = finish(values, u, v, 40, 40)
    assert not flags.any()
    assert (mask.sum(axis=1) == 40).all()
    assert (mask.sum(axis=2) == 40).all()
    for k in range(3):
        reduced = oracles.exact(values[k], absolute=False) - oracles.exact(u[k], absolute=False)[:, None]
        reduced = reduced - oracles.exact(v[k], absolute=False)[None, :]
        assert (reduced[mask[k] == 1] >= 0).all()
        assert (reduced[mask[k] == 0] <= 0).all()


def test_distances_beyond_float64_are_left_unproven() -> None:
    values = np.full((1, 4, 4), -1.7e308)
    values[0, :2, :2] = 1.7e308
    mask, flags, _ = finish(values, np.zeros((1, 4)), np.zeros((1, 4)), 2, 2)
    assert set(np.unique(mask)) <= {0, 1}
    assert flags[0] or ((mask.sum(axis=1) == 2).all() and (mask.sum(axis=2) == 2).all())


def test_ties_of_rounded_scores_prove_nothing() -> None:
    values = np.ones((2, 4, 4))
    values[1] = np.array([[4, 3, 1, 1], [4, 3, 1, 1], [1, 1, 4, 3], [1, 1, 4, 3]])
    _, flags, _ = finish(values, np.zeros((2, 4)), np.zeros((2, 4)), 2, 2, exact=False)
    assert flags.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["gaussian", "few", "zero"])
@pytest.mark.parametrize("fill", [2, 1])
def test_masks_to_begin_with_may_be_any(kind: str, fill: int) -> None:
    """They decide among ties at most."""
    rng = np.random.default_rng(1)
    values = scores_of(kind, (40, 6, 10), rng)
    zeros = np.zeros((40, 6)), np.zeros((40, 10))
    _, flags, kept = finish(values, *(side.copy() for side in zeros), 5, 3, fill=fill)
    begun = rng.integers(0, 2, values.shape, np.uint8)
    mask, other_flags, as_much = finish(values, *zeros, 5, 3, fill=fill, begun=begun)
    assert not flags.any()
    assert not other_flags.any()
    assert as_much == pytest.approx(kept, rel=1e-12)
    assert (mask.sum(axis=2) <= 5).all()
    assert (mask.sum(axis=1) <= 3).all()


def test_ties_that_a_mask_keeps_are_kept() -> None:
    begun = np.random.default_rng(0).permuted(np.tile(np.array([1, 1, 0, 0], np.uint8), (3, 1)), axis=1)
    begun = np.stack([begun[0], begun[0], 1 - begun[0], 1 - begun[0]])[None]
    mask, flags, _ = finish(np.ones((1, 4, 4)), np.ones((1, 4)), np.zeros((1, 4)), 2, 2, begun=begun)
    assert np.array_equal(mask, begun)
    assert not flags.any()


@pytest.mark.parametrize("kind", ["gaussian", "few", "wide"])
def test_the_same_blocks_are_proven_whatever_their_duals_are_for(kind: str) -> None:
    """A number of float32 can prove by luck what a longer one does not."""
    values = scores_of(kind, (200, 4, 8), np.random.default_rng(2))
    one, other = (finish(values, np.zeros((200, 4)), np.zeros((200, 8)), 4, 2, single=single) for single in (1, 2))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
    assert one[2] == pytest.approx(other[2], rel=1e-12)


def test_duals_are_of_float32_where_a_mask_is_best_by_its_last_bit() -> None:
    """Each block is a choice between two sums that differ by about one rounding error."""
    rng = np.random.default_rng(8)
    a, b, c = rng.uniform(1, 2, (3, 32, 48)).astype(np.float32)
    weights = np.stack([np.stack([a, b], -1), np.stack([c, np.abs(b + c - a)], -1)], 1).reshape(64, 96)
    solution = nmflow.solve(weights, 1, 2, duals=True)
    assert solution.certificate.proven
    assert unproven(weights, solution, absolute=True) == 0
    wide = [side != side.astype(np.float32) for side in (solution.row_duals, solution.col_duals)]
    blocks = wide[0].reshape(32, 2, 48).any(axis=1) | wide[1].reshape(32, 48, 2).any(axis=2)
    assert np.count_nonzero(blocks) < 0.01 * blocks.size


WIDE = ("gaussian", "few_values")
"""Of blocks whose rows take two words: their kernels take long to compile for each dtype."""
FEW_OPEN = [
    (family, pattern, fill)
    for pattern, fill in (("2:4", "exact"), ("4:8", "exact"), ("5:7", "at-most"), ("20:40", "exact"))
    for family in families.FAMILIES
    if (family not in families.HALVES or pattern == "2:4") and (pattern != "20:40" or family in WIDE)
]


@pytest.mark.parametrize(("family", "pattern", "fill"), FEW_OPEN)
def test_a_few_open_blocks_are_finished_where_they_are_listed(
    family: str, pattern: str, fill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are by themselves, which is how many of them are; and as the first ones of a process are."""
    rows, cols = (160, 160) if pattern == "20:40" else (56, 168)
    below = families.FAMILIES[family]((rows // 4, cols), 5)
    above = families.gaussian((rows - rows // 4, cols), 5).astype(below.dtype)
    weights = np.concatenate([above, below])
    asked = nmflow.Pattern.parse(pattern, fill=fill)
    nmflow.solve(weights, pattern=asked)  # compiles
    listed = nmflow.solve(weights, pattern=asked)
    monkeypatch.setattr(settled, "_paths", dict[int, int]())
    first = nmflow.solve(weights, pattern=asked)
    assert first.objective == listed.objective
    by_themselves(monkeypatch)
    apart = nmflow.solve(weights, pattern=asked)
    assert listed.certificate.proven
    for other in (first, apart):
        assert np.array_equal(listed.mask, other.mask)
        assert listed.objective == pytest.approx(other.objective, rel=1e-15)
        assert listed.stats.get("augmented") == other.stats.get("augmented")


def by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have paths sent through open blocks from Python alone."""
    monkeypatch.setattr(settled, "FEW_ENTRIES", 0)
    monkeypatch.setattr(settled, "_way", settled._way.__wrapped__)


@pytest.mark.parametrize("pattern", ["2:4", "8:16"])
@pytest.mark.parametrize("count", [1, 4, 5, 17, 64, 65, 70, 129])
def test_threads_share_paths(pattern: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 4 blocks, or of more where that would be more than 16 parts; each finds what it would alone."""
    side = nmflow.Pattern.parse(pattern).block_shape[0]
    weights = families.gaussian((16 * side, 32 * side), 6)
    hard = families.huge_among_tiny((16 * side, 32 * side), count)
    for block in np.random.default_rng(count).permutation(16 * 32)[:count]:
        i, j = side * (block // 32), side * (block % 32)
        weights[i : i + side, j : j + side] = hard[i : i + side, j : j + side]
    nmflow.solve(weights, pattern=pattern)  # compiles
    solved = [nmflow.solve(weights, pattern=pattern, threads=threads) for threads in (1, 2, 3)]
    monkeypatch.setattr(settled, "_paths", dict[int, int]())
    solved.append(nmflow.solve(weights, pattern=pattern, threads=2))
    by_themselves(monkeypatch)
    apart = nmflow.solve(weights, pattern=pattern)
    assert apart.certificate.proven
    assert apart.stats.get("augmented", 0) >= count // 4  # some parts, where there are many
    for solution in solved:
        assert np.array_equal(solution.mask, apart.mask)
        assert solution.objective == solved[0].objective == pytest.approx(apart.objective, rel=1e-15)
        assert solution.stats.get("augmented") == apart.stats.get("augmented")
        assert solution.certificate.proven


def test_paths_are_sent_where_blocks_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above tests what it says."""
    weights = np.concatenate([families.gaussian((56, 168), 5), families.huge_among_tiny((16, 168), 5)])
    nmflow.solve(weights, 4, 8)
    monkeypatch.setattr(dual, "finish", None)
    assert nmflow.solve(weights, 4, 8).stats["augmented"] > 9


@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_sums_are_the_same_before_and_after_paths_are_compiled(monkeypatch: pytest.MonkeyPatch, fill: Any) -> None:
    """The first call begins the kernel anew for its paths; what these leave goes on from there as it does later."""
    left = []
    between = between_kernel()

    def counted(values: Array, *others: Any) -> Any:
        left.append(len(values))
        return between(values, *others)

    monkeypatch.setattr("nmflow.kernels.between.between_kernel", lambda: counted)
    for seed in range(60):
        normal = np.random.default_rng(seed).standard_normal((64, 64))
        weights = np.sign(normal) * np.exp(5 * normal)
        monkeypatch.setattr(settled, "_paths", {})
        first, second = (nmflow.solve(weights, 2, 4, fill=fill) for _ in range(2))
        assert (first.objective, first.bound) == (second.objective, second.bound)
        assert np.array_equal(first.mask, second.mask)
    assert len(left) > 9


@pytest.mark.parametrize(
    ("open_", "message"),
    [
        (Duals(), "open blocks must have duals of their own"),
        (Duals(None, None, np.zeros(1, np.int64), np.zeros((1, 4), np.float32), np.zeros((1, 4))), "must be float64"),
        (Duals(None, None, np.zeros(1, np.int64), np.zeros((1, 4)), np.zeros((1, 8))[:, ::2]), "side by side"),
    ],
)
def test_duals_that_cannot_be_written_where_they_lie(open_: Duals, message: str) -> None:
    chunk: Any = SimpleNamespace(pattern=Pattern(2, 4))
    with pytest.raises(AssertionError, match=message):
        paths.finish(chunk, open_)


@pytest.mark.parametrize("fill", ["exact", "at-most"])
def test_blocks_are_finished_a_batch_at_a_time(fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a later batch that need duals between their scores find them: no more blocks take Python's integers."""
    for family in ("huge_among_tiny_float64", "no_float_duals"):
        weights = families.FAMILIES[family]((64, 64), 1)
        whole = nmflow.solve(weights, 2, 4, fill=fill)
        with monkeypatch.context() as patch:
            patch.setattr(paths, "BATCH_ENTRIES", 7 * 16)
            parts = nmflow.solve(weights, 2, 4, fill=fill)
        assert parts.certificate.proven
        assert np.array_equal(parts.mask, whole.mask)
        assert parts.stats.get("integers", 0) == whole.stats.get("integers", 0)


def test_duals_of_whole_numbers_that_float64_cannot_hold_are_found_in_pythons() -> None:
    """Numbers of 53 bits whose duals take more: 64-bit integers find them, and float64 rounds them on their way out."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        weights = 2**60 + rng.integers(0, 2**53 - 1, (32, 64))
        least = rng.random(weights.shape) < 0.5
        weights = np.where(least, 2**60, 2**60 + 2**53 - 1 - rng.integers(0, 3, weights.shape))
        for m in (4, 8):
            solution = nmflow.solve(weights, m // 2, m)
            assert solution.certificate.proven


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (8, 3), (16, 16), (5, 40), (64, 64)])
def test_neighbours_are_added_up_together(rows: int, cols: int) -> None:
    """Runs of blocks, broken by gaps and by the ends of a row of them."""
    rng = np.random.default_rng(rows)
    tall, wide = 5, 37
    scores = rng.integers(-8, 9, (tall * rows, wide * cols)).astype(np.float32)
    mask = rng.random(scores.shape) < 0.5
    kept = np.where(mask, np.abs(scores), 0.0).reshape(tall, rows, wide, cols).sum(axis=(1, 3)).ravel()
    for share in (0.0, 0.1, 0.5, 0.95, 1.0):
        blocks = np.flatnonzero(rng.random(tall * wide) < share)
        sums = np.zeros(adding.WIDE)
        adding.kept_kernel("float32", True)(
            scores.ctypes.data, scores.strides[0], mask.ctypes.data, mask.strides[0], rows, cols, wide,
            blocks.ctypes.data, len(blocks), sums.ctypes.data,
        )  # fmt: skip
        assert sums.sum() == kept[blocks].sum()  # whole numbers: in any order
