"""The benchmark: its rows are complete, it resumes, it says what is missing. No time is asserted."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import nmflow
from benchmarks import families, headline, library_peers, peers, plots, report, rounds, store, table
from benchmarks import run as bench
from benchmarks.page import fill
from benchmarks.targets import __main__ as targets
from benchmarks.targets import growth, other_programs, speed, turns
from nmflow.bench import machine
from nmflow.bench.contest import Contestant, TableSolver
from nmflow.bench.quick import parse_shape
from nmflow.bench.rows import Row, measure
from nmflow.bench.stream import Stream
from nmflow.bench.timing import in_turn
from nmflow.cli import app
from nmflow.errors import InputValueError, MissingLibraryError

SIZE = (32, 32)
NUMBERS = (
    "objective",
    "gap",
    "loss",
    "proven",
    "blocks_measured",
    "ns_per_entry",
    "times_stream",
    "repeats",
    "seconds",
)


@pytest.fixture
def weights() -> np.ndarray[Any, Any]:
    return families.make(families.GAUSSIAN, SIZE)


def row_of(contestant: Contestant, weights: np.ndarray[Any, Any], pattern: str = "2:4") -> Row:
    with Stream(weights, 2) as stream:
        return measure(contestant, weights, nmflow.Pattern.parse(pattern), stream, repeats=2, seconds=0.01)


def small_cases(*solvers: str) -> list[bench.Case]:
    return [
        bench.Case("solvers", families.GAUSSIAN, SIZE, "float32", pattern, TableSolver(solver, 2))
        for pattern in ("2:4", "1:2")
        for solver in solvers
    ]


def test_stream_writes_the_threshold_mask(weights: np.ndarray[Any, Any]) -> None:
    with Stream(weights, 3) as stream:
        stream()
        assert np.array_equal(stream.mask, weights > 0.5)
    with Stream(weights.astype(np.float64), 2) as stream:  # no float32 to read: a stand-in of its shape
        assert stream.mask.shape == SIZE


def test_stream_wakes_no_thread_for_less_than_a_part() -> None:
    for shape, threads in (((512, 512), 1), ((2, 1 << 20), 2), ((1, 1 << 21), 1), ((2048, 2048), 3)):
        with Stream(np.ones(shape, np.float32), 3) as stream:
            assert stream.threads == threads
            stream.mask[:] = 0
            stream()
            assert stream.mask.all()


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert "".join(order) == "ababab"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}
    assert len(in_turn({"a": list}, 9, seconds=0.0, at_least=2)["a"]) == 2


@pytest.mark.parametrize("family", families.FAMILIES)
def test_families_are_seeded_and_finite(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if family == families.REAL:
        from safetensors.numpy import save_file

        rng = np.random.default_rng(0)
        layers = {f"encoder.layer.{k}.w": rng.standard_normal((768, 384), dtype=np.float32) for k in range(2)}
        save_file(layers, tmp_path / "model.safetensors")
        monkeypatch.setenv("NMFLOW_BENCH_MODEL", str(tmp_path / "model.safetensors"))
    made = families.make(family, (500, 48))
    assert made.shape == (500, 48)
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    assert np.isfinite(made).all()
    assert np.array_equal(made, families.make(family, (500, 48)))


def test_instance_that_does_not_fit_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "available_memory", lambda: 1 << 20)
    with pytest.raises(InputValueError, match=r"32x32 must fit memory: it needs 0\.3 GB, 0\.0 GB are free"):
        families.make(families.GAUSSIAN, SIZE)


@pytest.mark.parametrize("solver", nmflow.solvers.names())
def test_rows_of_solvers_are_complete(solver: str, weights: np.ndarray[Any, Any]) -> None:
    row = row_of(TableSolver(solver, 2), weights)
    assert row["status"] == "ok", row["note"]
    assert {name for name in NUMBERS if row[name] is None} <= ({"gap"} if row["infeasible"] else set())
    assert (row["solver"], row["pattern"], row["rows"], row["cols"], row["dtype"]) == (solver, "2:4", *SIZE, "float32")
    assert row["blocks"] == 64
    assert row["proven"] <= row["blocks_measured"] <= 64
    assert ("measured on" in row["note"]) == (row["blocks_measured"] < 64)
    assert ("breaks the pattern" in row["note"]) == (row["infeasible"] > 0)
    json.dumps(row, allow_nan=False)


# POT has strings that Python warns of when it compiles them, which is once
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:6"])
@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_are_right_or_say_why_not(peer: type[peers.Peer], pattern: str, weights: np.ndarray[Any, Any]) -> None:
    contestant = peer(2)
    row = row_of(contestant, weights[:30, :30] if pattern == "3:6" else weights, pattern)
    n = int(pattern[0])
    if peer is peers.Assignment and n != 1:
        assert row["status"] in ("not possible", "not installed")
        assert "keeps one of a line" in row["note"]
    elif peer is peers.BruteForce and pattern != "2:4":
        assert row["status"] == "not possible"
        assert f"does 2:4, not {pattern}" in row["note"]
    elif row["status"] == "not installed":
        assert f"pip install {contestant.package}" in row["note"]
    elif peer is peers.Greedy:
        assert row["status"] == "ok", row["note"]
        assert 0 < row["loss"] < 0.5
        assert ("breaks the pattern" in row["note"]) == bool(row["infeasible"])
    else:
        assert row["status"] == "ok", row["note"]
        assert row["infeasible"] == 0
        assert row["loss"] < 1e-6


def test_a_peer_without_an_optimum_says_so(monkeypatch: pytest.MonkeyPatch, weights: np.ndarray[Any, Any]) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="HiGHS comes with SciPy")
    lost = optimize.OptimizeResult(success=False, message="lost")
    monkeypatch.setattr(optimize, "linprog", lambda *args, **options: lost)
    row = row_of(library_peers.Highs(), weights)
    assert (row["status"], row["note"]) == ("not possible", "HiGHS did not end with an optimum: lost")


def test_peer_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch, weights: np.ndarray[Any, Any]) -> None:
    monkeypatch.setattr("benchmarks.peer.find_spec", lambda name: None)
    row = row_of(peers.OptimalTransport(), weights)
    assert (row["status"], row["seconds"]) == ("not installed", None)
    assert row["note"] == "POT ot.emd needs ot, which is not installed; pip install POT"
    with pytest.raises(MissingLibraryError):
        peers.OrTools().prepare(nmflow.Pattern(2, 4))


def test_one_that_fails_costs_no_other_row(weights: np.ndarray[Any, Any]) -> None:
    class Broken(TableSolver):
        def prepare(self, pattern: nmflow.Pattern) -> Any:
            return lambda part: 1 / 0

    row = row_of(Broken("dual", 1), weights)
    assert (row["status"], row["note"]) == ("failed", "ZeroDivisionError: division by zero")


def test_every_solver_and_peer_is_in_the_run() -> None:
    for quick in (True, False):
        todo = bench.cases(quick, 2)
        assert len({case.key for case in todo}) == len(todo)
        names = {case.contestant.name for case in todo}
        assert names == {*nmflow.solvers.names(), *(peer.name for peer in peers.PEERS)}
        assert {case.family for case in todo} == set(families.FAMILIES)
    assert {case.pattern for case in todo if case.group == "solvers"} == set(bench.PATTERNS)
    for pattern, family in itertools.product(bench.HALVES, families.FAMILIES):
        here = [case for case in todo if (case.pattern, case.family, case.shape) == (pattern, family, (2048, 2048))]
        assert {case.contestant.name for case in here} == names
    for pattern, side in itertools.product(bench.HALVES, (512, 4096, 8192)):
        wanted = pattern, families.GAUSSIAN, "float32", side
        here = [case for case in todo if (case.pattern, case.family, case.dtype, case.shape[0]) == wanted]
        assert {case.contestant.name for case in here} == names


def test_run_resumes_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench.json"
    monkeypatch.setattr(bench, "cases", lambda quick, threads: small_cases("dual", "enumerate"))
    real, seen = bench.measure, []

    def interrupted(contestant: Any, *args: Any, **options: Any) -> Any:
        seen.append(contestant.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(contestant, *args, **options)

    monkeypatch.setattr(bench, "measure", interrupted)
    arguments = ["--out", str(out), "--repeats", "2", "--seconds", "0.01"]
    assert bench.main(arguments) == store.INTERRUPTED
    partial = store.load(out)
    assert (len(partial["rows"]), partial["complete"]) == (2, False)
    assert bench.main(arguments) == 0
    whole = store.load(out)
    assert (len(whole["rows"]), whole["complete"]) == (4, True)
    assert bench.main([*arguments, "--only", "enumerate"]) == 0
    assert store.load(out) == whole | {"finished": store.load(out)["finished"]}
    assert whole["rows"][:2] == partial["rows"]
    assert len(seen) == 5  # the two that were finished are not measured again
    kept = store.load(out)
    assert bench.main([*arguments, "--fresh", "--only", "enumerate"]) == 0
    assert store.load(tmp_path / "bench.previous.json") == kept
    part = store.load(out)
    assert (len(part["rows"]), part["complete"]) == (2, False)
    assert bench.main([*arguments, "--repeats", "3"]) == 0  # those of two turns are not among them
    assert store.load(tmp_path / "bench.previous2.json") == part
    assert {row["repeats"] for row in store.load(out)["rows"]} == {3}


def test_rows_without_a_result_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench.json"
    monkeypatch.setattr(bench, "cases", lambda quick, threads: small_cases("dual", "enumerate"))
    arguments = ["--out", str(out), "--repeats", "2", "--seconds", "0.01"]
    real = bench.measure
    with monkeypatch.context() as patch:
        patch.setattr(families, "available_memory", lambda: 1 << 20)
        assert bench.main(arguments) == 0
    assert {row["status"] for row in store.load(out)["rows"]} == {"too large"}
    monkeypatch.setattr(bench, "measure", lambda *args, **options: real(*args, **options) | {"status": "failed"})
    assert bench.main(arguments) == 0
    monkeypatch.setattr(bench, "measure", real)
    assert bench.main(arguments) == 0
    assert {row["status"] for row in store.load(out)["rows"]} == {"ok"}
    assert not list(tmp_path.glob("*previous*"))


def test_a_library_that_comes_later_costs_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench.json"
    held = store.versions()
    for found, resumed in (({"POT": None}, 0), ({}, 1), ({"POT": None}, 2), ({"POT": "9.9"}, 0)):
        monkeypatch.setattr(store, "versions", lambda found=found: held | {"POT": "1.0"} | found)
        made = store.Store(out, {})
        assert made.resumed == resumed
        made.add(str(resumed), {"x": 1})
    assert store.load(tmp_path / "bench.previous.json")["versions"]["POT"] == "1.0"


@pytest.mark.parametrize("option", ["--threads=-3", "--repeats=0", "--seconds=0", "--seconds=nan", "--threads=two"])
def test_options_that_are_no_numbers(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main([option, "--out", str(tmp_path / "x.json")])
    assert "error: argument" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("option", ["--side=0", "--side=100", "--side=-256", "--threads=0", "--repeats=0"])
def test_targets_whose_options_are_no_sizes(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        targets.main([option, "--out", str(tmp_path / "x.json")])
    assert "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("formats", ["--size", "100"], "--size must be a multiple of 128"),
        ("formats", ["--rounds", "0"], "must be a whole number of at least 1"),
        ("scale", ["--memory", "nowhere"], "--memory must be a folder that exists, not nowhere"),
        ("scale", ["--rounds", "0"], "must be a whole number of at least 1"),
        ("stream_checkpoint", ["--repeats", "0"], "must be a whole number of at least 1"),
    ],
)
def test_commands_whose_options_measure_nothing(
    name: str, arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{name}").main()
    assert text in capsys.readouterr().err


def test_an_interrupt_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(*args: object, **options: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "measure", interrupted)
    page = tmp_path / "page.md"
    assert rounds.main(["--out", str(tmp_path / "x.json"), "--page", str(page)]) == store.INTERRUPTED
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_processor_is_named_with_its_generation(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD  EPYC\n\ncpu family\t: 0\n", encoding="utf-8")
    assert machine._processor(told) == "AMD EPYC (family 25, model 17)"
    told.write_text("model name\t: ARMv8\n", encoding="utf-8")
    assert machine._processor(told) == "ARMv8"
    assert machine._processor(tmp_path / "none")


def test_rows_of_other_code_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench.json"
    first = store.Store(out, {})
    first.add("a", {"x": 1})
    assert store.Store(out, {}).resumed == 1
    monkeypatch.setattr(store, "source_digest", lambda: "other")
    second = store.Store(out, {})
    assert second.resumed == 0
    assert second.moved is not None
    assert store.load(second.moved)["rows"] == [{"key": "a", "x": 1}]


def test_results_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    out.write_text("{", encoding="utf-8")
    assert bench.main(["--out", str(out)]) == 2
    assert "must be a file of results" in capsys.readouterr().err
    out.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="schema 1"):
        store.load(out)
    with pytest.raises(FileNotFoundError, match="must exist"):
        store.load(tmp_path / "none.json")
    assert bench.main(["--out", str(tmp_path)]) == 2
    assert "must be a file of results, and is a folder" in capsys.readouterr().err


def test_size_that_does_not_fit_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "available_memory", lambda: 1 << 20)
    made = store.Store(tmp_path / "bench.json", {})
    bench.run(small_cases("dual"), made, threads=2)
    assert {row["status"] for row in made.rows.values()} == {"too large"}
    assert all("must fit memory" in row["note"] for row in made.rows.values())


def test_only_must_name_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "nothing", "--out", str(tmp_path / "x.json")]) == 2
    assert "--only must name" in capsys.readouterr().err
    assert targets.main(["--only", "nothing", "--out", str(tmp_path / "x.json")]) == 2
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "group", ["stream", "linear", "forms", "greedy", "OR-Tools", "threads", "warm start", "memory"]
)
def test_targets_are_measured(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = table.HALVES[:3]  # others take longer to compile, by the same way
    for module in (speed, growth, other_programs):
        monkeypatch.setattr(module, "HALVES", few)
    monkeypatch.setattr(speed, "STREAM", {pattern: speed.STREAM[pattern] for pattern in few})
    out = tmp_path / "targets.json"
    arguments = ["--only", group, "--side", "256", "--repeats", "1", "--passes", "1", "--out", str(out)]
    assert targets.main(arguments) == 0
    rows = [row for row in store.load(out)["rows"] if row["target"] is not None]
    assert rows
    for row in rows:
        assert row["group"] == group
        if row["met"] is None:
            assert row["note"].startswith("not available: ")
        else:
            assert row["met"] == turns.COMPARE[row["sign"]](round(row["measured"], 2), row["bound"])


def test_the_median_of_the_passes_counts_and_an_interrupted_pass_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([5.0, 9.0, 1.0, 2.0, None, 7.0])

    def group() -> Any:
        found = next(figures)
        times = {"solve": [1.0]}
        absent = turns.unavailable("it is fast", "<=", 3, "no such thing")
        yield turns.row("it is fast", "<=", 3, found, times, 10) if found is not None else absent
        if found == 9.0:
            raise KeyboardInterrupt

    monkeypatch.setattr(targets, "GROUPS", {"some": lambda bench: group(), "memory": lambda bench: iter(())})
    out = tmp_path / "targets.json"
    arguments = ["--out", str(out), "--side", "256"]

    def measured() -> tuple[Any, list[Any]]:
        (row,) = (row for row in store.load(out)["rows"] if row["target"] is not None)
        return (row["measured"], row["met"]), [one["measured"] for one in row["passes"]]

    assert targets.main([*arguments, "--passes", "3"]) == store.INTERRUPTED
    assert measured() == ((9.0, False), [5.0, 9.0])  # the second pass had not ended; of two the worse counts
    assert targets.main([*arguments, "--passes", "3"]) == 0
    assert measured() == ((2.0, True), [5.0, 1.0, 2.0])
    names = [row["key"] for row in store.load(out)["rows"]]
    assert names[1:] == ["some, pass 1: done", "memory, pass 1: done", "some, pass 2: done", "some, pass 3: done"]
    assert targets.main([*arguments, "--passes", "2"]) == 0
    assert measured() == ((7.0, False), [None, 7.0])
    monkeypatch.setattr(targets, "CODE", targets.CODE[1:])  # those of other peers, say, are not mixed with these
    figures = iter([4.0, 1.0])
    assert targets.main([*arguments, "--passes", "2"]) == 0
    assert measured() == ((4.0, False), [4.0, 1.0])


def test_rounds_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds, "PATTERNS", ("4:8",))
    out, page = tmp_path / "rounds.json", tmp_path / "page.md"
    page.write_text("<!-- begin: rounds -->\n<!-- end: rounds -->\n", encoding="utf-8")
    assert rounds.main(["--side", "1024", "--repeats", "1", "--out", str(out), "--page", str(page)]) == 0
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    nothing, last, own = (row["open"][start] for start in rounds.STARTS)
    assert nothing[0] > nothing[-1] > 0.0
    assert nothing[0] > last[0] > own[0]
    assert np.isfinite([row["pass"], row["round"]]).all()
    assert list(row["dtypes"]) == ["float32", "float16", "bfloat16"]
    assert row["dtypes"]["float32"]["open"] == nothing[-1]
    for left in row["dtypes"].values():
        assert 0.0 < left["open"] < 0.1
        assert 0.0 <= left["paths"] < left["open"]
    assert "| 4:8 |" in page.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        rounds.main(["--side", "1000", "--out", str(out), "--page", str(page)])
    assert "--side must be a multiple of 1024, not 1000" in capsys.readouterr().err


def test_a_process_that_ends_early_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "ALONE", "import sys; sys.exit(3)")
    ended = pytest.raises(RuntimeError, match="a process that solves beside another has ended, with status 3")
    with ended, growth._two_processes("2:4", 64):
        pass


def results(folder: Path) -> tuple[Path, Path]:
    made = store.Store(folder / "bench.json", {"quick": False})
    bench.run(small_cases("dual", "enumerate"), made, threads=2, repeats=2, seconds=0.01)
    made.finish()
    held = store.Store(folder / "targets.json", {"threads": 2, "repeats": 7, "passes": 3})
    held.add("a", turns.row("a is fast", "<=", 3, 2.5, {"solve": [1.0]}, 10) | {"group": "stream"})
    held.add("b", turns.unavailable("b is faster", ">=", 2, "there is no b") | {"group": "warm start"})
    held.finish()
    return folder / "bench.json", folder / "targets.json"


def test_report_is_made_from_the_results_and_keeps_the_prose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(headline, "USUAL", SIZE[0])
    bench_file, targets_file = results(tmp_path)
    page, readme = tmp_path / "performance.md", tmp_path / "README.md"
    root = Path(__file__).parent.parent
    template = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    readme.write_text((root / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    page.write_text(template.replace("# Performance", "# Performance\n\nBy hand.", 1), encoding="utf-8")
    arguments = ["--bench", str(bench_file), "--targets", str(targets_file), "--page", str(page)]
    arguments += ["--readme", str(readme)]
    assert report.main(arguments) == 0
    assert re.search(
        r"\| \*\*`dual`: exact, every block proven\*\* \| [\d.]+ ms \|", readme.read_text(encoding="utf-8")
    )
    text = page.read_text(encoding="utf-8")
    assert "By hand." in text
    assert "| stream | a is fast | ≤ 3 | 2.5 | yes |" in text
    assert "not available: there is no b" in text
    assert "1 of 2 met, 0 not met, 1 not available" in text
    assert re.search(r"\| 2:4 \| `enumerate` \| 1 \| [\d,.]+ \| [\d,.]+ \| 0 \| all \|", text)
    assert report.main(arguments) == 0
    assert page.read_text(encoding="utf-8") == text
    shown, held = readme.read_text(encoding="utf-8"), store.load(bench_file)
    for change in ({"complete": False}, {"options": {"quick": True}}):
        bench_file.write_text(json.dumps(held | change | {"rows": held["rows"][:1]}), encoding="utf-8")
        capsys.readouterr()
        assert report.main(arguments) == 0
        assert f"{readme} is left as it is: it shows a complete run" in capsys.readouterr().err
        assert readme.read_text(encoding="utf-8") == shown


def test_the_table_of_targets_says_what_it_is_of(tmp_path: Path) -> None:
    whole, held = (store.load(path) for path in results(tmp_path))

    def said(**change: Any) -> str:
        return report.tables(whole, held | change)["targets"].splitlines()[0]

    assert "1 not available. 2 threads, 7 turns, 3 passes. Measured 2" in said()
    assert not re.search("complete|cores|source", said())
    assert said(complete=False).endswith(" The run is not complete.")
    assert "another processor" in said(machine=held["machine"] | {"cpu": "another processor"})
    assert said(source="of old").endswith(" The source of nmflow is not that of the tables below.")
    assert held["machine"]["cpu"] in report.tables(None, held)["targets"]


def test_tables_that_unfold_say_what_is_lost_and_what_is_not_possible() -> None:
    def row(solver: str, family: str, pattern: str = "2:4", **more: Any) -> dict[str, Any]:
        n, m = map(int, pattern.split(":"))
        usual = {"status": "ok", "note": "", "peer": False, "loss": 0.0, "proven": 8, "infeasible": 0}
        return {
            "solver": solver, "family": family, "pattern": pattern, "n": n, "m": m, "blocks_measured": 8,
            "ns_per_entry": 1.5, **usual, **more,
        }  # fmt: skip

    names = ["flat", "steep"]
    rows = [
        row("dual", "flat", "4:8"),
        row("dual", "steep"),
        row("dual", "flat"),
        row("greedy", "steep", loss=0.0125, proven=2),
        row("greedy", "flat", proven=4, infeasible=3),
        row("Emd", "steep", peer=True, loss=0.5),
        row("Emd", "flat", peer=True, status="not possible", note="it cannot"),
    ]
    found = table.side_by_side(rows, "family", lambda row: row["family"], lambda row: names.index(row["family"]))
    assert [text for text in found if text] == [
        '<details markdown="1"><summary>All solvers and peers at 2:4, ns per entry</summary>',
        "| solver, by family | flat | steep |",
        "| --- | --- | --- |",
        "| `dual` | 1.5 | 1.5 |",
        "| `greedy` | 1.5 (0%, 50.0%)† | 1.5 (1.25%, 25.0%) |",
        "| Emd (peer) | not possible | 1.5 (50%) |",
        "- Emd (peer): it cannot",
        "</details>",
        '<details markdown="1"><summary>All solvers and peers at 4:8, ns per entry</summary>',
        "| solver, by family | flat | steep |",
        "| --- | --- | --- |",
        "| `dual` | 1.5 |  |",
        "| `greedy` |  |  |",
        "| Emd (peer) |  |  |",
        "</details>",
    ]
    assert table.proven_share({"proven": 9999, "blocks_measured": 10000}) == "99.9%"
    assert table.side_by_side(rows[:3], "family", lambda row: row["family"], lambda row: 0) == []


def test_pages_hold_what_the_results_say() -> None:
    root = Path(__file__).parent.parent
    found = {name: store.load(root / "benchmarks" / "results" / f"{name}.json") for name in ("bench", "targets")}
    for page, sections in report.pages(found["bench"], found["targets"]).items():
        text = (root / page).read_text(encoding="utf-8")
        assert fill(text, sections) == text


def test_the_readme_shows_the_fastest_peer_that_loses_nothing() -> None:
    rows = store.load(Path(__file__).parent.parent / "benchmarks" / "results" / "bench.json")["rows"]
    for pattern in table.HALVES:
        here = [row for row in rows if (row["group"], row["pattern"], row["peer"]) == ("solvers", pattern, True)]
        exact = [row for row in here if row["status"] == "ok" and row["loss"] < 1e-9]
        assert min(exact, key=lambda row: row["ns_per_entry"])["solver"] in headline.SHOWN


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = store.load(results(tmp_path)[0])
    drawn = plots.plots(found, tmp_path / "figures")
    assert [path.name for path in drawn] == ["time-m.svg", "time-size.svg", "gap-time.svg"]
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in plots.plots(found, tmp_path / "figures")] == before


def test_the_plot_against_m_shows_the_rows_of_its_table() -> None:
    """Those of 4096x4096 took the place of some; and ten colours are fewer than solvers."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    names = ["dual", *(f"peer {k}" for k in range(10))]
    rows = [
        {"group": group, "solver": name, "n": 2, "m": 4, "rows": rows, "ns_per_entry": t, "stream_ns_per_entry": t}
        for group, rows, t, solvers in (("m", 3840, 1.0, names[:1]), ("solvers", 4096, 9.0, names))
        for name in solvers
    ]
    figure, axes = pyplot.subplots()
    assert plots._plot_m(axes, rows)
    found = {text.get_label(): text for text in axes.get_lines()}
    assert [list(found[name].get_ydata()) for name in ("dual, 3840²", "peer 0, 4096²", "stream")] == [[1], [9], [1]]
    looks = {(text.get_color(), text.get_fillstyle()) for text in found.values()}
    assert len(looks) == len(names) + 1
    pyplot.close(figure)


def test_report_needs_results_and_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("# no markers", encoding="utf-8")
    arguments = ["--bench", str(tmp_path / "b"), "--targets", str(tmp_path / "t"), "--page", str(page)]
    assert report.main(arguments) == 2
    assert "must exist" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must have the markers"):
        fill("", {"targets": ""})


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["bench", *(str(arg) for arg in args)])


def test_command_measures_a_matrix_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "w.npy"
    np.save(path, np.random.default_rng(0).standard_normal((64, 48)))
    found = invoke(path, "--pattern", "2:4", "--pattern", "1:3", "--json", "--seconds", "0.01")
    assert found.exit_code == 0, found.stderr
    made = json.loads(found.stdout)
    assert made["complete"]
    assert [row["solver"] for row in made["rows"]] == 2 * list(nmflow.solvers.names())
    assert {row["dtype"] for row in made["rows"]} == {"float64"}
    found = invoke("--shape", "64x64", "--pattern", "4:8", "--solver", "dual", "--solver", "enumerate")
    assert found.exit_code == 0, found.stderr
    assert "gaussian 64x64 float32 at 4:8" in found.stdout
    assert "not possible: pattern must have at most" in " ".join(found.stdout.replace("│", " ").split())


def test_command_measures_a_weight_of_a_checkpoint(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = {"a.weight": (32, 32), "conv.weight": (64, 16, 3, 3), "b.weight": (16, 16)}
    save_file(
        {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
        tmp_path / "m.safetensors",
    )
    found = invoke(tmp_path / "m.safetensors", "--pattern", "2:4", "--solver", "dual", "--json")
    assert found.exit_code == 0, found.stderr
    (row,) = json.loads(found.stdout)["rows"]
    assert (row["family"], row["rows"], row["cols"]) == ("conv.weight", 64, 144)
    found = invoke(tmp_path / "m.safetensors", "--pattern", "2:4", "--solver", "dual", "--tensor", "[ab].*", "--json")
    assert [row["family"] for row in json.loads(found.stdout)["rows"]] == ["a.weight", "b.weight"]
    found = invoke(tmp_path / "m.safetensors", "--pattern", "2:4", "--tensor", "none")
    assert found.exit_code == 2
    assert "tensor must match a weight that 2:4 can take, not none" in found.stderr


def test_command_prints_json_of_sums_beyond_float64(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.full((8, 8), 1.7e308))
    found = invoke(tmp_path / "w.npy", "--pattern", "2:4", "--solver", "dual", "--json")
    assert found.exit_code == 0, found.stderr
    (row,) = json.loads(found.stdout)["rows"]
    assert (row["status"], row["objective"], row["gap"]) == ("ok", None, 0.0)


def test_command_prints_finished_rows_when_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    from nmflow.bench import quick

    real, seen = quick.measure, []

    def interrupted(contestant: Any, *args: Any, **options: Any) -> Any:
        seen.append(contestant.name)
        if len(seen) % 2 == 0:
            raise KeyboardInterrupt
        return real(contestant, *args, **options)

    monkeypatch.setattr(quick, "measure", interrupted)
    found = invoke("--shape", "32x32", "--pattern", "2:4", "--json")
    assert found.exit_code == 130
    made = json.loads(found.stdout)
    assert [row["solver"] for row in made["rows"]] == ["dual"]
    assert not made["complete"]
    found = invoke("--shape", "32x32", "--pattern", "2:4")
    assert found.exit_code == 130
    assert "dual" in found.stdout
    assert "nmflow: interrupted" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--shape", "12"], "shape must be ROWSxCOLS"),
        (["--shape", "0x4"], "shape must be ROWSxCOLS"),
        (["--shape", "100000000x100000000"], "shape must fit memory"),
        (["none.npy"], "must exist"),
        (["none.npy", "--shape", "8x8"], "--shape must be left out for none.npy, which has its own"),
        (["--tensor", "*"], "--tensor must be left out where there is no checkpoint to take it from"),
        (["--pattern", "9:8"], "n must be between 1 and m=8"),
        (["--shape", "8x8", "--solver", "dual", "--solver", "x"], "solver must be one of dual"),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], text: str) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert text in found.stderr
    assert found.stderr.count("\n") == 1


def test_files_that_are_no_matrix(tmp_path: Path) -> None:
    path = tmp_path / "w.npy"
    for content, text in (
        (np.ones(3), "must hold a matrix"),
        (np.array([{}], object), "NumPy refuses"),
        (np.ones((4, 4), ml_dtypes.bfloat16), "not bare bytes (|V2), as bfloat16 is saved; save it as float32"),
        (np.zeros((4, 4), [("a", "f4")]), "must be float16, bfloat16, float32, float64 or an integer"),
        (np.array([[1.0, np.inf, 3.0, np.nan]] * 4), "w.npy must be finite, not NaN or infinite at 8 of 16 entries"),
    ):
        np.save(path, content, allow_pickle=True)
        found = invoke(path)
        assert found.exit_code == 2
        assert text in found.stderr
    assert parse_shape(" 3 x 4 ") == (3, 4)
