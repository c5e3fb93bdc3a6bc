"""Progress of a run over a model: whom it is told, and what a bar shows."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytest.importorskip("torch")

from nmflow.errors import InputTypeError
from nmflow.torch.watch import watching


def shown(capsys: pytest.CaptureFixture[str], progress: Any, *steps: tuple[str, int, int]) -> str:
    with watching("calibrating", progress) as report:
        for step in steps:
            report(*step)
    said = capsys.readouterr()
    assert not said.out
    return said.err


def test_a_bar_shows_steps_and_names_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(capsys, True, ("[b]layer[/b].weight", 1, 4))
    assert "calibrating" in text
    assert "[b]layer[/b].weight" in text
    assert "1/4" in text
    assert "2/?" in shown(capsys, True, ("batch 3", 2, 0))  # nobody knows how many


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals_unless_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert bool(shown(capsys, None, ("batch 1", 0, 4))) == terminal
    assert not shown(capsys, False, ("batch 1", 0, 4))
    assert shown(capsys, True, ("batch 1", 0, 4))


def test_progress_is_a_function_or_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    assert not shown(capsys, lambda *step: seen.append(step), ("batch 1", 0, 4))
    assert seen == [("batch 1", 0, 4)]
    with pytest.raises(InputTypeError, match="progress must be "):
        shown(capsys, 3)
