"""A journal without its texts: what was asked and answered is there by digest, size, time and price only.

Every field that can hold text of an input, a prompt, an answer, a program or a name is replaced; what stays is listed here, so that a field
that comes later is left out until somebody decides. The lines are chained anew. Digests stay: who has the text can prove that it is the one,
and who can guess a short text can prove the guess.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from rlm_sandbox.record.names import GONE, ModelNames, word
from rlm_sandbox.session.journal import GENESIS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_ALWAYS = ("v", "seq", "prev", "at", "kind")
_KEPT: dict[str, tuple[str, ...]] = {
    "start": ("session", "runtime", "provider", "model", "versions", "reopened", "image"),
    "input": ("digest", "bytes", "manifest", "index"),
    "restored": ("why", "cells"),
    "cell": ("cell", "code", "timeout_s"),
    "call": (
        "cell", "ordinal", "digest", "request", "group", "size", "outcome", "late", "answer", "raw", "model", "usage",
        "cost_micro", "attempts", "request_id", "stop_reason", "asked_ms", "elapsed_ms",
    ),
    "budget": ("cell",),
    "result": ("cell", "status", "error", "stdout", "variables", "elapsed_ms", "busy_ms"),
    "limits": (),
    "interrupt": ("cell",),
    "kernel": ("cause", "code", "cell"),
    "end": ("reason",),
}  # fmt: skip


def journal(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Return the lines of a checked journal without texts, as a chain of their own."""
    previous, known = GENESIS, ModelNames()
    for line in lines:
        record = json.loads(line)
        _models(record, known)
        plain = {name: record[name] for name in (*_ALWAYS, *_KEPT[record["kind"]])}
        replace = _REPLACED.get(record["kind"])
        plain |= replace(record) if replace is not None else {}
        plain["prev"] = previous
        out = json.dumps(plain, separators=(",", ":")).encode() + b"\n"
        previous = hashlib.sha256(out).hexdigest()
        yield out


def _models(record: dict[str, Any], known: ModelNames) -> None:
    """Take the names of a start, and hide in a call what is none of them."""
    if record["kind"] == "start":
        known.learn(record["model"], record["settings"].get("allow_model"))
    elif record["kind"] == "call":
        record["request"]["model"] = known.asked(record["request"]["model"])
        record["model"] = known.used(record["model"], record["outcome"])


def _numbers(form: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in form.items() if value is None or isinstance(value, int | float | bool)}


def _start(record: dict[str, Any]) -> dict[str, Any]:
    source = record["input"]
    return {
        "question": None,
        "input": {**source, "display": GONE, "glob": None, "exclude": None},
        "profile": {**_numbers(record["profile"]), "seccomp_sha256": record["profile"].get("seccomp_sha256")},
        "report": _numbers(record["report"]),
        "settings": _numbers(record["settings"]),
        "go": _numbers(record["go"]),
    }


def _call(record: dict[str, Any]) -> dict[str, Any]:
    error = record["error"]
    return {
        "error": None if error is None else {**error, "message": GONE, "hint": "", "code": word(error["code"])},
        "request_id": word(record["request_id"]),
        "stop_reason": word(record["stop_reason"]),
    }


def _result(record: dict[str, Any]) -> dict[str, Any]:
    final = record["final"]
    return {
        "warnings": [],
        "final": None if final is None else {**final, "name": None if final["name"] is None else GONE},
    }


_REPLACED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "start": _start,
    "call": _call,
    "result": _result,
    "limits": lambda record: {"changes": _numbers(record["changes"])},
    "budget": lambda record: {"state": _numbers(record["state"])},
    "restored": lambda record: {"divergence": None if record["divergence"] is None else GONE},
    "end": lambda _: {"message": GONE},
}
