"""English sentences from a small grammar: templates of a topic, with choices in brackets that are filled at random.

Every sentence is made from the templates in ``grammar.txt`` and a seed. Topics in `UNSEEN` give none to calibrate on,
so that one part of the held-out sentences is about things that no calibration sentence speaks of.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TOPICS", "UNSEEN", "Sentences", "generate", "variety"]

_TEXT = Path(__file__).with_name("grammar.txt").read_text(encoding="utf-8")
TOPICS: dict[str, list[str]] = {
    part.splitlines()[0]: part.splitlines()[1:] for part in _TEXT.removeprefix("# ").strip().split("\n\n# ")
}
"""Templates by topic."""
UNSEEN = ("space", "farming")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Sentences:
    """What is calibrated on, as many to add to that, and what is held out: of the same topics, and of unseen ones."""

    calibration: tuple[str, ...]
    more: tuple[str, ...]
    near: tuple[str, ...]
    far: tuple[str, ...]


def generate(calibration: int, held_out: int, seed: int = 0) -> Sentences:
    """Make different sentences, the topics in turn and their templates at random.

    Parameters
    ----------
    calibration : int
        How many to calibrate on.
    held_out : int
        How many of the same topics, and how many of the unseen ones.
    seed : int
    """
    chosen = random.Random(seed)
    seen = tuple(name for name in TOPICS if name not in UNSEEN)
    near = _some(seen, calibration + held_out, chosen)
    far = _some(UNSEEN, held_out, chosen)
    more = _some(seen, len(near) + calibration, chosen, near)[len(near) :]
    return Sentences(near[:calibration], more, near[calibration:], far)


def _some(topics: tuple[str, ...], count: int, chosen: random.Random, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """So many different sentences, those that are known among them."""
    if count > len(topics) * min(sum(map(variety, lines)) for lines in (TOPICS[name] for name in topics)):
        raise ValueError(f"count must not be above what {', '.join(topics)} can say, as {count} is; ask for fewer")
    found = dict.fromkeys(known)
    while len(found) < count:
        template = chosen.choice(TOPICS[topics[len(found) % len(topics)]])
        found[_CHOICE.sub(lambda match: chosen.choice(match[1].split("|")), template)] = None
    return tuple(found)


def variety(template: str) -> int:
    """How many sentences a template can make."""
    return math.prod(match[1].count("|") + 1 for match in _CHOICE.finditer(template))
