"""What a checkpoint on disk consists of: shards that hold tensors, and the files beside them."""

from __future__ import annotations

import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath

from nmflow.asked import as_path
from nmflow.checkpoint.header import MAX_HEADER, Header, read_header
from nmflow.checkpoint.report import RECORDS
from nmflow.checkpoint.strict_json import load_json
from nmflow.errors import CheckpointError, SourceNotFoundError

__all__ = ["Source", "open_source"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_INDEX = re.compile(r"(.+)\.safetensors\.index(\.[^.]+)?\.json")
"""Names of all indexes: diffusers has diffusion_pytorch_model before it, and a variant, such as fp16, before json."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PART = re.compile(r"(.+)-\d+(-of-(?!0*1\.)\d+\.\w+)")
"""Name of one of several files that are one checkpoint; by itself it would pass for the whole."""
OTHER_WEIGHTS = (".safetensors", ".h5", ".msgpack", ".onnx", ".gguf")
RECORDED = ".cache"
"""A folder that is not copied: records of how the weights came here, as they were."""

DEEPEST = 100
"""Most folders, one in the other: no checkpoint has more than a few, and a path has at most 4096 bytes."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint: one safetensors file, or a folder with one or more.

    Attributes
    ----------
    path : Path
    is_folder : bool
    shards : tuple of Header
        The files whose tensors are the model, in the order of their names.
    others : tuple of Path
        The other files of the folder, relative to it; they are copied.
    index : str or None
        Which of these names the shards.
    """

    path: Path
    is_folder: bool
    shards: tuple[Header, ...]
    others: tuple[Path, ...] = ()
    index: str | None = None

    @property
    def other_weights(self) -> tuple[Path, ...]:
        """Files beside the shards that look like weights too; they are copied, not pruned."""
        return tuple(path for path in self.others if path.suffix in (*PICKLES, *OTHER_WEIGHTS))

    @property
    def links_out(self) -> tuple[Path, ...]:
        """Other files that links bring in from elsewhere; those of Hugging Face's cache all lead to its blobs."""
        root = Path(os.path.realpath(self.path))
        inside = root, root.parent.parent / "blobs"
        real = {path: Path(os.path.realpath(self.path / path)) for path in self.others}
        return tuple(path for path, place in real.items() if not any(map(place.is_relative_to, inside)))

    def relative(self, shard: Header) -> Path:
        """Where a shard lies in the folder; a file by itself is "."."""
        return shard.path.relative_to(self.path)


def open_source(path: str | os.PathLike[str]) -> Source:
    """Find the shards of a checkpoint and check their headers.

    Parameters
    ----------
    path : path
        A .safetensors file, or a folder in the layout of Hugging Face: ``model.safetensors``, or
        ``model.safetensors.index.json`` with its shards, or else a single index or .safetensors file of any name. Of
        one model in several variants (fp16 beside none) the one without a name is taken.

    Raises
    ------
    SourceNotFoundError
        If `path` does not exist.
    InputTypeError, InputValueError
        If it is no path, or empty.
    CheckpointError
        If it holds no safetensors, holds pickled weights only, or a header or index is not valid; or on Windows.
    """
    if os.name != "posix":  # files are locked, and read and written at their places, as POSIX has it
        raise CheckpointError(
            "checkpoints need Linux, macOS or WSL; elsewhere give arrays to nmflow.solve, models to nmflow.torch.prune_"
        )
    path = as_path(path, "a checkpoint")
    if not path.is_dir():
        _refuse_pickle(path)
        _refuse_record(path)
        return Source(path, False, (read_header(path),))
    files = _files(path)
    top = [file.name for file in files if file.parent == Path()]
    index = _index(path, top)
    weight_map = _weight_map(path / index) if index and SINGLE not in top else {}
    names = [SINGLE] if SINGLE in top else _indexed(path / index, weight_map) if index else [_alone(path, top, files)]
    for name in names:
        _refuse_record(path / name)
    shards = tuple(read_header(path / name) for name in names)
    if index and weight_map:
        _check_index(path / index, weight_map, shards)
    chosen = {PurePath(name) for name in names}
    return Source(path, True, shards, tuple(file for file in files if file not in chosen), index)


def _refuse_record(path: Path) -> None:
    """What is written beside the weights has names of its own, and would take their place."""
    if path.name in RECORDS:
        raise CheckpointError(f"{path} must have a name that is none of {', '.join(RECORDS)}; rename it")


def _files(root: Path) -> list[Path]:
    """Every file below `root`, links followed, relative and in order."""
    found: list[Path] = []
    _walk(root, Path(), found, ())
    return found


def _walk(root: Path, folder: Path, found: list[Path], above: tuple[tuple[int, int], ...]) -> None:
    here = (root / folder).stat()
    if (here.st_dev, here.st_ino) in above:
        raise CheckpointError(f"{root / folder} must not be a link to a folder above it; remove the link")
    if len(above) > DEEPEST:
        raise CheckpointError(f"{root} must hold folders at most {DEEPEST} deep, not {folder}; remove what is below")
    above = (*above, (here.st_dev, here.st_ino))
    for name in sorted(os.listdir(root / folder)):
        if name == ".git":  # in a worktree a file, which leads to the repository of the original
            continue
        path = root / folder / name
        try:
            info = path.stat()
        except FileNotFoundError:
            raise CheckpointError(f"{path} must be a file, not a link to nothing; fetch the checkpoint again") from None
        if stat.S_ISDIR(info.st_mode):
            if name != RECORDED:
                _walk(root, folder / name, found, above)
        elif stat.S_ISREG(info.st_mode):
            found.append(folder / name)
        else:
            raise CheckpointError(f"{path} must be a file or folder, not a device, pipe or socket; remove it")


def _index(root: Path, top: list[str]) -> str | None:
    """The index of a folder: that of its model, or the only one where the model has none."""
    if INDEX in top or SINGLE in top:
        return INDEX if INDEX in top else None
    matches = {name: match for name in top if (match := _INDEX.fullmatch(name))}
    plain = [name for name, match in matches.items() if match[2] is None]
    found = plain or ([] if _files_alone(root, top) else list(matches))
    if len(found) > 1:
        raise CheckpointError(f"{root} must hold {INDEX} or one index, not {', '.join(found)}; keep one of them")
    return found[0] if found else None


def _files_alone(root: Path, top: list[str]) -> list[str]:
    """Safetensors of a folder that are no shard of an index, and no variant of another: m.fp16 beside m."""
    held = {shard for name in top if _INDEX.fullmatch(name) for shard in _weight_map(root / name).values()}
    stems = {name: name.removesuffix(".safetensors") for name in top if name.endswith(".safetensors")}
    known = set(stems.values())
    return [name for name, stem in stems.items() if name not in held and stem.rpartition(".")[0] not in known]


def _alone(root: Path, top: list[str], files: list[Path]) -> str:
    """The only safetensors file of a folder without an index."""
    tensors = _files_alone(root, top)
    part = next(filter(_PART.fullmatch, tensors), None)
    if part is not None:
        raise CheckpointError(
            f"{root} must hold {INDEX} beside shards as {part}; fetch it and all shards, or name one file"
        )
    if len(tensors) == 1:
        return tensors[0]
    if tensors:
        raise CheckpointError(
            f"{root} must hold {SINGLE}, {INDEX} or one .safetensors file, not {len(tensors)} of them; name one file"
        )
    # a model before the optimizer and the arguments that trained it
    for name in sorted(top, key=lambda name: "model" not in name):
        _refuse_pickle(root / name)
    below = sorted({str(file.parent) for file in files if file.suffix == ".safetensors"})
    if below:
        raise CheckpointError(
            f"{root} must hold safetensors itself, and holds them in folders; give one of these: {', '.join(below)}"
        )
    raise CheckpointError(f"{root} must hold safetensors, for example {SINGLE}, and it holds none")


def _indexed(index: Path, weight_map: dict[str, str]) -> list[str]:
    """The shards that an index names, checked to be files beside it."""
    names = sorted(set(weight_map.values()))
    for name in names:
        # A name with a folder in it could lead out of the checkpoint; no tool writes one.
        if PurePath(name).name != name or name in ("", "..") or "\\" in name:
            raise CheckpointError(f"{index}: weight_map must name files beside it, not {name!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: weight_map must name files that exist, not {name!r}; fetch the shard")
    return names


def _weight_map(index: Path) -> dict[str, str]:
    if (size := index.stat().st_size) > MAX_HEADER:  # a few bytes to fetch, if they are all the same
        raise CheckpointError(f"{index} must be an index of at most {MAX_HEADER:,} bytes, not {size:,}")
    weight_map = load_json(index, index.read_bytes(), "index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names; fetch the index again")
    return weight_map


def _check_index(index: Path, weight_map: dict[str, str], shards: tuple[Header, ...]) -> None:
    """Raise unless each tensor is in one shard, and the index names none that is missing."""
    held: dict[str, str] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in held:
                raise CheckpointError(
                    f"{shard.path}: tensor {entry.name!r} must be in one shard, not in {held[entry.name]!r} as well"
                )
            held[entry.name] = shard.path.name
    for name, file in weight_map.items():
        if held.get(name) != file:
            raise CheckpointError(f"{index}: weight_map must name tensors that exist, not {name!r} in {file!r}")


def _refuse_pickle(path: Path) -> None:
    if path.suffix not in PICKLES:
        return
    if not path.exists():
        raise SourceNotFoundError(f"{path} must exist; check the path")
    part = _PART.fullmatch(path.name)
    files = shlex.quote(str(path)) if part is None else f"{shlex.quote(str(path.parent / part[1]))}-*{part[2]}"
    whole = shlex.quote(str(path.with_name(SINGLE)))
    raise CheckpointError(
        f"{path} must be safetensors, not pickled weights: reading a pickle runs the code in it. Convert it where "
        f'you trust it: python -c "import sys, torch, safetensors.torch as s; '
        f"held = [torch.load(file, map_location='cpu', weights_only=True) for file in sys.argv[2:]]; "
        f"s.save_file({{k: v.clone().contiguous() for one in held for k, v in one.get('state_dict', one).items() "
        f"if hasattr(v, 'clone')}}, sys.argv[1], {{'format': 'pt'}})\" {whole} {files}"
    )
