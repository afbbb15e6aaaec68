"""The ``agent`` strategy of ``run``: the loop of :mod:`rlm_sandbox.strategies.agent`, wired to the daemon.

The root model sees the text documents that any model sees. What was said is kept in the session's folder, readable by its user only.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_sandbox import settings
from rlm_sandbox.cli import output
from rlm_sandbox.cli.text import render
from rlm_sandbox.daemon import client
from rlm_sandbox.errors import BudgetExceeded
from rlm_sandbox.strategies.agent import history
from rlm_sandbox.strategies.agent.loop import MAX_STEPS, Agent

if TYPE_CHECKING:
    from collections.abc import Callable

TRANSCRIPT = "transcript.jsonl"

TURN_TOKENS = 4096
"""Tokens of one turn: a long cell has a thousand."""

LOCAL_TURN_TOKENS = 300
"""The same for the small local model, which repeats itself to the end of whatever it is given."""


LOCAL_OUTPUT = 1200
"""Characters of a cell's output that the small local model is shown: its window holds two such outputs beside the task."""


class Wire:
    """One session's way to the daemon, and its transcript."""

    def __init__(
        self,
        session: str,
        folder: Path,
        *,
        model: str | None,
        turn_tokens: int,
        shown: int | None,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._session = session
        self._turn_tokens = turn_tokens
        self._shown = shown
        self._model = model
        self._progress = progress
        self._turn = 0
        self.transcript = folder / TRANSCRIPT
        # A session that is reopened keeps the runs before.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self.transcript, flags, 0o600), "w", encoding="utf-8")

    def ask(self, system: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        """Ask the root model."""
        self._turn += 1
        if self._progress is not None:
            self._progress({"message": f"step {self._turn}: the root model"})
        body = json.dumps({"system": system, "messages": messages, "tools": tools}).encode()
        named = {"session": self._session, "model": self._model, "max_tokens": self._turn_tokens, "step": self._turn}
        return client.call("converse", named, body, spawn=False)

    def execute(self, code: str) -> dict[str, Any]:
        """Run a cell to its end."""
        named = {
            "session": self._session,
            "stdout_max": settings.stdout_max(),
            "stdout_default": self._shown,
        }
        return client.call("exec", named, code.encode("utf-8", "replace"), spawn=False, progress=self._progress)

    def note(self, kind: str, value: Any) -> None:
        """Write a line of the transcript at once: a run that is killed has said what it said."""
        self._file.write(json.dumps({"at": round(time.time(), 3), "kind": kind, "value": value}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the transcript."""
        self._file.close()


def _told(kind: str, document: dict[str, Any]) -> str:
    """Return the text of a document without the command it proposes: the root model has a tool, no shell."""
    body, _, status = render(kind, document).rstrip("\n").rpartition("\n")
    return f"{body}\n{status.split(' | next: ')[0]}".lstrip("\n")


def by_agent(
    question: str,
    started: dict[str, Any],
    *,
    root_model: str | None,
    max_steps: int | None,
    show: Callable[[dict[str, Any]], None] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do the job; returns the document of the cell that gave the answer, and what is to be told of the way there."""
    small = started["provider"] == "local"
    wire = Wire(
        started["session"],
        Path(started["session_dir"]),
        model=root_model,
        turn_tokens=LOCAL_TURN_TOKENS if small else TURN_TOKENS,
        shown=LOCAL_OUTPUT if small else settings.stdout_default("text"),
        progress=show,
    )
    agent = Agent(
        ask=wire.ask,
        execute=wire.execute,
        show=lambda document: _told("executed", document),
        note=wire.note,
        max_steps=max_steps or MAX_STEPS,
        history_max=history.LOCAL_MAX if small else history.HISTORY_MAX,
    )
    output.note(f"[rlm] transcript: {wire.transcript}")
    try:
        outcome = agent.run(question, _told("started", started))
    except BudgetExceeded as error:
        # The session ends with the run, so that raising its cap is for those who bring it back.
        resume = f"rlm-sandbox resume --session {started['session']}"
        hint = f"give the run a larger --budget, --token-limit or --cost-limit; what its cells made comes back with: {resume}"
        raise BudgetExceeded(error.message, hint=hint) from error
    finally:
        wire.close()
    told = {
        "root_model": root_model or started["model"],
        "steps": outcome.steps,
        "ended": outcome.how,
        "transcript": str(wire.transcript),
    }
    return outcome.document, told
