"""Names of options in a text stay on one line: browsers break them after a hyphen, and leave "--" there alone."""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"<code>([^<]*)</code>")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def on_page_content(html: str, **others: Any) -> str:
    """Mark the options, for the style sheet."""
    return CODE.sub(lambda found: OPTION.sub(r'<span class="option">\g<0></span>', found[0]), html)
