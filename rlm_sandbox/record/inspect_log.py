"""A run as a log of inspect_ai (version 2 of its JSON format), which ``inspect view`` opens.

The run is one sample: its input the question, its messages the cells and what they printed, its events the cells with the sub-calls in them. Foreign
text is made visible here too: the viewer renders Markdown, which can hold steering characters though no script.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from rlm_sandbox import __version__
from rlm_sandbox.sanitize import visible
from rlm_sandbox.session.convert import usd

if TYPE_CHECKING:
    from rlm_sandbox.record.recording import Recording
    from rlm_sandbox.session import records as r
    from rlm_sandbox.session.past import PastCell

LOG_VERSION = 2
"""Read and written by inspect_ai since 0.3.6; checked against 0.3.285."""

_STOPS = {
    "end_turn": "stop",
    "stop": "stop",
    "stop_sequence": "stop",
    "max_tokens": "max_tokens",
    "length": "max_tokens",
}


def build(recording: Recording) -> bytes:
    """Return the log."""
    past, start = recording.past, recording.past.latest
    model = f"{start.provider}/{start.model}" if start else "none/none"
    began = past.start.at if past.start else past.last_at
    log = {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "eval_id": _id("eval", past.head),
            "run_id": _id("run", past.head),
            "created": began,
            "task": "rlm-sandbox",
            "task_id": _id("task", past.head),
            "task_version": 0,
            "task_attribs": {},
            "task_args": {},
            "dataset": {"name": visible(start.input.display) if start else "", "samples": 1, "sample_ids": [1]},
            "model": visible(model),
            "model_args": {},
            "config": {"epochs": 1},
            "packages": {"rlm-sandbox": __version__},
            "metadata": {"session": start.session if start else "", "journal_head": past.head},
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {"total_samples": 1, "completed_samples": 1, "scores": []},
        "stats": {"started_at": began, "completed_at": past.last_at, "model_usage": _usage_by_model(past.calls)},
        "samples": [_sample(recording, model)],
    }
    return json.dumps(log, indent=1).encode() + b"\n"


def _sample(run: Recording, model: str) -> dict[str, Any]:
    past, start = run.past, run.past.latest
    question = start.question if start and start.question else f"A run over {start.input.display if start else '?'}"
    final = _text(run, past.final.text if past.final else None) if past.final else ""
    messages: list[dict[str, Any]] = [{"id": "question", "role": "user", "content": visible(question)}]
    events: list[dict[str, Any]] = []
    at = 0.0
    for cell in past.cells.values():
        messages += _messages(run, cell)
        events += _events(run, cell, at)
        at += cell.result.elapsed_ms / 1000 if cell.result else 0.0
    return {
        "id": 1,
        "epoch": 1,
        "input": visible(question),
        "target": "",
        "messages": messages,
        "output": _output(model, final, None),
        "scores": {},
        "metadata": {"input_sha256": past.input.digest if past.input else None, "redacted": run.redacted},
        "store": {},
        "events": events,
        "model_usage": _usage_by_model(past.calls),
        "uuid": _id("sample", past.head),
        "attachments": {},
        "total_time": at,
        "working_time": at,
    }


def _messages(run: Recording, cell: PastCell) -> list[dict[str, Any]]:
    call = f"cell-{cell.number}"
    code, output = _text(run, cell.code), ""
    if cell.result is not None:
        output = "\n".join(
            part for part in (_text(run, cell.result.stdout.text), _text(run, cell.result.error)) if part
        )
    calls = [{"id": call, "function": "python", "arguments": {"code": code}, "type": "function"}]
    return [
        {"id": f"{call}-code", "role": "assistant", "content": "", "source": "generate", "tool_calls": calls},
        {"id": f"{call}-output", "role": "tool", "content": output, "function": "python", "tool_call_id": call},
    ]


def _events(run: Recording, cell: PastCell, at: float) -> list[dict[str, Any]]:
    span = f"cell-{cell.number}"
    common = {"timestamp": cell.began_at, "working_start": at}
    took = cell.result.elapsed_ms / 1000 if cell.result else 0.0
    result = _text(run, cell.result.stdout.text) if cell.result else ""
    error = {"type": "unknown", "message": _text(run, cell.result.error)} if cell.result and cell.result.error else None
    tool = {
        "event": "tool",
        "type": "function",
        "id": span,
        "function": "python",
        "arguments": {"code": _text(run, cell.code)},
        "result": result,
        "error": error,
        "events": [],
        "working_time": took,
        "span_id": span,
        **common,
    }
    events = [
        {"event": "span_begin", "id": span, "type": "tool", "name": f"cell {cell.number}", "span_id": span, **common},
        tool,
    ]
    events += [_model(run, call, cell, at) for call in cell.calls]
    events.append(
        {"event": "span_end", "id": span, "span_id": span, "timestamp": cell.began_at, "working_start": at + took}
    )
    return events


def _model(run: Recording, call: r.Call, cell: PastCell, at: float) -> dict[str, Any]:
    asked = call.request
    messages = [
        {"id": f"{call.digest[:12]}-{name}", "role": role, "content": _text(run, digest)}
        for name, role, digest in (
            ("system", "system", asked.system),
            ("prefix", "user", asked.prefix),
            ("prompt", "user", asked.prompt),
        )
        if digest is not None
    ]
    config = {name: value for name, value in (("max_tokens", asked.max_tokens),) if value is not None}
    error = None if call.error is None else visible(f"{call.error.kind} ({call.error.code}): {call.error.message}")
    return {
        "event": "model",
        "timestamp": cell.began_at,
        "working_start": at + call.asked_ms / 1000,
        "working_time": call.elapsed_ms / 1000,
        "span_id": f"cell-{cell.number}",
        "model": visible(call.model),
        "input": messages,
        "tools": [],
        "tool_choice": "none",
        "config": config,
        "output": _output(call.model, _text(run, call.answer), call),
        "retries": max(0, len(call.attempts) - 1),
        "error": error,
        "cache": "read" if call.outcome == "cached" else None,
        "completed": call.at,
    }


def _output(model: str, text: str, call: r.Call | None) -> dict[str, Any]:
    stop = _STOPS.get((call.stop_reason if call else None) or "stop", "unknown")
    message = {"role": "assistant", "content": text, "source": "generate", "model": visible(model)}
    output: dict[str, Any] = {"model": visible(model), "choices": [], "completion": text}
    if text or call is None:
        output["choices"] = [{"message": message, "stop_reason": stop}]
    if call is not None and call.usage is not None:
        output["usage"] = _usage([call])
        output["time"] = call.elapsed_ms / 1000
    return output


def _usage_by_model(calls: list[r.Call]) -> dict[str, Any]:
    bought = [call for call in calls if call.outcome == "answered" and call.usage is not None]
    return {
        visible(model): _usage([call for call in bought if call.model == model])
        for model in sorted({c.model for c in bought})
    }


def _usage(calls: list[r.Call]) -> dict[str, Any]:
    sums = [sum((call.usage or [0, 0, 0, 0])[index] for call in calls) for index in range(4)]
    return {
        "input_tokens": sums[0],
        "output_tokens": sums[1],
        "total_tokens": sum(sums),
        "input_tokens_cache_read": sums[2],
        "input_tokens_cache_write": sums[3],
        "total_cost": usd(sum(call.cost_micro for call in calls)),
    }


def _text(run: Recording, digest: str | None) -> str:
    if digest is None:
        return ""
    text = run.text(digest)
    return f"(sha256 {digest})" if text is None else visible(text)


def _id(what: str, seed: str) -> str:
    return hashlib.sha256(f"{what}\0{seed}".encode()).hexdigest()[:22]
