"""A small real model on this machine: no key, no network, no price. The default where no key is set, and the demo's.

It is the OpenAI adapter pointed at a llama.cpp server of our own (:mod:`.local_process`), without the SDK: nothing here needs its second of
import. Answers are greedy; ``sample`` above 0 draws with that number as seed. Even greedy answers can differ by what else was in
the same batch, since sums are rounded in another order: only a replay is exact.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.providers import local_process, weights
from rlm_sandbox.broker.providers.openai import OpenAIProvider
from rlm_sandbox.broker.types import Credentials, ProviderFault, Secret
from rlm_sandbox.errors import PrerequisiteError
from rlm_sandbox.settings import home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import ModuleType

    from rlm_sandbox.broker.types import Call, Reply

SAMPLE_TEMPERATURE = 0.8
"""llama.cpp's own default: answers differ, and still make sense."""


SMALL_OUTPUT_MAX = 512
"""Tokens of an answer of the small model; the stop reason tells when it was cut. It says nothing of use that is longer: it
repeats itself, and 4096 tokens of that take minutes of both cores. Weights of one's own have no such limit."""


class LocalProvider(OpenAIProvider):
    """See :class:`~rlm_sandbox.broker.types.Provider`. ``extra``: ``gguf`` (weights of one's own), ``models_dir``."""

    name = "local"
    priced = False

    def __init__(self, credentials: Credentials) -> None:
        self._gguf = weights.own(credentials.extra["gguf"]) if credentials.extra.get("gguf") else None
        self._small = self._gguf is None
        model = self._gguf.stem.lower() if self._gguf else weights.MODEL
        # The address is not known before the server runs; admission is not needed for our own child on loopback.
        super().__init__(Credentials(base_url="http://127.0.0.1:9/v1", extra=credentials.extra), default_model=model)
        self._models = Path(credentials.extra["models_dir"]) if "models_dir" in credentials.extra else home() / "models"
        self._server: local_process.Server | None = None

    @property
    def seller(self) -> str:
        """Nobody."""
        return self.name

    async def prepare(self) -> None:
        """Fetch the weights if they are not there, and start the server. Raises PrerequisiteError.

        Optional: the first call does the same; a session that prepares fails early and with a better message.
        """
        async with self._opening:
            await self._start()

    async def aclose(self) -> None:
        """Close the connections and give the server back."""
        await super().aclose()
        self._client = None
        if self._server is not None:
            server, self._server = self._server, None
            await local_process.release(server)

    async def _close_client(self) -> None:
        await self._client.aclose()

    def _require(self) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise PrerequisiteError(
                "the xllamacpp package is not installed", hint="run: pip install 'rlm-sandbox[local]'"
            )

    async def _open(self) -> None:
        try:
            await self._start()
        except PrerequisiteError as error:
            text = f"{error.message} ({error.hint})"
            raise ProviderFault(text, code="unreachable", billable="no") from error

    async def _start(self) -> None:
        if self._server is not None and self._server.alive:
            return
        await self.aclose()
        if self._gguf is None:
            self._gguf = await asyncio.to_thread(weights.ensure, self._models)
        self._server = await local_process.lease(local_process.Shape.fitted(self._gguf, self._default_model))
        self._url, self._key = self._server.url, self._server.key
        self._http = await asyncio.to_thread(_load)
        self._foreign = self._http.FOREIGN
        self._client = self._http.client(Credentials(api_key=Secret(self._key)))

    @asynccontextmanager
    async def _post(self, body: dict[str, Any], timeout_s: float) -> AsyncIterator[Any]:
        request = self._client.build_request(
            "POST",
            f"{self._url}/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {self._key}"},
            timeout=self._http.timeout(timeout_s),
        )
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code >= 300:  # noqa: PLR2004 - anything but a success
                raise self._http.Refused(response.status_code, response.headers, _decoded(await response.aread()))
            yield response
        finally:
            await response.aclose()

    def _body(self, call: Call) -> dict[str, Any]:
        body = super()._body(call)
        body.pop("reasoning_effort", None)
        if call.tools is not None:
            self._hold_to_tool(body, call)
        if self._small:
            body["max_tokens"] = min(call.output_ceiling, SMALL_OUTPUT_MAX)
        if call.sample:
            body |= {"temperature": SAMPLE_TEMPERATURE, "seed": call.sample}
        return body

    def _hold_to_tool(self, body: dict[str, Any], call: Call) -> None:
        """Ask for the first tool's arguments and nothing else: a model this small would only talk, and the server knows no tools."""
        tool = conversation.decode(call.tools or "[]")[0]
        body.pop("tools", None)
        system = [message for message in body["messages"] if message["role"] == "system"]
        body["messages"] = system + conversation.to_plain(conversation.decode(call.prompt))
        named = {"name": tool["name"], "schema": _shortened(tool["input_schema"])}
        body["response_format"] = {"type": "json_schema", "json_schema": named}

    async def attempt(self, call: Call, *, timeout_s: float, began: Callable[[], None]) -> Reply:
        """As any provider; in a conversation with tools the answer is the arguments of a call."""
        reply = await super().attempt(call, timeout_s=timeout_s, began=began)
        if call.tools is None:
            return reply
        name = conversation.decode(call.tools)[0]["name"]
        said = conversation.text_of(conversation.decode(reply.text))
        return replace(reply, text=conversation.encode([conversation.tool_use(name, f"call_{hash_of(said)}", said)]))


ARGUMENT_MAX = 240
"""Characters of a tool's argument: the grammar then closes the JSON before the tokens of a turn are used up."""


def _shortened(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's schema with an end to its texts, which a model that repeats itself does not find alone."""
    parts = {
        name: {**part, "maxLength": ARGUMENT_MAX} if part.get("type") == "string" else part
        for name, part in schema.get("properties", {}).items()
    }
    return {**schema, "properties": parts}


def hash_of(text: str) -> str:
    """Return a short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _decoded(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")


def _load() -> ModuleType:
    from rlm_sandbox.broker.providers import http  # noqa: PLC0415 - slow to import

    return http
