"""Masks and duals are those that other machines found, bit for bit."""

from __future__ import annotations

import json

import digests


def test_every_machine_finds_the_same() -> None:
    known = json.loads(digests.FILE.read_text(encoding="utf-8"))
    found = digests.found()
    assert found == known
