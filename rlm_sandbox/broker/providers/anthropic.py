"""The Anthropic Messages API, through the official SDK.

The SDK is asked for little: it builds the request, authenticates and reports errors. It does not retry (the broker owns retries, since each
attempt needs its own hold), does not read the environment, and does not interpret the answer: it would let a missing or negative
token count pass. The response's events are read here, against strict models, and nothing counts as said until the
whole message has ended.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import from_json

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.priming import is_shared
from rlm_sandbox.broker.providers import endpoint
from rlm_sandbox.broker.providers.anthropic_message import Message
from rlm_sandbox.broker.providers.anthropic_schema import structured
from rlm_sandbox.broker.schema import in_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from rlm_sandbox.broker.types import Call, Credentials, ProviderFault, Reply

DEFAULT_URL = "https://api.anthropic.com"
DEFAULT_MODEL = "claude-haiku-5-5"

THINKING_MIN = 1024
"""The API's own minimum of ``budget_tokens``, which must also be below ``max_tokens``. A smaller wish is raised to it where the limit
on output, which is what was held for, has room; else there is no thinking."""

WHOLE_MAX = 4096
"""Tokens of output up to which an answer may come in one piece: at 50 a second that is 80 s, far below the ten minutes up to which the SDK
itself would do so. A stream costs both ends a parse for every event, and shows nothing that anybody waits for, except that
it began."""

_ADAPTIVE_SINCE = (4, 6)
"""Models from this version on choose their own amount of thinking, steered by an effort; from 4.7 on they refuse a budget."""

_UNASKED: tuple[tuple[re.Pattern[str], dict[str, str]], ...] = (
    (re.compile(r"(^|[/.])claude-haiku-5-5"), {"type": "disabled"}),
    (re.compile(r"(^|[/.])claude-sonnet-5-5"), {"type": "between_tools"}),  # it takes no "disabled"
)
"""Models that think by default, and how each is told not to where nobody asked for it: its thoughts count as output, so they use up the
``max_tokens`` of a short answer before its first word."""

_VERSION = re.compile(r"claude-(?:[a-z]+-)?(\d)(?:[-.](\d)(?!\d))?")

_ABOUT_FORM = re.compile(r"output_config|output_format|json_schema|structured output|schema", re.IGNORECASE)
"""A refusal that says so is of the form of the answer: a model without structured output, or a schema beyond its limits."""

_CACHEABLE = (
    (re.compile(r"claude-(haiku-4|opus-4-[5-9])"), 4096),
    (re.compile(r"claude-(3-5-haiku|3-haiku)"), 2048),
    (re.compile(r"claude-(3|sonnet-4|opus-4)"), 1024),
)
_CACHEABLE_AT_LEAST = 512
"""The smallest minimum of any model. For a model not listed it errs towards priming: one call of a batch goes first in vain, where
the other error would pay for the same prefix in every call."""


class AnthropicProvider:
    """See :class:`~rlm_sandbox.broker.types.Provider`."""

    name = "anthropic"
    priced = True

    def __init__(self, credentials: Credentials, *, default_model: str = DEFAULT_MODEL) -> None:
        self._url, self._key = endpoint.admit(
            credentials, default_url=DEFAULT_URL, provider=self.name, variable="ANTHROPIC_API_KEY"
        )
        self._credentials = credentials
        self._default_model = credentials.extra.get("default_model") or default_model
        self._opening = asyncio.Lock()
        self._sdk: Any = None
        self._http: Any = None
        self._client: Any = None
        self._adaptive: set[str] = set()
        self._worded: set[tuple[str, str]] = set()
        self._thinks_anyway: set[str] = set()

    def default_model(self) -> str:
        """Return the model for sub-calls when nobody names one."""
        return self._default_model

    def min_cacheable_tokens(self, model: str) -> int | None:
        """Return the shortest prefix that is cached for this model."""
        return next((tokens for pattern, tokens in _CACHEABLE if pattern.match(model)), _CACHEABLE_AT_LEAST)

    async def attempt(self, call: Call, *, timeout_s: float, began: Callable[[], None]) -> Reply:
        """Make one request and read its whole answer. Raises :class:`ProviderFault` only."""
        await self.open()
        may_say_no = call.model not in self._thinks_anyway
        body = request_body(call, adaptive=self._is_adaptive(call.model), form=self._form(call), quiet=may_say_no)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(call, body, timeout_s, began)
        except self._sdk.APIStatusError as error:
            raise self._refused(call, body, error) from error
        except (self._sdk.AnthropicError, *self._http.FOREIGN) as error:
            raise self._http.wire_fault(error, self.name) from error

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    @property
    def is_open(self) -> bool:
        """False until the first :meth:`open`."""
        return self._client is not None

    async def open(self) -> None:
        """Import the SDK (a second of work) beside the event loop, and build this session's client."""
        async with self._opening:
            if self._client is not None:
                return
            self._sdk, self._http = await asyncio.to_thread(_load)
            self._client = self._sdk.AsyncAnthropic(
                api_key=self._key,
                base_url=self._url,
                max_retries=0,
                http_client=self._http.client(self._credentials),
                open_telemetry=False,
            )
            # The constructor adds headers from ANTHROPIC_CUSTOM_HEADERS, for which it has no switch.
            self._client._custom_headers = {}  # noqa: SLF001

    async def _exchange(self, call: Call, body: dict[str, Any], timeout_s: float, began: Callable[[], None]) -> Reply:
        create = self._client.messages.with_streaming_response.create
        async with create(**body, stream=self._streams(call), timeout=self._http.timeout(timeout_s)) as answer:
            response = answer.http_response
            message = Message(
                request_id=response.headers.get("request-id"), where=self.name, blocks=call.tools is not None
            )
            media = response.headers.get("content-type", "").lower()
            try:
                if media.startswith("application/json"):
                    began()
                    message.whole(from_json(await response.aread()))
                elif media.startswith("text/event-stream"):
                    events = self._http.sse(response.aiter_bytes())
                    async for data in events:
                        if message.event(from_json(data)):
                            began()
                        if message.complete:  # what a connection does after the last word does not unsay it
                            await self._http.drain(events)
                            break
                else:
                    raise message.unusable(f"content type {media[:60]!r}", again=False)
            except ValidationError as error:
                raise message.unusable(_first(error)) from error
            except ValueError as error:
                raise message.unusable("no JSON where JSON was due") from error
            return message.reply()

    def _form(self, call: Call) -> dict[str, Any] | None:
        """Return the schema as the API takes it; None where there is none, or where this model or the API has no way to keep to it."""
        if call.schema is None or (call.model, call.schema) in self._worded:
            return None
        return structured(json.loads(call.schema), self._sdk.transform_schema)

    def _streams(self, call: Call) -> bool:
        """Tell whether to ask for a stream: where the others of a batch wait for the begin, and for what may take long."""
        return call.output_ceiling > WHOLE_MAX or is_shared(self, call)

    def _is_adaptive(self, model: str) -> bool:
        return model in self._adaptive or _version(model) >= _ADAPTIVE_SINCE

    def _refused(self, call: Call, body: dict[str, Any], error: Any) -> ProviderFault:
        """Translate a refusal of ``body``, and learn from it: the next attempt is made without what was not taken."""
        headers = error.response.headers
        fault: ProviderFault = self._http.status_fault(
            self.name, error.status_code, headers, error.body, request_id=headers.get("request-id"), secret=self._key
        )
        if fault.code == "bad_request":
            thinking = body.get("thinking", {}).get("type")
            if thinking in {"disabled", "between_tools"} and "thinking" in fault.message:
                self._thinks_anyway.add(call.model)
                fault.retryable = True
                fault.code = "unsupported_parameter"
            elif thinking == "enabled" and "thinking.type" in fault.message:
                self._adaptive.add(call.model)
                fault.retryable = True
            elif "format" in body.get("output_config", {}) and _ABOUT_FORM.search(fault.message):
                self._worded.add((call.model, call.schema or ""))
                fault.retryable = True
                fault.code = "unsupported_parameter"
        return fault


def _load() -> tuple[ModuleType, ModuleType]:
    import anthropic  # noqa: PLC0415 - takes over a second; see the module docstring of http.py

    from rlm_sandbox.broker.providers import http  # noqa: PLC0415

    return anthropic, http


def _version(model: str) -> tuple[int, int]:
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def request_body(call: Call, *, adaptive: bool, form: dict[str, Any] | None, quiet: bool = True) -> dict[str, Any]:
    """Build the request. The shared blocks come first and are marked, so that the calls of a batch read one cache entry.

    ``form`` is the schema as the API knows it; without one, a schema is asked for in words. ``quiet`` tells a model that thinks by default not
    to, where no thinking was asked for.
    """
    marked: dict[str, Any] = {"cache_control": {"type": "ephemeral"}} if call.cache else {}
    body: dict[str, Any] = {"model": call.model, "max_tokens": call.output_ceiling}
    if call.system:
        body["system"] = [{"type": "text", "text": call.system, **marked}]
    if call.tools is not None:
        body["tools"] = conversation.decode(call.tools)
        body["messages"] = conversation.sent(conversation.decode(call.prompt), mark=marked)
    else:
        worded = call.schema is not None and form is None
        content = [{"type": "text", "text": f"{call.prompt}\n\n{in_words(call)}" if worded else call.prompt}]
        if call.prefix:
            content.insert(0, {"type": "text", "text": call.prefix, **marked})
        body["messages"] = [{"role": "user", "content": content}]
    config: dict[str, Any] = {}
    if call.thinking_budget and adaptive:
        body["thinking"] = {"type": "adaptive"}
        config["effort"] = effort(call.thinking_budget)
    elif call.thinking_budget and call.output_ceiling > THINKING_MIN:
        body["thinking"] = {"type": "enabled", "budget_tokens": max(call.thinking_budget, THINKING_MIN)}
    elif quiet and (off := _unasked(call.model)) is not None:
        body["thinking"] = off
    if form is not None:
        config["format"] = {"type": "json_schema", "schema": form}
    if config:
        body["output_config"] = config
    return body


def _unasked(model: str) -> dict[str, str] | None:
    return next((dict(off) for pattern, off in _UNASKED if pattern.search(model)), None)


def effort(thinking_budget: int) -> str:
    """Translate a thinking budget for models that take an effort instead."""
    if thinking_budget <= 2000:  # noqa: PLR2004 - the steps of rlm-skill, which scripts were tuned to
        return "low"
    return "medium" if thinking_budget <= 8000 else "high"  # noqa: PLR2004


def _first(error: ValidationError) -> str:
    """Say where a message broke its contract, without repeating what it said."""
    detail = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(str(part) for part in detail['loc']) or 'message'}: {detail['msg'][:120]}"
