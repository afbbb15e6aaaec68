"""What a root model wrote, as something to do: run cells, or tell it why nothing was run.

Models call the tool, or write a fenced block, or name FINAL in plain text, or only talk. Each of these has one meaning here. Nothing is guessed: a
fence without a language is code only where it parses.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

TOOL = "python"

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_CODE = {"python", "py", "python3", "repl"}
_FINAL = re.compile(r"^[ \t]*(FINAL(?:_VAR)?\(.*\))[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """Code to run. ``tool_use`` is the id of the call that asked for it, None where it stood in the text."""

    code: str
    tool_use: str | None = None


@dataclass(frozen=True)
class Refused:
    """A tool call that cannot be carried out, and why."""

    tool_use: str
    why: str


@dataclass
class Reply:
    """One turn of the root model, understood."""

    steps: list[Cell | Refused] = field(default_factory=list)
    text: str = ""
    cut_off: bool = False

    @property
    def is_prose(self) -> bool:
        """True where there is nothing to run and nothing to refuse."""
        return not self.steps


def read(content: list[dict[str, Any]], stop_reason: str | None) -> Reply:
    """Understand a turn."""
    text = "\n".join(str(block.get("text", "")) for block in content if block.get("type") == "text").strip()
    reply = Reply(text=text, cut_off=stop_reason == "max_tokens")
    calls = [block for block in content if block.get("type") == "tool_use"]
    if calls:
        reply.steps = [_call(block, cut_off=reply.cut_off and block is calls[-1]) for block in calls]
    elif (code := code_in(text)) and not (reply.cut_off and not _parses(code)):
        reply.steps = [Cell(code)]
    return reply


def _call(block: dict[str, Any], *, cut_off: bool) -> Cell | Refused:
    ident = str(block.get("id", ""))
    given = block.get("input")
    code = given.get("code") if isinstance(given, dict) else None
    if block.get("name") != TOOL:
        return Refused(ident, f"there is no tool {str(block.get('name'))[:40]!r}; the only one is {TOOL!r}")
    if block.get("broken") or (cut_off and not _parses(str(code))):
        return Refused(ident, "the call was cut off or is not valid JSON; nothing was run. Write a shorter cell")
    if not isinstance(code, str) or not code.strip():
        return Refused(ident, "the call has no code: give it as {'code': '...'}")
    return Cell(code, ident)


def code_in(text: str) -> str:
    """Return the code that a text contains: its fenced blocks of Python, else a FINAL that stands on lines of its own."""
    blocks = [
        body
        for _, language, body in _FENCE.findall(text)
        if language.lower() in _CODE or (not language and _parses(body))
    ]
    if blocks:
        return "\n".join(blocks).strip()
    found = _FINAL.search(text)
    return found[1] if found and _parses(found[1]) else ""


def _parses(code: str) -> bool:
    try:
        return bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
