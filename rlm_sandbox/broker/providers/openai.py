"""The Chat Completions API, through the official SDK: OpenAI, Azure, OpenRouter, Ollama, vLLM, llama.cpp and their like.

The servers differ in what they accept. A dialect is guessed from the model's name and corrected by what a server refuses: a refused
parameter is left out of the next attempt, which the broker makes under its own hold. One attempt is always one request.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import from_json

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.providers import endpoint
from rlm_sandbox.broker.providers.anthropic import effort
from rlm_sandbox.broker.providers.openai_message import Completion
from rlm_sandbox.broker.schema import in_words
from rlm_sandbox.errors import PrerequisiteError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import ModuleType

    from rlm_sandbox.broker.types import Call, Credentials, ProviderFault, Reply

DEFAULT_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-6-luna"
"""The successor of ``gpt-4o-mini``, which is shut down on 2027-01-14; RLM_OPENAI_FAST (``extra["default_model"]``) sets another."""

_REASONING = re.compile(r"(^|/)(o\d|gpt-([5-9]|\d\d))")
"""Models that think: they take ``max_completion_tokens`` and an effort, and refuse ``max_tokens``."""

_UNASKED = re.compile(r"(^|/)gpt-(5\.[1-9]|6)(?!\d|.*astra)")
"""Models that think by default and take the effort "none", which is sent where nobody asked for thinking: their thoughts count as output, so they use
up the limit of a short answer before its first word. (``gpt-6-astra`` has no "none".)"""

_ABOUT_FORM = re.compile(r"schema|grammar", re.IGNORECASE)
"""A refusal that says so is of this schema: the server has no grammar for it."""

_OPTIONAL = ("stream_options", "reasoning_effort", "response_format", "max_tokens", "max_completion_tokens", "tools")
"""Parameters that can be left out, or put in another way, when a server names one in refusing."""


class OpenAIProvider:
    """See :class:`~rlm_sandbox.broker.types.Provider`."""

    name = "openai"
    priced = True

    def __init__(self, credentials: Credentials, *, default_model: str = DEFAULT_MODEL) -> None:
        self._url, self._key = endpoint.admit(
            credentials, default_url=DEFAULT_URL, provider=self.name, variable="OPENAI_API_KEY"
        )
        self._require()
        self._credentials = credentials
        self._default_model = credentials.extra.get("default_model") or default_model
        self._opening = asyncio.Lock()
        self._sdk: Any = None
        self._http: Any = None
        self._client: Any = None
        self._foreign: tuple[type[Exception], ...] = ()
        self._refused_parameters: set[tuple[str, str]] = set()
        self._worded: set[tuple[str, str]] = set()
        self._streams = True

    @property
    def seller(self) -> str:
        """Whose prices hold, as the price table names it: the same model may cost something else at another host."""
        return endpoint.seller(self._url) or self.name

    def default_model(self) -> str:
        """Return the model for sub-calls when nobody names one."""
        return self._default_model

    def min_cacheable_tokens(self, model: str) -> int | None:  # noqa: ARG002 - the same for all
        """Return None: these servers cache by themselves, and nothing is gained by sending one call first."""
        return None

    async def attempt(self, call: Call, *, timeout_s: float, began: Callable[[], None]) -> Reply:
        """Make one request and read its whole answer. Raises :class:`ProviderFault` only."""
        await self.open()
        body = self._body(call)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(call, body, timeout_s, began)
        except self._http.Refused as error:
            raise self._refused(call, body, error) from error
        except self._foreign as error:
            raise self._http.wire_fault(error, self.name) from error

    @property
    def is_open(self) -> bool:
        """False until the first :meth:`open`."""
        return self._client is not None

    async def open(self) -> None:
        """Have everything that a request needs. Raises :class:`ProviderFault`."""
        async with self._opening:
            await self._open()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._close_client()

    async def _close_client(self) -> None:
        await self._client.close()

    def _require(self) -> None:
        if importlib.util.find_spec("openai") is None:
            raise PrerequisiteError(
                "the openai package is not installed", hint="run: pip install 'rlm-sandbox[openai]'"
            )

    async def _open(self) -> None:
        """Import the SDK (a second of work) beside the event loop, and build this session's client."""
        if self._client is not None:
            return
        self._sdk, self._http = await asyncio.to_thread(_load)
        self._foreign = (self._sdk.OpenAIError, *self._http.FOREIGN)
        self._client = self._sdk.AsyncOpenAI(
            api_key=self._key,
            base_url=self._url,
            max_retries=0,
            admin_api_key="",
            webhook_secret="",
            http_client=self._http.client(self._credentials),
        )
        # The constructor takes these from the environment of the process, and has no switch for it.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}  # noqa: SLF001

    @asynccontextmanager
    async def _post(self, body: dict[str, Any], timeout_s: float) -> AsyncIterator[Any]:
        """Send a request; yield the HTTP response of a success, unread. Raises ``Refused`` for an error status."""
        create = self._client.chat.completions.with_streaming_response.create
        try:
            async with create(**body, timeout=self._http.timeout(timeout_s)) as answer:
                yield answer.http_response
        except self._sdk.APIStatusError as error:
            raise self._http.Refused(error.status_code, error.response.headers, error.body) from error

    async def _exchange(self, call: Call, body: dict[str, Any], timeout_s: float, began: Callable[[], None]) -> Reply:
        async with self._post(body, timeout_s) as response:
            headers = response.headers
            done = Completion(
                where=self.name, request_id=headers.get("x-request-id"), model=call.model, blocks=call.tools is not None
            )
            media = headers.get("content-type", "").lower()
            try:
                if media.startswith("application/json"):
                    began()
                    done.add(from_json(await response.aread()))
                elif media.startswith("text/event-stream"):
                    await self._read(response, done, began)
                else:
                    raise done.unusable(f"content type {media[:60]!r}", again=False)
            except ValidationError as error:
                raise done.unusable("a chunk that does not fit the API") from error
            except ValueError as error:
                raise done.unusable("no JSON where JSON was due") from error
        if done.finished and not done.has_usage and media.startswith("text/event-stream"):
            self._streams = False  # this server counts tokens only when it answers in one piece
            fault = done.miscounted()
            fault.retryable = True
            raise fault
        return done.reply()

    async def _read(self, response: Any, done: Completion, began: Callable[[], None]) -> None:
        started = False
        async for data in self._http.sse(response.aiter_bytes()):
            if data.startswith(b"[DONE]"):
                return
            done.add(from_json(data))
            if not started:
                began()
                started = True

    def _body(self, call: Call) -> dict[str, Any]:
        messages = [{"role": "system", "content": call.system}] if call.system else []
        body: dict[str, Any] = {"model": call.model, "messages": messages}
        if call.tools is not None:
            messages += conversation.to_chat(conversation.decode(call.prompt))
            body["tools"] = conversation.to_functions(conversation.decode(call.tools))
        else:
            text = f"{call.prefix}\n\n{call.prompt}" if call.prefix else call.prompt
            if call.schema is not None and self._in_words(call):
                text = f"{text}\n\n{in_words(call)}"
            messages.append({"role": "user", "content": text})
        body[self._limit_name(call.model)] = call.output_ceiling
        if call.thinking_budget:
            body["reasoning_effort"] = effort(call.thinking_budget)
        elif _UNASKED.search(call.model):
            body["reasoning_effort"] = "none"
        if call.schema is not None and not self._in_words(call):
            named = {"name": "answer", "schema": json.loads(call.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if self._streams and (call.model, "stream_options") not in self._refused_parameters:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        for name in ("reasoning_effort", "tools"):
            if (call.model, name) in self._refused_parameters:
                body.pop(name, None)
        return body

    def _in_words(self, call: Call) -> bool:
        """Tell whether a schema is asked for in words: of all schemas, or of this one, the server has said that it takes none."""
        refused = (call.model, "response_format") in self._refused_parameters
        return refused or (call.model, call.schema) in self._worded

    def _limit_name(self, model: str) -> str:
        names = ["max_tokens", "max_completion_tokens"]
        if _REASONING.search(model):
            names.reverse()
        return next((name for name in names if (model, name) not in self._refused_parameters), names[0])

    def _refused(self, call: Call, body: dict[str, Any], error: Any) -> ProviderFault:
        """Translate a refusal of ``body``, and learn from it: the next attempt is made without what was not taken."""
        fault: ProviderFault = self._http.status_fault(
            self.name,
            error.status,
            error.headers,
            error.body,
            request_id=error.headers.get("x-request-id"),
            secret=self._key,
        )
        if fault.code == "bad_request":
            named = [name for name in _OPTIONAL if name in body and re.search(rf"\b{name}\b", fault.message)]
            if named:
                self._refused_parameters.add((call.model, named[0]))
                fault.retryable = True
                fault.code = "unsupported_parameter"
            elif "response_format" in body and call.schema and _ABOUT_FORM.search(fault.message):
                self._worded.add((call.model, call.schema))
                fault.retryable = True
                fault.code = "unsupported_parameter"
        return fault


def _load() -> tuple[ModuleType, ModuleType]:
    import openai  # noqa: PLC0415 - takes over a second

    from rlm_sandbox.broker.providers import http  # noqa: PLC0415

    return openai, http
