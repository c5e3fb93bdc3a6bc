"""Units of work on a Dask cluster: descriptions go out, numbers come back, arrays stay on the shared storage."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from nmflow.asked import thread_count
from nmflow.checkpoint.engine import Executor
from nmflow.checkpoint.journal import version
from nmflow.checkpoint.pool import Pool
from nmflow.checkpoint.unit import Unit
from nmflow.errors import ClusterError, MissingLibraryError

__all__ = ["dask_executor"]

WAIT_SECONDS = 30
"""How long a scheduler, and the first worker, are waited for."""


@contextmanager
def dask_executor(scheduler: str) -> Iterator[Executor]:
    """Connect to a Dask cluster, for ``prune_checkpoint(..., executor=)``.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler, as in "tcp://host:8786".

    Raises
    ------
    MissingLibraryError
        Without dask.distributed.
    ClusterError
        If the cluster cannot be reached, has no worker, or has one with another nmflow; and if, within the block, a
        tensor's workers died again and again, or the scheduler went away.

    Notes
    -----
    Workers must see source and destination under the same absolute paths. A unit of a worker that dies is given to
    another one, some three times (Dask's ``distributed.scheduler.allowed-failures``). A unit uses the threads that it
    asks for, or else an equal share of its worker's cores. Only trusted networks: who reaches a scheduler can run code
    on its workers.
    """
    if find_spec("distributed") is None:
        raise MissingLibraryError('a Dask cluster needs dask.distributed; pip install "nmflow[dask]"')
    from distributed.scheduler import KilledWorker

    try:
        client = _connected(scheduler)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"scheduler must be the address of a Dask scheduler that answers, not {scheduler!r}: {error}"
        ) from error
    with client:
        _check_workers(client, scheduler)
        try:
            yield _DaskExecutor(client)
        except KilledWorker as error:
            raise _with_notes(
                ClusterError(
                    f"workers must stay alive, and {error.allowed_failures + 1} died while they worked on "
                    f"{_tensor_of(error.task)}; look at their logs, for example for too little memory"
                ),
                error,
            ) from error
        except CancelledError as error:
            raise _with_notes(
                ClusterError(f"the scheduler at {scheduler} must stay, and it went away; start it again"), error
            ) from error


def _connected(scheduler: str) -> Any:
    """A client of a scheduler that answers.

    Its address is tried without a client first. One that cannot connect leaves its loop running until the garbage
    collector closes it, at any time and in any thread, where it waits for a lock that the start of the next client may
    hold.
    """
    import distributed.comm

    dask: Any = distributed  # has no annotations
    security = dask.Security()  # as Dask's configuration has it

    async def answers() -> None:
        comm = await dask.comm.connect(scheduler, timeout=WAIT_SECONDS, **security.get_connection_args("client"))
        await comm.close()

    with ThreadPoolExecutor(1) as thread:  # ours may run a loop, as in a notebook
        thread.submit(asyncio.run, answers()).result()
    return dask.Client(scheduler, timeout=WAIT_SECONDS, set_as_default=False)


def _with_notes(error: ClusterError, cause: BaseException) -> ClusterError:
    """What was said of the cause, as how to resume, is said of the error."""
    for note in getattr(cause, "__notes__", ()):
        error.add_note(note)
    return error


def _check_workers(client: Any, scheduler: str) -> None:
    """Raise unless there are workers, and all have our version of nmflow; one that goes away meanwhile needs none."""
    nobody = ClusterError(f"the scheduler at {scheduler} must have workers; start some: dask worker {scheduler}")
    try:
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except TimeoutError as error:
        raise nobody from error
    answers = client.run(version, on_error="return").items()
    here = {worker: answer for worker, answer in answers if not isinstance(answer, OSError)}
    if not here:
        raise nobody
    for worker, answer in here.items():
        if isinstance(answer, Exception):  # whatever one without nmflow raises
            raise ClusterError(f"each worker must have nmflow installed, and {worker} has not: {answer}") from answer
        if answer != version():
            raise ClusterError(
                f"each worker must have {version()}, not {answer} as {worker} has; install the same there"
            )


class _DaskExecutor:
    """An executor as the engine wants it."""

    def __init__(self, client: Any) -> None:
        self._executor = client.get_executor()

    def submit(self, function: Callable[..., Any], /, unit: Unit, *args: Any) -> Any:
        """Send a unit to the cluster, under a key that no other has: a result is never one of an earlier run."""
        key = f"nmflow-{secrets.token_hex(8)}", unit.source.name, unit.entry.name
        return self._executor.submit(_on_worker, function, unit, *args, key=key)


def _tensor_of(key: object) -> str:
    """What a unit's key is shown as."""
    return f"{key[1]}: tensor {key[2]!r}" if isinstance(key, tuple) and len(key) == 3 else str(key)


def _on_worker(function: Callable[..., Any], unit: Unit, *args: Any) -> Any:
    """Do a unit on a worker with its share of the cores; what it wrote is on the disk before that is said."""
    from distributed import get_worker

    threads = unit.threads or max(1, thread_count(None) // get_worker().state.nthreads)
    with Pool(threads) as pool:
        done = function(unit, *args, pool)
    file = os.open(unit.target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    return done
