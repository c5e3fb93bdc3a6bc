"""Pruning on a Dask cluster: a real scheduler, real workers, and what happens when one is killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors_files import leftovers, read, write
from typer.testing import CliRunner

from nmflow.checkpoint import cluster, prune_checkpoint
from nmflow.cli import app
from nmflow.errors import ClusterError, MissingLibraryError, NonFiniteError

pytest.importorskip("distributed", reason='dask.distributed is not installed: pip install "nmflow[dask]"')


class Cluster:
    """A scheduler and its workers, each a process of its own in another folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, {**os.environ, **environment}
        self._file = folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self._file)
        self.address: str = self._wait(lambda: json.loads(self._file.read_text())["address"])

    def add_worker(self) -> None:
        options = ("--nthreads", "1", "--no-nanny", "--local-directory", self._folder)
        self.workers.append(self._start("worker", self.address, *options))

    def _start(self, what: str, *options: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *map(str, options)]
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self._folder, env=self._environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _wait(self, look: Callable[[], Any]) -> Any:
        for _ in range(600):
            assert self._processes[0].poll() is None, (self._folder / "log").read_text()
            try:
                return look()
            except (OSError, ValueError):
                time.sleep(0.1)
        raise TimeoutError((self._folder / "log").read_text())

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def started(folder: Path, workers: int, **environment: str) -> Iterator[Cluster]:
    folder.mkdir()
    made = Cluster(folder, environment)
    try:
        for _ in range(workers):
            made.add_worker()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers that live."""
    with started(tmp_path_factory.mktemp("cluster") / "two", 2) as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of thirty weights each, and what stands beside them."""
    folder = tmp_path_factory.mktemp("source") / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    weight_map = {}
    for shard in ("a.safetensors", "b.safetensors"):
        values = {f"{shard[0]}.{k}.weight": rng.standard_normal((256, 512)).astype("f4") for k in range(30)}
        values[f"{shard[0]}.bias"] = np.ones(33, "f2")  # the next tensor begins in the middle of a page
        write(folder / shard, values)
        weight_map |= dict.fromkeys(values, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def local(source: Path) -> Path:
    dst = source.parent / "local"
    prune_checkpoint(source, dst, "4:8")
    return dst


def assert_same(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in set(names) - {"nmflow-report.json"}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class Watched:
    """An executor that weighs what goes through it."""

    def __init__(self, executor: Any) -> None:
        self._executor, self.futures, self.heaviest = executor, [], 0

    def submit(self, function: Any, /, *args: Any) -> Any:
        self.heaviest = max(self.heaviest, len(pickle.dumps(args)))
        self.futures.append(self._executor.submit(function, *args))
        return self.futures[-1]


def test_a_worker_is_killed_half_way(
    tmp_path: Path, source: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere: relative paths must not be taken as theirs
    seen = []
    with started(tmp_path / "cluster", 2) as made, cluster.dask_executor(made.address) as executor:
        while len(executor._executor._client.scheduler_info()["workers"]) < 2:
            time.sleep(0.05)
        watched = Watched(executor)

        def kill_at_the_tenth(name: str, done: int, total: int) -> None:
            seen.append(name)
            if len(seen) == 10:
                made.workers[1].send_signal(signal.SIGKILL)
                made.workers[1].wait()

        prune_checkpoint(os.path.relpath(source), "dst", "4:8", executor=watched, threads=1, progress=kill_at_the_tenth)
        assert made.workers[1].returncode == -signal.SIGKILL
        assert len(watched.futures) == 62
        results = [future.result() for future in watched.futures]
        # What travels is a description and numbers; a weight has 512 KiB.
        assert watched.heaviest < 8192
        assert max(len(pickle.dumps(result)) for result in results) < 8192
    assert len(seen) == 63  # each tensor, and the end
    assert_same(tmp_path / "dst", local)
    assert leftovers(tmp_path) == []


def test_workers_that_die_leave_a_run_that_resumes(tmp_path: Path, source: Path, local: Path) -> None:
    seen = []
    with started(tmp_path / "cluster", 1, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as made:

        def kill_at_the_tenth(name: str, done: int, total: int) -> None:
            seen.append(name)
            if len(seen) == 10:
                made.workers[0].send_signal(signal.SIGKILL)

        with (
            pytest.raises(ClusterError, match=r"1 died while they worked on [ab]\.safetensors: tensor") as raised,
            cluster.dask_executor(made.address) as executor,
        ):
            prune_checkpoint(source, tmp_path / "dst", "4:8", executor=executor, progress=kill_at_the_tenth)
        assert any("--resume" in note for note in raised.value.__notes__)
        assert not (tmp_path / "dst").exists()
        made.add_worker()
        seen.clear()
        with cluster.dask_executor(made.address) as executor:
            prune_checkpoint(source, tmp_path / "dst", "4:8", executor=executor, resume=True)
    assert_same(tmp_path / "dst", local)


def test_a_scheduler_that_dies_leaves_a_run_that_resumes(tmp_path: Path, source: Path, local: Path) -> None:
    seen = []
    with started(tmp_path / "cluster", 1) as made:

        def kill_at_the_tenth(name: str, done: int, total: int) -> None:
            seen.append(name)
            if len(seen) == 10:
                made.scheduler.send_signal(signal.SIGKILL)

        with (
            pytest.raises(ClusterError, match="it went away") as raised,
            cluster.dask_executor(made.address) as executor,
        ):
            prune_checkpoint(source, tmp_path / "dst", "4:8", executor=executor, progress=kill_at_the_tenth)
        assert any("--resume" in note for note in raised.value.__notes__)
    prune_checkpoint(source, tmp_path / "dst", "4:8", resume=True)
    assert_same(tmp_path / "dst", local)


def test_the_command(tmp_path: Path, source: Path, local: Path, two: Cluster) -> None:
    command = ["prune", str(source), str(tmp_path / "dst"), "--pattern", "4:8", "--engine", "dask"]
    done = CliRunner().invoke(app, [*command, "--scheduler", two.address, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["proven"]
    assert_same(tmp_path / "dst", local)
    for arguments in (command, [*command[:5], "--scheduler", two.address]):
        done = CliRunner().invoke(app, [*arguments, "--overwrite"])
        assert done.exit_code == 2
        assert "must be given together" in done.stderr


def test_masks_of_what_is_kept_are_found(tmp_path: Path, two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a relative path, which means another place to a worker."""
    monkeypatch.chdir(tmp_path)
    keep = np.zeros((8, 8), bool)
    keep[0, :2] = keep[5, 4:6] = True
    write(tmp_path / "model.safetensors", {"weight": np.arange(64, dtype="f4").reshape(8, 8) + 1})
    write(tmp_path / "keep.safetensors", {"weight": keep})
    with cluster.dask_executor(two.address) as executor:
        prune_checkpoint("model.safetensors", "dst.safetensors", "2:4", keep_from="keep.safetensors", executor=executor)
    assert read(tmp_path / "dst.safetensors")["weight"][keep].all()


def test_an_error_of_a_worker_comes_back(tmp_path: Path, two: Cluster) -> None:
    bad = np.ones((64, 64), "f4")
    bad[3, 5] = np.nan
    write(tmp_path / "bad.safetensors", {"good.weight": np.ones((64, 64), "f4"), "bad.weight": bad})
    with (
        cluster.dask_executor(two.address) as executor,
        pytest.raises(NonFiniteError, match=r"'bad.weight' must be finite") as raised,
    ):
        prune_checkpoint(tmp_path / "bad.safetensors", tmp_path / "dst.safetensors", "2:4", executor=executor)
    assert raised.value.first == (3, 5)
    assert not (tmp_path / "dst.safetensors").exists()


def test_a_worker_that_goes_away_at_first_needs_no_nmflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(tmp_path / "made", 2) as made:
        with cluster._connected(made.address) as client:
            client.wait_for_workers(2)
        lost, own = made.workers[0].pid, os.getpid()
        monkeypatch.setattr(cluster, "version", lambda: os.getpid() != lost or os._exit(1))
        with cluster.dask_executor(made.address) as executor:
            assert executor is not None
        monkeypatch.setattr(cluster, "version", lambda: os.getpid() == own or os._exit(1))
        with pytest.raises(ClusterError, match="must have workers"), cluster.dask_executor(made.address):
            pass


def test_a_cluster_that_cannot_be_used(tmp_path: Path, two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "no address"):
        with pytest.raises(ClusterError, match="scheduler must be"), cluster.dask_executor(address):
            pass
        # nothing is left for the garbage collector to close, while another client starts
        assert "IO loop" not in [thread.name for thread in threading.enumerate()]
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 5)  # a busy machine takes more than one to answer
    with (
        started(tmp_path / "empty", 0) as made,
        pytest.raises(ClusterError, match="must have workers"),
        cluster.dask_executor(made.address),
    ):
        pass
    monkeypatch.setattr(cluster, "version", lambda: str(os.getpid()))
    with pytest.raises(ClusterError, match=r"each worker must have [0-9]+, not"), cluster.dask_executor(two.address):
        pass
    own = os.getpid()
    monkeypatch.setattr(cluster, "version", lambda: os.getpid() == own or __import__("no_nmflow"))
    with pytest.raises(ClusterError, match="must have nmflow installed"), cluster.dask_executor(two.address):
        pass
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match=r"nmflow\[dask\]"), cluster.dask_executor(two.address):
        pass
