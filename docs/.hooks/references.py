"""References of docstrings as a list: numpydoc numbers them in the way of reStructuredText, which Markdown shows."""

from __future__ import annotations

import re
from typing import Any

NOTES = re.compile(r"<p>\.\. \[1\] (.*?)</p>", re.DOTALL)
NEXT = re.compile(r"\s*\.\. \[\d+\] ")


def on_page_content(html: str, **others: Any) -> str:
    """Write the list."""
    return NOTES.sub(lambda found: f"<ol><li>{NEXT.sub('</li><li>', found[1])}</li></ol>", html)
