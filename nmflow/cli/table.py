"""Tables with names and numbers: where a terminal is narrow, rich would cut numbers and leave names no room."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_table"]

TEXT = 20
"""Columns in which a long name or note can still be read, folded."""


def print_table(console: Console, table: Table) -> None:
    """Print a table: as it is, or with folded headings and names, or with each name on a line above its numbers."""
    heads = [_plain(column.header) for column in table.columns]
    cells = [[_plain(cell) for cell in column.cells] for column in table.columns]
    widths = [
        max(map(cell_len, (*head.split(), *column)), default=0) for head, column in zip(heads, cells, strict=True)
    ]
    right = [column.justify == "right" for column in table.columns]
    least = [width if number else min(width, TEXT) for number, width in zip(right, widths, strict=True)]
    lines = 3 * len(widths) + 1  # and the room beside them
    if sum(least) + lines > console.width:
        _print_without_lines(console, table, heads, cells, widths)
        return
    wide = [max(width, *map(cell_len, head.split("\n"))) for head, width in zip(heads, widths, strict=True)]
    if sum(wide) + lines > console.width:
        for column, number, width in zip(table.columns, right, widths, strict=True):
            column.width = width if number else None
    console.print(table)


def _print_without_lines(
    console: Console, table: Table, heads: list[str], cells: list[list[str]], widths: list[int]
) -> None:
    def show(parts: Sequence[str]) -> None:
        padded = []
        for part, width, column in zip(parts, widths[1:], table.columns[1:], strict=True):
            room = " " * (width - cell_len(part))
            padded.append(room + part if column.justify == "right" else part + room)
        console.print(Text(("  " + "  ".join(padded)).rstrip()), soft_wrap=True)

    if table.title:
        console.print(table.title, soft_wrap=True)
    console.print(Text(heads[0]), soft_wrap=True)
    folded = [textwrap.wrap(head, width)[::-1] for head, width in zip(heads[1:], widths[1:], strict=True)]
    for words in reversed(list(zip_longest(*folded, fillvalue=""))):
        show(words)
    for name, *numbers in zip(*cells, strict=True):
        console.print(Text(name), soft_wrap=True)
        show(numbers)


def _plain(cell: object) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)
