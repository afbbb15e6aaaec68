"""Two runs side by side: what was asked, what came back, what it cost, and where they part.

Cells are matched in their order, calls within a cell by their ordinal: two runs of one program agree in both, and where they do not,
that is the difference. Answers are compared by digest and shown by their beginnings.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rlm_sandbox.sanitize import one_line
from rlm_sandbox.session.convert import usd

if TYPE_CHECKING:
    from rlm_sandbox.record.recording import Recording
    from rlm_sandbox.session import records as r
    from rlm_sandbox.session.past import PastCell

SHOWN = 200
"""Characters of a text in a comparison."""

CALLS_MAX = 100
"""Differing calls that are listed; more are counted."""


def compare(one: Recording, other: Recording) -> dict[str, Any]:
    """Return the comparison as a document."""
    cells: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    differing_calls = 0
    for mine, theirs in zip_longest(_lived(one), _lived(other)):
        number = (mine or theirs).number
        cells.append(_cell(number, one, mine, other, theirs))
        found = _calls(number, one, mine, other, theirs)
        differing_calls += len(found)
        calls += found[: CALLS_MAX - len(calls)] if len(calls) < CALLS_MAX else []
    final_same = _digest(one) == _digest(other)
    return {
        "format_version": 1,
        "identical": final_same and not differing_calls and all(cell["same"] for cell in cells),
        "same_input": _input(one) == _input(other) if _input(one) and _input(other) else None,
        "a": _side(one),
        "b": _side(other),
        "cells": cells,
        "calls_differing": differing_calls,
        "calls": calls,
        "final": {"same": final_same, "a": _final(one), "b": _final(other)},
        "warnings": [],
    }


def _lived(run: Recording) -> list[PastCell]:
    """Return the cells that left something: one that killed its interpreter is left out when a run is repeated."""
    return [cell for cell in run.past.cells.values() if cell.status != "kernel_died"]


def _side(run: Recording) -> dict[str, Any]:
    start, calls = run.past.latest, run.past.calls
    usage = [call.usage for call in calls if call.usage and call.outcome == "answered"]
    return {
        "name": run.name,
        "session": start.session if start else None,
        "provider": start.provider if start else None,
        "model": start.model if start else None,
        "image": start.image.id if start else None,
        "cells": len(run.past.cells),
        "calls": len(calls),
        "answered": sum(call.outcome == "answered" for call in calls),
        "cached": sum(call.outcome == "cached" for call in calls),
        "failed": sum(call.outcome == "failed" for call in calls),
        "tokens_in": sum(each[0] + each[2] + each[3] for each in usage),
        "tokens_out": sum(each[1] for each in usage),
        "cost_usd": usd(sum(call.cost_micro for call in calls)),
        "final_sha256": _digest(run),
    }


def _cell(
    number: int, one: Recording, mine: PastCell | None, other: Recording, theirs: PastCell | None
) -> dict[str, Any]:
    outputs = [cell.result.stdout.digest if cell and cell.result else None for cell in (mine, theirs)]
    states = [cell.status if cell else None for cell in (mine, theirs)]
    codes = [cell.code if cell else None for cell in (mine, theirs)]
    same = outputs[0] == outputs[1] and states[0] == states[1] and codes[0] == codes[1]
    return {
        "cell": number,
        "same": same,
        "code_same": codes[0] == codes[1],
        "output_same": outputs[0] == outputs[1],
        "a": _cell_side(one, mine),
        "b": _cell_side(other, theirs),
    }


def _cell_side(run: Recording, cell: PastCell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    result = cell.result
    return {
        "status": cell.status,
        "calls": len(cell.calls),
        "cost_usd": usd(sum(call.cost_micro for call in cell.calls)),
        "elapsed_ms": result.elapsed_ms if result else None,
        "output": None if result is None else _shown(run, result.stdout.text),
    }


def _calls(
    number: int, one: Recording, mine: PastCell | None, other: Recording, theirs: PastCell | None
) -> list[dict[str, Any]]:
    pairs = zip_longest(*(sorted(cell.calls if cell else (), key=lambda call: call.ordinal) for cell in (mine, theirs)))
    found = []
    for a, b in pairs:
        asked = a is not None and b is not None and a.digest == b.digest
        answered = (
            a is not None and b is not None and (a.answer, a.outcome == "failed") == (b.answer, b.outcome == "failed")
        )
        if asked and answered:
            continue
        found.append(
            {
                "cell": number,
                "ordinal": (a or b).ordinal,
                "request_same": asked,
                "answer_same": answered,
                "a": _call_side(one, a),
                "b": _call_side(other, b),
            }
        )
    return found


def _call_side(run: Recording, call: r.Call | None) -> dict[str, Any] | None:
    if call is None:
        return None
    return {
        "outcome": call.outcome,
        "model": call.model,
        "prompt": _shown(run, call.request.prompt),
        "answer": _shown(run, call.answer),
        "error": None if call.error is None else one_line(call.error.message, SHOWN),
        "cost_usd": usd(call.cost_micro),
    }


def _shown(run: Recording, digest: str | None) -> str | None:
    text = run.text(digest)
    return None if text is None else one_line(text, SHOWN)


def _final(run: Recording) -> dict[str, Any] | None:
    final = run.past.final
    if final is None:
        return None
    return {"bytes": final.bytes, "sha256": final.digest, "preview": _shown(run, final.text)}


def _digest(run: Recording) -> str | None:
    return run.past.final.digest if run.past.final else None


def _input(run: Recording) -> str | None:
    return run.past.input.digest if run.past.input else None
