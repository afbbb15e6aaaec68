"""The live line of a person's terminal, drawn on a recorded console."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from rlm_sandbox.cli import output, progress

pytestmark = pytest.mark.unit

DOCUMENT = {
    "cell": 3,
    "calls_done": 10,
    "calls_failed": 0,
    "calls_planned": 40,
    "tokens": 1234,
    "cost_usd": 0.0125,
    "elapsed_ms": 20_000,
    "timeout_s": 600.0,
}


def test_the_line_tells_calls_time_left_tokens_cost_and_the_time_out():
    assert progress.line(DOCUMENT) == ("cell 3: sub-calls 10/40, about 60 s left, 1234 tokens, $0.0125, 20 of 600 s")


def test_failed_calls_are_told_when_there_are_any():
    assert "2 failed" in progress.line({**DOCUMENT, "calls_failed": 2})


def test_a_message_is_shown_as_it_is_and_never_as_markup(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=80))
    live = progress.Live()
    live({"message": "staging [red]3[/red] files"})
    live._live.stop()
    assert "[red]3[/red]" in screen.getvalue()


@pytest.mark.parametrize(("display", "told"), [(progress.Live, {"message": "staging"}), (progress.Bar, DOCUMENT)])
def test_a_document_goes_to_stdout_while_progress_is_shown_on_a_terminal(monkeypatch, display, told):
    screen, printed = io.StringIO(), io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=20))
    monkeypatch.setattr(output, "_displays", [])
    monkeypatch.setattr(sys, "stdout", printed)
    show = display()
    show(told)
    document = {"key": "longer than the terminal is wide"}
    output.document(document, "json", "any")
    assert json.loads(printed.getvalue()) == document
    assert "key" not in screen.getvalue()
    drawn = len(screen.getvalue())
    show(told)  # it comes back where a command goes on
    output.document(document, "json", "any")
    assert len(screen.getvalue()) > drawn
