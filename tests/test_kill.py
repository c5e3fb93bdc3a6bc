"""Processes that are killed while they prune: whatever the moment, the destination is whole or as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors_files import write

RUNNER = Path(__file__).parent / "kill_runner.py"


def runner(*args: object) -> dict[str, int]:
    done = subprocess.run([sys.executable, str(RUNNER), *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def tensors(count: int, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"{i}.weight": rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for i in range(count)}


def folder(path: Path, count: int, shape: tuple[int, int]) -> Path:
    """A checkpoint of two shards, with a file beside them that may not be written."""
    path.mkdir()
    weight_map = {}
    values = tensors(count, shape) | {"bias": np.ones(3, np.float32)}
    for number in range(2):
        name = f"model-{number}.safetensors"
        part = dict(list(values.items())[number::2])
        write(path / name, part)
        weight_map |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text("{}")
    (path / "config.json").chmod(0o444)
    return path


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["new", "overwrite"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_before_every_operation_on_the_disk(tmp_path: Path, kind: str, overwrite: tuple[str, ...]) -> None:
    if kind == "file":
        src = write(tmp_path / "model.safetensors", tensors(2, (8, 8)) | {"bias": np.ones(3, np.float32)})
    else:
        src = folder(tmp_path / "model", 3, (8, 8))
    (tmp_path / "work").mkdir()
    found = runner("every", src, tmp_path / "work", *overwrite)
    assert found["kills"] >= (12 if kind == "file" else 25)


def test_killed_where_names_cannot_be_exchanged(tmp_path: Path) -> None:
    src = folder(tmp_path / "model", 2, (8, 8))
    (tmp_path / "work").mkdir()
    found = runner("every", src, tmp_path / "work", "--overwrite", "--two-renames")
    assert found["kills"] >= 25
    assert found["away"] >= 1


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    src = folder(tmp_path / "model", 9, (1024, 1024))
    (tmp_path / "work").mkdir()
    found = runner("random", src, tmp_path / "work", 60, 1)
    assert found["kills"] >= 60
    assert found["with_journal"] >= 20
    assert found["finished"] >= 5
    assert os.listdir(tmp_path / "work")
