"""What a run was, as an in-toto statement: whoever signs it, signs the answer together with everything that led to it.

The subject is the final answer (and the journal, which names every text by digest); the predicate names input, image, limits, cells and model
calls. It is derived from the journal, and from the digests of what travels with it, so a reader derives it again and compares.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm_sandbox.session import records as r
    from rlm_sandbox.session.past import Past, PastCell

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:rlm-sandbox:run:v1"


def build(
    past: Past, *, journal_sha256: str, summary_sha256: str, manifest_sha256: str, redacted: bool
) -> dict[str, Any]:
    """Return the statement of a whole journal, and of the manifest (``bundle.json``) that it travels with."""
    subject = [{"name": "journal.jsonl", "digest": {"sha256": journal_sha256}}]
    if past.final is not None:
        subject.insert(0, {"name": "final", "digest": {"sha256": past.final.digest}})
    return {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "redacted": redacted,
            "bundle": {"sha256": manifest_sha256},
            "summary": {"sha256": summary_sha256},
            "journal": {"records": past.records, "head": past.head},
            **_run(past),
            "cells": [_cell(cell) for cell in past.cells.values()],
            "calls": [_call(call) for call in past.calls],
        },
    }


def encode(statement: dict[str, Any]) -> bytes:
    """Return the statement's bytes: the ones that are signed."""
    return json.dumps(statement, indent=1, ensure_ascii=True).encode() + b"\n"


def _run(past: Past) -> dict[str, Any]:
    start = past.latest
    if start is None:
        return {"run": None}
    known = past.input
    return {
        "run": {
            "session": start.session,
            "started_at": past.start.at if past.start else start.at,
            "last_at": past.last_at,
            "provider": start.provider,
            "model": start.model,
            "versions": start.versions,
        },
        "input": {
            "kind": start.input.kind,
            "bytes": start.input.bytes,
            "files": start.input.files,
            "sha256": known.digest if known else None,
        },
        "environment": {
            "image": start.image.model_dump(),
            "runtime": start.runtime,
            "profile": start.profile,
        },
    }


def _cell(cell: PastCell) -> dict[str, Any]:
    result = cell.result
    return {
        "cell": cell.number,
        "code": {"sha256": cell.code},
        "status": cell.status,
        "output": None if result is None else {"sha256": result.stdout.digest},
        "final": None if result is None or result.final is None else {"sha256": result.final.digest},
    }


def _call(call: r.Call) -> dict[str, Any]:
    return {
        "cell": call.cell,
        "ordinal": call.ordinal,
        "request": {"sha256": call.digest},
        "model": call.model,
        "outcome": call.outcome,
        "answer": None if call.answer is None else {"sha256": call.answer},
        "response": None if call.raw is None else {"sha256": call.raw},
        "usage": call.usage,
        "cost_micro_usd": call.cost_micro,
    }
