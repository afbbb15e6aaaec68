"""The provider without a model: answers by rule, or by digest. It is the offline mode and the test double at once.

The same call always gets the same answer, with the same token counts, on any machine. It costs nothing unless its script
declares prices, so that budgets can be exercised without a key. The script format is documented in :mod:`.script`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from typing import TYPE_CHECKING

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.providers.script import Outcome, Script, load
from rlm_sandbox.broker.types import ProviderFault, Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.types import Call, Credentials

ECHO = 48
"""Characters of the prompt repeated in a default answer: enough to recognise which prompt it belongs to."""


class ScriptedProvider:
    """See :class:`~rlm_sandbox.broker.types.Provider`.

    In tests: ``push()`` queues outcomes that come before any rule, ``calls`` lists what was asked, ``active_peak`` how many at once.
    """

    name = "scripted"

    def __init__(self, script: Script | None = None, *, record: bool = True) -> None:
        self.script = script or Script()
        self.priced = bool(self.script.prices)
        self.price_book = PriceBook(self.script.prices) if self.priced else None
        self.calls: list[Call] = []
        self.active = 0
        self.active_peak = 0
        self._record = record
        self._queue: deque[Outcome] = deque()

    @classmethod
    def from_credentials(cls, credentials: Credentials) -> ScriptedProvider:
        """Load ``extra["script"]`` if there is one. Raises UsageError where it is no valid script."""
        path = credentials.extra.get("script")
        return cls(load(path) if path else None, record=False)

    def push(self, *outcomes: str | ProviderFault | Outcome) -> None:
        """Queue outcomes for the next calls: a text is an answer, a fault is raised."""
        for item in outcomes:
            if isinstance(item, str):
                self._queue.append(Outcome(answer=item))
            elif isinstance(item, ProviderFault):
                self._queue.append(Outcome(fault=_raiser(item)))
            else:
                self._queue.append(item)

    def default_model(self) -> str:
        """Return the name under which calls are recorded."""
        return "scripted"

    def min_cacheable_tokens(self, model: str) -> int | None:  # noqa: ARG002 - one answer for all
        """Return the script's ``min_cacheable_tokens``; without one there is no prompt cache."""
        return self.script.min_cacheable_tokens

    async def attempt(self, call: Call, *, timeout_s: float, began: Callable[[], None]) -> Reply:
        """Answer by queue, rule or digest, in that order."""
        if self._record:
            self.calls.append(call)
        self.active += 1
        self.active_peak = max(self.active_peak, self.active)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(call, began)
        except TimeoutError as error:
            raise ProviderFault("scripted did not answer in time", code="timeout", retryable=True) from error
        finally:
            self.active -= 1

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _answer(self, call: Call, began: Callable[[], None]) -> Reply:
        outcome = self._queue.popleft() if self._queue else self.script.outcome(call)
        if outcome is None and self.script.strict:
            raise ProviderFault("no rule of the script matches this prompt", code="no_rule", billable="no")
        outcome = outcome or Outcome()
        await asyncio.sleep(outcome.latency_s)
        if outcome.fault is not None:
            raise outcome.fault()
        began()
        await asyncio.sleep(outcome.duration_s)
        text = outcome.answer if outcome.answer is not None else default_answer(call)
        text = text.encode("utf-8", "replace").decode()  # a script can spell half a surrogate pair, which is no text
        if call.tools is not None:
            text = conversation.answer(text)
        return Reply(
            text=text,
            usage=outcome.usage or count(call, text),
            model=call.model,
            stop_reason="end_turn",
            request_id=f"scripted-{digest(call)[:12]}",
            raw=text.encode(),
        )


def _raiser(fault: ProviderFault) -> Callable[[], ProviderFault]:
    return lambda: fault


def digest(call: Call) -> str:
    """Identify a call by all that can change its answer."""
    parts = [
        call.model,
        call.system,
        call.prefix,
        call.prompt,
        call.max_tokens,
        call.thinking_budget,
        call.schema,
        call.sample,
    ]
    parts += [] if call.tools is None else [call.tools]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def default_answer(call: Call) -> str:
    """Return a short sentence that names the call; JSON that fits the schema where there is one."""
    if call.schema is not None:
        return json.dumps(instance(json.loads(call.schema)))
    echo = " ".join(call.prompt.split())[:ECHO]
    return f"Scripted answer {digest(call)[:12]} to: {echo}"


def count(call: Call, text: str) -> Usage:
    """Token counts as a model might report them: four bytes each, never none."""
    asked = sum(len(part.encode()) for part in (call.system, call.prefix, call.prompt) if part)
    return Usage(input_tokens=asked // 4 + 1, output_tokens=min(len(text.encode()) // 4 + 1, call.max_tokens))


def instance(schema: object, depth: int = 8) -> object:  # noqa: PLR0911 - one return for each type
    """Return a small value of a JSON Schema's type: enough for objects of scalars and lists, not a solver of constraints."""
    if not isinstance(schema, dict) or depth == 0:
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return instance(schema[union][0], depth - 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema):
        return {name: instance(part, depth - 1) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items"), depth - 1) for _ in range(int(schema.get("minItems", 1)))]
    if kind in {"integer", "number"}:
        return schema.get("minimum", 0)
    return {"string": "scripted", "boolean": False, "null": None}.get(str(kind), {})
