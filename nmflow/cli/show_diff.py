"""What diff prints: the tensors that differ, and how far their masks are apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from nmflow.cli.show import _console, _shape, _text
from nmflow.cli.table import print_table

if TYPE_CHECKING:
    from nmflow.checkpoint import Difference

__all__ = ["difference"]


def difference(found: Difference) -> None:
    """Print what differs, and a line for all."""
    console = _console()
    changed = [tensor for tensor in found.tensors if not tensor.same]
    if changed:
        table = Table(title=f"{_text(found.a)} and {_text(found.b)}", title_justify="left")
        table.add_column("tensor", overflow="fold")
        for name in ("dtype", "shape", "entries changed", "zero in one only (SAD)", "flip rate %"):
            table.add_column(name, justify="right")
        for tensor in changed:
            rate = tensor.flip_rate
            table.add_row(
                *(_text(tensor.name), _text(tensor.dtype), _shape(tensor.shape)),
                *("-" if count is None else f"{count:,}" for count in (tensor.changed, tensor.sad)),
                "-" if rate is None else f"{100 * rate:.3f}",
            )
        print_table(console, table)
    for path, names in ((found.a, found.only_a), (found.b, found.only_b)):
        for name in names:
            console.print(f"only in {_text(path)}: {_text(name)}", soft_wrap=True)
    for name, a, b in found.unlike:
        console.print(f"{_text(name)}: {_text(a)} in {_text(found.a)}, {_text(b)} in {_text(found.b)}", soft_wrap=True)
    sad = sum(tensor.sad for tensor in changed if tensor.sad is not None)
    entries = sum(math.prod(tensor.shape) for tensor in changed if tensor.sad is not None)
    masks = (
        f"; of their {entries:,} entries {sad:,} are zero in one only ({100 * sad / entries:.3f} %)" if entries else ""
    )
    console.print(f"{len(changed)} of {len(found.tensors)} tensors in both differ{masks}", soft_wrap=True)
