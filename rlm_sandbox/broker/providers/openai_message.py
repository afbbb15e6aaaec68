"""One chat completion, put together from its chunks and believed only when it is whole.

The same reading serves every server that speaks this API, so it is lenient in what may be absent (names, roles, details of
usage) and strict in what is counted: token counts must be there, be integers and not be negative.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlm_sandbox.broker import conversation
from rlm_sandbox.broker.types import ProviderFault, Reply, Usage

COUNT_MAX = 10**12
"""Tokens. Far above any bill, and times any price still within the ledger's 64-bit integers."""

Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]

TOOL_CALLS_MAX = 64
"""Tool calls in one message that are looked at; a model that writes cells makes one, or a few."""

_REASONS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}
"""Translated, so that a stop reason means the same whoever answered."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Details(_Strict):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class _Usage(_Strict):
    prompt_tokens: Count
    completion_tokens: Count
    prompt_tokens_details: _Details | None = None


class _Function(_Strict):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(_Strict):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Part(_Strict):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class _Choice(_Strict):
    delta: _Part | None = None
    message: _Part | None = None
    finish_reason: str | None = None


class _Chunk(_Strict):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None


class Completion:
    """Collects chunks. ``reply()`` is the only way to an answer, and raises unless the completion ended well."""

    def __init__(self, *, where: str, request_id: str | None, model: str, blocks: bool = False) -> None:
        self._where = where
        self._as_blocks = blocks
        self._tools: dict[int, dict[str, str]] = {}
        self._request_id = request_id
        self._model = model
        self._id = ""
        self._text: list[str] = []
        self._stop: str | None = None
        self._refused = False
        self._thought = False
        self._usage: dict[str, Any] | None = None

    @property
    def has_usage(self) -> bool:
        """True once token counts of any kind came."""
        return self._usage is not None

    @property
    def finished(self) -> bool:
        """True once the model gave a reason to stop."""
        return self._stop is not None

    def add(self, data: Any) -> None:
        """Take in one chunk, or a whole completion. Raises ValidationError or ProviderFault."""
        if isinstance(data, dict) and data.get("error"):
            raise self._broken(data["error"])
        chunk = _Chunk.model_validate(data)
        self._id = chunk.id or self._id
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices[:1]:
            part = choice.delta or choice.message or _Part()
            self._text.append(part.content or "")
            self._take_tools(part.tool_calls or [], whole=choice.delta is None)
            self._refused |= bool(part.refusal)
            self._thought |= bool(part.reasoning_content)
            self._stop = choice.finish_reason or self._stop

    def reply(self) -> Reply:
        """Return the answer, or raise the fault that it amounts to."""
        if self._stop is None:
            raise ProviderFault(
                f"the answer of {self._where} was cut off",
                code="connection_lost",
                billable="unknown",
                retryable=True,
                request_id=self._request_id,
            )
        usage = self._valid_usage()
        text = self._said()
        if self._refused or self._stop == "content_filter":
            raise self._answered("refusal", f"the model of {self._where} refused to answer", usage)
        if not text.strip():
            why = "it only thought" if self._thought else f"finish reason {self._stop[:40]}"
            raise self._answered("no_text", f"the answer of {self._where} has no text ({why})", usage)
        raw = _Chunk(
            id=self._id,
            model=self._model,
            choices=[_Choice(message=_Part(content=text), finish_reason=self._stop)],
            usage=self._usage,
        ).model_dump_json(exclude_none=True)
        stop = _REASONS.get(self._stop, self._stop)
        return Reply(text, usage, self._model, stop, self._request_id or self._id or None, raw.encode())

    def _take_tools(self, calls: list[_ToolCall], *, whole: bool) -> None:
        """Join the pieces of tool calls; in a whole message they come one after the other, without a number each."""
        for place, call in enumerate(calls[:TOOL_CALLS_MAX]):
            known = self._tools.setdefault(place if whole else call.index, {"id": "", "name": "", "arguments": ""})
            function = call.function or _Function()
            known["id"] = call.id or known["id"]
            known["name"] += function.name or ""
            known["arguments"] += function.arguments or ""

    def _said(self) -> str:
        """Return the answer's text; of a conversation with tools its blocks, as JSON, empty when there is none."""
        text = "".join(self._text)
        if not self._as_blocks:
            return text
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text.strip() else []
        for number, call in sorted(self._tools.items())[:TOOL_CALLS_MAX]:
            blocks.append(conversation.tool_use(call["name"], call["id"] or f"call_{number}", call["arguments"]))
        return conversation.encode(blocks) if blocks else ""

    def unusable(self, why: str, *, again: bool = True) -> ProviderFault:
        """Return the fault for a response that is no completion. ``again=False``: the next one would not be either."""
        return ProviderFault(
            f"{self._where} sent an unusable answer: {why}",
            code="bad_answer",
            billable="unknown",
            retryable=again,
            request_id=self._request_id,
        )

    def _valid_usage(self) -> Usage:
        try:
            counts = _Usage.model_validate(self._usage or {})
        except ValidationError as error:
            raise self.miscounted(error) from error
        details = counts.prompt_tokens_details or _Details()
        read, write = details.cached_tokens or 0, details.cache_write_tokens or 0
        if read + write > counts.prompt_tokens:
            raise self.miscounted()
        return Usage(counts.prompt_tokens - read - write, counts.completion_tokens, read, write)

    def miscounted(self, error: ValidationError | None = None) -> ProviderFault:
        """Return the fault for an answer that cannot be settled."""
        details = error.errors(include_input=False) if error else []
        names = ", ".join(sorted({str(detail["loc"][-1]) for detail in details}))
        if not names:
            names = "more cached tokens than tokens" if self.has_usage else "none at all"
        return ProviderFault(
            f"{self._where} answered without usable token counts ({names})",
            code="bad_usage",
            billable="unknown",
            request_id=self._request_id,
        )

    def _answered(self, code: str, message: str, usage: Usage) -> ProviderFault:
        return ProviderFault(message, code=code, billable="yes", usage=usage, request_id=self._request_id)

    def _broken(self, error: Any) -> ProviderFault:
        """An error inside a stream that had begun: what was made up to there may be billed."""
        kind = str(error.get("type") or error.get("code")) if isinstance(error, dict) else ""
        overloaded = "overloaded" in kind
        return ProviderFault(
            f"{self._where} broke off its answer ({kind[:60]})",
            code="overloaded" if overloaded else "server_error",
            billable="unknown",
            retryable=True,
            overloaded=overloaded,
            request_id=self._request_id,
        )
