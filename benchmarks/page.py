"""Measured tables in pages of the docs: each stands between two markers and is replaced whole."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["fill", "fill_page"]


def fill_page(page: Path, sections: dict[str, str]) -> None:
    """Put sections between their markers in a page; see `fill`."""
    page.write_text(fill(page.read_text(encoding="utf-8"), sections), encoding="utf-8")


def fill(text: str, sections: dict[str, str]) -> str:
    """Put sections between their markers.

    Raises
    ------
    ValueError
        If a marker of a section is missing.
    """
    for name, section in sections.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        place = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(place.findall(text)) != 1:
            raise ValueError(f"the page must have the markers {begin} and {end} once")
        before, after = place.split(text)
        text = f"{before}{begin}\n{section.strip()}\n{end}{after}"
    return text
