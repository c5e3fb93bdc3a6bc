"""Layers that a run from folder to folder has finished, kept beside its destination: held alone, and no other run's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nmflow.checkpoint.journal import Journal
from nmflow.checkpoint.lock import locked
from nmflow.checkpoint.place import check_ours
from nmflow.torch.resume import keeping, layers_in, remove_layers

__all__ = ["layers_beside"]

JOURNAL = "journal"
_KEPT = re.compile(r"lock|journal|[0-9a-f]+\.(layer|new)")


@contextlib.contextmanager
def layers_beside(dst: Path, asked: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """Give a folder for finished layers; it is removed when the block ends well, or nothing is in it.

    asked : what the run was asked for, as JSON holds it. resume : go on with the layers of a run that was broken off.

    Raises
    ------
    DestinationBusyError
        If another process works on `dst`.
    CheckpointError
        If the run that was broken off was asked for something else.
    DestinationExistsError
        If the folder is somebody else's.
    InputValueError
        If the folder cannot be made.
    """
    dst = dst.absolute()
    work = dst.parent / f".{dst.name}.nmflow-layers"
    check_ours(work, _KEPT)
    with locked(work, dst):
        if not resume:
            remove_layers(work)
        try:
            with Journal(work / JOURNAL, asked, resume=resume and bool(layers_in(work))):
                try:
                    with keeping():
                        yield work
                except BaseException as error:
                    if kept := layers_in(work):
                        error.add_note(
                            f"{len(kept)} layers are done and kept in {work}; the same with resume=True (--resume) "
                            f"goes on from there"
                        )
                    raise
        finally:
            if not layers_in(work):
                (work / JOURNAL).unlink(missing_ok=True)
