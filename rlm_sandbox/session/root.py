"""Turns of a root model that the host's own side asks for a session: paid from the session's account, bound by its caps.

They stand at cell 0 of the ledger's history, beside the cells' own calls, and are not part of the journal: what a root model wrote is there as the
cells that were run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.types import Position, Request
from rlm_sandbox.errors import ProviderError, UsageError
from rlm_sandbox.session.convert import budget_state, usd

if TYPE_CHECKING:
    from rlm_sandbox.session.live import LiveSession


async def converse(
    live: LiveSession, body: bytes, *, model: str | None, max_tokens: int | None, step: int
) -> dict[str, Any]:
    """Ask for one turn. ``body`` is JSON with ``system``, ``messages`` and ``tools``; returns the turn's content blocks and what they cost."""
    system, messages, tools = _parts(body)
    request = Request(
        prompt=conversation.encode(messages),
        system=system,
        tools=conversation.encode(tools),
        model=model,
        max_tokens=max_tokens,
    )
    live.touch()
    try:
        answer = await live.account.ask(request, Position(0, step))
    except ProviderError as error:
        if error.code != "no_text":
            raise
        return await _said_nothing(live, model)
    live.touch()
    return {
        "content": conversation.decode(answer.text),
        "stop_reason": answer.stop_reason,
        "model": answer.model,
        "cached": answer.cached,
        "tokens_in": answer.usage.total_in,
        "tokens_out": answer.usage.output_tokens,
        "cost_usd": usd(answer.cost_micro),
        "budget": budget_state(await live.account.budget()).model_dump(mode="json"),
    }


async def _said_nothing(live: LiveSession, model: str | None) -> dict[str, Any]:
    """Return a turn without content. A root model ends one so now and then, and goes on when it is spoken to: it costs the turn, not the job."""
    live.touch()
    return {
        "content": [],
        "stop_reason": None,
        "model": model,
        "cached": False,
        "tokens_in": 0,
        "tokens_out": 0,
        "cost_usd": 0.0,
        "budget": budget_state(await live.account.budget()).model_dump(mode="json"),
    }


def _parts(body: bytes) -> tuple[str | None, list[Any], list[Any]]:
    try:
        given = json.loads(body)
        system, messages, tools = given["system"], given["messages"], given["tools"]
        told = isinstance(messages, list) and isinstance(tools, list) and isinstance(system, (str, type(None)))
    except (ValueError, RecursionError, KeyError, TypeError):
        told = False
    if not told or not messages:
        raise UsageError("the conversation is not one", hint="client and daemon differ: rlm-sandbox broker stop")
    return system, messages, tools
