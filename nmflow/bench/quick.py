"""The quick benchmark of ``nmflow bench``: every solver, on a user's own matrix, checkpoint, or a random matrix."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nmflow.arrays import Array, Matrix
from nmflow.asked import thread_count
from nmflow.bench.contest import TableSolver
from nmflow.bench.machine import available_memory
from nmflow.bench.rows import Row, measure
from nmflow.bench.stream import Stream
from nmflow.errors import InputValueError, SourceNotFoundError
from nmflow.given import as_array
from nmflow.pattern import Pattern

__all__ = ["matrices", "parse_shape", "quick"]

Progress = Callable[[str, int, int], None]
_SHAPE = re.compile(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", re.ASCII)


def parse_shape(text: str) -> tuple[int, int]:
    """Read "ROWSxCOLS".

    Examples
    --------
    >>> parse_shape("4096x1024")
    (4096, 1024)
    """
    found = _SHAPE.fullmatch(text)
    if found is None or not (int(found[1]) and int(found[2])):
        raise InputValueError(f"shape must be ROWSxCOLS, for example 4096x4096, not {text!r}")
    return int(found[1]), int(found[2])


def matrices(
    path: str | os.PathLike[str] | None, shape: tuple[int, int], tensors: Sequence[str], pattern: Pattern
) -> dict[str, Array]:
    """Find what is to be measured.

    Parameters
    ----------
    path : path or None
        A .npy file with a matrix; a checkpoint, of which the largest weight is taken; None for Gaussian weights.
    shape : (int, int)
        Of the Gaussian weights.
    tensors : sequence of globs
        Weights of the checkpoint to take instead of the largest.
    pattern : Pattern
        Decides which weights of a checkpoint can be pruned.

    Returns
    -------
    dict of name to ndarray, shape (R, C)

    Raises
    ------
    InputValueError
        If one cannot be measured: no matrix, not finite, or beyond memory.
    """
    if path is None:
        _check_memory(shape)
        rng = np.random.default_rng(0)
        return {"gaussian": rng.standard_normal(shape, dtype=np.float32)}
    path = Path(path)
    found = {path.name: _load_npy(path)} if path.suffix == ".npy" else _load_checkpoint(path, tensors, pattern)
    for name, matrix in found.items():
        if bad := int(np.count_nonzero(~np.isfinite(matrix))):
            raise InputValueError(
                f"{name} must be finite, not NaN or infinite at {bad} of {matrix.size} entries; repair them, or "
                f"measure another matrix"
            )
    return found


def quick(
    weights: dict[str, Array],
    patterns: Sequence[Pattern],
    *,
    solvers: Sequence[str] = (),
    threads: int | None = None,
    repeats: int = 7,
    seconds: float = 0.5,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Measure every solver on each matrix at each pattern, in turn with the stream; a row as soon as it is there.

    Raises
    ------
    UnknownSolverError
        Before the first row, if there is no solver of a name.
    """
    from nmflow.solvers import get, names

    chosen = [get(name).name for name in solvers] or names()
    threads = thread_count(threads)
    total, done = len(weights) * len(patterns) * len(chosen), 0
    for name, matrix in weights.items():
        with Stream(matrix, threads) as stream:
            for pattern in patterns:
                for solver in chosen:
                    if progress is not None:
                        progress(f"{solver} at {pattern}", done, total)
                    yield measure(
                        TableSolver(solver, threads), matrix, pattern, stream,
                        repeats=repeats, seconds=seconds, family=name,
                    )  # fmt: skip
                    done += 1


def _load_npy(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SourceNotFoundError(f"{path} must exist; nmflow bench takes a .npy file or a checkpoint") from None
    except (ValueError, EOFError) as error:
        raise InputValueError(f"{path} must be a .npy file of numbers, not one that NumPy refuses ({error})") from None
    except MemoryError:
        raise InputValueError(f"{path} must fit memory; cut a part out of it and measure that") from None
    if array.dtype.kind == "V" and array.dtype.names is None:
        raise InputValueError(
            f"{path} must be of a dtype that .npy files can name, not bare bytes ({array.dtype}), as bfloat16 is "
            f"saved; save it as float32"
        )
    matrix = as_array(array, str(path))
    if matrix.ndim != 2 or not matrix.size:
        raise InputValueError(f"{path} must hold a matrix, not an array of shape {matrix.shape}")
    return matrix


def _load_checkpoint(path: Path, tensors: Sequence[str], pattern: Pattern) -> dict[str, Array]:
    from nmflow.checkpoint import make_plan
    from nmflow.checkpoint.arrays import map_array

    plan = make_plan(path, pattern)
    plan.check()
    pruned = plan.pruned
    if tensors:
        found = [tensor for tensor in pruned if any(fnmatch.fnmatchcase(tensor.entry.name, glob) for glob in tensors)]
        if not found:
            raise InputValueError(f"tensor must match a weight that {pattern} can take, not {', '.join(tensors)}")
    else:
        found = [max(pruned, key=lambda tensor: tensor.entry.n_bytes)]
    out = {}
    for tensor in found:
        array = np.array(map_array(tensor.shard.path, tensor.entry))
        if tensor.layout == "batch":  # of a stack of matrices, the first
            array = array.reshape(-1, *array.shape[-2:])[0]
        out[tensor.entry.name] = Matrix(array).rows(0, len(array))  # a convolution as the matrix that solvers see
    return out


def _check_memory(shape: tuple[int, int]) -> None:
    needed, free = shape[0] * shape[1] * 7, available_memory()
    if free is not None and needed > free:
        raise InputValueError(
            f"shape must fit memory: {shape[0]}x{shape[1]} needs {needed / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free"
        )
