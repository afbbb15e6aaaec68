"""The loop: ask the root model, run what it wrote, show it the bounded output, until FINAL or the last step.

The root model never sees anything of the input but what :attr:`Agent.show` makes of a cell's document. A model that only talks is reminded once; if it
still talks after cells were run, what it says is taken as its answer, given to the session by a cell like any other and marked as prose. A model
that never ran a cell has no answer, whatever it says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from rlm_sandbox.errors import DeadlineError, ProviderError
from rlm_sandbox.strategies.agent import history
from rlm_sandbox.strategies.agent.reply import TOOL, Cell, Refused, Reply, read

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_STEPS = 12
"""Turns of the root model when nobody says otherwise: a job on a log takes four to six."""

PROSE_MAX = 2
"""Turns without code in a row after which talk counts as an answer."""

TOOLS = [
    {
        "name": TOOL,
        "description": "Run Python in the session. Returns what it printed, cut to a bounded block, and the variables there are.",
        "input_schema": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The cell."}},
            "required": ["code"],
        },
    }
]


def prompt(name: str, **values: object) -> str:
    """Return a prompt file with ``$names`` replaced."""
    text = resources.files(__package__).joinpath("prompts").joinpath(f"{name}.md").read_text(encoding="utf-8").strip()
    return Template(text).safe_substitute(values) if values else text


@dataclass(frozen=True)
class Outcome:
    """How it ended: the document of the cell that gave the answer, the steps it took, and ``"final"`` or ``"prose"``."""

    document: dict[str, Any]
    steps: int
    how: str


@dataclass
class Agent:
    """One job, with all it touches injected.

    ``ask`` takes system, messages and tools and returns ``{"content", "stop_reason", ...}``; ``execute`` runs a cell and returns its document;
    ``show`` makes the document a bounded text; ``note`` keeps the transcript.
    """

    ask: Callable[[str, list[dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]
    execute: Callable[[str], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]
    note: Callable[[str, Any], None]
    max_steps: int = MAX_STEPS
    history_max: int = history.HISTORY_MAX
    _messages: list[dict[str, Any]] = field(default_factory=list)
    _ran: bool = False
    _prose: int = 0
    _budget: dict[str, Any] = field(default_factory=dict)

    def run(self, question: str, facts: str) -> Outcome:
        """Do the job.

        Raises:
            DeadlineError: the steps are used up and there is no answer.
            ProviderError: the root model never ran a cell.
            RLMError: whatever ``ask`` and ``execute`` raise.
        """
        system = prompt("system")
        self.note("system", system)
        self._say([_text(prompt("task", question=question, facts=facts, steps=self.max_steps))])
        for step in range(1, self.max_steps + 1):
            last = step == self.max_steps or self._one_call_left()
            if last and step > 1:
                self._messages[-1]["content"].append(_text(prompt("last")))
            turn = self._turn(system)
            reply = read(turn["content"], turn.get("stop_reason"))
            document = self._act(reply, last=last)
            if document is not None:
                return Outcome(document, step, "prose" if reply.is_prose else "final")
        raise self._unanswered()

    def _turn(self, system: str) -> dict[str, Any]:
        """Ask for one turn. One without content, as models send now and then, counts as talk; the API takes no such message back."""
        turn = self.ask(system, history.within(self._messages, self.history_max), TOOLS)
        self.note("assistant", turn)
        if turn["content"]:
            self._messages.append({"role": "assistant", "content": turn["content"]})
        self._budget = turn.get("budget") or {}
        return turn

    def _one_call_left(self) -> bool:
        """Tell whether the session's cap on calls allows one more turn and no other: the model is to know before it is gone."""
        limit = self._budget.get("limit")
        return limit is not None and limit - self._budget["calls"] == 1

    def _act(self, reply: Reply, *, last: bool) -> dict[str, Any] | None:
        """Run what there is to run; returns the document of the cell that gave the answer."""
        if reply.is_prose:
            return self._talk(reply, last=last)
        self._prose = 0
        results: list[dict[str, Any]] = []
        for step in reply.steps:
            if isinstance(step, Refused):
                results.append(_result(step.tool_use, step.why, error=True))
                continue
            document = self._run(step)
            if document["final"]:
                return document
            shown = self.show(document)
            results.append(_text(shown) if step.tool_use is None else _result(step.tool_use, shown))
        self._say(results)
        return None

    def _talk(self, reply: Reply, *, last: bool) -> dict[str, Any] | None:
        self._prose += 1
        if reply.cut_off:
            self._say([_text(prompt("cut_off"))])
        elif self._ran and reply.text and (last or self._prose >= PROSE_MAX):
            document = self._run(Cell(f"FINAL({reply.text!a})"))
            if document["final"]:
                return document
            self._say([_text(self.show(document))])
        else:
            self._say([_text(prompt("nudge"))])
        return None

    def _run(self, cell: Cell) -> dict[str, Any]:
        document = self.execute(cell.code)
        self.note("cell", {"code": cell.code, "document": document})
        self._ran = True
        self._budget = document.get("budget") or self._budget
        return document

    def _say(self, blocks: list[dict[str, Any]]) -> None:
        self.note("user", blocks)
        if self._messages and self._messages[-1]["role"] == "user":  # nothing was said in between
            self._messages[-1]["content"].extend(blocks)
        else:
            self._messages.append({"role": "user", "content": blocks})

    def _unanswered(self) -> DeadlineError | ProviderError:
        if self._ran:
            return DeadlineError(
                f"the root model gave no answer in {self.max_steps} steps",
                hint="raise --max-steps, name a stronger --root-model, or narrow the question; the transcript is kept",
            )
        return ProviderError(
            f"the root model wrote no code in {self.max_steps} steps",
            hint="name a stronger --root-model; the transcript is kept",
            code="no_code",
        )


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _result(tool_use: str, text: str, *, error: bool = False) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": tool_use, "content": text, **({"is_error": True} if error else {})}
