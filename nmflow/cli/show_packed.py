"""What export, inspect and verify print about compressed files."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from nmflow.cli.show import _console, _shape, _text, _weights
from nmflow.cli.table import print_table
from nmflow.formats import get

if TYPE_CHECKING:
    from nmflow.checkpoint import ExportReport, Inspection, PackedVerification

__all__ = ["inspection", "report", "verification"]


def report(done: ExportReport) -> None:
    """Print what was stored, and where zeros left a choice."""
    console = _console()
    console.print(f"{_text(done.source)} as {done.format}", soft_wrap=True)
    table = Table()
    table.add_column("tensor", overflow="fold")
    for name in ("dtype", "shape", "pattern", "kept %", "bytes", "of dense %", "blocks completed\nby solving"):
        table.add_column(name, justify="right")
    for tensor in done.tensors:
        padded = "" if tensor.shape == tensor.stored_shape else f" in {_shape(tensor.stored_shape)}"
        choice = f"{tensor.completed:,} of {tensor.n_blocks:,}" if done.masks is None and tensor.n_blocks else "-"
        table.add_row(
            _text(tensor.name),
            tensor.dtype,
            _shape(tensor.shape) + padded,
            tensor.pattern or "any",
            f"{100 * tensor.kept / max(math.prod(tensor.shape), 1):.2f}",
            f"{tensor.stored_bytes:,}",
            f"{100 * tensor.stored_bytes / max(tensor.dense_bytes, 1):.1f}",
            choice,
        )
    print_table(console, table)
    completed, unfilled = (sum(getattr(tensor, name) for tensor in done.tensors) for name in ("completed", "unfilled"))
    if completed:
        console.print(f"{completed:,} blocks had zeros to choose from; which of them count as kept was solved for.")
    if unfilled:
        console.print(f"{unfilled:,} blocks cannot be filled exactly; some of their groups keep fewer than n.")
    dropped = sum(tensor.dropped for tensor in done.tensors)
    if dropped:
        console.print(f"{dropped:,} entries that are not zero were dropped, as the masks say.")
    negative = sum(tensor.negative_zeros for tensor in done.tensors)
    if negative:
        console.print(
            f"{negative:,} of the kept entries are -0.0, as weight * mask leaves them where it drops; --masks says "
            f"which are kept.",
            soft_wrap=True,
        )
    for reason, count in sorted(Counter(reason for _, reason in done.left_dense).items()):
        console.print(f"left as it is: {count} x {_text(reason)}", soft_wrap=True)
    console.print(f"wrote {_text(done.destination)}", soft_wrap=True)


def inspection(found: Inspection) -> None:
    """Print what a checkpoint or an export holds."""
    console = _console()
    title = f"{_text(found.path)}: "
    title += "safetensors" if found.format is None else f"{_text(found.format)} version {found.version}, by "
    console.print(title + _text(found.writer or ""), soft_wrap=True)
    table = Table()
    for name, right in (("tensor", False), ("file", False), ("dtype", False), ("shape", True), ("stored as", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    table.add_column("bytes", justify="right")
    for tensor in found.tensors:
        parts = ", ".join(part.removeprefix(f"{tensor.name}.") for part in tensor.stored)
        stored = f"{tensor.pattern}: {parts}" if tensor.pattern else parts
        table.add_row(
            *(_text(tensor.name), _text(tensor.shard), _text(tensor.dtype), _shape(tensor.shape)),
            *(_text(stored), f"{tensor.n_bytes:,}"),
        )
    print_table(console, table)
    packed = sum(1 for tensor in found.tensors if tensor.stored)
    total = sum(tensor.n_bytes for tensor in found.tensors)
    console.print(f"{len(found.tensors)} tensors, {packed} of them stored by format; {total:,} bytes of data")


def verification(found: PackedVerification) -> None:
    """Print whether every tensor decodes to one matrix from both sides."""
    console = _console()
    bad, good = ([tensor for tensor in found.tensors if bool(tensor.fault) is fault] for fault in (True, False))
    for tensor in bad:
        console.print(_text(f"tensor {tensor.name!r}: {tensor.fault}"), soft_wrap=True)
    for fault in found.faults:
        console.print(_text(fault), soft_wrap=True)
    weights = _weights(len(found.tensors))
    entries, kept = (sum(getattr(tensor, name) for tensor in good) for name in ("entries", "kept"))
    sound = f"{weights} sound, both sides agree" if get(found.format).two_way else f"{weights} sound"
    verdict = f"{len(bad)} of {weights} at fault" if bad else sound
    if found.faults:
        verdict += f"; {len(found.faults)} other {'fault' if len(found.faults) == 1 else 'faults'}"
    if good:
        verdict += f"; {kept:,} of {entries:,} entries {'of the others ' if bad else ''}are kept"
    verdict += f"; {found.left_dense} {'tensor' if found.left_dense == 1 else 'tensors'} left dense"
    console.print(_text(f"{found.path}: {found.format}, {verdict}"), soft_wrap=True)
    if not found.complete:
        console.print(
            "Headers, and tensors left dense, were compared by name only: the nmflow that exported them recorded no "
            "digests of theirs. Export again to have every byte checked.",
            soft_wrap=True,
        )
