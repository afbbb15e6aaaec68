"""A run as OpenTelemetry spans: one trace in OTLP's JSON, as a collector's ``otlpjsonfile`` receiver reads it.

The run is an agent's invocation, each cell a tool's execution, each sub-call a chat, with the attributes of the GenAI semantic conventions
(1.37). Texts stay out: whoever sends traces somewhere did not decide to send prompts. Identifiers come from the record, so the same
record makes the same trace.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rlm_sandbox import __version__
from rlm_sandbox.record.names import ModelNames, word
from rlm_sandbox.sanitize import one_line

if TYPE_CHECKING:
    from rlm_sandbox.record.recording import Recording
    from rlm_sandbox.session import records as r
    from rlm_sandbox.session.past import PastCell

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
_INTERNAL, _CLIENT = 1, 3
_OK, _ERROR = 1, 2
_MS = 1_000_000


def build(recording: Recording) -> bytes:
    """Return an ``ExportTraceServiceRequest`` as JSON, on one line."""
    past, start = recording.past, recording.past.latest
    first = past.start
    trace = _id("trace", first.prev + first.at if first else "", 32)
    root = _id("run", trace, 16)
    began, ended = _nanos(first.at if first else past.last_at), _nanos(past.last_at)
    spans = [
        _span(
            trace,
            root,
            "",
            "invoke_agent rlm-sandbox",
            (began, max(began, ended)),
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "rlm-sandbox",
                "gen_ai.provider.name": start.provider if start else "",
                "gen_ai.request.model": start.model if start else "",
                "gen_ai.conversation.id": start.session if start else "",
                "rlm_sandbox.journal.head": past.head,
                "rlm_sandbox.final.sha256": past.final.digest if past.final else "",
            },
        )
    ]
    known = ModelNames()
    for each in (first, start):
        if each is not None:
            known.learn(each.model, each.settings.get("allow_model"))
    for cell in past.cells.values():
        spans += _cell(cell, trace, root, start.provider if start else "", known)
    resource = {"service.name": "rlm-sandbox", "service.version": __version__}
    request = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [
                    {"scope": {"name": "rlm_sandbox", "version": __version__}, "spans": spans, "schemaUrl": SCHEMA_URL}
                ],
            }
        ]
    }
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def _cell(cell: PastCell, trace: str, root: str, provider: str, known: ModelNames) -> list[dict[str, Any]]:
    began = _nanos(cell.began_at)
    took = max(
        [cell.result.elapsed_ms if cell.result else 0, *(call.asked_ms + call.elapsed_ms for call in cell.calls)]
    )
    ident = _id(f"cell {cell.number}", trace, 16)
    about = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "cell",
        "gen_ai.tool.call.id": str(cell.number),
        "rlm_sandbox.cell.status": cell.status,
        "rlm_sandbox.cell.code.sha256": cell.code,
    }
    error = None if cell.status == "ok" else cell.status
    spans = [_span(trace, ident, root, "execute_tool cell", (began, began + took * _MS), about, error=error)]
    for index, call in enumerate(cell.calls):
        spans.append(_call(call, index, began, trace, ident, provider, known))
    return spans


def _call(
    call: r.Call, index: int, began: int, trace: str, cell: str, provider: str, known: ModelNames
) -> dict[str, Any]:
    usage = call.usage or [0, 0, 0, 0]
    model = known.used(call.model, call.outcome)
    about: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": known.asked(call.request.model) or model,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": usage[0] + usage[2] + usage[3],
        "gen_ai.usage.output_tokens": usage[1],
        "gen_ai.usage.cache_read.input_tokens": usage[2],
        "gen_ai.usage.cache_creation.input_tokens": usage[3],
        "rlm_sandbox.call.ordinal": call.ordinal,
        "rlm_sandbox.call.outcome": call.outcome,
        "rlm_sandbox.call.attempts": len(call.attempts),
        "rlm_sandbox.call.cost_micro_usd": call.cost_micro,
        "rlm_sandbox.call.request.sha256": call.digest,
    }
    if call.request.max_tokens is not None:
        about["gen_ai.request.max_tokens"] = call.request.max_tokens
    if call.request_id is not None:
        about["gen_ai.response.id"] = word(call.request_id)
    if call.stop_reason is not None:
        about["gen_ai.response.finish_reasons"] = [word(call.stop_reason)]
    error = None if call.error is None else call.error.code
    times = (began + call.asked_ms * _MS, began + (call.asked_ms + call.elapsed_ms) * _MS)
    ident = _id(f"call {call.cell} {index}", trace, 16)
    return _span(trace, ident, cell, f"chat {one_line(model, 100)}", times, about, kind=_CLIENT, error=error)


def _span(
    trace: str,
    ident: str,
    parent: str,
    name: str,
    times: tuple[int, int],
    attributes: dict[str, Any],
    *,
    kind: int = _INTERNAL,
    error: str | None = None,
) -> dict[str, Any]:
    if error is not None:
        attributes = {**attributes, "error.type": error}
    return {
        "traceId": trace,
        "spanId": ident,
        "parentSpanId": parent,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(times[0]),
        "endTimeUnixNano": str(times[1]),
        "attributes": _attributes(attributes),
        "status": {"code": _OK if error is None else _ERROR},
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": one_line(str(value), 1000)}


def _id(what: str, seed: str, digits: int) -> str:
    return hashlib.sha256(f"{what}\0{seed}".encode()).hexdigest()[:digits]


def _nanos(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1_000_000) * 1000 if moment else 0
