"""The frame of a report's page, and text in it."""

from __future__ import annotations

import html

__all__ = ["PAGE", "text_of"]


def text_of(text: str) -> str:
    """Text from anywhere as nothing but text; what cannot be seen is spelled out."""
    return html.escape("".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
:root {{ color-scheme: light dark; --line: #8884; --card: #8881; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; }}
h1, h2, p, li, dd {{ overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }}
h2 {{ font-size: 1.1rem; margin: 1.5rem 0 .5rem; }}
.facts {{ display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }}
.facts div {{ background: var(--card); border-radius: 6px; padding: .75rem; }}
dt {{ font-size: 1.4rem; font-weight: 600; }}
dd {{ margin: 0; }}
.plots {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
img {{ background: #fff; border-radius: 6px; display: block; height: auto; max-width: 36rem; width: 100%; }}
figcaption {{ font-size: .9rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }}
th {{ white-space: normal; }}
th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
td code {{ display: block; max-width: min(28rem, 60vw); width: max-content; }}
td code {{ overflow-wrap: anywhere; white-space: normal; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
