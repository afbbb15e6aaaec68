"""A page about a run for a person who has a bundle and no program: Markdown, every foreign text visible, short, and fenced."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from rlm_sandbox.sanitize import one_line, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.session.past import Past

CODE_MAX = 2000
"""Characters of a cell in the summary: a screen; the whole is in the bundle."""


def build(past: Past, text: Callable[[str | None], str | None]) -> bytes:
    """Return the summary. ``text`` gives a text by digest, or None where the record does not hold it."""
    start = past.latest
    lines = ["# A run of rlm-sandbox", ""]
    if start is not None:
        lines += [
            f"- session: `{_code(start.session)}`, from {past.start.at if past.start else start.at} to {past.last_at}",
            f"- input: `{_code(start.input.display)}` ({start.input.kind}, {start.input.files} file(s), {start.input.bytes} bytes)",
            f"- input sha256: `{past.input.digest if past.input else None}`",
            f"- sub-model: `{_code(start.provider)}` `{_code(start.model)}`",
            f"- image: `{_code(start.image.name)}` `{_code(start.image.id)}`, runtime `{_code(start.runtime)}`",
        ]
        if start.question:
            lines.append(f"- question: `{_code(start.question)}`")
    calls = past.calls
    kinds = Counter(call.outcome for call in calls)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    cost = sum(call.cost_micro for call in calls) / 1_000_000
    lines += [f"- sub-calls: {told}; {cost:.6f} USD", f"- journal: {past.records} records, head `{past.head}`"]
    if past.final is not None:
        lines.append(f"- final answer: {past.final.bytes} bytes, sha256 `{past.final.digest}`")
    for cell in past.cells.values():
        lines += ["", f"## Cell {cell.number}: {cell.status}", ""]
        code = text(cell.code)
        if code is not None:
            lines += _fenced(code, "python")
        if cell.result is not None and cell.result.error is not None and (error := text(cell.result.error)):
            lines += ["", *_fenced(error, "")]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _code(value: str) -> str:
    return one_line(value, 300).replace("`", "'")


def _fenced(value: str, language: str) -> list[str]:
    shown = visible(value[:CODE_MAX]) + ("\n[...]" if len(value) > CODE_MAX else "")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", shown.rstrip("\n"), fence]
