"""One chat completion, put together from its chunks and believed only when it is whole.

The same reading serves every server that speaks this API, so it is lenient in what may be absent (names, roles, details of
usage) and strict in what is counted: token counts must be there, be integers and not be negative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from rlm_sandbox.broker.providers.answer import Answer, Count, Strict, short_id
from rlm_sandbox.broker.types import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_sandbox.broker.types import ProviderFault

TOOL_CALLS_MAX = 64
"""Tool calls in one message that are looked at; a model that writes cells makes one, or a few."""

_REASONS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}
"""Translated, so that a stop reason means the same whoever answered."""


class _Details(Strict):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class _Usage(Strict):
    prompt_tokens: Count
    completion_tokens: Count
    prompt_tokens_details: _Details | None = None


class _Function(Strict):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Strict):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Part(Strict):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class _Choice(Strict):
    delta: _Part | None = None
    message: _Part | None = None
    finish_reason: str | None = None


class _Chunk(Strict):
    id: str | None = None
    model: str | None = None
    choices: Annotated[list[_Choice], Field(default_factory=list)]
    usage: Any = None
    """What is no object is none."""


class Completion(Answer):
    """Collects chunks. ``reply()`` is the only way to an answer, and raises unless the completion ended well."""

    def __init__(self, *, where: str, request_id: str | None, model: str, blocks: bool = False) -> None:
        super().__init__(where=where, request_id=request_id, blocks=blocks)
        self._tools: dict[int, dict[str, str]] = {}
        self._model = model
        self._id = ""
        self._refused = False
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
        if isinstance(chunk.usage, dict) and chunk.usage:
            self._usage = chunk.usage
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
            raise self.cut_off()
        usage = self._valid_usage()
        text = self.told(self._tool_uses(), usage, refused=self._refused or self._stop == "content_filter")
        raw = _Chunk(
            id=self._id,
            model=self._model,
            choices=[_Choice(message=_Part(content=text), finish_reason=self._stop)],
            usage=self._usage,
        ).model_dump_json(exclude_none=True)
        stop = _REASONS.get(self._stop, self._stop)
        return Reply(text, usage, self._model, stop, self._request_id or short_id(self._id), raw.encode())

    def _take_tools(self, calls: list[_ToolCall], *, whole: bool) -> None:
        """Join the pieces of tool calls; in a whole message they come one after the other, without a number each."""
        for place, call in enumerate(calls[:TOOL_CALLS_MAX]):
            known = self._tools.setdefault(place if whole else call.index, {"id": "", "name": "", "arguments": ""})
            function = call.function or _Function()
            known["id"] = call.id or known["id"]
            known["name"] += function.name or ""
            known["arguments"] += function.arguments or ""

    def _tool_uses(self) -> Iterator[tuple[str, str, str]]:
        for number, call in sorted(self._tools.items())[:TOOL_CALLS_MAX]:
            yield call["name"], call["id"] or f"call_{number}", call["arguments"]

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
        return self._uncounted(names)

    def _broken(self, error: Any) -> ProviderFault:
        kind = str(error.get("type") or error.get("code")) if isinstance(error, dict) else ""
        return self._broken_off(kind, overloaded="overloaded" in kind)
