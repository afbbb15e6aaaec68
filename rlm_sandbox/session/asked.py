"""One name for one question of a cell, the same in every session: what a replay compares.

The digest is over what the guest asked for, before any default of the session is filled in and without provider, key or cache scope, so that a
run can be answered from its record anywhere.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import rfc8785

if TYPE_CHECKING:
    from rlm_sandbox.broker.types import Request

ASKED_VERSION = 1
_TEXTS = ("prompt", "system", "prefix", "schema")


def form_of(request: Request) -> dict[str, Any]:
    """Return the journal's form of a request: texts by digest."""
    digests = {name: _digest(getattr(request, name)) for name in _TEXTS}
    return {
        **digests,
        "model": request.model,
        "max_tokens": request.max_tokens,
        "cache": request.cache,
        "thinking_budget": request.thinking_budget,
        "sample": request.sample,
    }


def texts_of(request: Request) -> list[str]:
    """Return the texts that :func:`form_of` names."""
    return [text for name in _TEXTS if (text := getattr(request, name)) is not None]


def digest_of(form: dict[str, Any]) -> str:
    """Return the digest of a form: SHA-256 of its RFC 8785 JSON. Numbers go as text, since JSON's have 53 bits only."""
    plain = {name: str(value) if type(value) is int else value for name, value in form.items()}
    return hashlib.sha256(rfc8785.dumps({"version": ASKED_VERSION, **plain})).hexdigest()


def _digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
