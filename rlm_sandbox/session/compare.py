"""Did a cell that was run again do what its record says?

Compared are status, output, error, final answer and the names of variables. Addresses (``<object at 0x7f...>``) differ from one process to
the next and mean nothing, so they are taken out of output and errors before these count as different; a final answer is compared byte by byte.
A cell that a clock or a hand ended is compared by having been ended only: where it stood is not in its code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.session.cell import CellRun
    from rlm_sandbox.session.past import PastCell

KEPT = 16 * 1024
"""Characters of a cell's output in the record, half from its head and half from its tail; the digest is over all of it."""

_ADDRESS = re.compile(r"0x[0-9a-f]{6,16}")
_SHOWN = 160


@dataclass(frozen=True)
class Difference:
    """``field`` is status, final, error, output or variables; ``expected`` and ``got`` are short and fit for a line."""

    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.field}: recorded {self.expected}, now {self.got}"


def difference(
    cell: PastCell, run: CellRun, variables: bytes | None, read: Callable[[str], bytes]
) -> Difference | None:
    """Return the first thing in which ``run`` differs from its record, the gravest first; ``variables`` None are not compared."""
    past = cell.result
    if past is None:
        return None
    if cell.cut_by_clock:
        ended = run.status in {"timeout", "interrupted"}
        return None if ended or run.status == "ok" else Difference("status", past.status, run.status)
    if run.status != past.status:
        return Difference("status", past.status, f"{run.status} ({_last_line(run.error or '')})")
    mine, theirs = run.final_digest, past.final.digest if past.final else None
    if mine != theirs:
        return Difference("final", _digest(theirs), _digest(mine))
    error = _text(past.error, read)
    if _plain(error) != _plain(run.error or ""):
        return Difference("error", repr(_last_line(error)), repr(_last_line(run.error or "")))
    found = _output(cell, run, read)
    return found if found is not None or variables is None else _variables(past.variables, variables, read)


def _output(cell: PastCell, run: CellRun, read: Callable[[str], bytes]) -> Difference | None:
    past = cell.result
    if past is None or run.spool.digest == past.stdout.digest:
        return None
    before, now = _text(past.stdout.text, read), run.spool.shown(KEPT)[0]
    if run.spool.chars == past.stdout.chars and _plain(before) == _plain(now) and before != now:
        return None
    return apart("output", before, now)


def apart(field: str, before: str, now: str) -> Difference:
    """Return two texts as a difference, each from shortly before where they part."""
    at = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    low = max(0, at - 20)
    where = f" (from character {low})" if low else ""
    return Difference(field, repr(before[low : low + _SHOWN]) + where, repr(now[low : low + _SHOWN]))


def _variables(recorded: str, now: bytes, read: Callable[[str], bytes]) -> Difference | None:
    try:
        before = read(recorded)
        if before == now:
            return None
        mine, theirs = (
            {entry["name"]: f"{entry['name']}: {entry['type']}[{entry['len']}]" for entry in json.loads(raw)}
            for raw in (before, now)
        )
    except (KeyError, ValueError, TypeError):
        return None
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            return Difference("variables", mine.get(name, f"no {name}"), theirs.get(name, f"no {name}"))
    return None


def _text(digest: str | None, read: Callable[[str], bytes]) -> str:
    if digest is None:
        return ""
    try:
        return read(digest).decode("utf-8", "replace")
    except KeyError:
        return ""


def _plain(text: str) -> str:
    return _ADDRESS.sub("0x?", text)


def _digest(digest: str | None) -> str:
    return "none" if digest is None else f"sha256 {digest[:16]}..."


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:_SHOWN] if lines else ""
